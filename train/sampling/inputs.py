"""How clips become the inputs of a model: chosen for training, stored with the weights, and reused wherever the model runs."""

from typing import Annotated

from pydantic import BeforeValidator

from mbt.config import ImageSize, MBTConfig, Modality, as_image_size, image_shape
from mbt.manifests.errors import ConfigError
from mbt.manifests.shards import DatasetInfo, Frozen, MediaFormat
from mbt.train.sampling.window import Window

FrameSize = Annotated[ImageSize, BeforeValidator(as_image_size)]
"""Image size as a validated field: one number for a square, or (height, width)."""


class Inputs(Frozen):
    """How a packed clip is turned into tensors.

    Attributes:
        media: how the clips were packed.
        seconds: t, length of a view.
        frames: F, frames of a view.
        rgb_seconds: length of the frames' window, if it differs from that of the sound.
        resize: short side of the frames before the crop; see `box_to_cover`.
        image_size: size of the crop: the side of a square, or (height, width).
        modalities: the modalities that the model takes.
        mel_mean: mean of the log-mel over the training split.
        mel_std: standard deviation of the log-mel over the training split.
    """

    media: MediaFormat
    seconds: float
    frames: int
    resize: int
    image_size: FrameSize
    modalities: tuple[Modality, ...]
    mel_mean: float
    mel_std: float
    rgb_seconds: float | None = None

    @property
    def window(self) -> Window:
        """Length of a view, and how it is sampled."""
        return Window(self.seconds, self.frames, self.rgb_seconds)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the crop."""
        return image_shape(self.image_size)

    @property
    def cover(self) -> tuple[int, int] | None:
        """Height and width that frames are resized to cover before the crop; None: the frames are cropped as stored."""
        box = box_to_cover(self.resize, self.image_size)
        short_side = self.media.video.short_side
        return None if box == (short_side, short_side) else box

    def check_dataset(self, info: DatasetInfo) -> None:
        """Check that the clips of a dataset were packed like those that the model was trained on.

        Raises:
            ConfigError: they were not.
        """
        trained, packed = (media.model_dump(exclude={"flac"}) for media in (self.media, info.media))
        if trained != packed:
            field, name = next((f, n) for f in trained for n in trained[f] if trained[f][n] != packed[f][n])
            raise ConfigError(
                f"the shards have {field}.{name} {packed[field][name]}, but the model was trained with {trained[field][name]}",
                "Pack the clips with the options of the training shards",
            )

    def check_model(self, config: MBTConfig) -> None:
        """Check that a model of this configuration takes these inputs.

        Raises:
            ConfigError: it takes other inputs.
        """
        given = (self.frames, self.image_size, self.window.mel_rows, self.modalities)
        expected = (config.num_frames, config.image_size, config.spec_shape[0], config.modalities)
        if given != expected:
            raise ConfigError(
                f"the model takes (frames, image_size, log-mel rows, modalities) {expected}, but its inputs are {given}",
                "Take config.json and preprocessor_config.json from the same folder",
            )


def box_to_cover(resize: int, image_size: ImageSize) -> tuple[int, int]:
    """Height and width that a frame must cover before it is cropped to `image_size`.

    The box has the shape of the crop, and its short side is `resize`; its long side is rounded up. The frame gets the smallest
    size, at its own aspect ratio, that covers the box. For a square crop this makes `resize` the short side of the frame.
    """
    height, width = image_shape(image_size)
    short = min(height, width)
    return -(-height * resize // short), -(-width * resize // short)
