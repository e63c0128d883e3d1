"""`mbt prep`: plan, fetch and pack in a row, or one of them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.atomic import sole_writer
from manifests.labels import LabelSet
from manifests.shards import FAILURES_FILE, MediaFormat, VideoFormat
from prep.decode import Limits
from prep.fetch import fetch
from prep.local import LocalFolder
from prep.pack import PackSettings, pack
from prep.plan import CLIPS_FILE, Plan, write_plan
from prep.ytdlp import YtDlp

Work = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class PrepOptions:
    """The options that `mbt prep` has for every dataset; their meanings are in its help."""

    out: Path
    stage: str | None
    limit: int | None
    short_side: int
    jpeg_qscale: int
    shard_samples: int
    seed: int
    workers: int | None
    clip_timeout: float
    clip_memory: float
    sleep: float


def prepare(
    plan: Plan,
    read_labels: Callable[[], LabelSet],
    read_clips: Callable[[LabelSet], pa.Table],
    source: str,
    options: PrepOptions,
) -> None:
    """Run the stages of `mbt prep` and print what came of each.

    Args:
        plan: dataset and task.
        read_labels: gives the label set.
        read_clips: gives the clip table.
        source: folder of media files, or URL template.
        options: the rest.

    Raises:
        MbtError: anything that the user can mend.
    """
    out = options.out.resolve()
    stages: dict[str, Callable[[], Work]] = {
        "plan": lambda: _plan(out, plan, read_labels, read_clips, options.limit),
        "fetch": lambda: _fetch(out, source, options.sleep),
        "pack": lambda: _pack(out, options),
    }
    ready = [make() for stage, make in stages.items() if options.stage in (None, stage)]
    with sole_writer(out):
        for work in ready:
            work()


# Each of these checks what it is given before anything is written, and returns its work.


def _plan(
    out: Path, plan: Plan, read_labels: Callable[[], LabelSet], read_clips: Callable[[LabelSet], pa.Table], limit: int | None
) -> Work:
    labels = read_labels()
    listed = read_clips(labels)

    def work() -> None:
        clips = write_plan(out, plan, labels, listed, limit)
        click.echo(f"plan: {clips.num_rows:,} clips in {out / CLIPS_FILE}")

    return work


def _fetch(out: Path, source: str, sleep_s: float) -> Work:
    media = YtDlp(out, source, sleep_s) if "://" in source else LocalFolder(Path(source))

    def work() -> None:
        fetched = fetch(out, media)
        click.echo(f"fetch: {fetched.there:,} clips there, {fetched.missing:,} not")

    return work


def _pack(out: Path, options: PrepOptions) -> Work:
    media = MediaFormat(video=VideoFormat(short_side=options.short_side, jpeg_qscale=options.jpeg_qscale))
    settings = PackSettings(media=media, shard_samples=options.shard_samples, seed=options.seed)
    limits = Limits(wall_s=options.clip_timeout, memory_bytes=round(options.clip_memory * 2**30))

    def work() -> None:
        info = pack(out, settings, options.workers, limits)
        for name, split in info.splits.items():
            shards = f"{len(split.shards):,} shard{'s' * (len(split.shards) != 1)}"
            click.echo(f"pack: {name}: {split.samples:,} samples in {shards}, {split.failures:,} clips failed")
        codes = Counter(pq.read_table(out / FAILURES_FILE)["code"].to_pylist()).most_common()
        if codes:
            reasons = ", ".join(f"{count:,} {code}" for code, count in codes)
            click.echo(f"pack: not packed: {reasons}; each with its reason in {out / FAILURES_FILE}")

    return work
