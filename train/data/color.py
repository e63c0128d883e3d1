"""Colour jitter of frames on their device, as the official code has it from DMVR: one draw a view for all its frames.

Brightness, saturation, contrast and hue in this order (`color_default_augm`); each is TensorFlow's `tf.image.adjust_*`.
"""

import numpy as np
import torch
from torch import Tensor

from mbt.train.sampling.plan import UNCOLORED, StepPlan

GREY = (0.2989, 0.5870, 0.1140)
"""Weights of red, green and blue."""


def colour_jitter(rgb: Tensor, plan: StepPlan) -> Tensor:
    """The frames with the colours of the plan; views whose colours it leaves alone keep every value.

    Args:
        rgb: float (B, F, 3, H, W) in [-1, 1].
        plan: `colour` and `grey` of each view.
    """
    changed = (plan.color != UNCOLORED).any(1)
    if changed.any():
        rgb = rgb.clone()
        places = torch.from_numpy(changed.nonzero()[0]).to(rgb.device)
        rgb[places] = _to_unit_and_back(rgb[places], plan.color[changed])
    if plan.gray.any():
        weights = rgb.new_tensor(GREY).view(3, 1, 1)
        grey = torch.from_numpy(plan.gray).to(rgb.device).view(-1, 1, 1, 1, 1)
        rgb = torch.where(grey, (rgb * weights).sum(2, keepdim=True), rgb)
    return rgb


def _to_unit_and_back(rgb: Tensor, colour: np.ndarray) -> Tensor:
    brightness, saturation, contrast, hue = (
        torch.from_numpy(draws).to(rgb).view(-1, 1, 1, 1, 1) for draws in np.ascontiguousarray(colour.T)
    )
    x = (rgb + 1) / 2 + brightness
    x = saturated(x, saturation)
    mean = x.mean((3, 4), keepdim=True)
    x = (x - mean) * contrast + mean
    return turned(x, hue).clamp(0, 1) * 2 - 1


def saturated(x: Tensor, factor: Tensor) -> Tensor:
    """`x` (..., 3, H, W) with the S of its HSV multiplied by `factor` and cut to [0, 1]; H and V stay."""
    value, span = _value_and_span(x)
    now = torch.where(value > 0, span / value, 0)
    wanted = (now * factor).clamp(0, 1)
    return value - (value - x) * torch.where(span > 0, wanted * value / span, 0)


def turned(x: Tensor, by: Tensor) -> Tensor:
    """`x` (..., 3, H, W) with its hue turned `by` of a circle; its largest and smallest values stay."""
    value, span = _value_and_span(x)
    red, green, blue = x.unbind(-3)
    safe = torch.where(span > 0, span, 1).squeeze(-3)
    top = value.squeeze(-3)
    sixths = torch.where(
        top == red, (green - blue) / safe, torch.where(top == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    offsets = x.new_tensor([5.0, 3.0, 1.0]).view(3, 1, 1)
    place = (offsets + sixths.unsqueeze(-3) + 6 * by).remainder(6)
    return value - span * torch.minimum(place, 4 - place).clamp(0, 1)


def _value_and_span(x: Tensor) -> tuple[Tensor, Tensor]:
    value = x.amax(-3, keepdim=True)
    return value, value - x.amin(-3, keepdim=True)
