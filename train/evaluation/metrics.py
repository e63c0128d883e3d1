"""Metrics of predictions."""

from dataclasses import dataclass

import numpy as np
import torch

from mbt.manifests.tasks import Task


@dataclass(frozen=True)
class Metrics:
    """Scores of a set of predictions.

    Attributes:
        main: name of the score that decides which model is best.
        scores: each score in [0, 1], by name.
        average_precision: float64 (C,); NaN for classes without positive samples.
        positives: int64 (C,), number of positive samples per class.
    """

    main: str
    scores: dict[str, float]
    average_precision: np.ndarray
    positives: np.ndarray


def evaluate_logits(logits: np.ndarray, targets: np.ndarray, task: Task) -> Metrics:
    """Metrics of float32 logits (N, C) against multi-hot targets (N, C).

    Average precision is the step-wise area under the precision-recall curve, with ties grouped, as in scikit-learn; mAP is
    its mean over the classes with positive samples.
    """
    positives = (targets > 0).sum(0)
    present = positives > 0
    precision = np.full(len(positives), np.nan)
    for c in np.flatnonzero(present):
        precision[c] = _average_precision(logits[:, c], targets[:, c] > 0)
    scores = {"mAP": float(np.nanmean(precision)) if present.any() else float("nan")}
    if task == "multilabel":
        return Metrics("mAP", scores, precision, positives)
    order = np.argsort(-logits, axis=1, kind="stable")
    for k in (1, 5):
        scores[f"top-{k}"] = float(np.take_along_axis(targets, order[:, :k], 1).max(1).mean())
    return Metrics("top-1", scores, precision, positives)


def _average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    from torchmetrics.functional.classification import binary_average_precision  # slow import: not at startup

    # Ranks have the order and ties of the logits, but lie in [0, 1]: torchmetrics would apply a sigmoid to logits, which
    # rounds large ones to ties.
    ranks = np.unique(scores, return_inverse=True)[1] / max(len(scores) - 1, 1)
    return float(binary_average_precision(torch.from_numpy(ranks), torch.from_numpy(positive.astype(np.int64))))
