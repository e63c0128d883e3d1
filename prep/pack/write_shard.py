"""One shard: its tars of samples, their DALI indices and its record, each complete or absent."""

import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbt.manifests.atomic import atomic_file, storage_errors, write_text
from mbt.manifests.checksums import file_sha256
from mbt.manifests.shards import MediaFormat, ShardFile
from mbt.prep.media.mel_sums import MelSums
from mbt.prep.pack.growing_tar import Entry, GrowingTar
from mbt.prep.pack.sample import Sample
from mbt.prep.state.shard_record import Failure, ShardRecord, idx_file, record_file, tar_file

CHUNK = 8 << 20


def write_shard(
    folder: Path,
    name: str,
    keys: Sequence[str],
    media: MediaFormat,
    max_bytes: int | None,
    outcomes: Callable[[int], Iterator[Sample | Failure]],
) -> ShardRecord:
    """Write a shard's tars, their `.idx` and its record into `folder`; where all clips fail, the record alone.

    They take the place of earlier ones. An interrupted call leaves an unfinished tar beside the record, with which the next
    call goes on.

    Args:
        folder: the dataset folder.
        name: of the shard's first tar.
        keys: the shard's clips, in order.
        media: how samples are stored.
        max_bytes: of a tar; only a tar of one sample may have more.
        outcomes: what becomes of the clips from the given place in `keys` on.

    Raises:
        StorageError: no space left.
    """
    record = record_file(folder, name)
    with storage_errors(folder / name), GrowingTar(record.with_suffix(".partial"), keys, media) as growing:
        done = len(growing.entries)
        for key, outcome in zip(keys[done:], outcomes(done), strict=True):
            growing.add(key, outcome)
        growing.end()
        parts = list(_parts(name, [entry for entry in growing.entries if entry.row is not None], max_bytes))
        files = []
        for part in parts:
            path = growing.path if len(parts) == 1 else _copy(growing.path, part, folder / part.tar)
            write_text(folder / idx_file(part.tar), dali_index(part.rows, media))
            size, sha256 = path.stat().st_size, file_sha256(path)
            files.append(ShardFile(name=part.tar, samples=len(part.rows), size=size, sha256=sha256))
        result = ShardRecord(
            files=tuple(files),
            rows=tuple(row for part in parts for row in part.rows),
            failures=tuple(entry.failure for entry in growing.entries if entry.failure is not None),
            mel=sum((entry.mel for entry in growing.entries), MelSums()),
        )
        write_text(record, result.model_dump_json() + "\n")
        growing.publish(folder / name if len(parts) == 1 else None)
    return result


@dataclass(frozen=True)
class _Part:
    """Samples of the unfinished tar that go into a tar of their own.

    Attributes:
        tar: its name.
        begin: byte at which they begin.
        end: the byte behind them.
        rows: their index rows.
    """

    tar: str
    begin: int
    end: int
    rows: list[dict[str, Any]]


def _parts(name: str, samples: Sequence[Entry], max_bytes: int | None) -> Iterator[_Part]:
    begin = first = 0
    number = 0
    for i, sample in enumerate(samples):
        end = sample.end
        following = samples[i + 1].end if i + 1 < len(samples) else None
        if following is None or (max_bytes is not None and tar_size(following - begin) > max_bytes):
            tar = tar_file(name, number)
            yield _Part(tar, begin, end, [_row(own, tar, begin) for own in samples[first : i + 1]])
            begin, first, number = end, i + 1, number + 1


def _row(sample: Entry, tar: str, begin: int) -> dict[str, Any]:
    assert sample.row is not None
    places = {name: value - begin for name, value in sample.row.items() if name.endswith("_offset")}
    return {**sample.row, **places, "shard": tar}


def tar_size(sample_bytes: int) -> int:
    """Bytes of a tar of samples that take so many, with its end."""
    return -(-(sample_bytes + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _copy(unfinished: Path, part: _Part, path: Path) -> Path:
    length = part.end - part.begin
    with unfinished.open("rb") as source, atomic_file(path) as file:
        source.seek(part.begin)
        for at in range(0, length, CHUNK):
            file.write(source.read(min(CHUNK, length - at)))
        file.write(bytes(tar_size(length) - length))
    return path


def dali_index(rows: Sequence[dict[str, Any]], media: MediaFormat) -> str:
    """Index of a tar for DALI's webdataset reader, as its tool wds2idx writes it (format v1.2)."""
    lines = [f"v1.2 {len(rows)}"]
    for row in rows:
        places = (f"{m} {row[f'{c}_offset']} {row[f'{c}_size']} {row['key']}.{m}" for m, c in media.members.items())
        lines.append(" ".join(places))
    return "\n".join(lines) + "\n"
