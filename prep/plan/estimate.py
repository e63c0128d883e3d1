"""What a plan will cost: requests, hours at the source's rate limit, and bytes over the network and on disk."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mbt.manifests.atomic import nearest_existing
from mbt.manifests.errors import StorageError
from mbt.manifests.shards import FPS, MEL_RATE, MediaFormat
from mbt.manifests.sizes import format_gigabytes

RAW_BYTES_PER_S = 120_000
"""Bytes of a raw clip per second, at about 360 pixels: 1.2 MB for 10 s."""
FRAME_BYTES = {2: 20_300, 3: 15_700, 4: 13_300, 5: 12_000, 8: 9_500, 31: 4_700}
"""JPEG bytes of a busy 454 x 256 frame, by quantizer scale; values in between are interpolated."""
BUSY_SHORT_SIDE = 256
RETRIED = 0.03
"""Share of the videos that are requested a second time, an assumption: of a tenth that is gone, a third is just "unavailable",
which is confirmed a day later."""
JSON_BYTES = 2_500
HELD_SHARE = 0.1
"""Share of the raw clips that are on disk at a time if they go when packed: late clips, and those of unfinished shards."""


@dataclass(frozen=True)
class Estimate:
    """What fetching and packing a plan takes.

    Attributes:
        clips: number of clips.
        videos: number of videos to request; 0 if the media are in a local folder.
        lanes: number of network addresses to fetch from.
        hours: hours of fetching, at the rates of the lanes.
        raw_bytes: bytes over the network, and of the raw clips on disk.
        shard_bytes: bytes of the shards.
        keep_raw: whether raw clips are kept after packing.
        uploads: whether finished shards are uploaded instead of kept.
    """

    clips: int
    videos: int
    lanes: int
    hours: float
    raw_bytes: int
    shard_bytes: int
    keep_raw: bool
    uploads: bool

    @property
    def requests(self) -> int:
        """Number of requests for videos, with those that are repeated."""
        return round(self.videos * (1 + RETRIED))

    @property
    def disk_bytes(self) -> int:
        """Peak bytes of raw clips and shards."""
        raw_bytes = self.raw_bytes if self.keep_raw else round(HELD_SHARE * self.raw_bytes)
        return raw_bytes + (0 if self.uploads else self.shard_bytes)

    def lines(self) -> list[str]:
        """The estimate as human-readable lines."""
        network = [
            f"requests      {self.requests:,}: one per video, and {RETRIED:.0%} retries",
            f"time          {self.hours:,.1f} h on {self.lanes:,} network address{'es' * (self.lanes != 1)}",
            f"network       {format_gigabytes(self.raw_bytes)}",
        ]
        raw, shards = format_gigabytes(self.raw_bytes), format_gigabytes(self.shard_bytes)
        return [
            f"clips         {self.clips:,}",
            *(network if self.videos else []),
            f"disk          {format_gigabytes(self.disk_bytes)}: raw clips {raw}, shards {shards}",
        ]


def estimate(
    clips: pa.Table, media: MediaFormat, hourly_rates: Sequence[float], keep_raw: bool = True, uploads: bool = False
) -> Estimate:
    """Upper bounds for a clip table: some of the videos are no longer available.

    Args:
        clips: clip table.
        media: format of the shards.
        hourly_rates: requests per hour of each lane; empty: the media are in a local folder.
        keep_raw: whether raw clips are kept after packing.
        uploads: whether finished shards are uploaded instead of kept.
    """
    seconds = (pc.sum(clips["end_ms"]).as_py() - pc.sum(clips["start_ms"]).as_py()) / 1000
    videos = pc.count_distinct(clips["video_id"]).as_py() if hourly_rates else 0
    bytes_per_frame = _frame_bytes(media.video.jpeg_qscale) * (media.video.short_side / BUSY_SHORT_SIDE) ** 2
    bytes_per_s = FPS * bytes_per_frame + MEL_RATE * media.log_mel.n_mels * 2
    return Estimate(
        clips=clips.num_rows,
        videos=videos,
        lanes=len(hourly_rates),
        hours=videos * (1 + RETRIED) / sum(hourly_rates) if hourly_rates else 0.0,
        raw_bytes=round(seconds * RAW_BYTES_PER_S) if hourly_rates else 0,
        shard_bytes=round(seconds * bytes_per_s + clips.num_rows * JSON_BYTES),
        keep_raw=keep_raw,
        uploads=uploads,
    )


def check_disk(folder: Path, needed: int) -> None:
    """Check that the disk of `folder` has room for `needed` bytes, including what the folder already holds.

    Raises:
        StorageError: it has not enough room.
    """
    free = shutil.disk_usage(nearest_existing(folder)).free
    if needed > free and needed > free + sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()):
        need, have = format_gigabytes(needed), format_gigabytes(free)
        raise StorageError(
            f"{folder}: the plan needs about {need} of disk space, but only {have} is free",
            "Choose another --out, use --limit or --no-keep-raw, or skip this check with --ignore-disk",
        )


def _frame_bytes(qscale: int) -> float:
    return float(np.interp(qscale, list(FRAME_BYTES), list(FRAME_BYTES.values())))
