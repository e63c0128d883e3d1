"""Training losses."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from mbt.manifests.tasks import Task


def training_loss(logits: Mapping[str, Tensor], targets: Mapping[str, Tensor], task: Task, label_smoothing: float) -> Tensor:
    """Mean of the modalities' losses, as the official code trains its `token` classifier.

    Args:
        logits: (B, C) by modality.
        targets: float32 (B, C) under `all`, or by modality; multi-hot, or mixtures of multi-hot targets.
        task: `multilabel`: binary cross-entropy summed over the classes; `multiclass`: cross-entropy. Both are means over B.
        label_smoothing: e; targets become `(1 - e) * y + e / C`.

    Returns:
        Scalar float32.
    """
    losses = []
    for modality, each in logits.items():
        target = targets[modality] if modality in targets else targets["all"]
        losses.append(_loss(each.float(), target * (1 - label_smoothing) + label_smoothing / target.shape[1], task))
    return torch.stack(losses).mean()


def _loss(logits: Tensor, targets: Tensor, task: Task) -> Tensor:
    if task == "multiclass":
        return F.cross_entropy(logits, targets)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)
