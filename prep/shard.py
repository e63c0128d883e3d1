"""One shard: a tar of samples, its DALI index and its record, each complete or absent."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import webdataset
from pydantic import ValidationError

from manifests.atomic import atomic_file, write_text
from manifests.shards import MEMBERS, Frozen, ShardFile
from prep.sample import Sample

TAR_BLOCK = 512


class Failure(Frozen):
    """A clip that is in no shard, and why."""

    key: str
    stage: Literal["fetch", "pack"]
    code: str
    message: str


class ShardRecord(Frozen):
    """What is known of a finished shard; the shard counts as done when this is there and the tar has its size."""

    file: ShardFile
    rows: tuple[dict[str, Any], ...]
    failures: tuple[Failure, ...]
    mel_sum: float
    mel_square_sum: float
    mel_count: int


class _Hashing:
    """A file that hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self.file.write(data)


def write_shard(tar: Path, record: Path, samples: Iterable[Sample | Failure]) -> ShardRecord:
    """Write `tar`, its `.idx` and its record; of a shard whose clips all fail there is the record alone.

    The bytes depend on the samples only: USTAR, time and owner zero, members in the order of `MEMBERS`.

    Raises:
        StorageError: no space left.
    """
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    mel = [0.0, 0.0, 0]
    with atomic_file(tar) as file:
        hashing = _Hashing(file)
        with webdataset.TarWriter(hashing, user="", group="", mode=0o444, mtime=0, encoder=False) as writer:
            for sample in samples:
                if isinstance(sample, Failure):
                    failures.append(sample)
                    continue
                spans = _spans(writer.tarstream.offset, sample)
                writer.write({"__key__": sample.row["key"], **sample.members})
                rows.append({**sample.row, "shard": tar.name, **spans})
                mel = [mel[0] + sample.mel_sum, mel[1] + sample.mel_square_sum, mel[2] + sample.mel_count]
    if rows:
        write_text(tar.with_suffix(".idx"), dali_index(rows))
    else:
        tar.unlink()
    result = ShardRecord(
        file=ShardFile(name=tar.name, samples=len(rows), size=hashing.size, sha256=hashing.hash.hexdigest()),
        rows=tuple(rows),
        failures=tuple(failures),
        mel_sum=mel[0],
        mel_square_sum=mel[1],
        mel_count=int(mel[2]),
    )
    write_text(record, result.model_dump_json() + "\n")
    return result


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
        lines.append(
            " ".join(f"{m} {row[f'{_column(m)}_offset']} {row[f'{_column(m)}_size']} {row['key']}.{m}" for m in MEMBERS)
        )
    return "\n".join(lines) + "\n"


def _spans(offset: int, sample: Sample) -> dict[str, int]:
    """Where each member's data will stand when the sample is written at `offset`."""
    spans = {}
    for member in MEMBERS:
        size = len(sample.members[member])
        spans[f"{_column(member)}_offset"] = offset + TAR_BLOCK
        spans[f"{_column(member)}_size"] = size
        offset += TAR_BLOCK + -(-size // TAR_BLOCK) * TAR_BLOCK
    return spans


def _column(member: str) -> str:
    return member.partition(".")[0]
