"""Parameter groups, learning rates, weight decay and averages of the optimizers, and the loss scale."""

from dataclasses import replace
from functools import partialmethod

import numpy as np
import pytest
import torch

from mbt import MBT
from mbt.train.data.batch import Batch
from mbt.train.engine.engine import micro_batches
from mbt.train.engine.optimizer import (
    DECOUPLED_DECAY,
    DecoupledSGD,
    ema_update,
    make_optimizer,
    parameter_groups,
    set_learning_rates,
)
from mbt.train.engine.precision import GROWTH_INTERVAL, LossScale
from mbt.train.engine.torch_engine import TorchEngine
from mbt.train.recipes.schema import TrainRecipe
from mbt.weights.scenic import scenic_name
from tests.tiny import CONFIG
from tests.train.distributed.several import batch


def settings_by_name(recipe: TrainRecipe) -> dict[str, tuple[float, float]]:
    """(weight decay, learning-rate factor) of each parameter."""
    model = MBT(CONFIG)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["weight_decay"], group["lr_scale"])
        for group in parameter_groups(model, recipe)
        for parameter in group["params"]
    }
    assert set(found) == set(names.values())
    return found


def test_only_kernels_decay() -> None:
    decays = {name for name, (decay, _) in settings_by_name(TrainRecipe(optimizer="adamw", weight_decay=0.1)).items() if decay}
    assert "tokens.rgb.patches.weight" in decays
    assert "encoder.blocks.rgb.0.attention.key.weight" in decays
    assert "head.weight" in decays
    for name in ("position", "cls", "bottleneck", "bias", "norm"):
        assert not [each for each in decays if name in each], name


def test_learning_rates_decrease_layer_by_layer() -> None:
    """Two layers, fused from the second: factor 1 for the head, then 1/2 per layer down."""
    rates = {name: rate for name, (_, rate) in settings_by_name(TrainRecipe(layer_decay=0.5)).items()}
    assert rates["head.weight"] == rates["encoder.norm.weight"] == 1
    assert rates["encoder.blocks.rgb.1.mlp.fc1.weight"] == rates["encoder.bottleneck"] == 0.5
    assert rates["encoder.blocks.spec.0.mlp.fc1.bias"] == 0.25
    assert rates["tokens.rgb.position"] == rates["tokens.spec.patches.weight"] == 0.125
    optimizer = make_optimizer(MBT(CONFIG), TrainRecipe(layer_decay=0.5))
    set_learning_rates(optimizer, 0.8)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.1, 0.2, 0.4, 0.8])


def test_ema_update() -> None:
    average, weight = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 4.0])
    ema_update([average], [weight], 0.75)
    assert average.tolist() == [0.75, 1.0]


def test_adamw_equals_torchs() -> None:
    """Two steps of the engine against torch.optim.AdamW on the same gradients, with one learning rate."""
    recipe = TrainRecipe(
        batch_size=4, optimizer="adamw", betas=(0.8, 0.9), weight_decay=0.1, max_grad_norm=None, precision="float32"
    )
    torch.manual_seed(0)
    engine, model = TorchEngine(MBT(CONFIG), "multilabel", recipe), MBT(CONFIG)
    model.load_state_dict(engine.state().weights)
    decays = [p for n, p in model.named_parameters() if n.endswith("weight") and p.ndim > 1]
    others = [p for n, p in model.named_parameters() if not (n.endswith("weight") and p.ndim > 1)]
    reference = torch.optim.AdamW(
        [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], betas=(0.8, 0.9)
    )
    for step, rate in enumerate((0.01, 0.002)):
        given = batch(step)
        engine.step(given, rate)
        for group in reference.param_groups:
            group["lr"] = rate
        gradients(model, given)
        reference.step()
    for name, tensor in engine.state().weights.items():
        if not name.endswith("key.bias"):
            torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_the_loss_scale() -> None:
    scale = LossScale.for_precision("float16")
    assert LossScale.for_precision("bfloat16") is None
    assert scale is not None
    scale.update(finite=False)
    assert (scale.value, scale.finite_steps) == (2.0**15, 0)
    for _ in range(GROWTH_INTERVAL - 1):
        scale.update(finite=True)
    assert (scale.value, scale.finite_steps) == (2.0**15, GROWTH_INTERVAL - 1)
    scale.update(finite=True)
    assert (scale.value, scale.finite_steps) == (2.0**16, 0)


@pytest.mark.parametrize(("size", "sizes"), [(None, [4]), (4, [4]), (9, [4]), (3, [2, 2]), (1, [1, 1, 1, 1])])
def test_micro_batches(size: int | None, sizes: list[int]) -> None:
    parts = micro_batches(batch(0), TrainRecipe(micro_batch=size))
    assert [len(part.plan.rows) for part, _ in parts] == sizes
    assert [share for _, share in parts] == [size / 4 for size in sizes]


def gradients(model: MBT, given: Batch) -> dict[str, np.ndarray]:
    """Gradients of the multi-label loss, float64."""
    assert given.targets is not None
    model.zero_grad()
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    losses = [
        bce(each, given.targets["all"], reduction="sum") for each in model.logits_by_modality(given.rgb, given.spec).values()
    ]
    (sum(losses) / len(losses) / 4).backward()  # type: ignore[union-attr]
    return {name: p.grad.double().numpy() for name, p in model.named_parameters() if p.grad is not None}


def test_weight_decay_of_sgd_is_the_official_trainers() -> None:
    """Two steps in NumPy, with clipping, momentum and layer decay.

    m <- 0.9 m + g, then p <- p - lr m, then p <- (1 - lr decay) p for parameters with "kernel" in their official name.
    """
    recipe = TrainRecipe(batch_size=4, weight_decay=0.4, layer_decay=0.5, max_grad_norm=0.3, precision="float32")
    torch.manual_seed(0)
    engine, model = TorchEngine(MBT(CONFIG), "multilabel", recipe), MBT(CONFIG)
    kernels = {name for name, _ in model.named_parameters() if "kernel" in scenic_name(name, CONFIG)}
    scales = {name: scale for name, (_, scale) in settings_by_name(recipe).items()}
    expected = {name: tensor.double().numpy() for name, tensor in engine.state().weights.items()}
    momentum = {name: np.zeros_like(weight) for name, weight in expected.items()}
    for step, rate in enumerate((0.5, 0.2)):
        model.load_state_dict({name: torch.from_numpy(weight).float() for name, weight in expected.items()})
        found = gradients(model, batch(step))
        norm = np.sqrt(sum((gradient**2).sum() for gradient in found.values()))
        assert norm > 0.3
        for name, gradient in found.items():
            lr = rate * scales[name]
            momentum[name] = 0.9 * momentum[name] + gradient * 0.3 / norm
            expected[name] = expected[name] - lr * momentum[name]
            if name in kernels:
                expected[name] = (1 - lr * 0.4) * expected[name]
        engine.step(batch(step), rate)
    assert 0 < len(kernels) < len(expected)
    for name, tensor in engine.state().weights.items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_parameters_without_a_gradient_do_not_decay() -> None:
    """Engines skip a step by removing the gradients."""
    with_gradient, without = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    group = {"params": [with_gradient, without], DECOUPLED_DECAY: 0.5}
    optimizer = DecoupledSGD([group], lr=0.1, momentum=0.9)
    with_gradient.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    np.testing.assert_allclose(with_gradient.detach(), [0.9 * 0.95, 1.1 * 0.95], rtol=1e-6)
    assert without.tolist() == [1, 1]


def test_compiled_layers_give_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the graphs that inductor would get, run by aot_eager: inductor itself takes most of a minute."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    config, losses = replace(CONFIG, modalities=("spec",), num_layers=1, fusion_layer=1), []
    for compiled in (False, True):
        torch.manual_seed(0)
        engine = TorchEngine(MBT(config), "multilabel", TrainRecipe(batch_size=4, compile=compiled, precision="float32"))
        losses.append([float(engine.step(batch(seed), 0.1).loss) for seed in range(3)])
        assert list(engine.state().weights) == [name for name, _ in MBT(config).named_parameters()]
        assert any(block._compiled_call_impl is not None for block in engine._module.modules()) == compiled
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
