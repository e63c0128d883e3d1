"""The record of a shard: what came of its clips, and when they are done."""

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from mbt.manifests.shards import Frozen, ShardFile
from mbt.prep.media.mel_sums import MelSums
from mbt.prep.state.store import Store


class Failure(Frozen):
    """A clip that is in no shard, and why."""

    key: str
    stage: Literal["fetch", "pack"]
    code: str
    message: str


class ShardRecord(Frozen):
    """What came of the clips of a shard; they are done when this is there and every tar has its size.

    Attributes:
        files: the tars: one, or several where one would be too large; none where every clip failed.
        rows: index rows of the samples.
        failures: clips that are in no tar.
        mel: sums over the log-mel of all samples.
    """

    files: tuple[ShardFile, ...]
    rows: tuple[dict[str, Any], ...]
    failures: tuple[Failure, ...]
    mel: MelSums


def tar_file(name: str, number: int) -> str:
    """Name of a tar of a shard: the first has the shard's own."""
    return name if number == 0 else f"{name.removesuffix('.tar')}-{number}.tar"


def idx_file(tar: str) -> str:
    """Name of the DALI index of a tar."""
    return f"{tar.removesuffix('.tar')}.idx"


def record_file(folder: Path, name: str) -> Path:
    """Where the record of a shard of a dataset folder is."""
    return folder / "work" / f"{name}.json"


def read_record(folder: Path, name: str) -> ShardRecord | None:
    """The record of a shard, or None."""
    try:
        return ShardRecord.model_validate_json(record_file(folder, name).read_bytes())
    except (OSError, ValidationError):
        return None


def finished_shard(store: Store, name: str) -> ShardRecord | None:
    """The record of a shard that is done, or None."""
    record = read_record(store.folder, name)
    if record is None:
        return None
    there = (store.size(file.name) == file.size and store.size(idx_file(file.name)) is not None for file in record.files)
    return record if all(there) else None
