"""Precision: autocast, the loss scale that float16 needs, and gradient clipping."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIRST_SCALE, GROWTH_INTERVAL = 2.0**16, 2000
"""As in torch's GradScaler."""
CLIP_EPSILON = 1e-6
"""As in torch's clip_grad_norm_."""


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """dtype for autocast, None for float32; `auto` is bfloat16 on a GPU that supports it, else float32."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return DTYPES[precision]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Autocast context for a precision."""
    dtype = autocast_dtype(precision, device)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


@dataclass
class LossScale:
    """Dynamic loss scale: keeps small gradients from underflowing in float16; steps that overflow are skipped.

    Attributes:
        value: factor of the loss.
        finite_steps: steps without overflow since the value last changed.
    """

    value: float = FIRST_SCALE
    finite_steps: int = 0

    @classmethod
    def for_precision(cls, precision: str) -> "LossScale | None":
        """The initial scale; None unless the precision is float16."""
        return cls() if precision == "float16" else None

    def update(self, finite: bool) -> None:
        """Halve the scale after an overflow; double it after 2,000 steps without one."""
        self.finite_steps = self.finite_steps + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.finite_steps == GROWTH_INTERVAL:
            self.value, self.finite_steps = self.value * 2, 0


def unscale_and_clip(gradients: list[Tensor], scale: LossScale | None, max_norm: float | None) -> Tensor:
    """Divide gradients by the loss scale and clip them to a global L2 norm; returns their norm before clipping."""
    if scale is not None:
        torch._foreach_mul_(gradients, 1 / scale.value)
    norm = nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        torch._foreach_mul_(gradients, (max_norm / (norm + CLIP_EPSILON)).clamp(max=1.0))
    return norm


def gradients_of(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients of all parameters that have one."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
