"""The settings that must be the same in all runs that pack one dataset folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mbt.manifests.atomic import write_text
from mbt.manifests.errors import InputError
from mbt.manifests.reading.remote import SECRETS
from mbt.manifests.shards import Frozen, MediaFormat
from mbt.prep.state.store import Store

SETTINGS_FILE = "work/pack.json"


class PackSettings(Frozen):
    """What determines the bytes of the shards, given the clips, and where they are stored.

    Attributes:
        media: how samples are stored.
        shard_samples: maximum clips per shard.
        shard_bytes: maximum bytes per tar, unless a single sample is larger; a larger shard becomes several tars.
        seed: seed of the order of the clips.
        to: URL of the folder to which finished files are uploaded; None: they stay in the dataset folder.
    """

    media: MediaFormat = MediaFormat()
    shard_samples: int = 512
    shard_bytes: int | None = None
    seed: int = 0
    to: str | None = None


def freeze_settings(folder: Path, settings: PackSettings) -> None:
    """Record the settings of the first run, and check those of later ones.

    Raises:
        InputError: the settings differ from those of the first run.
    """
    path = folder / SETTINGS_FILE
    if not path.exists():
        write_text(path, settings.model_dump_json(indent=2) + "\n")
        return
    earlier = _read(path)
    if earlier != settings:
        first, now = _by_option(earlier.model_dump()), _by_option(settings.model_dump())
        different = [_difference(name, first[name], now[name]) for name in now if first[name] != now[name]]
        what = f"{folder} was packed with other settings: {'; '.join(different)} (see {path})"
        raise InputError(what, "Use the same settings, or another --out")


def open_store(folder: Path) -> Store:
    """The store of a folder's finished files.

    Raises:
        InputError: the recorded settings are damaged, or fsspec cannot write to their URL.
    """
    path = folder / SETTINGS_FILE
    return Store(folder, _read(path).to if path.exists() else None)


def _read(path: Path) -> PackSettings:
    try:
        return PackSettings.model_validate_json(path.read_bytes())
    except ValidationError:
        raise InputError(f"{path} is damaged, or was written by another version of mbt", "Choose another --out") from None


def _by_option(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Values by option name, nested settings included: `--short-side`, not `media.video.short_side`."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        values |= _by_option(value) if isinstance(value, dict) else {f"--{name.replace('_', '-')}": value}
    return values


def _difference(name: str, first: Any, now: Any) -> str:
    if _shown(first) == _shown(now):
        return f"{name} {_shown(first)} with another query or password"
    return f"{name} {_shown(first)}, not {_shown(now)}"


def _shown(value: Any) -> str:
    """A value for a message, without password and query of a URL, which may be secret."""
    return "unset" if value is None else SECRETS.sub("", str(value))
