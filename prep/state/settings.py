"""The settings that must be the same in all runs that pack one dataset folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, field_validator

from mbt.manifests.atomic import write_text
from mbt.manifests.errors import InputError
from mbt.manifests.reading.remote import without_secrets
from mbt.manifests.shards import Frozen, MediaFormat

SETTINGS_FILE = "work/pack.json"
CONFIG_FILE = "work/config.toml"
"""The options of the last run."""


class PackSettings(Frozen):
    """What determines the bytes of the shards, given the clips, and where they are stored.

    Attributes:
        media: how samples are stored.
        shard_samples: maximum clips per shard.
        shard_bytes: maximum bytes per tar, unless a single sample is larger; a larger shard becomes several tars.
        seed: seed of the order of the clips.
        to: URL of the folder to which finished files are uploaded, without its credentials; None: they stay in the dataset
            folder.
    """

    media: MediaFormat = MediaFormat()
    shard_samples: int = 512
    shard_bytes: int | None = None
    seed: int = 0
    to: str | None = None

    @field_validator("to")
    @classmethod
    def _without_secrets(cls, to: str | None) -> str | None:
        return to and without_secrets(to)


def freeze_settings(folder: Path, settings: PackSettings, replace: bool = False) -> None:
    """Record the settings, if there are none yet or nothing is packed; otherwise check them.

    Args:
        folder: the dataset folder.
        settings: settings of this run.
        replace: record them in any case.

    Raises:
        InputError: the settings differ from the recorded ones.
    """
    if not replace:
        check_settings(folder, settings, packed=True)
    path, text = folder / SETTINGS_FILE, settings.model_dump_json(indent=2) + "\n"
    if not path.exists() or path.read_text() != text:
        write_text(path, text)


def check_settings(folder: Path, settings: PackSettings, packed: bool) -> None:
    """Check that settings do not contradict the recorded ones, if any.

    Args:
        folder: the dataset folder.
        settings: settings of this run.
        packed: whether clips have been assigned to shards, so that the recorded settings cannot change any more.

    Raises:
        InputError: the settings differ from the recorded ones.
    """
    path = folder / SETTINGS_FILE
    if not path.exists() or (earlier := _read(path)) == settings:
        return
    first, now = _by_option(earlier.model_dump()), _by_option(settings.model_dump())
    different = [f"{name} {_shown(first[name])}, not {_shown(now[name])}" for name in now if first[name] != now[name]]
    what = f"{folder} was {'packed' if packed else 'planned'} with other settings: {'; '.join(different)} (see {path})"
    raise InputError(what, f"Use the same settings, or another --out{'' if packed else '; --stage plan records new settings'}")


def stores_remotely(folder: Path) -> bool:
    """Whether the finished files of a folder are at a URL.

    Raises:
        InputError: the recorded settings are damaged.
    """
    path = folder / SETTINGS_FILE
    return path.exists() and _read(path).to is not None


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


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)
