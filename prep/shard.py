"""One shard: a tar of samples, its DALI index and its record, each complete or absent."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from manifests.atomic import storage_errors, write_text
from manifests.download import file_sha256
from manifests.shards import MEMBERS, Frozen, ShardFile
from prep.growing import Failure, GrowingTar
from prep.sample import Sample

NO_BYTES = "0" * 64


class ShardRecord(Frozen):
    """What is known of a finished shard; the shard counts as done when this is there and the tar has its size."""

    file: ShardFile
    rows: tuple[dict[str, Any], ...]
    failures: tuple[Failure, ...]
    mel_sum: float
    mel_square_sum: float
    mel_count: int


def write_shard(
    tar: Path, record: Path, keys: Sequence[str], outcomes: Callable[[int], Iterator[Sample | Failure]]
) -> ShardRecord:
    """Write `tar`, its `.idx` and its record; of a shard whose clips all fail there is the record alone.

    They take the place of earlier ones. An interrupted call leaves an unfinished tar beside the record, with which the next
    call goes on.

    Args:
        tar: the shard.
        record: its record.
        keys: the shard's clips, in order.
        outcomes: what becomes of the clips from the given place in `keys` on.

    Raises:
        StorageError: no space left.
    """
    with storage_errors(tar), GrowingTar(record.with_suffix(".partial"), keys) as growing:
        done = len(growing.entries)
        for key, outcome in zip(keys[done:], outcomes(done), strict=True):
            growing.add(key, outcome)
        growing.end()
        result = _record(tar.name, growing)
        if result.rows:
            write_text(tar.with_suffix(".idx"), dali_index(list(result.rows)))
        else:
            for earlier in (tar, tar.with_suffix(".idx")):
                earlier.unlink(missing_ok=True)
        write_text(record, result.model_dump_json() + "\n")
        growing.publish(tar)
    return result


def _record(name: str, growing: GrowingTar) -> ShardRecord:
    rows = tuple({**entry.row, "shard": name} for entry in growing.entries if entry.row is not None)
    size, sha256 = (growing.path.stat().st_size, file_sha256(growing.path)) if rows else (0, NO_BYTES)
    return ShardRecord(
        file=ShardFile(name=name, samples=len(rows), size=size, sha256=sha256),
        rows=rows,
        failures=tuple(entry.failure for entry in growing.entries if entry.failure is not None),
        mel_sum=sum(entry.mel_sum for entry in growing.entries),
        mel_square_sum=sum(entry.mel_square_sum for entry in growing.entries),
        mel_count=sum(entry.mel_count for entry in growing.entries),
    )


def record_file(folder: Path, name: str) -> Path:
    """Where the record of a shard of a dataset folder is."""
    return folder / "work" / f"{name}.json"


def finished_shard(tar: Path, record: Path) -> ShardRecord | None:
    """The record of a shard that is done, or None."""
    try:
        result = ShardRecord.model_validate_json(record.read_bytes())
        there = tar.with_suffix(".idx").exists() and tar.stat().st_size == result.file.size
        return result if there or not result.rows else None
    except (OSError, ValidationError):
        return None


def dali_index(rows: list[dict[str, Any]]) -> str:
    """Index of a tar for DALI's webdataset reader, as its tool wds2idx writes it (format v1.2)."""
    lines = [f"v1.2 {len(rows)}"]
    for row in rows:
        places = (f"{m} {row[f'{c}_offset']} {row[f'{c}_size']} {row['key']}.{m}" for m, c in MEMBERS.items())
        lines.append(" ".join(places))
    return "\n".join(lines) + "\n"
