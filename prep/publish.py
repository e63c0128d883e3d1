"""The last step of packing: index, failures, dataset.json and card from the records of the shards."""

import math
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa

from manifests.atomic import write_table, write_text
from manifests.clips import Clip
from manifests.errors import InputError
from manifests.labels import LabelSet
from manifests.shards import (
    FAILURE_SCHEMA,
    FAILURES_FILE,
    INDEX_SCHEMA,
    LABELS_FILE,
    MEL_RATE,
    README_FILE,
    DatasetInfo,
    MediaFormat,
    MelStatistics,
    SplitInfo,
    index_file,
)
from prep.decode import ffmpeg_version
from prep.growing import Failure
from prep.ledger import NEVER_FETCHED, Attempt
from prep.plan import Plan
from prep.shard import ShardRecord


def publish(
    folder: Path,
    plan: Plan,
    labels: LabelSet,
    clips: dict[str, Clip],
    ledger: dict[str, Attempt],
    records: dict[str, ShardRecord],
    media: MediaFormat,
) -> DatasetInfo:
    """Write indices, labels.csv, failures.parquet, dataset.json and README.md.

    Raises:
        InputError: no clip was packed.
    """
    packed = {row["key"] for record in records.values() for row in record.rows}
    failures = _failures(clips, packed, ledger, records)
    _write_failures(folder, clips, failures)
    if not packed:
        first = f"the first: {failures[0].code}: {failures[0].message}" if failures else "the plan holds no clip"
        raise InputError(f"no clip of {folder} could be packed; {first}", f"See {folder / FAILURES_FILE} for every reason")
    splits = {}
    for split in sorted({clip.split for clip in clips.values()}):
        own = [record for record in records.values() if record.rows and record.rows[0]["split"] == split]
        rows = [row for record in own for row in record.rows]
        if rows:
            write_table(folder / index_file(split), pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
            splits[split] = SplitInfo(
                samples=len(rows),
                failures=sum(clips[failed.key].split == split for failed in failures),
                seconds=sum(row["num_mel_rows"] for row in rows) / MEL_RATE,
                shards=tuple(record.file for record in own),
            )
    labels.write(folder / LABELS_FILE)
    info = DatasetInfo(
        dataset=plan.dataset,
        task=plan.task,
        num_classes=len(labels),
        media=media,
        log_mel_statistics=_statistics("train" if "train" in splits else next(iter(splits)), records),
        splits=splits,
        code_version=version("mbt"),
        ffmpeg_version=ffmpeg_version(),
        config_digest=media.digest(),
    )
    info.write(folder)
    write_text(folder / README_FILE, card(info))
    return info


def _failures(
    clips: dict[str, Clip], packed: set[str], ledger: dict[str, Attempt], records: dict[str, ShardRecord]
) -> list[Failure]:
    failures = {failed.key: failed for record in records.values() for failed in record.failures}
    for key in clips.keys() - packed - failures.keys():
        attempt = ledger.get(key, NEVER_FETCHED)
        failures[key] = Failure(key=key, stage="fetch", code=attempt.code, message=attempt.message)
    return [failures[key] for key in clips if key in failures]


def _write_failures(folder: Path, clips: dict[str, Clip], failures: list[Failure]) -> None:
    rows = [{**vars(clips[failed.key]), **failed.model_dump()} for failed in failures]
    write_table(folder / FAILURES_FILE, pa.Table.from_pylist(rows, schema=FAILURE_SCHEMA))


def _statistics(split: str, records: dict[str, ShardRecord]) -> MelStatistics:
    own = [record for record in records.values() if record.rows and record.rows[0]["split"] == split]
    count = sum(record.mel_count for record in own)
    mean = sum(record.mel_sum for record in own) / count
    variance = sum(record.mel_square_sum for record in own) / count - mean**2
    return MelStatistics(split=split, mean=mean, std=math.sqrt(max(variance, 0.0)))


def card(info: DatasetInfo) -> str:
    """The dataset card, in Markdown."""
    video, mel = info.media.video, info.media.log_mel
    counts = "\n".join(
        f"| {name} | {split.samples:,} | {split.failures:,} | {split.seconds / 3600:.2f} | {len(split.shards)} |"
        f" {sum(shard.size for shard in split.shards) / 1e9:.3f} |"
        for name, split in info.splits.items()
    )
    return f"""# {info.dataset}, packed by mbt {info.code_version}

Audio-visual clips as WebDataset shards: Motion-JPEG frames at {video.fps} fps, short side {video.short_side}, and log-mel
spectrograms at {MEL_RATE} rows a second. Task: {info.task}, {info.num_classes} classes (`{LABELS_FILE}`).

| split | samples | clips not here | hours | shards | GB |
|---|--:|--:|--:|--:|--:|
{counts}

Each sample has three members: `KEY.json` (labels, times, `frame_bytes`), `KEY.mel.npy` (float16, rows x {mel.n_mels}) and
`KEY.mjpg` (all frames, one JPEG after the other). `SPLIT.parquet` gives the byte span of each, `SPLIT-NNNNNN.idx` is DALI's
index, `{FAILURES_FILE}` names every clip that is not here, with the reason. Format: {info.format} {info.format_version};
its specification is docs/shards.md of mbt.

Log-mel: natural logarithm of power, {mel.n_mels} {mel.mel_scale} bands of {mel.f_min:g} to {mel.f_max:g} Hz,
{mel.win_length}-sample {mel.window} window, hop {mel.hop_length}, {mel.sample_rate} Hz; over the split
`{info.log_mel_statistics.split}` its mean is {info.log_mel_statistics.mean:.4f} and its standard deviation
{info.log_mel_statistics.std:.4f}. JPEG: ffmpeg {info.ffmpeg_version}, quantiser scale {video.jpeg_qscale}.

    import webdataset as wds
    samples = wds.WebDataset("train-000000.tar", shardshuffle=False)

The clips belong to those who uploaded them; respect their rights and the terms of the source.
"""
