"""`mbt shards explode`: the same samples as WebDataset tars with a `.jpg` member a frame, for tools that want that."""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from mbt.manifests.atomic import atomic_file, exclusive_writer, write_text
from mbt.manifests.errors import InputError, ShardError
from mbt.manifests.labels import read_labels
from mbt.manifests.progress import progress
from mbt.manifests.shards import DATASET_FILE, LABELS_FILE, README_FILE, DatasetInfo, Frozen, ShardFile, read_dataset
from mbt.prep.shards.check_sample import EOI, SOI, read_description
from mbt.prep.shards.tar import BLOCK, Member, TarError, members
from mbt.prep.workers.processes import cores, in_processes

RECORDS = "work"


class Exploded(Frozen):
    """Record of a tar that was written.

    Attributes:
        source_sha256: recorded SHA-256 of the shard that it was made from.
        size: its bytes.
        samples: how many it holds.
        frames: how many `.jpg` members.
    """

    source_sha256: str
    size: int
    samples: int
    frames: int


@dataclass(frozen=True)
class Job:
    """A shard to rewrite into `out`."""

    folder: Path
    out: Path
    shard: ShardFile


def explode(folder: Path, out: Path, workers: int | None = None) -> dict[str, Exploded]:
    """Write each shard of `folder` to `out` under its name, with `KEY.0000.jpg`, `KEY.0001.jpg`, ... in place of `KEY.mjpg`.

    The other members stay as they are. A tar that was made from the same shard before is not made again.

    Args:
        folder: dataset folder.
        out: folder to write: tars, labels.csv and README.md. It is no folder of the format mbt-shards.
        workers: shards rewritten at a time, each by a process; default: one a core.

    Returns:
        The record of each tar.

    Raises:
        ShardError: a shard is missing or damaged.
        InputError: `out` holds another dataset.
        StorageError: it cannot be written.
    """
    info, labels = read_dataset(folder), read_labels(folder / LABELS_FILE)
    shards = [shard for split in info.splits.values() for shard in split.shards]
    if (out / DATASET_FILE).exists():
        raise InputError(f"{out} is a dataset folder itself", "Choose another folder to write to")
    strangers = {path.name for path in out.glob("*.tar")} - {shard.name for shard in shards}
    if strangers:
        raise InputError(f"{out} holds {min(strangers)}, which {folder} does not have", "Choose another folder to write to")
    made = {}
    with exclusive_writer(out), progress(sum(shard.samples for shard in shards), "explode", "sample") as bar:
        jobs = (Job(folder, out, shard) for shard in shards)
        records = in_processes(_finished_or_written, jobs, min(workers or cores(), max(len(shards), 1)))
        for shard, record in zip(shards, records, strict=True):
            made[shard.name] = record
            bar.update(shard.samples)
        labels.write(out / LABELS_FILE)
        write_text(out / README_FILE, card(info, made))
    return made


def _finished_or_written(job: Job) -> Exploded:
    tar, path = job.out / job.shard.name, job.out / RECORDS / f"{job.shard.name}.json"
    try:
        record = Exploded.model_validate_json(path.read_bytes())
        if record.source_sha256 == job.shard.sha256 and tar.stat().st_size == record.size:
            return record
    except (OSError, ValidationError):
        pass
    samples = frames = 0
    with atomic_file(tar) as file:
        for own in _samples(job):
            samples += 1
            for name, data in own:
                _append(file, name, data)
                frames += name.endswith(".jpg")
        file.write(bytes(2 * BLOCK))
    record = Exploded(source_sha256=job.shard.sha256, size=tar.stat().st_size, samples=samples, frames=frames)
    write_text(path, record.model_dump_json() + "\n")
    return record


def _samples(job: Job) -> Iterator[list[tuple[str, bytes]]]:
    """Names and bytes of the members of each sample, its frames apart."""
    path = job.folder / job.shard.name
    fix = "Run `mbt shards verify` on the folder, and mend what it names"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ShardError(f"cannot open the shard {path}: {error.strerror}", fix) from None
    try:
        if (size := os.fstat(descriptor).st_size) != job.shard.size:
            raise ShardError(f"{path} has {size} bytes where {job.shard.size} are recorded", fix)
        for key, parts in groupby(members(descriptor), key=lambda member: member.key):
            try:
                yield _apart(key, {part.extension: part for part in parts}, descriptor)
            except KeyError as error:
                raise ShardError(f"{path}: {key} has no member {error}", fix) from None
            except ValueError as error:
                raise ShardError(f"{path}: {key} is damaged: {error}", fix) from None
    except TarError as error:
        raise ShardError(f"{path}: {error.what}", fix) from None
    finally:
        os.close(descriptor)


def _apart(key: str, parts: dict[str, Member], descriptor: int) -> list[tuple[str, bytes]]:
    stream = parts.pop("mjpg").read(descriptor)
    own = [(part.name, part.read(descriptor)) for part in parts.values()]
    frame_bytes = read_description(dict(own)[f"{key}.json"]).frame_bytes
    if sum(frame_bytes) != len(stream):
        raise ValueError(f"{len(stream)} bytes of frames, not {sum(frame_bytes)}")
    for number, (start, end) in enumerate(pairwise([0, *accumulate(frame_bytes)])):
        jpeg = stream[start:end]
        if not jpeg.startswith(SOI) or not jpeg.endswith(EOI):
            raise ValueError(f"frame {number} is no JPEG")
        own.append((f"{key}.{number:04d}.jpg", jpeg))
    return own


def _append(file: BinaryIO, name: str, data: bytes) -> None:
    """Append a member to a USTAR archive: time and owner 0, mode 0444."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = len(data), 0o444
    file.write(header.tobuf(tarfile.USTAR_FORMAT))
    file.write(data)
    file.write(bytes(-len(data) % BLOCK))


def card(info: DatasetInfo, made: dict[str, Exploded]) -> str:
    """README.md of the folder."""
    video, mel = info.media.video, info.media.log_mel
    rate = mel.sample_rate // mel.hop_length
    flac = f"\n| `KEY.flac` | sound, {mel.sample_rate} Hz, mono, 16 bit |" if info.media.flac else ""
    own = {name: [made[shard.name] for shard in split.shards] for name, split in info.splits.items()}
    counts = "\n".join(
        f"| {name} | {sum(r.samples for r in records):,} | {sum(r.frames for r in records):,} | {len(records):,} |"
        f" {sum(r.size for r in records) / 1e9:.3f} |"
        for name, records in own.items()
    )
    return f"""# {info.dataset}, a member a frame

WebDataset tars that `mbt shards explode` made from a dataset of the format {info.format} {info.format_version}.
**This folder is not of that format**: it has no `{DATASET_FILE}` and no index, and `mbt train` cannot read it.

| split | samples | frames | tars | GB |
|---|--:|--:|--:|--:|
{counts}

The members of a sample, next to each other and in this order:

| member | content |
|---|---|
| `KEY.json` | labels, times, number and size of the frames |
| `KEY.mel.npy` | log-mel, float16 (rows, {mel.n_mels}), {rate} rows a second, not normalised |{flac}
| `KEY.0000.jpg`, `KEY.0001.jpg`, ... | the frames, {video.fps} a second |

`{LABELS_FILE}` has the classes. Over the split `{info.log_mel_statistics.split}` the log-mel has mean
{info.log_mel_statistics.mean:.4f} and standard deviation {info.log_mel_statistics.std:.4f}.

    import webdataset as wds
    for sample in wds.WebDataset("train-000000.tar", shardshuffle=False):
        first_frame = sample["0000.jpg"]

The clips belong to those who uploaded them; respect their rights and the terms of the source.
"""
