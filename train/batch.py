"""Batches: compressed as they are read, and decoded as the model takes them."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class RawBatch:
    """B views as they come from shards or from a media file.

    Attributes:
        rows: int64 (B,): rows of the index.
        jpegs: B * F JPEG files, the frames of a view one after the other; empty for a model without rgb.
        crop_x: float32 (B,) in [0, 1]: place of the crop box between left and right.
        crop_y: float32 (B,) in [0, 1]: between top and bottom.
        flip: bool (B,): mirror left and right.
        spec: float16 (B, T, M) log-mel; None for a model without spec.
    """

    rows: np.ndarray
    jpegs: list[bytes]
    crop_x: np.ndarray
    crop_y: np.ndarray
    flip: np.ndarray
    spec: np.ndarray | None


@dataclass(frozen=True)
class Batch:
    """B views on the device.

    Attributes:
        rows: int64 (B,) on the host: rows of the index.
        rgb: float32 (B, F, 3, H, W) in [-1, 1], or None.
        spec: float32 (B, T, M), standardised, or None.
        targets: float32 (B, C) multi-hot, or None where nothing is known.
    """

    rows: np.ndarray
    rgb: Tensor | None
    spec: Tensor | None
    targets: Tensor | None
