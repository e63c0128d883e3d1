"""Metrics of predictions."""

from dataclasses import dataclass

import numpy as np
import torch
from torchmetrics.functional.classification import multilabel_average_precision

from manifests.datasets import Task


@dataclass(frozen=True)
class Metrics:
    """Scores of a set of predictions.

    Attributes:
        main: name of the score that decides which model is best.
        scores: by name, in [0, 1].
        average_precision: float64 (C,); NaN for a class without a positive sample.
        positives: int64 (C,): positive samples of each class.
    """

    main: str
    scores: dict[str, float]
    average_precision: np.ndarray
    positives: np.ndarray


def evaluate_logits(logits: np.ndarray, targets: np.ndarray, task: Task) -> Metrics:
    """Metrics of float32 logits (N, C) against multi-hot targets (N, C).

    Average precision is the step-wise area under the precision-recall curve, ties taken together, as in scikit-learn; mAP is
    its mean over the classes that have a positive sample.
    """
    positives = (targets > 0).sum(0)
    present = positives > 0
    precision = np.full(len(positives), np.nan)
    if present.any():
        # Ranks instead of logits: equal order and ties, and torchmetrics applies no sigmoid, which could merge values.
        ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in logits.T[present]], axis=1)
        precision[present] = multilabel_average_precision(
            torch.from_numpy(ranks / max(len(logits) - 1, 1)),
            torch.from_numpy((targets[:, present] > 0).astype(np.int64)),
            num_labels=int(present.sum()),
            average=None,
        ).numpy()
    scores = {"mAP": float(np.nanmean(precision)) if present.any() else float("nan")}
    if task == "multilabel":
        return Metrics("mAP", scores, precision, positives)
    order = np.argsort(-logits, axis=1, kind="stable")
    for k in (1, 5):
        scores[f"top-{k}"] = float(np.take_along_axis(targets, order[:, :k], 1).max(1).mean())
    return Metrics("top-1", scores, precision, positives)
