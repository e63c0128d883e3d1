"""`mbt shards explode`: the same samples as WebDataset tars with one `.jpg` member per frame, for tools that need that."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from pathlib import Path

from pydantic import ValidationError

from mbt.manifests.atomic import atomic_file, exclusive_writer, write_text
from mbt.manifests.errors import InputError, ShardError
from mbt.manifests.labels import read_labels
from mbt.manifests.progress import progress
from mbt.manifests.reading.jpeg import EOI, SOI
from mbt.manifests.shards import DATASET_FILE, LABELS_FILE, README_FILE, DatasetInfo, Frozen, ShardFile, read_dataset
from mbt.prep.pack.tar import END, Member, TarError, append_member, members
from mbt.prep.plan.plan import check_is_empty
from mbt.prep.shards.check_sample import read_description
from mbt.prep.workers.processes import cores, in_processes

RECORDS = "work"


class Exploded(Frozen):
    """Record of a tar that was written.

    Attributes:
        source_sha256: SHA-256 of the source shard, from dataset.json.
        size: bytes of the tar.
        samples: number of samples.
        frames: number of `.jpg` members.
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

    The other members are unchanged. A tar that was already made from the same shard is skipped.

    Args:
        folder: dataset folder.
        out: folder for the tars, labels.csv and README.md; the result is not a folder of the format mbt-shards.
        workers: shards to rewrite at a time, each in a process of its own; default: one per core.

    Returns:
        The record of each tar, by name.

    Raises:
        ShardError: a shard is missing or damaged.
        InputError: `out` holds another dataset, or files of others.
        StorageError: `out` cannot be written.
    """
    info, labels = read_dataset(folder), read_labels(folder / LABELS_FILE)
    shards = [shard for split in info.splits.values() for shard in split.shards]
    if (out / DATASET_FILE).exists():
        raise InputError(f"{out} is a dataset folder itself", "Choose another folder to write to")
    if not any(map(_read_record, (out / RECORDS).glob("*.json"))):
        check_is_empty(out, "mbt shards explode", str(out / "exploded"))
    unknown = {path.name for path in out.glob("*.tar")} - {shard.name for shard in shards}
    if unknown:
        raise InputError(f"{out} holds {min(unknown)}, which {folder} does not have", "Choose another folder to write to")
    made = {}
    with exclusive_writer(out), progress(sum(shard.samples for shard in shards), "explode", "sample") as bar:
        jobs = (Job(folder, out, shard) for shard in shards)
        records = in_processes(_read_or_write, jobs, min(workers or cores(), max(len(shards), 1)))
        for shard, record in zip(shards, records, strict=True):
            made[shard.name] = record
            bar.update(shard.samples)
        labels.write(out / LABELS_FILE)
        write_text(out / README_FILE, card(info, made))
    return made


def _read_or_write(job: Job) -> Exploded:
    tar, path = job.out / job.shard.name, job.out / RECORDS / f"{job.shard.name}.json"
    record = _read_record(path)
    if record and record.source_sha256 == job.shard.sha256 and tar.is_file() and tar.stat().st_size == record.size:
        return record
    samples = frames = 0
    with atomic_file(tar) as file:
        for sample in _samples(job):
            samples += 1
            for name, data in sample:
                append_member(file, name, data)
                frames += name.endswith(".jpg")
        file.write(END)
    record = Exploded(source_sha256=job.shard.sha256, size=tar.stat().st_size, samples=samples, frames=frames)
    write_text(path, record.model_dump_json() + "\n")
    return record


def _read_record(path: Path) -> Exploded | None:
    """The record in a file; None if it is missing or not one of ours."""
    try:
        return Exploded.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _samples(job: Job) -> Iterator[list[tuple[str, bytes]]]:
    """Names and bytes of the members of each sample, with its frames as separate members."""
    path = job.folder / job.shard.name
    fix = f"Run `mbt shards verify {job.folder}`, and fix the faults that it lists"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ShardError(f"cannot open the shard {path}: {error.strerror}", fix) from None
    try:
        if (size := os.fstat(descriptor).st_size) != job.shard.size:
            raise ShardError(f"{path} has {size} bytes; dataset.json says {job.shard.size}", fix)
        for key, parts in groupby(members(descriptor), key=lambda member: member.key):
            try:
                yield _split_frames(key, {part.extension: part for part in parts}, descriptor)
            except KeyError as error:
                raise ShardError(f"{path}: {key} has no member {error}", fix) from None
            except ValueError as error:
                raise ShardError(f"{path}: {key} is damaged: {error}", fix) from None
    except TarError as error:
        raise ShardError(f"{path}: {error.what}", fix) from None
    finally:
        os.close(descriptor)


def _split_frames(key: str, parts: dict[str, Member], descriptor: int) -> list[tuple[str, bytes]]:
    stream = parts.pop("mjpg").read(descriptor)
    split = [(part.name, part.read(descriptor)) for part in parts.values()]
    frame_bytes = read_description(dict(split)[f"{key}.json"]).frame_bytes
    if sum(frame_bytes) != len(stream):
        raise ValueError(f"its frames have {len(stream)} bytes, not {sum(frame_bytes)}")
    for number, (start, end) in enumerate(pairwise([0, *accumulate(frame_bytes)])):
        jpeg = stream[start:end]
        if not jpeg.startswith(SOI) or not jpeg.endswith(EOI):
            raise ValueError(f"frame {number} is not a JPEG")
        split.append((f"{key}.{number:04d}.jpg", jpeg))
    return split


def card(info: DatasetInfo, made: dict[str, Exploded]) -> str:
    """README.md of the folder."""
    video, mel = info.media.video, info.media.log_mel
    rate = mel.sample_rate // mel.hop_length
    flac = f"\n| `KEY.flac` | audio, {mel.sample_rate} Hz, mono, 16 bit |" if info.media.flac else ""
    records = {name: [made[shard.name] for shard in split.shards] for name, split in info.splits.items()}
    counts = "\n".join(
        f"| {name} | {sum(tar.samples for tar in tars):,} | {sum(tar.frames for tar in tars):,} | {len(tars):,} |"
        f" {sum(tar.size for tar in tars) / 1e9:.3f} |"
        for name, tars in records.items()
    )
    return f"""# {info.dataset}, one member per frame

WebDataset tars that `mbt shards explode` made from a dataset of the format {info.format} {info.format_version}.
**This folder is not in that format**: it has no `{DATASET_FILE}` and no index, and `mbt train` cannot read it.

| split | samples | frames | tars | GB |
|---|--:|--:|--:|--:|
{counts}

The members of a sample, next to each other and in this order:

| member | content |
|---|---|
| `KEY.json` | labels, times, number and size of the frames |
| `KEY.mel.npy` | log-mel, float16 (rows, {mel.n_mels}), {rate} rows per second, not normalized |{flac}
| `KEY.0000.jpg`, `KEY.0001.jpg`, ... | the frames, {video.fps} per second |

`{LABELS_FILE}` lists the classes. Over the split `{info.log_mel_statistics.split}` the log-mel has mean
{info.log_mel_statistics.mean:.4f} and standard deviation {info.log_mel_statistics.std:.4f}.

    import webdataset as wds
    for sample in wds.WebDataset("train-000000.tar", shardshuffle=False):
        first_frame = sample["0000.jpg"]

The clips belong to those who uploaded them; respect their rights and the terms of the source.
"""
