"""Groups, rates and averages of the optimisers, and the scale of the loss."""

from dataclasses import replace
from functools import partialmethod

import pytest
import torch

from mbt import MBT
from mbt.manifests.errors import ConfigError
from mbt.train.engine.engine import micro_batches
from mbt.train.engine.optimizer import follow, make_optimizer, parameter_groups, set_rates
from mbt.train.engine.precision import GROWTH_INTERVAL, LossScale
from mbt.train.engine.torch_engine import TorchEngine
from mbt.train.recipes.schema import TrainRecipe
from tests.tiny import CONFIG, tiny
from tests.train.distributed.several import batch


def settings_by_name(recipe: TrainRecipe) -> dict[str, tuple[float, float]]:
    """(weight decay, share of the rate) of each parameter."""
    model = MBT(CONFIG)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["weight_decay"], group["rate"])
        for group in parameter_groups(model, recipe)
        for parameter in group["params"]  # type: ignore[attr-defined]
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


def test_rates_fall_layer_by_layer() -> None:
    """Two layers, fused from the second: the head at 1, then 1/2 for each layer down."""
    rates = {name: rate for name, (_, rate) in settings_by_name(TrainRecipe(layer_decay=0.5)).items()}
    assert rates["head.weight"] == rates["encoder.norm.weight"] == 1
    assert rates["encoder.blocks.rgb.1.mlp.fc1.weight"] == rates["encoder.bottleneck"] == 0.5
    assert rates["encoder.blocks.spec.0.mlp.fc1.bias"] == 0.25
    assert rates["tokens.rgb.position"] == rates["tokens.spec.patches.weight"] == 0.125
    optimizer = make_optimizer(MBT(CONFIG), TrainRecipe(layer_decay=0.5))
    set_rates(optimizer, 0.8)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.1, 0.2, 0.4, 0.8])


def test_averages_follow() -> None:
    average, weight = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 4.0])
    follow([average], [weight], 0.75)
    assert average.tolist() == [0.75, 1.0]


def test_adamw_is_torchs() -> None:
    """Two steps of the engine against torch.optim.AdamW on the same gradients, with one rate for all."""
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
        reference.zero_grad()
        logits = model.logits_by_modality(given.rgb, given.spec)
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        assert given.targets is not None
        (sum(bce(each, given.targets["all"], reduction="sum") for each in logits.values()) / 8).backward()
        reference.step()
    for name, tensor in engine.state().weights.items():
        if not name.endswith("key.bias"):
            torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_the_scale_of_the_loss() -> None:
    scale = LossScale.of("float16")
    assert LossScale.of("bfloat16") is None
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


def test_weight_decay_is_adamws() -> None:
    with pytest.raises(ConfigError, match="weight_decay is set, and the optimizer sgd has none"):
        tiny("train.weight_decay=0.1")


def test_compiled_layers_give_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the graphs that inductor gets, run as they are: its own work takes most of a minute."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    config, losses = replace(CONFIG, modalities=("spec",), num_layers=1, fusion_layer=1), []
    for compiled in (False, True):
        torch.manual_seed(0)
        engine = TorchEngine(MBT(config), "multilabel", TrainRecipe(batch_size=4, compile=compiled, precision="float32"))
        losses.append([float(engine.step(batch(seed), 0.1).loss) for seed in range(3)])
        assert list(engine.state().weights) == [name for name, _ in MBT(config).named_parameters()]
        assert any(block._compiled_call_impl is not None for block in engine._module.modules()) == compiled
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
