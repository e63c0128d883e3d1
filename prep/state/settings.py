"""What must stay the same over all calls that pack one dataset folder."""

from pathlib import Path

from pydantic import ValidationError

from mbt.manifests.atomic import write_text
from mbt.manifests.errors import InputError
from mbt.manifests.shards import Frozen, MediaFormat
from mbt.prep.state.store import Store

SETTINGS_FILE = "work/pack.json"


class PackSettings(Frozen):
    """What decides the bytes of the shards, given the clips, and where they go.

    Attributes:
        media: how samples are stored.
        shard_samples: clips of a shard at the most.
        shard_bytes: of a tar at the most, unless one sample alone has more; a shard that has more becomes several tars.
        seed: of the order of the clips.
        to: URL of the folder where finished files go; None: the dataset folder itself.
    """

    media: MediaFormat = MediaFormat()
    shard_samples: int = 512
    shard_bytes: int | None = None
    seed: int = 0
    to: str | None = None


def freeze_settings(folder: Path, settings: PackSettings) -> None:
    """Note the settings at the first call.

    Raises:
        InputError: other settings than before.
    """
    path = folder / SETTINGS_FILE
    if not path.exists():
        write_text(path, settings.model_dump_json(indent=2) + "\n")
    elif _read(path) != settings:
        raise InputError(f"{folder} was packed with other settings (see {path})", "Use the same settings, or another --out")


def store_of(folder: Path) -> Store:
    """Where the finished files of a folder are.

    Raises:
        InputError: its settings are damaged, or fsspec cannot write to their URL.
    """
    path = folder / SETTINGS_FILE
    return Store(folder, _read(path).to if path.exists() else None)


def _read(path: Path) -> PackSettings:
    try:
        return PackSettings.model_validate_json(path.read_bytes())
    except ValidationError:
        raise InputError(f"{path} is damaged, or of another release of mbt", "Choose another --out") from None
