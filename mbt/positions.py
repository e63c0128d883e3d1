"""Resizes position embeddings to another grid of patches."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resize_grid(position: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Interpolate the embeddings of a grid linearly to another grid; the corners keep their embeddings.

    If the old grid has one frame, all frames of the new one get the same embeddings. On images this equals the official
    `scipy.ndimage.zoom` of order 1.

    Args:
        position: embeddings (1, N, D), with N the number of points in `old`.
        old: shape of the grid, such as (frames, height, width).
        new: shape of the new grid, with the same number of axes.

    Returns:
        Embeddings (1, M, D), with M the number of points in `new`.
    """
    if tuple(old) == tuple(new):
        return position
    grid = position.transpose(1, 2).unflatten(2, tuple(old))
    return F.interpolate(grid, tuple(new), mode=MODES[len(old)], align_corners=True).flatten(2).transpose(1, 2)


def resize_positions(position: Tensor, old: Sequence[int], new: Sequence[int], cls: bool) -> Tensor:
    """`resize_grid`, keeping the first embedding if it is that of the CLS token (`cls`)."""
    if not cls:
        return resize_grid(position, old, new)
    return torch.cat([position[:, :1], resize_grid(position[:, 1:], old, new)], dim=1)
