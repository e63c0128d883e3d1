"""One shard: its tars, their DALI indices and its record, each complete or absent."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbt.manifests.atomic import atomic_file, storage_errors, write_text
from mbt.manifests.checksums import file_sha256
from mbt.manifests.shards import MediaFormat, ShardFile
from mbt.prep.media.mel_sums import MelSums
from mbt.prep.pack.growing_tar import Entry, GrowingTar
from mbt.prep.pack.sample import Sample
from mbt.prep.pack.tar import archive_size
from mbt.prep.state.shard_record import Failure, ShardRecord, idx_file, record_file, tar_file

CHUNK = 8 << 20

Results = Callable[[int], Generator[Sample | Failure, None, None]]
"""Takes a number n and yields the results of all clips but the first n, in order."""


def write_shard(
    folder: Path,
    name: str,
    keys: Sequence[str],
    media: MediaFormat,
    max_bytes: int | None,
    results: Results,
    is_valid: Callable[[Entry], bool] = lambda entry: True,
) -> ShardRecord:
    """Write a shard's tars, their `.idx` files and its record into `folder`; if all clips fail, only the record.

    Earlier files are replaced. An interrupted call leaves an unfinished tar next to the record; the next call resumes from it.

    Args:
        folder: the dataset folder.
        name: file name of the shard's first tar.
        keys: the shard's clips, in order.
        media: how samples are stored.
        max_bytes: size limit of a tar, which only a tar with a single sample may exceed; None: no limit.
        results: yields the results of `keys[n:]`.
        is_valid: whether a result of an interrupted call may stay.

    Raises:
        StorageError: no space left.
    """
    record = record_file(folder, name)
    with storage_errors(folder / name), GrowingTar(record.with_suffix(".partial"), keys, media, is_valid) as growing_tar:
        done = len(growing_tar.entries)
        with closing(results(done)) as new:
            for key, result in zip(keys[done:], new, strict=True):
                growing_tar.add(key, result)
        growing_tar.finish()
        record.unlink(missing_ok=True)  # From here on an interrupted call is resumed from the unfinished tar.
        parts = list(_parts(name, [entry for entry in growing_tar.entries if entry.row is not None], max_bytes))
        files = []
        for part in parts:
            path = growing_tar.path if len(parts) == 1 else _copy(growing_tar.path, part, folder / part.tar)
            write_text(folder / idx_file(part.tar), dali_index(part.rows, media))
            size, sha256 = path.stat().st_size, file_sha256(path)
            files.append(ShardFile(name=part.tar, samples=len(part.rows), size=size, sha256=sha256))
        shard = ShardRecord(
            files=tuple(files),
            rows=tuple(row for part in parts for row in part.rows),
            failures=tuple(entry.failure for entry in growing_tar.entries if entry.failure is not None),
            mel=sum((entry.mel for entry in growing_tar.entries), MelSums()),
        )
        if len(parts) == 1:
            (folder / name).unlink(missing_ok=True)  # An earlier tar of the same size would be taken for the new one.
        write_text(record, shard.model_dump_json() + "\n")
        growing_tar.publish(folder / name if len(parts) == 1 else None)
    return shard


@dataclass(frozen=True)
class _Part:
    """A run of samples in the unfinished tar that becomes one finished tar.

    Attributes:
        tar: file name of the finished tar.
        begin: first byte of the samples in the unfinished tar.
        end: first byte after them.
        rows: their index rows, with offsets in the finished tar.
    """

    tar: str
    begin: int
    end: int
    rows: list[dict[str, Any]]


def _parts(name: str, samples: Sequence[Entry], max_bytes: int | None) -> Iterator[_Part]:
    begin = first = 0
    number = 0
    for i, entry in enumerate(samples):
        end = entry.end
        next_end = samples[i + 1].end if i + 1 < len(samples) else None
        if next_end is None or (max_bytes is not None and archive_size(next_end - begin) > max_bytes):
            tar = tar_file(name, number)
            yield _Part(tar, begin, end, [_row(sample, tar, begin) for sample in samples[first : i + 1]])
            begin, first, number = end, i + 1, number + 1


def _row(sample: Entry, tar: str, begin: int) -> dict[str, Any]:
    assert sample.row is not None
    offsets = {name: value - begin for name, value in sample.row.items() if name.endswith("_offset")}
    return {**sample.row, **offsets, "shard": tar}


def _copy(unfinished: Path, part: _Part, path: Path) -> Path:
    length = part.end - part.begin
    with unfinished.open("rb") as source, atomic_file(path) as file:
        source.seek(part.begin)
        for done in range(0, length, CHUNK):
            file.write(source.read(min(CHUNK, length - done)))
        file.write(bytes(archive_size(length) - length))
    return path


def dali_index(rows: Sequence[dict[str, Any]], media: MediaFormat) -> str:
    """Index of a tar for DALI's webdataset reader, as DALI's wds2idx writes it (format v1.2)."""
    lines = [f"v1.2 {len(rows)}"]
    for row in rows:
        spans = (f"{m} {row[f'{c}_offset']} {row[f'{c}_size']} {row['key']}.{m}" for m, c in media.members.items())
        lines.append(" ".join(spans))
    return "\n".join(lines) + "\n"
