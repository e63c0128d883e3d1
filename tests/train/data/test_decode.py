"""Crops of any shape, against PIL and an independent interpolation."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mbt.train.data.batch import RawBatch
from mbt.train.data.decode import decode
from mbt.train.data.views import eval_plan
from tests.train.data.test_random_access import bilinear

LANDSCAPE, PORTRAIT = (90, 120), (120, 90)


def jpeg(height: int, width: int) -> bytes:
    """A smooth random picture."""
    small = np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(file, "jpeg", quality=95)
    return file.getvalue()


def decoded(file: bytes, cover: tuple[int, int] | None, crop: tuple[int, int], x: float, y: float, scale: float) -> np.ndarray:
    """The crop that DALI makes, (3, H, W) of 0..255."""
    one = np.ones(1)
    plan = replace(eval_plan(np.zeros(1, np.int64)), crop_x=x * one, crop_y=y * one, scale=np.full((1, 2), scale))
    batches = iter([RawBatch(plan, [file], None)])
    [(_, images)] = decode(lambda: next(batches, None), 1, cover, crop, torch.device("cpu"), 1, scale != 1)
    return (images[0].numpy() + 1) * 127.5


@pytest.mark.parametrize(
    ("stored", "cover", "resized"),
    [
        (LANDSCAPE, (48, 80), (60, 80)),
        (PORTRAIT, (48, 80), (106, 80)),
        (LANDSCAPE, (80, 48), (80, 106)),
        (LANDSCAPE, (48, 48), (48, 64)),
        (LANDSCAPE, (60, 80), (60, 80)),
        (PORTRAIT, (100, 180), (240, 180)),
    ],
)
@pytest.mark.parametrize("corner", [(0.5, 0.5), (0.0, 0.999)])
def test_frames_get_the_smallest_size_that_covers_the_box(
    stored: tuple[int, int], cover: tuple[int, int], resized: tuple[int, int], corner: tuple[float, float]
) -> None:
    file, crop, (x, y) = jpeg(*stored), (min(40, cover[0]), min(48, cover[1])), corner
    picture = Image.open(io.BytesIO(file)).resize(resized[::-1], Image.Resampling.BILINEAR)
    top, left = (int(place * (size - side) + 0.5) for place, size, side in zip((y, x), resized, crop, strict=True))
    expected = np.asarray(picture, np.float64).transpose(2, 0, 1)[:, top : top + crop[0], left : left + crop[1]]
    found = decoded(file, cover, crop, x, y, 1)
    assert found.shape == (3, *crop)
    assert abs(found - expected).max() <= 1.01


def test_a_crop_of_the_stored_frame_may_be_wide() -> None:
    file = jpeg(*LANDSCAPE)
    expected = np.asarray(Image.open(io.BytesIO(file)), np.float64).transpose(2, 0, 1)[:, 25:65, 10:110]
    np.testing.assert_allclose(decoded(file, None, (40, 100), 0.5, 0.5, 1), expected, atol=1e-4)


def test_wide_crops_of_scaled_frames() -> None:
    """90 x 120 by 1.2 is 108 x 144."""
    file = jpeg(*LANDSCAPE)
    frame = np.asarray(Image.open(io.BytesIO(file)), np.float64).transpose(2, 0, 1)
    expected = bilinear(frame, 108, 144)[:, 34:74, 22:122]
    assert abs(decoded(file, None, (40, 100), 0.5, 0.5, 1.2) - expected).max() <= 1.01
