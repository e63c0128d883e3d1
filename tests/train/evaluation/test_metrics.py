"""Average precision and accuracy against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from mbt.train.evaluation.metrics import evaluate_logits


def scores(seed: int, samples: int, classes: int, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=20, size=(samples, classes)).round(decimals).astype(np.float32)
    return logits, (rng.random((samples, classes)) < 0.2).astype(np.float32)


@pytest.mark.parametrize("decimals", [6, -1], ids=["distinct", "many ties"])
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_scikit_learn(seed: int, decimals: int) -> None:
    logits, targets = scores(seed, 200, 12, decimals)
    metrics = evaluate_logits(logits, targets, "multilabel")
    expected = [average_precision_score(targets[:, c], logits[:, c]) for c in range(12)]
    np.testing.assert_allclose(metrics.average_precision, expected, atol=1e-6)
    assert metrics.scores["mAP"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert metrics.main == "mAP"


def test_large_logits_are_not_tied() -> None:
    """A float32 sigmoid maps both 40 and 41 to 1."""
    metrics = evaluate_logits(np.array([[41.0], [40.0], [39.0]], np.float32), np.array([[0.0], [1], [0]]), "multilabel")
    assert metrics.average_precision[0] == pytest.approx(0.5)


def test_classes_without_positives_are_excluded() -> None:
    logits, targets = scores(0, 50, 4, 6)
    targets[:, 2] = 0
    metrics = evaluate_logits(logits, targets, "multilabel")
    assert np.isnan(metrics.average_precision[2])
    kept = [average_precision_score(targets[:, c], logits[:, c]) for c in (0, 1, 3)]
    assert metrics.scores["mAP"] == pytest.approx(np.mean(kept), abs=1e-6)
    assert metrics.positives.tolist() == targets.sum(0).astype(int).tolist()


def test_accuracy_of_multiclass_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    logits, classes = rng.normal(size=(100, 10)), rng.integers(0, 10, 100)
    metrics = evaluate_logits(logits, np.eye(10)[classes], "multiclass")
    for k in (1, 5):
        assert metrics.scores[f"top-{k}"] == pytest.approx(top_k_accuracy_score(classes, logits, k=k))
    assert metrics.main == "top-1"
