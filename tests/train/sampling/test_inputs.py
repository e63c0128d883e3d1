"""Inputs: the size of frames before and after cropping."""

import json

import pytest

from mbt.manifests.shards import MediaFormat
from mbt.train.sampling.inputs import Inputs, box_to_cover


def inputs(resize: int, image_size: object) -> Inputs:
    """Inputs from clips with a short side of 256 pixels."""
    media = MediaFormat.model_validate({"video": {"short_side": 256}, "log_mel": {}})
    fields = {"seconds": 8.0, "frames": 8, "modalities": ("rgb", "spec"), "mel_mean": 0.0, "mel_std": 1.0}
    return Inputs.model_validate({"media": media, "resize": resize, "image_size": image_size, **fields})


@pytest.mark.parametrize(
    ("resize", "image_size", "box"),
    [
        (256, 224, (256, 256)),
        (256, (224, 224), (256, 256)),
        (256, (224, 448), (256, 512)),
        (256, (224, 400), (256, 458)),
        (32, (64, 32), (64, 32)),
    ],
)
def test_the_box_has_the_aspect_ratio_of_the_crop(resize: int, image_size: int | tuple[int, int], box: tuple[int, int]) -> None:
    assert box_to_cover(resize, image_size) == box


def test_stored_frames_of_the_right_short_side_are_cropped_without_resizing() -> None:
    """For wide crops that depends on the frame's shape, so frames are always resized to cover the box."""
    assert inputs(256, 224).cover is None
    assert inputs(240, 224).cover == (240, 240)
    assert inputs(256, (224, 448)).cover == (256, 512)


def test_a_square_is_stored_as_one_number() -> None:
    for given, stored in ((224, 224), ([224, 224], 224), ([224, 448], [224, 448])):
        written = inputs(256, given).model_dump_json()
        assert json.loads(written)["image_size"] == stored
        assert Inputs.model_validate_json(written) == inputs(256, given)
    with pytest.raises(ValueError, match="image_size 'wide' is neither a positive number of pixels nor"):
        inputs(256, "wide")
