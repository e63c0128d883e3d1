"""Training losses."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from manifests.datasets import Task


def training_loss(logits: Mapping[str, Tensor], targets: Tensor, task: Task, label_smoothing: float) -> Tensor:
    """Mean over the modalities of each one's own loss, as the official code trains its `token` classifier.

    Args:
        logits: (B, C) by modality.
        targets: float32 (B, C), multi-hot.
        task: `multilabel`: binary cross-entropy summed over the classes; `multiclass`: cross-entropy. Both are means over B.
        label_smoothing: e; targets become `(1 - e) * y + e / C`.

    Returns:
        Scalar float32.
    """
    targets = targets * (1 - label_smoothing) + label_smoothing / targets.shape[1]
    return torch.stack([_loss(each.float(), targets, task) for each in logits.values()]).mean()


def _loss(logits: Tensor, targets: Tensor, task: Task) -> Tensor:
    if task == "multiclass":
        return F.cross_entropy(logits, targets)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)
