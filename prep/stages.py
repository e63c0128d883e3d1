"""`mbt prep`: plan, fetch and pack in a row, or one of them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.atomic import sole_writer
from manifests.balance import Balance, Order
from manifests.errors import InputError
from manifests.labels import LabelSet
from manifests.shards import FAILURES_FILE, MediaFormat, VideoFormat
from prep.choose import Choice
from prep.decode import Limits
from prep.estimate import Estimate, check_disk, estimate
from prep.fetch import fetch
from prep.local import LocalFolder
from prep.pack import PackSettings, pack
from prep.plan import CLIPS_FILE, Plan, read_plan, write_plan
from prep.removed import read_removed
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
    ytdlp: tuple[str, ...]
    cap: int | None
    order: Order | None
    balance: Literal["survivors", "list"] | None
    keys: Path | None
    dry_run: bool
    ignore_disk: bool
    keep_raw: bool
    removed: Path | None

    @property
    def choice(self) -> Choice:
        """What to take of the list.

        Raises:
            InputError: how to balance is said, and no cap is given.
        """
        if self.cap is None and (self.order or self.balance):
            raise InputError("--order and --balance say how a cap is kept, and there is none", "Add --cap N")
        balance = None if self.cap is None else Balance(self.cap, self.order or "common-first", self.seed)
        return Choice(self.keys, balance, self.balance or "survivors", self.limit)

    @property
    def removed_ids(self) -> frozenset[str]:
        """Keys and video ids of the removal list.

        Raises:
            InputError: it cannot be read.
        """
        return frozenset() if self.removed is None else read_removed(self.removed)

    @property
    def media(self) -> MediaFormat:
        """Format of the shards."""
        return MediaFormat(video=VideoFormat(short_side=self.short_side, jpeg_qscale=self.jpeg_qscale))


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
    if options.dry_run:
        labels = read_labels()
        clips = options.choice.of(read_clips(labels), len(labels))
        click.echo("\n".join(_estimate(clips, len(labels), source, options).lines()))
        return
    stages: dict[str, Callable[[], Work]] = {
        "plan": lambda: _plan(out, plan, read_labels, read_clips, options.choice),
        "fetch": lambda: _fetch(out, source, options),
        "pack": lambda: _pack(out, options),
    }
    ready = [make() for stage, make in stages.items() if options.stage in (None, stage)]
    with sole_writer(out):
        for work in ready:
            work()


def _estimate(clips: pa.Table, num_classes: int, source: str, options: PrepOptions) -> Estimate:
    rate = 3600 / max(options.sleep, 1.0) if "://" in source else None
    return estimate(options.choice.likely(clips, num_classes), options.media, rate)


# Each of these checks what it is given before anything is written, and returns its work.


def _plan(
    out: Path, plan: Plan, read_labels: Callable[[], LabelSet], read_clips: Callable[[LabelSet], pa.Table], choice: Choice
) -> Work:
    labels = read_labels()
    clips = choice.of(read_clips(labels), len(labels))

    def work() -> None:
        capped = plan.model_copy(update={"caps": choice.caps(clips)})
        planned = write_plan(out, capped, labels, clips)
        click.echo(f"plan: {planned.num_rows:,} clips in {out / CLIPS_FILE}")

    return work


def _fetch(out: Path, source: str, options: PrepOptions) -> Work:
    media = YtDlp(out, source, options.sleep, options.ytdlp) if "://" in source else LocalFolder(Path(source))

    def work() -> None:
        if not options.ignore_disk:
            _, labels, clips = read_plan(out)
            check_disk(out, _estimate(clips, len(labels), source, options).disk_bytes)
        fetched = fetch(out, media, options.removed_ids)
        click.echo(f"fetch: {fetched.there:,} clips there, {fetched.missing:,} not")

    return work


def _pack(out: Path, options: PrepOptions) -> Work:
    settings = PackSettings(media=options.media, shard_samples=options.shard_samples, seed=options.seed)
    limits = Limits(wall_s=options.clip_timeout, memory_bytes=round(options.clip_memory * 2**30))

    def work() -> None:
        info = pack(out, settings, options.workers, limits, options.keep_raw, options.removed_ids)
        for name, split in info.splits.items():
            shards = f"{len(split.shards):,} shard{'s' * (len(split.shards) != 1)}"
            click.echo(f"pack: {name}: {split.samples:,} samples in {shards}, {split.failures:,} clips failed")
        codes = Counter(pq.read_table(out / FAILURES_FILE)["code"].to_pylist()).most_common()
        if codes:
            reasons = ", ".join(f"{count:,} {code}" for code, count in codes)
            click.echo(f"pack: not packed: {reasons}; each with its reason in {out / FAILURES_FILE}")

    return work
