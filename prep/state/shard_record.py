"""The record of a shard: its tar files, index rows and failed clips, by which a later run knows that it is finished."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from mbt.manifests.shards import Frozen, ShardFile
from mbt.prep.media.ffmpeg import DEFAULT_LIMITS, INTERRUPTED, Limits
from mbt.prep.media.mel_sums import MelSums
from mbt.prep.state.failure_codes import is_rechecked
from mbt.prep.state.store import Store

TIMEOUT, MEMORY = "decode.timeout", "decode.memory"


class Failure(Frozen):
    """A clip that is not in any shard, and why.

    Attributes:
        key: key of the clip.
        stage: where it failed.
        code: stable name of the reason.
        message: the reason in words.
        limit: the limit that decoding reached: seconds for `decode.timeout`, bytes for `decode.memory`.
    """

    key: str
    stage: Literal["fetch", "pack"]
    code: str
    message: str
    limit: float | None = None

    @classmethod
    def in_packing(cls, key: str, code: str, message: str, limits: Limits) -> "Failure":
        """A clip that could not be decoded or encoded under these limits."""
        return cls(key=key, stage="pack", code=code, message=message, limit=_limit(code, limits))

    @property
    def is_final(self) -> bool:
        """Whether the reason is in the media, and not in limits or in the machine."""
        return self.stage == "pack" and self.code not in (TIMEOUT, MEMORY, INTERRUPTED)

    def is_outdated(self, limits: Limits, recheck: Collection[str]) -> bool:
        """Whether the limit that decoding reached has been raised since, or `recheck` has the code or its beginning."""
        limit, earlier = _limit(self.code, limits), self.limit or _limit(self.code, DEFAULT_LIMITS)
        raised = limit is not None and earlier is not None and limit > earlier
        return raised or is_rechecked(self.code, recheck)


def _limit(code: str, limits: Limits) -> float | None:
    return {TIMEOUT: limits.wall_s, MEMORY: float(limits.memory_bytes)}.get(code)


class ShardRecord(Frozen):
    """The result of packing the clips of a shard.

    The shard is finished when its record exists, every tar has its recorded size, and every tar has its DALI index.

    Attributes:
        files: the tar files: one; several if one would be too large; none if every clip failed.
        rows: index rows of the samples.
        failures: clips that are in no tar.
        mel: sums over the log-mel values of all samples.
    """

    files: tuple[ShardFile, ...]
    rows: tuple[dict[str, Any], ...]
    failures: tuple[Failure, ...]
    mel: MelSums

    @property
    def keys(self) -> list[str]:
        """Keys of the samples."""
        return [row["key"] for row in self.rows]


def tar_file(shard: str, number: int) -> str:
    """Name of a shard's tar number 0, 1, ...; the first has the name of the shard."""
    return shard if number == 0 else f"{shard.removesuffix('.tar')}-{number}.tar"


def idx_file(tar: str) -> str:
    """Name of the DALI index of a tar."""
    return f"{tar.removesuffix('.tar')}.idx"


def record_file(folder: Path, shard: str) -> Path:
    """Path of a shard's record in a dataset folder."""
    return folder / "work" / f"{shard}.json"


def read_record(folder: Path, shard: str) -> ShardRecord | None:
    """The record of a shard; None if it is missing or damaged."""
    try:
        return ShardRecord.model_validate_json(record_file(folder, shard).read_bytes())
    except (OSError, ValidationError):
        return None


def finished_shard(store: Store, shard: str) -> ShardRecord | None:
    """The record of a shard; None unless the shard is finished."""
    record = read_record(store.folder, shard)
    if record is None or not all(_is_stored(file, store) for file in record.files):
        return None
    return record


def _is_stored(tar: ShardFile, store: Store) -> bool:
    return store.size(tar.name) == tar.size and store.size(idx_file(tar.name)) is not None
