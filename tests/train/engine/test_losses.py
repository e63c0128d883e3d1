"""Losses against NumPy."""

import numpy as np
import pytest
import torch

from mbt.train.engine.losses import training_loss

RNG = np.random.default_rng(0)
LOGITS = {m: RNG.normal(size=(3, 4)) for m in ("rgb", "spec")}
TARGETS = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]], np.float64)


def loss(task: str, smoothing: float) -> float:
    logits = {m: torch.from_numpy(x).float() for m, x in LOGITS.items()}
    return float(training_loss(logits, {"all": torch.from_numpy(TARGETS).float()}, task, smoothing))  # type: ignore[arg-type]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_multilabel_is_summed_over_classes_and_averaged_over_clips_and_modalities(smoothing: float) -> None:
    """Label smoothing applies to multi-hot targets too."""
    targets = TARGETS * (1 - smoothing) + smoothing / 4
    expected = []
    for x in LOGITS.values():
        p = 1 / (1 + np.exp(-x))
        expected.append(-(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum() / 3)
    np.testing.assert_allclose(loss("multilabel", smoothing), np.mean(expected), rtol=1e-6)


def test_multiclass_is_cross_entropy() -> None:
    expected = []
    for x in LOGITS.values():
        log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
        expected.append(-(TARGETS * log_p).sum() / 3)
    np.testing.assert_allclose(loss("multiclass", 0.0), np.mean(expected), rtol=1e-6)


def test_each_modality_may_have_its_own_targets() -> None:
    logits = {m: torch.from_numpy(x).float() for m, x in LOGITS.items()}
    own = {"rgb": torch.from_numpy(TARGETS).float(), "spec": torch.from_numpy(TARGETS[::-1].copy()).float()}
    separate = [training_loss({m: logits[m]}, {"all": own[m]}, "multilabel", 0.1) for m in own]
    together = training_loss(logits, own, "multilabel", 0.1)
    torch.testing.assert_close(together, torch.stack(separate).mean())
