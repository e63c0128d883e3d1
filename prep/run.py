"""`mbt prep`: plan, fetch and pack in a row, or one of them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import click
import pyarrow as pa
import pyarrow.parquet as pq

from mbt.manifests.atomic import one_of_many, sole_writer
from mbt.manifests.balance import Balance, Order
from mbt.manifests.errors import InputError
from mbt.manifests.labels import LabelSet
from mbt.manifests.shards import FAILURES_FILE, MediaFormat, VideoFormat
from mbt.prep.fetch.fetch import EVERYTHING, Fetched, fetch, find
from mbt.prep.fetch.lanes import Lane, make_lanes
from mbt.prep.fetch.local_folder import LocalFolder
from mbt.prep.fetch.worker_share import Share, find_share
from mbt.prep.fetch.ytdlp import parse_options
from mbt.prep.media.decode import Limits
from mbt.prep.pack.pack import pack
from mbt.prep.plan.choose import Choice
from mbt.prep.plan.estimate import Estimate, check_disk, estimate
from mbt.prep.plan.plan import CLIPS_FILE, Plan, read_plan, write_plan
from mbt.prep.plan.removed import read_removed
from mbt.prep.state.settings import PackSettings

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
    shard_bytes: int | None
    to: str | None
    ray: str | None
    seed: int
    workers: int | None
    clip_timeout: float
    clip_memory: float
    sleep: float
    lanes: Path | None
    rank: int | None
    world: int | None
    ytdlp: tuple[str, ...]
    cap: int | None
    order: Order | None
    balance: Literal["survivors", "list"] | None
    keys: Path | None
    dry_run: bool
    ignore_disk: bool
    keep_raw: bool
    removed: Path | None
    flac: bool

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

    def share(self, source: str) -> Share:
        """The videos that this worker fetches.

        Raises:
            InputError: several workers are to do what only one can.
        """
        share = find_share(self.rank, self.world) if self.stage in (None, "fetch") else EVERYTHING
        if share.world > 1 and (self.stage is None or "://" not in source):
            raise InputError(
                f"only fetching from a URL can be shared, and this is worker {share.rank} of {share.world}",
                "Run --stage plan once, then --stage fetch with every worker, then --stage pack once",
            )
        return share

    def make_lanes(self, source: str) -> list[Lane]:
        """The network addresses to fetch from.

        Raises:
            InputError: their file or an option of yt-dlp is malformed.
        """
        share = self.share(source)
        prefix = f"{share.rank}." if share.world > 1 else ""
        return make_lanes(self.out.resolve(), source, self.sleep, parse_options(self.ytdlp), self.lanes, prefix)

    @property
    def media(self) -> MediaFormat:
        """Format of the shards."""
        return MediaFormat(video=VideoFormat(short_side=self.short_side, jpeg_qscale=self.jpeg_qscale), flac=self.flac)


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
    share = options.share(source)
    ready = [make() for stage, make in stages.items() if options.stage in (None, stage)]
    with sole_writer(out) if share.world == 1 else one_of_many(out, f"fetch-{share.rank}"):
        for work in ready:
            work()


def _estimate(clips: pa.Table, num_classes: int, source: str, options: PrepOptions) -> Estimate:
    rates = [3600 / max(lane.sleep_s, 1.0) for lane in options.make_lanes(source)] if "://" in source else []
    return estimate(options.choice.likely(clips, num_classes), options.media, rates, options.keep_raw)


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
    share = options.share(source)
    run: Callable[[], Fetched]
    if "://" in source:
        run = partial(fetch, out, options.make_lanes(source), options.removed_ids, share, options.seed)
    else:
        run = partial(find, out, LocalFolder(Path(source)), options.removed_ids)

    def work() -> None:
        if not options.ignore_disk:
            _, labels, clips = read_plan(out)
            check_disk(out, _estimate(clips, len(labels), source, options).disk_bytes)
        fetched = run()
        worker = f" (worker {share.rank} of {share.world})" if share.world > 1 else ""
        click.echo(f"fetch: {fetched.there:,} clips there, {fetched.missing:,} not{worker}")

    return work


def _pack(out: Path, options: PrepOptions) -> Work:
    settings = PackSettings(
        media=options.media,
        shard_samples=options.shard_samples,
        shard_bytes=options.shard_bytes,
        seed=options.seed,
        to=options.to,
    )
    limits = Limits(wall_s=options.clip_timeout, memory_bytes=round(options.clip_memory * 2**30))

    def work() -> None:
        info = pack(out, settings, options.workers, limits, options.keep_raw, options.removed_ids, options.ray)
        for name, split in info.splits.items():
            shards = f"{len(split.shards):,} shard{'s' * (len(split.shards) != 1)}"
            click.echo(f"pack: {name}: {split.samples:,} samples in {shards}, {split.failures:,} clips failed")
        codes = Counter(pq.read_table(out / FAILURES_FILE)["code"].to_pylist()).most_common()
        if codes:
            reasons = ", ".join(f"{count:,} {code}" for code, count in codes)
            click.echo(f"pack: not packed: {reasons}; each with its reason in {out / FAILURES_FILE}")

    return work
