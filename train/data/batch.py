"""Batches: raw, as read from shards, and decoded, as the model takes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mbt.train.sampling.plan import StepPlan


@dataclass(frozen=True)
class RawBatch:
    """B compressed views from shards or from a media file.

    Attributes:
        plan: rows and draws of the views.
        jpegs: B * F JPEG files, view by view; empty for a model without rgb.
        spec: float16 (B, T, M) log-mel; None for a model without spec.
    """

    plan: StepPlan
    jpegs: list[bytes]
    spec: np.ndarray | None


@dataclass(frozen=True)
class Batch:
    """B views on the device.

    Attributes:
        plan: rows and draws of the views.
        rgb: float32 (B, F, 3, H, W) in [-1, 1], or None.
        spec: float32 (B, T, M), standardized, or None.
        targets: float32 (B, C), multi-hot or mixed, under `all` or under each modality; None if unknown.
    """

    plan: StepPlan
    rgb: Tensor | None
    spec: Tensor | None
    targets: dict[str, Tensor] | None

    def split(self, size: int) -> "list[Batch]":
        """Split the batch into parts of at most `size` examples."""
        return [self._part(slice(first, first + size)) for first in range(0, len(self.plan.rows), size)]

    def _part(self, span: slice) -> "Batch":
        return Batch(
            self.plan.part(span),
            None if self.rgb is None else self.rgb[span],
            None if self.spec is None else self.spec[span],
            None if self.targets is None else {name: each[span] for name, each in self.targets.items()},
        )


def uninitialized(shape: Sequence[int], device: torch.device) -> Tensor:
    """An empty float32 tensor. CPU memory comes from NumPy: huge pages, whose page faults cost a quarter of torch's."""
    if device.type == "cpu":
        return torch.from_numpy(np.empty(shape, np.float32))
    return torch.empty(shape, device=device)
