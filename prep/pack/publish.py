"""The last step of packing: indices, failures, dataset.json and README.md from the records of the shards."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mbt.manifests.atomic import atomic_file, write_table, write_text
from mbt.manifests.clips import iter_clips
from mbt.manifests.errors import InputError
from mbt.manifests.labels import LabelSet
from mbt.manifests.shards import (
    DATASET_FILE,
    FAILURE_SCHEMA,
    FAILURES_CSV,
    FAILURES_FILE,
    LABELS_FILE,
    MEL_RATE,
    README_FILE,
    DatasetInfo,
    MediaFormat,
    MelStatistics,
    ShardFile,
    SplitInfo,
    index_file,
)
from mbt.prep.media.ffmpeg import ffmpeg_version
from mbt.prep.media.mel_sums import MelSums
from mbt.prep.pack.copy_samples import removed_failure
from mbt.prep.plan.plan import Plan
from mbt.prep.plan.removed import is_removed
from mbt.prep.state.ledger import NEVER_FETCHED, Attempt
from mbt.prep.state.settings import PackSettings
from mbt.prep.state.shard_record import Failure, ShardRecord, read_record
from mbt.prep.state.store import Store

INDEX_ROWS = 1 << 14
"""Rows of an index to write at a time."""
FAILURE_COLUMNS = ("video_id", "start", "end", "split", "labels", "key", "stage", "code", "message")
"""Columns of failures.csv: those of a list of clips come first, so that it can be one."""


def publish(
    folder: Path,
    plan: Plan,
    labels: LabelSet,
    clips: pa.Table,
    ledger: Mapping[str, Attempt],
    names: Sequence[str],
    settings: PackSettings,
    store: Store,
    removed: frozenset[str] = frozenset(),
) -> DatasetInfo:
    """Write the indices, labels.csv, failures.parquet and .csv, dataset.json and README.md, reading one shard record at a time.

    Args:
        folder: the dataset folder.
        plan: dataset and task.
        labels: label set.
        clips: table of the clips to pack.
        ledger: fetch state of each clip, by key.
        names: file names of the shards' first tars.
        settings: pack settings.
        store: where the files go, dataset.json last.
        removed: keys and video ids on the removal list.

    Raises:
        InputError: no clip was packed.
    """
    splits = {name: Counts() for name in sorted(pc.unique(clips["split"]).to_pylist())}
    failures: dict[str, Failure] = {}
    packed: set[str] = set()
    with ExitStack() as stack:
        indices: dict[str, IndexWriter] = {}
        for record in (read_record(folder, name) for name in names):
            assert record is not None
            failures |= {failed.key: failed for failed in record.failures}
            if record.rows:
                split = record.rows[0]["split"]
                if split not in indices:
                    indices[split] = stack.enter_context(IndexWriter(folder / index_file(split), settings.media))
                indices[split].add(record.rows)
                splits[split].add(record)
                packed.update(row["key"] for row in record.rows)
    failures |= {clip.key: removed_failure(clip.key) for clip in iter_clips(clips) if is_removed(clip, removed)}
    _write_failures(folder, clips, labels, packed, failures, ledger, splits)
    found = {name: counts.info() for name, counts in splits.items() if counts.samples}
    for name in (*map(index_file, splits.keys() - found.keys()), *([] if found else [DATASET_FILE])):
        (folder / name).unlink(missing_ok=True)
        store.remove(name)
    if not found:
        raise InputError(
            f"{folder}: no clip could be packed{_first_failure(folder)}", f"See {folder / FAILURES_CSV} for all failures"
        )
    statistics_of = "train" if "train" in found else next(iter(found))
    labels.write(folder / LABELS_FILE)
    info = DatasetInfo(
        dataset=plan.dataset,
        task=plan.task,
        num_classes=len(labels),
        media=settings.media,
        log_mel_statistics=splits[statistics_of].statistics(statistics_of),
        splits=found,
        code_version=version("mbt"),
        ffmpeg_version=ffmpeg_version(),
        config_digest=settings.media.digest(),
    )
    write_text(folder / README_FILE, card(info))
    info.write(folder)
    for name in (*map(index_file, found), LABELS_FILE, FAILURES_FILE, FAILURES_CSV, README_FILE, DATASET_FILE):
        store.put(name)
    return info


class IndexWriter:
    """Writes the index of a split, complete or not at all."""

    def __init__(self, path: Path, media: MediaFormat) -> None:
        self._schema = media.index_schema
        self._rows: list[dict[str, Any]] = []
        self._path = path

    def __enter__(self) -> "IndexWriter":
        with ExitStack() as stack:
            file = stack.enter_context(atomic_file(self._path))
            self._writer = stack.enter_context(pq.ParquetWriter(file, self._schema, compression="zstd"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._flush()
        self._stack.__exit__(*error)

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows."""
        self._rows += rows
        if len(self._rows) >= INDEX_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


@dataclass
class Counts:
    """Totals of a split."""

    samples: int = 0
    failures: int = 0
    mel_rows: int = 0
    files: list[ShardFile] = field(default_factory=list)
    mel: MelSums = field(default_factory=MelSums)

    def add(self, record: ShardRecord) -> None:
        """Add the totals of a shard."""
        self.samples += len(record.rows)
        self.mel_rows += sum(row["num_mel_rows"] for row in record.rows)
        self.files += record.files
        self.mel += record.mel

    def info(self) -> SplitInfo:
        """The split's entry in dataset.json."""
        seconds = self.mel_rows / MEL_RATE
        return SplitInfo(samples=self.samples, failures=self.failures, seconds=seconds, shards=tuple(self.files))

    def statistics(self, split: str) -> MelStatistics:
        """Mean and standard deviation of the log-mel; the split must have a sample."""
        return MelStatistics(split=split, mean=self.mel.mean, std=self.mel.std)


def _write_failures(
    folder: Path,
    clips: pa.Table,
    labels: LabelSet,
    packed: Collection[str],
    failures: Mapping[str, Failure],
    ledger: Mapping[str, Attempt],
    splits: Mapping[str, Counts],
) -> None:
    """Write failures.parquet and failures.csv, and count their rows by split in `splits`."""
    rows = []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FAILURE_COLUMNS)
    for clip in iter_clips(clips):
        if clip.key not in packed:
            failure = failures.get(clip.key) or _not_fetched(clip.key, ledger)
            rows.append({**asdict(clip), **failure.model_dump()})
            ids = ";".join(labels.ids(clip.labels))
            times = clip.start_ms / 1000, clip.end_ms / 1000
            writer.writerow((clip.video_id, *times, clip.split, ids, clip.key, failure.stage, failure.code, failure.message))
            splits[clip.split].failures += 1
    write_table(folder / FAILURES_FILE, pa.Table.from_pylist(rows, schema=FAILURE_SCHEMA))
    write_text(folder / FAILURES_CSV, text.getvalue())


def _not_fetched(key: str, ledger: Mapping[str, Attempt]) -> Failure:
    attempt = ledger.get(key, NEVER_FETCHED)
    return Failure(key=key, stage="fetch", code=attempt.code, message=attempt.message)


def _first_failure(folder: Path) -> str:
    rows = pq.read_table(folder / FAILURES_FILE, columns=["code", "message"]).slice(0, 1).to_pylist()
    return "".join(f"; the first failure is {row['code']}: {row['message']}" for row in rows)


def card(info: DatasetInfo) -> str:
    """README.md, the dataset card."""
    video, mel = info.media.video, info.media.log_mel
    flac = f", and `KEY.flac` (the audio, {mel.sample_rate} Hz, mono, 16 bit)" if info.media.flac else ""
    counts = "\n".join(
        f"| {name} | {split.samples:,} | {split.failures:,} | {split.seconds / 3600:.2f} | {len(split.shards)} |"
        f" {sum(shard.size for shard in split.shards) / 1e9:.3f} |"
        for name, split in info.splits.items()
    )
    return f"""# {info.dataset}, packed by mbt {info.code_version}

Audio-visual clips as WebDataset shards: Motion-JPEG frames at {video.fps} fps, short side {video.short_side}, and log-mel
spectrograms at {MEL_RATE} rows per second. Task: {info.task}, {info.num_classes} classes (`{LABELS_FILE}`).

| split | samples | missing clips | hours | shards | GB |
|---|--:|--:|--:|--:|--:|
{counts}

Each sample has the members `KEY.json` (labels, times, `frame_bytes`), `KEY.mel.npy` (float16, rows x {mel.n_mels}) and
`KEY.mjpg` (all frames, as concatenated JPEGs){flac}.
`SPLIT.parquet` gives the byte span of each, and `SPLIT-NNNNNN.idx` is DALI's index. `{FAILURES_FILE}` and `{FAILURES_CSV}`
list every missing clip with the reason. Format: {info.format} {info.format_version}; its specification: docs/shards.md of mbt.

Log-mel: natural logarithm of power, {mel.n_mels} {mel.mel_scale} bands of {mel.f_min:g} to {mel.f_max:g} Hz,
{mel.win_length}-sample {mel.window} window, hop {mel.hop_length}, {mel.sample_rate} Hz; over the split
`{info.log_mel_statistics.split}` its mean is {info.log_mel_statistics.mean:.4f} and its standard deviation
{info.log_mel_statistics.std:.4f}. JPEG: ffmpeg {info.ffmpeg_version}, quantizer scale {video.jpeg_qscale}.

    import webdataset as wds
    samples = wds.WebDataset("train-000000.tar", shardshuffle=False)

The clips belong to those who uploaded them; respect their rights and the terms of the source.
"""
