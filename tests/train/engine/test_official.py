"""Training gives the official trainer's parameters, and the metric its average precision."""

import numpy as np
import pytest
import torch

from mbt.train.data.augment import mixup
from mbt.train.data.batch import Batch
from mbt.train.data.views import eval_plan
from mbt.train.engine.schedule import learning_rate
from mbt.train.engine.torch_engine import TorchEngine
from mbt.train.evaluation.metrics import evaluate_logits
from mbt.train.recipes.schema import TrainRecipe
from tests.golden import Golden, close


def batch_of(golden: Golden, inputs: str, label: str) -> Batch:
    given = golden.inputs(inputs)
    targets = {"all": torch.from_numpy(golden.arrays[label])}
    return Batch(eval_plan(np.arange(len(targets["all"]))), given["rgb"], given["spec"], targets)


def official_weights(golden: Golden, prefix: str, size: int) -> np.ndarray:
    """(size, 2): one mixing weight per modality, the same for every example."""
    weights = [float(golden.arrays[f"{prefix}/{name}"]) for name in ("rgb", "spectrogram")]
    return np.tile(weights, (size, 1))


@pytest.mark.parametrize(("name", "by_modality"), [("mixup_standard", False), ("mixup_modality", True)])
def test_mixup(name: str, by_modality: bool) -> None:
    golden = Golden(name)
    rgb = torch.from_numpy(golden.arrays["inputs/rgb"].transpose(0, 1, 4, 2, 3).copy())
    spec = torch.from_numpy(golden.arrays["inputs/spectrogram"][..., 0].copy())
    batch = Batch(eval_plan(np.arange(4)), rgb, spec, {"all": torch.from_numpy(golden.arrays["label"])})
    mixed = mixup(batch, official_weights(golden, "lambda", 4), by_modality, 4)
    assert mixed.rgb is not None
    assert mixed.spec is not None
    assert mixed.targets is not None
    close(mixed.rgb, golden.arrays["mixed/rgb"].transpose(0, 1, 4, 2, 3), 1e-6)
    close(mixed.spec, golden.arrays["mixed/spectrogram"][..., 0], 1e-6)
    assert set(mixed.targets) == ({"rgb", "spec"} if by_modality else {"all"})
    for m, targets in mixed.targets.items():
        close(targets, golden.arrays[f"mixed_label/{'spectrogram' if m == 'spec' else m}"], 1e-6)


@pytest.mark.parametrize(
    ("name", "steps", "alpha", "by_modality"),
    [
        ("train_steps_momentum_clip", 5, None, False),
        ("train_steps_mixup", 3, 0.3, False),
        ("train_steps_modality_mixup", 3, 0.5, True),
    ],
)
def test_training_steps(name: str, steps: int, alpha: float | None, by_modality: bool) -> None:
    """Several updates with label smoothing, mixup, clipping, momentum and the learning-rate schedule."""
    golden = Golden(name)
    recipe = TrainRecipe(
        batch_size=4, learning_rate=0.5, label_smoothing=0.3, mixup_alpha=alpha, modality_mixup=by_modality, precision="float32"
    )
    engine = TorchEngine(golden.model("params0"), "multilabel", recipe)
    compared = 0
    for step in range(steps):
        rate = learning_rate(step, 0.5, 2.5, 12)
        assert rate == pytest.approx(float(golden.arrays["lr"][step]), rel=1e-5, abs=1e-9)
        batch = batch_of(golden, f"step{step}/inputs", f"step{step}/label")
        if alpha is not None:
            batch = mixup(batch, official_weights(golden, f"step{step}/lambda", 4), by_modality, 4)
        engine.step(batch, rate)
        if golden.under(f"step{step}/params_after"):
            weights = engine.state().weights
            for ours, tensor in golden.tensors(f"step{step}/params_after").items():
                torch.testing.assert_close(weights[ours], tensor, rtol=1e-4, atol=2e-6, msg=lambda m, n=ours: f"{n}: {m}")
            compared += 1
    assert compared >= 2


def test_groups_are_clipped_separately() -> None:
    """Two groups of two: the mean of two clipped gradients, each computed here in its own step."""
    golden = Golden("train_steps_momentum_clip")
    batch = batch_of(golden, "step0/inputs", "step0/label")
    engine = TorchEngine(golden.model("params0"), "multilabel", TrainRecipe(batch_size=4, group_size=2, precision="float32"))
    before = engine.state().weights
    engine.step(batch, 0.1)
    expected = {name: tensor.clone() for name, tensor in before.items()}
    for part in batch.split(2):
        alone = TorchEngine(golden.model("params0"), "multilabel", TrainRecipe(batch_size=2, precision="float32"))
        alone.step(part, 0.1)
        for name, tensor in alone.state().weights.items():
            expected[name] += (tensor - before[name]) / 2
    for name, tensor in engine.state().weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7)


def test_average_precision() -> None:
    """Classes without a positive example count as 0 in the golden file; ours skips them."""
    golden = Golden("map")
    labels = golden.arrays["labels"]
    metrics = evaluate_logits(golden.arrays["logits"].astype(np.float32), labels.astype(np.float32), "multilabel")
    has = labels.sum(0) > 0
    np.testing.assert_allclose(metrics.average_precision[has], golden.arrays["per_class"][has], atol=1e-6)
    assert metrics.scores["mAP"] == pytest.approx(golden.arrays["per_class"][has].mean(), abs=1e-6)
