"""Position embeddings for other grids of patches than they were trained on."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resize_grid(position: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Embeddings (1, N, D) of a grid, interpolated linearly to another with its corners where they were.

    A grid that has one frame gives every frame of a longer one the same embeddings. On images this is the official
    `scipy.ndimage.zoom` of order 1.

    Args:
        position: (1, product of old, D).
        old: the grid, such as (frames, height, width).
        new: the wanted grid, with as many axes.
    """
    if tuple(old) == tuple(new):
        return position
    grid = position.transpose(1, 2).unflatten(2, tuple(old))
    return F.interpolate(grid, tuple(new), mode=MODES[len(old)], align_corners=True).flatten(2).transpose(1, 2)


def resize_positions(position: Tensor, old: Sequence[int], new: Sequence[int], cls: bool) -> Tensor:
    """`resize_grid` of embeddings whose first is the CLS token's, if `cls`."""
    if not cls:
        return resize_grid(position, old, new)
    return torch.cat([position[:, :1], resize_grid(position[:, 1:], old, new)], dim=1)
