"""Augmentation of batches on their device: colours, SpecAugment and mixup, by the draws of the plan."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mbt.train.data.batch import Batch
from mbt.train.data.color import colour_jitter
from mbt.train.recipes.schema import TrainRecipe

PAIR = 2


def augment(batch: Batch, recipe: TrainRecipe) -> Batch:
    """The batch as training sees it."""
    plan = batch.plan
    if batch.rgb is not None:
        batch = replace(batch, rgb=colour_jitter(batch.rgb, plan))
    if batch.spec is not None:
        batch = replace(batch, spec=spec_augment(batch.spec, plan.mask, recipe.time_mask, recipe.frequency_mask))
    if recipe.mixup_alpha is None:
        return batch
    return mixup(batch, plan.mix, recipe.modality_mixup, recipe.group_size or PAIR)


def spec_augment(spec: Tensor, draws: np.ndarray, max_rows: int, max_bands: int) -> Tensor:
    """Mask a span of rows and a span of mel bands of each example (Park et al., arXiv 1904.08779).

    Masked values are 0, the mean of standardised log-mel. Lengths are uniform over 0 .. max - 1, as in the official code.

    Args:
        spec: (B, T, M).
        draws: (B, 4) in [0, 1): length and place of the mask over time, and of that over bands.
        max_rows: longest mask over time; 0: none.
        max_bands: widest mask over bands; 0: none.
    """
    rows = _masked(draws[:, 0], draws[:, 1], max_rows, spec.shape[1], spec.device)
    bands = _masked(draws[:, 2], draws[:, 3], max_bands, spec.shape[2], spec.device)
    return spec.masked_fill(rows.unsqueeze(2) | bands.unsqueeze(1), 0.0)


def mixup(batch: Batch, weights: np.ndarray, by_modality: bool, group_size: int) -> Batch:
    """Mix each example with its partner (Zhang et al., arXiv 1710.09412): w * own + (1 - w) * partner's.

    The partner is the example at the same place of the group, counted from its end. An example's weight is not raised above
    one half.

    Args:
        batch: a batch with targets; its size is a multiple of `group_size`.
        weights: (B, 2) in [0, 1], an example's own share in rgb and in spec.
        by_modality: the paper's modality mixup: each modality's loss has targets mixed as its input is; without, the
            weights of rgb are those of spec too.
        group_size: examples that are mixed among themselves.
    """
    assert batch.targets is not None
    targets = batch.targets["all"]
    own = {m: torch.from_numpy(w).to(targets) for m, w in zip(("rgb", "spec"), weights.T, strict=True)}
    if by_modality:
        mixed = {m: _mixed(targets, weight, group_size) for m, weight in own.items()}
    else:
        mixed = {"all": _mixed(targets, own["rgb"], group_size)}
    return replace(
        batch,
        rgb=None if batch.rgb is None else _mixed(batch.rgb, own["rgb"], group_size),
        spec=None if batch.spec is None else _mixed(batch.spec, own["spec"], group_size),
        targets=mixed,
    )


def _masked(length: np.ndarray, place: np.ndarray, longest: int, size: int, device: torch.device) -> Tensor:
    """bool (B, size): the masked span of each example."""
    lengths = (length * min(longest, size)).astype(np.int64)
    starts = (place * (size - lengths + 1)).astype(np.int64)
    positions = np.arange(size)
    inside = (positions >= starts[:, None]) & (positions < (starts + lengths)[:, None])
    return torch.from_numpy(inside).to(device)


def _mixed(x: Tensor, weight: Tensor, group_size: int) -> Tensor:
    partner = x.unflatten(0, (-1, group_size)).flip(1).flatten(0, 1)
    weight = weight.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return torch.lerp(partner, x, weight)
