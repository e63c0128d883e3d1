"""Colour jitter against Python's colorsys, pixel by pixel, and against what TensorFlow documents of each step."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch

from mbt.train.data.color import colour_jitter
from mbt.train.data.random_access import centred
from mbt.train.sampling.plan import UNCOLORED, Jitter, StepPlan, TrainPlan


def frames(views: int, seed: int = 0) -> np.ndarray:
    """float64 (B, 2, 3, 5, 6) in [-1, 1], with greys, blacks and whites among them."""
    values = np.random.default_rng(seed).uniform(-1, 1, (views, 2, 3, 5, 6))
    values[:, :, :, 0, 0], values[:, :, :, 0, 1], values[:, :, :, 0, 2] = -1, 1, 0.25
    return values


def plan(colour: tuple[float, ...] | np.ndarray = UNCOLORED, grey: bool = False, views: int = 1) -> StepPlan:
    return replace(centred(np.arange(views)), color=np.tile(colour, (views, 1)), gray=np.full(views, grey))


def expected(frame: np.ndarray, brightness: float, saturation: float, contrast: float, hue: float) -> np.ndarray:
    """(3, H, W) in [-1, 1], by colorsys."""

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
    "colour",
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
def test_each_step_is_that_of_colorsys(colour: tuple[float, float, float, float]) -> None:
    """Values stay positive after the brightness here, where colorsys is defined."""
    rgb = frames(1) * 0.8
    ours = colour_jitter(torch.from_numpy(rgb), plan(colour))
    for frame, found in zip(rgb[0], ours[0].numpy(), strict=True):
        np.testing.assert_allclose(found, expected(frame, *colour), atol=1e-12)


def test_contrast_is_about_each_frames_own_mean() -> None:
    rgb = np.stack([np.full((3, 4, 4), -0.5), np.full((3, 4, 4), 0.5)])[None]
    rgb[0, 1, :, 0, 0] = 0.6
    ours = colour_jitter(torch.from_numpy(rgb), plan((0.0, 1.0, 0.5, 0.0))).numpy()
    np.testing.assert_allclose(ours[0, 0], -0.5)
    np.testing.assert_allclose(ours[0, 1, 0, 0, 0], 0.50625 + (0.6 - 0.50625) / 2)


def test_values_below_black_and_above_white_are_cut_only_at_the_end() -> None:
    """Brightness lifts white to 1.1; contrast brings it back below 1 where the mean is low: nothing was cut between."""
    rgb = np.full((1, 1, 3, 10, 10), -1.0)
    rgb[..., 0, 0] = 1.0
    ours = colour_jitter(torch.from_numpy(rgb), plan((0.1, 1.0, 0.6, 0.0))).numpy()
    mean = 0.1 + 0.01
    assert ours[0, 0, 0, 0, 0] == pytest.approx(2 * (mean + 0.6 * (1.1 - mean)) - 1)
    dark = colour_jitter(torch.from_numpy(rgb), plan((-0.1, 1.4, 1.0, 0.1))).numpy()
    assert (dark[..., 1:, 1:] == -1).all()
    assert np.isfinite(dark).all()


def test_grey_is_the_weighted_sum_in_each_channel() -> None:
    rgb = frames(1)
    ours = colour_jitter(torch.from_numpy(rgb), plan(grey=True)).numpy()
    wanted = 0.2989 * rgb[:, :, 0] + 0.587 * rgb[:, :, 1] + 0.114 * rgb[:, :, 2]
    for channel in range(3):
        np.testing.assert_allclose(ours[:, :, channel], wanted, atol=1e-12)


def test_each_view_has_its_own_draws_for_all_its_frames() -> None:
    draws = TrainPlan(0, 16, 16, None, Jitter(True, None, 0.5, 0.3)).step(0)
    rgb = torch.from_numpy(frames(16).astype(np.float32))
    together = colour_jitter(rgb, draws)
    changed = (draws.color != UNCOLORED).any(1) | draws.gray
    assert 0 < changed.sum() < 16
    for view in range(16):
        alone = colour_jitter(rgb[view : view + 1], draws.part(slice(view, view + 1)))
        torch.testing.assert_close(together[view], alone[0])
        assert torch.equal(together[view], rgb[view]) == (not changed[view])
        frame = colour_jitter(rgb[view : view + 1, 1:], draws.part(slice(view, view + 1)))
        torch.testing.assert_close(together[view, 1:], frame[0])
    assert torch.equal(rgb, torch.from_numpy(frames(16).astype(np.float32))), "the input is left as it was"
