"""`mbt import-scenic`: converts a checkpoint of the official implementation to a model folder."""

from collections.abc import Sequence
from pathlib import Path

from mbt.config import MBTConfig
from mbt.manifests.atomic import write_bytes
from mbt.manifests.errors import ConfigError, as_config_error
from mbt.manifests.labels import read_labels
from mbt.manifests.shards import LABELS_FILE, MEL_RATE, read_dataset
from mbt.pretrained import folder_files
from mbt.train.models.model_folder import Preprocessor, save_trained
from mbt.train.recipes.model_fields import config_fields
from mbt.train.sampling.inputs import Inputs
from mbt.weights.flax_checkpoint import read_flax_checkpoint
from mbt.weights.scenic import from_scenic

RESIZE = 256
FIX = "Give a checkpoint file of the official MBT, and set what its shapes do not tell, such as --set fusion_layer=8"


def import_scenic(file: Path, out: Path, settings: Sequence[str], data: Path | None, rgb_seconds: float | None) -> MBTConfig:
    """Convert a released checkpoint to a model folder; returns the configuration of the model.

    Args:
        file: single-file Flax checkpoint, in either layout.
        out: folder to write.
        settings: `field=value` for fields of `MBTConfig` that the shapes do not determine.
        data: dataset folder that supplies the description of inputs and labels, so that the model can be evaluated on it;
            None: write weights and configuration only.
        rgb_seconds: span of the frames in seconds, if it differs from that of the spectrogram; used with `data`.

    Raises:
        ConfigError: the file is damaged or not an MBT checkpoint, or it does not fit `data`.
        ShardError: `data` is not a dataset folder.
    """
    fields = config_fields(settings)
    with as_config_error(FIX):
        config, state = from_scenic(read_flax_checkpoint(file), **fields)
    about = f"Imported from the official checkpoint `{file.name}`. Its audio front end is not public."
    if data is None:
        for name, content in folder_files(config, state, about).items():
            write_bytes(out / name, content)
    else:
        save_trained(out, state, config, _preprocessor(config, data, rgb_seconds), about)
    return config


def _preprocessor(config: MBTConfig, data: Path, rgb_seconds: float | None) -> Preprocessor:
    info = read_dataset(data)
    labels = read_labels(data / LABELS_FILE)
    if len(labels) != config.num_classes:
        fix = "Give the dataset that the checkpoint was trained on"
        raise ConfigError(f"{data} has {len(labels)} labels, but the checkpoint has {config.num_classes} classes", fix)
    inputs = Inputs(
        media=info.media,
        seconds=config.spec_shape[0] / MEL_RATE,
        frames=config.num_frames,
        rgb_seconds=rgb_seconds,
        resize=max(RESIZE, min(config.image_shape)),
        image_size=config.image_size,
        modalities=config.modalities,
        mel_mean=info.log_mel_statistics.mean,
        mel_std=info.log_mel_statistics.std or 1.0,
    )
    with as_config_error("Give --set num_frames=N, --set spec_shape=[ROWS,BANDS] and --rgb-seconds as in its training"):
        inputs.check_model(config)
    return Preprocessor.of(info.task, inputs, labels)
