"""How clips become the inputs of a model: decided in training, kept with the weights, used again wherever they are."""

from mbt.config import MBTConfig, Modality
from mbt.manifests.errors import ConfigError
from mbt.manifests.shards import DatasetInfo, Frozen, MediaFormat
from mbt.train.sampling.window import Window


class Inputs(Frozen):
    """The way from a packed clip to tensors.

    Attributes:
        media: how the clips were packed.
        seconds: t, length of a view.
        frames: F, frames of a view.
        rgb_seconds: t of the frames, where it is not that of the sound.
        resize: short side of the frames before the crop.
        image_size: side of the crop.
        modalities: what the model takes.
        mel_mean: mean of the log-mel over the training split.
        mel_std: its standard deviation.
    """

    media: MediaFormat
    seconds: float
    frames: int
    resize: int
    image_size: int
    modalities: tuple[Modality, ...]
    mel_mean: float
    mel_std: float
    rgb_seconds: float | None = None

    @property
    def window(self) -> Window:
        """The view."""
        return Window(self.seconds, self.frames, self.rgb_seconds)

    @property
    def resize_or_none(self) -> int | None:
        """`resize`, or None where the frames are stored at that size."""
        return None if self.resize == self.media.video.short_side else self.resize

    def check_dataset(self, info: DatasetInfo) -> None:
        """Make sure that a dataset's clips were packed in the way that the model was trained on.

        Raises:
            ConfigError: they were not.
        """
        mine, theirs = (media.model_dump(exclude={"flac"}) for media in (self.media, info.media))
        if mine != theirs:
            field, name = next((f, n) for f in mine for n in mine[f] if mine[f][n] != theirs[f][n])
            raise ConfigError(
                f"the shards have {field}.{name} {theirs[field][name]}; the model was trained with {mine[field][name]}",
                "Pack the clips with the options of the training shards",
            )

    def check_model(self, config: MBTConfig) -> None:
        """Make sure that these are the inputs of a model of this configuration.

        Raises:
            ConfigError: they are not.
        """
        mine = (self.frames, self.image_size, self.window.mel_rows, self.modalities)
        theirs = (config.num_frames, config.image_size, config.spec_shape[0], config.modalities)
        if mine != theirs:
            raise ConfigError(
                f"the model takes (frames, image_size, log-mel rows, modalities) {theirs}, its inputs are {mine}",
                "Take config.json and preprocessor_config.json from the same folder",
            )
