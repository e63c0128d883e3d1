"""Color jitter against Python's colorsys, pixel by pixel, and against TensorFlow's documentation of each step."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch

from mbt.train.data.color import color_jitter
from mbt.train.data.views import eval_plan
from mbt.train.sampling.plan import UNCOLORED, Jitter, StepPlan, TrainPlan


def frames(views: int, seed: int = 0) -> np.ndarray:
    """float64 (B, 2, 3, 5, 6) in [-1, 1], including gray, black and white pixels."""
    values = np.random.default_rng(seed).uniform(-1, 1, (views, 2, 3, 5, 6))
    values[:, :, :, 0, 0], values[:, :, :, 0, 1], values[:, :, :, 0, 2] = -1, 1, 0.25
    return values


def plan(color: tuple[float, ...] | np.ndarray = UNCOLORED, gray: bool = False, views: int = 1) -> StepPlan:
    return replace(eval_plan(np.arange(views)), color=np.tile(color, (views, 1)), gray=np.full(views, gray))


def expected(frame: np.ndarray, brightness: float, saturation: float, contrast: float, hue: float) -> np.ndarray:
    """(3, H, W) in [-1, 1], with colorsys."""

    def each(x: np.ndarray, change) -> np.ndarray:  # type: ignore[no-untyped-def]
        pixels = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in x.reshape(3, -1).T]
        return np.array(pixels).T.reshape(x.shape)

    x = (frame + 1) / 2 + brightness
    x = each(x, lambda h, s, v: (h, min(s * saturation, 1.0), v))
    mean = x.mean((1, 2), keepdims=True)
    x = (x - mean) * contrast + mean
    x = each(x, lambda h, s, v: ((h + hue) % 1, s, v))
    return np.clip(x, 0, 1) * 2 - 1


@pytest.mark.parametrize(
    "color",
    [
        (0.1, 1.0, 1.0, 0.0),
        (0.0, 0.6, 1.0, 0.0),
        (0.0, 1.4, 1.0, 0.0),
        (0.0, 1.0, 0.6, 0.0),
        (0.0, 1.0, 1.4, 0.0),
        (0.0, 1.0, 1.0, 0.2),
        (0.0, 1.0, 1.0, -0.2),
        (0.12, 0.7, 0.9, -0.15),
        (0.05, 1.3, 0.8, 0.11),
    ],
)
def test_each_step_equals_colorsys(color: tuple[float, float, float, float]) -> None:
    """On values that stay positive after the brightness step, as colorsys requires."""
    rgb = frames(1) * 0.8
    ours = color_jitter(torch.from_numpy(rgb), plan(color))
    for frame, found in zip(rgb[0], ours[0].numpy(), strict=True):
        np.testing.assert_allclose(found, expected(frame, *color), atol=1e-12)


def test_contrast_is_about_each_frames_own_mean() -> None:
    rgb = np.stack([np.full((3, 4, 4), -0.5), np.full((3, 4, 4), 0.5)])[None]
    rgb[0, 1, :, 0, 0] = 0.6
    ours = color_jitter(torch.from_numpy(rgb), plan((0.0, 1.0, 0.5, 0.0))).numpy()
    np.testing.assert_allclose(ours[0, 0], -0.5)
    np.testing.assert_allclose(ours[0, 1, 0, 0, 0], 0.50625 + (0.6 - 0.50625) / 2)


def test_values_are_clamped_only_at_the_end() -> None:
    """Brightness lifts white to 1.1, and contrast brings it back below 1: no clamping in between."""
    rgb = np.full((1, 1, 3, 10, 10), -1.0)
    rgb[..., 0, 0] = 1.0
    ours = color_jitter(torch.from_numpy(rgb), plan((0.1, 1.0, 0.6, 0.0))).numpy()
    mean = 0.1 + 0.01
    assert ours[0, 0, 0, 0, 0] == pytest.approx(2 * (mean + 0.6 * (1.1 - mean)) - 1)
    dark = color_jitter(torch.from_numpy(rgb), plan((-0.1, 1.4, 1.0, 0.1))).numpy()
    assert (dark[..., 1:, 1:] == -1).all()
    assert np.isfinite(dark).all()


def test_gray_is_the_weighted_sum_in_each_channel() -> None:
    rgb = frames(1)
    ours = color_jitter(torch.from_numpy(rgb), plan(gray=True)).numpy()
    wanted = 0.2989 * rgb[:, :, 0] + 0.587 * rgb[:, :, 1] + 0.114 * rgb[:, :, 2]
    for channel in range(3):
        np.testing.assert_allclose(ours[:, :, channel], wanted, atol=1e-12)


def test_each_view_has_its_own_draws_for_all_its_frames() -> None:
    draws = TrainPlan(0, 16, 16, None, Jitter(True, None, 0.5, 0.3)).step(0)
    rgb = torch.from_numpy(frames(16).astype(np.float32))
    together = color_jitter(rgb, draws)
    changed = (draws.color != UNCOLORED).any(1) | draws.gray
    assert 0 < changed.sum() < 16
    for view in range(16):
        alone = color_jitter(rgb[view : view + 1], draws.part(slice(view, view + 1)))
        torch.testing.assert_close(together[view], alone[0])
        assert torch.equal(together[view], rgb[view]) == (not changed[view])
        frame = color_jitter(rgb[view : view + 1, 1:], draws.part(slice(view, view + 1)))
        torch.testing.assert_close(together[view, 1:], frame[0])
    assert torch.equal(rgb, torch.from_numpy(frames(16).astype(np.float32))), "the input is unchanged"
