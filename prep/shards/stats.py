"""`mbt shards stats`: statistics of a dataset folder, from its indices; no tar is read."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mbt.manifests.labels import LabelSet, read_labels
from mbt.manifests.reading.split import read_index
from mbt.manifests.shards import (
    FAILURES_FILE,
    FPS,
    LABELS_FILE,
    Frozen,
    MediaFormat,
    SplitInfo,
    index_file,
    read_dataset,
)
from mbt.manifests.sizes import format_bytes

LISTED = 10
"""Maximum number of classes or frame sizes in the table; the JSON output has all of them."""


class Spread(Frozen):
    """Mean, minimum, median and maximum of a quantity over the samples."""

    mean: float
    min: float
    median: float
    max: float


class FrameSize(Frozen):
    """Number of samples with frames of this size."""

    width: int
    height: int
    samples: int


class ClassCount(Frozen):
    """Number of samples with this label."""

    index: int
    id: str
    name: str
    samples: int


class SplitStats(Frozen):
    """Statistics of one split.

    Attributes:
        samples: number of samples.
        hours: their total length.
        shards: number of tars.
        tar_bytes: total size of the tars.
        member_bytes: total size of the members, by extension.
        sample_bytes: size of a sample's members.
        frame_bytes: mean size of a sample's JPEGs.
        seconds: length of a sample.
        frame_sizes: the most frequent first.
        flags: number of samples, by flag.
        padded: number of samples that are padded at the end.
        failures: number of missing clips, by code; empty without failures.parquet.
        labels_a_sample: mean number of labels per sample.
        classes: all classes, those with the most samples first.
    """

    samples: int
    hours: float
    shards: int
    tar_bytes: int
    member_bytes: dict[str, int]
    sample_bytes: Spread
    frame_bytes: Spread
    seconds: Spread
    frame_sizes: tuple[FrameSize, ...]
    flags: dict[str, int]
    padded: int
    failures: dict[str, int]
    labels_a_sample: float
    classes: tuple[ClassCount, ...]


class Stats(Frozen):
    """Statistics of a dataset folder."""

    dataset: str
    task: str
    num_classes: int
    splits: dict[str, SplitStats]


def dataset_stats(folder: Path) -> Stats:
    """Compute the statistics of a dataset folder.

    Raises:
        ShardError: dataset.json or an index is missing or damaged.
        InputError: labels.csv is missing or damaged.
    """
    info, labels = read_dataset(folder), read_labels(folder / LABELS_FILE)
    path = folder / FAILURES_FILE
    failures = pq.read_table(path, columns=["split", "code"]) if path.exists() else None
    splits = {}
    for name, split in info.splits.items():
        codes = failures.filter(pc.equal(failures["split"], name))["code"].to_pylist() if failures is not None else []
        splits[name] = _split(split, info.media, read_index(folder / index_file(name), info.media), labels, codes)
    return Stats(dataset=info.dataset, task=info.task, num_classes=info.num_classes, splits=splits)


def _split(split: SplitInfo, media: MediaFormat, index: pa.Table, labels: LabelSet, failures: Iterable[str]) -> SplitStats:
    sizes = {extension: index[f"{column}_size"].to_numpy() for extension, column in media.members.items()}
    frames = index["num_frames"].to_numpy()
    pairs = index.group_by(["width", "height"]).aggregate([([], "count_all")]).sort_by([("count_all", "descending")])
    padded = pc.or_(pc.greater(index["padded_frames"], 0), pc.greater(index["padded_audio_samples"], 0))
    label_indices = pc.list_flatten(index["labels"]).to_numpy()
    counts = np.bincount(label_indices, minlength=len(labels)).tolist()
    classes = [
        ClassCount(index=i, id=label.id, name=label.display_name, samples=count)
        for i, (label, count) in enumerate(zip(labels.labels, counts, strict=True))
    ]
    return SplitStats(
        samples=index.num_rows,
        hours=float(frames.sum()) / FPS / 3600,
        shards=len(split.shards),
        tar_bytes=sum(shard.size for shard in split.shards),
        member_bytes={extension: int(size.sum()) for extension, size in sizes.items()},
        sample_bytes=_spread(sum(sizes.values())),
        frame_bytes=_spread(sizes["mjpg"] / frames),
        seconds=_spread(frames / FPS),
        frame_sizes=tuple(
            FrameSize(width=row["width"], height=row["height"], samples=row["count_all"]) for row in pairs.to_pylist()
        ),
        flags=dict(Counter(pc.list_flatten(index["flags"]).to_pylist()).most_common()),
        padded=pc.sum(padded).as_py(),
        failures=dict(Counter(failures).most_common()),
        labels_a_sample=len(label_indices) / index.num_rows,
        classes=tuple(sorted(classes, key=lambda label: -label.samples)),
    )


def _spread(values: Any) -> Spread:
    values = np.asarray(values)
    return Spread(mean=float(values.mean()), min=float(values.min()), median=float(np.median(values)), max=float(values.max()))


def table(stats: Stats) -> str:
    """The statistics as human-readable text."""
    head = f"{stats.dataset}: {stats.task}, {stats.num_classes} classes"
    return "\n\n".join([head, *(_split_table(name, split) for name, split in stats.splits.items())])


def _split_table(name: str, split: SplitStats) -> str:
    present = [label for label in split.classes if label.samples]
    absent = [label for label in split.classes if not label.samples]
    members = ", ".join(f"{extension} {format_bytes(size)}" for extension, size in split.member_bytes.items())
    frames = [f"{size.width} x {size.height}: {size.samples:,}" for size in split.frame_sizes]
    rows = {
        "samples": f"{split.samples:,}",
        "missing": f"{sum(split.failures.values()):,}: {_counts(split.failures)}" if split.failures else "",
        "hours": f"{split.hours:,.3f}",
        "per sample": f"{_range(split.seconds, 's')}; {_bytes_range(split.sample_bytes)}",
        "bytes": f"{format_bytes(split.tar_bytes)} in {split.shards:,} tar{'s' * (split.shards != 1)}: {members}",
        "per frame": _bytes_range(split.frame_bytes),
        "frames": _some(frames),
        "flags": _counts(split.flags | ({"padded": split.padded} if split.padded else {})),
        "labels": f"{split.labels_a_sample:.2f} per sample",
        "most": _some([f"{label.name} {label.samples:,}" for label in present], more=False),
        "fewest": _some([f"{label.name} {label.samples:,}" for label in reversed(present[LISTED:])], more=False),
        "no samples": f"{len(absent)} classes: {_some([label.name for label in absent])}" if absent else "",
    }
    return "\n".join([f"split {name}", *(f"  {what:<10} {text}" for what, text in rows.items() if text)])


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _some(texts: Sequence[str], more: bool = True) -> str:
    rest = f", and {len(texts) - LISTED:,} more" if more and len(texts) > LISTED else ""
    return ", ".join(texts[:LISTED]) + rest


def _range(spread: Spread, unit: str) -> str:
    return f"{spread.mean:.4g} {unit} ({spread.min:.4g} to {spread.max:.4g}, median {spread.median:.4g})"


def _bytes_range(spread: Spread) -> str:
    mean, low, high, median = map(format_bytes, (spread.mean, spread.min, spread.max, spread.median))
    return f"{mean} ({low} to {high}, median {median})"
