"""Augmentation of batches on their device: color jitter, SpecAugment and mixup, from the draws of the plan."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mbt.train.data.batch import Batch
from mbt.train.data.color import color_jitter
from mbt.train.recipes.schema import TrainRecipe

PAIR = 2


def augment(batch: Batch, recipe: TrainRecipe) -> Batch:
    """Apply the planned augmentations of a training batch."""
    plan = batch.plan
    if batch.rgb is not None:
        batch = replace(batch, rgb=color_jitter(batch.rgb, plan))
    if batch.spec is not None:
        batch = replace(batch, spec=spec_augment(batch.spec, plan.mask, recipe.time_mask, recipe.frequency_mask))
    if recipe.mixup_alpha is None:
        return batch
    return mixup(batch, plan.mix, recipe.modality_mixup, recipe.group_size or PAIR)


def spec_augment(spec: Tensor, draws: np.ndarray, max_rows: int, max_bands: int) -> Tensor:
    """Mask a span of rows and a span of mel bands in each example (Park et al., arXiv 1904.08779).

    Masked values are 0, the mean of standardized log-mel. Lengths are uniform over 0 .. max - 1, as in the official code.

    Args:
        spec: (B, T, M).
        draws: (B, 4) in [0, 1): length and position of the time mask, then of the frequency mask.
        max_rows: longest time mask; 0: none.
        max_bands: widest frequency mask; 0: none.
    """
    rows = _span_mask(draws[:, 0], draws[:, 1], max_rows, spec.shape[1], spec.device)
    bands = _span_mask(draws[:, 2], draws[:, 3], max_bands, spec.shape[2], spec.device)
    return spec.masked_fill(rows.unsqueeze(2) | bands.unsqueeze(1), 0.0)


def mixup(batch: Batch, weights: np.ndarray, by_modality: bool, group_size: int) -> Batch:
    """Mix each example with its partner (Zhang et al., arXiv 1710.09412): w * own + (1 - w) * partner.

    The partner is the example at the mirrored position in the group: the first is mixed with the last. As in the official
    code, w is not replaced by max(w, 1 - w).

    Args:
        batch: a batch with targets; its size is divisible by `group_size`.
        weights: (B, 2) in [0, 1], w of each example in rgb and in spec.
        by_modality: modality mixup (paper, Sec. 4.3): each modality has its own weights, and its loss has targets mixed
            with these. If false, both columns of `weights` are equal.
        group_size: examples in a group; partners are of the same group.
    """
    assert batch.targets is not None
    targets = batch.targets["all"]
    by_name = {m: torch.from_numpy(w).to(targets) for m, w in zip(("rgb", "spec"), weights.T, strict=True)}
    if by_modality:
        mixed = {m: _mix(targets, weight, group_size) for m, weight in by_name.items()}
    else:
        mixed = {"all": _mix(targets, by_name["rgb"], group_size)}
    return replace(
        batch,
        rgb=None if batch.rgb is None else _mix(batch.rgb, by_name["rgb"], group_size),
        spec=None if batch.spec is None else _mix(batch.spec, by_name["spec"], group_size),
        targets=mixed,
    )


def _span_mask(length: np.ndarray, position: np.ndarray, longest: int, size: int, device: torch.device) -> Tensor:
    """bool (B, size): the masked span of each example."""
    lengths = (length * min(longest, size)).astype(np.int64)
    starts = (position * (size - lengths + 1)).astype(np.int64)
    positions = np.arange(size)
    inside = (positions >= starts[:, None]) & (positions < (starts + lengths)[:, None])
    return torch.from_numpy(inside).to(device)


def _mix(x: Tensor, weight: Tensor, group_size: int) -> Tensor:
    partner = x.unflatten(0, (-1, group_size)).flip(1).flatten(0, 1)
    weight = weight.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return torch.lerp(partner, x, weight)
