"""Color jitter of frames on their device, as in DMVR, which the official code uses: one draw per view, for all its frames.

Brightness, saturation, contrast and hue in this order (`color_default_augm`); each is TensorFlow's `tf.image.adjust_*`.
"""

import numpy as np
import torch
from torch import Tensor

from mbt.train.sampling.plan import UNCOLORED, StepPlan

GRAY_WEIGHTS = (0.2989, 0.5870, 0.1140)
"""Red, green and blue."""


def color_jitter(rgb: Tensor, plan: StepPlan) -> Tensor:
    """Change the colors of frames as planned; views without a planned change keep their exact values.

    Args:
        rgb: float (B, F, 3, H, W) in [-1, 1].
        plan: its `color` and `gray` are used.
    """
    changed = (plan.color != UNCOLORED).any(1)
    if changed.any():
        rgb = rgb.clone()
        views = torch.from_numpy(changed.nonzero()[0]).to(rgb.device)
        rgb[views] = _jitter(rgb[views], plan.color[changed])
    if plan.gray.any():
        weights = rgb.new_tensor(GRAY_WEIGHTS).view(3, 1, 1)
        gray = torch.from_numpy(plan.gray).to(rgb.device).view(-1, 1, 1, 1, 1)
        rgb = torch.where(gray, (rgb * weights).sum(2, keepdim=True), rgb)
    return rgb


def _jitter(rgb: Tensor, color: np.ndarray) -> Tensor:
    brightness, saturation, contrast, hue = (
        torch.from_numpy(draws).to(rgb).view(-1, 1, 1, 1, 1) for draws in np.ascontiguousarray(color.T)
    )
    x = (rgb + 1) / 2 + brightness
    x = scale_saturation(x, saturation)
    mean = x.mean((3, 4), keepdim=True)
    x = (x - mean) * contrast + mean
    return shift_hue(x, hue).clamp(0, 1) * 2 - 1


def scale_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply S of the HSV of `x` (..., 3, H, W) by `factor` and clamp it to [0, 1]; H and V are unchanged."""
    value, chroma = _value_and_chroma(x)
    saturation = torch.where(value > 0, chroma / value, 0)
    scaled = (saturation * factor).clamp(0, 1)
    return value - (value - x) * torch.where(chroma > 0, scaled * value / chroma, 0)


def shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue of `x` (..., 3, H, W) by `turns` of a full circle; each pixel keeps its largest and smallest value."""
    value, chroma = _value_and_chroma(x)
    red, green, blue = x.unbind(-3)
    divisor = torch.where(chroma > 0, chroma, 1).squeeze(-3)
    largest = value.squeeze(-3)
    sextant = torch.where(
        largest == red,
        (green - blue) / divisor,
        torch.where(largest == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    offsets = x.new_tensor([5.0, 3.0, 1.0]).view(3, 1, 1)
    k = (offsets + sextant.unsqueeze(-3) + 6 * turns).remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def _value_and_chroma(x: Tensor) -> tuple[Tensor, Tensor]:
    value = x.amax(-3, keepdim=True)
    return value, value - x.amin(-3, keepdim=True)
