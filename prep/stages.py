"""`mbt prep`: plan, fetch and pack in a row, or one of them."""

from collections.abc import Callable
from pathlib import Path

import click
import pyarrow as pa

from manifests.atomic import sole_writer
from manifests.labels import LabelSet
from manifests.shards import FAILURES_FILE, MediaFormat, VideoFormat
from prep.decode import Limits
from prep.fetch import fetch
from prep.local import LocalFolder
from prep.pack import PackSettings, pack
from prep.plan import Plan, write_plan
from prep.ytdlp import YtDlp


def prepare(
    plan: Plan,
    read_labels: Callable[[], LabelSet],
    read_clips: Callable[[LabelSet], pa.Table],
    source: str,
    *,
    out: Path,
    stage: str | None,
    limit: int | None,
    short_side: int,
    jpeg_qscale: int,
    shard_samples: int,
    seed: int,
    workers: int | None,
    clip_timeout: float,
    clip_memory: float,
    sleep: float,
) -> None:
    """Run the stages of `mbt prep` and print what came of each; the arguments are the command's options.

    Raises:
        MbtError: anything that the user can mend.
    """
    out = out.resolve()
    if stage in (None, "fetch"):
        media = YtDlp(out, source, sleep) if "://" in source else LocalFolder(Path(source))
    if stage in (None, "plan"):
        labels = read_labels()
        listed = read_clips(labels)
    with sole_writer(out):
        if stage in (None, "plan"):
            clips = write_plan(out, plan, labels, listed, limit)
            click.echo(f"plan: {clips.num_rows:,} clips in {out / 'clips.parquet'}")
        if stage in (None, "fetch"):
            fetched = fetch(out, media)
            click.echo(f"fetch: {fetched.there:,} clips there, {fetched.missing:,} not")
        if stage in (None, "pack"):
            media_format = MediaFormat(video=VideoFormat(short_side=short_side, jpeg_qscale=jpeg_qscale))
            limits = Limits(wall_s=clip_timeout, memory_bytes=round(clip_memory * 2**30))
            info = pack(out, PackSettings(media=media_format, shard_samples=shard_samples, seed=seed), workers, limits)
            for name, split in info.splits.items():
                click.echo(
                    f"pack: {name}: {split.samples:,} samples in {len(split.shards)} shards, {split.failures:,} clips failed"
                )
            if any(split.failures for split in info.splits.values()):
                click.echo(f"pack: the reasons are in {out / FAILURES_FILE}")
