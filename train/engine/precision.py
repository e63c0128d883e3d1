"""Precision: which numbers the model computes in, the scale of the loss that float16 needs, and clipping."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIRST_SCALE, GROWTH_INTERVAL = 2.0**16, 2000
"""As torch's GradScaler has them."""
CLIP_EPSILON = 1e-6
"""As torch's clip_grad_norm_ has it."""


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What autocast computes in, None for float32; `auto` is bfloat16 on a GPU that has it, else float32."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return DTYPES[precision]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """The autocast context of this precision."""
    dtype = autocast_dtype(precision, device)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


@dataclass
class LossScale:
    """Dynamic scale of the loss: gradients below float16's smallest number survive, and steps that overflow are left out.

    Attributes:
        value: what the loss is multiplied by.
        finite_steps: steps without an overflow since the value changed.
    """

    value: float = FIRST_SCALE
    finite_steps: int = 0

    @classmethod
    def of(cls, precision: str) -> "LossScale | None":
        """The scale for this precision: only float16 has one."""
        return cls() if precision == "float16" else None

    def update(self, finite: bool) -> None:
        """Halve the scale after an overflow, double it after 2,000 steps without one."""
        self.finite_steps = self.finite_steps + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.finite_steps == GROWTH_INTERVAL:
            self.value, self.finite_steps = self.value * 2, 0


def unscale_and_clip(gradients: list[Tensor], scale: LossScale | None, max_norm: float | None) -> Tensor:
    """Divide gradients by what the loss was multiplied by, clip them together; returns their L2 norm between the two."""
    if scale is not None:
        torch._foreach_mul_(gradients, 1 / scale.value)
    norm = nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        torch._foreach_mul_(gradients, (max_norm / (norm + CLIP_EPSILON)).clamp(max=1.0))
    return norm


def gradients_of(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients that there are."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
