"""What a plan will cost: requests and hours at the source's quota, bytes over the network, bytes on disk."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mbt.manifests.atomic import nearest_existing
from mbt.manifests.errors import StorageError
from mbt.manifests.shards import FPS, MEL_RATE, MediaFormat

RAW_BYTES_A_SECOND = 120_000
"""Of a clip's own bytes at about 360 pixels: 1.2 MB for 10 s."""
FRAME_BYTES = {2: 20_300, 3: 15_700, 4: 13_300, 5: 12_000, 8: 9_500, 31: 4_700}
"""JPEG bytes by quantiser scale of a busy frame of 454 x 256; between them they are interpolated."""
BUSY_SHORT_SIDE = 256
JSON_BYTES = 2_500


@dataclass(frozen=True)
class Estimate:
    """What fetching and packing a plan takes.

    Attributes:
        clips: of the plan.
        videos: requests, one a video; 0 where the media lie in a folder.
        lanes: network addresses that they come from.
        hours: that they take at their rates.
        raw_bytes: over the network, and on disk as raw clips.
        shard_bytes: of the shards.
        keep_raw: raw clips stay when they are packed.
    """

    clips: int
    videos: int
    lanes: int
    hours: float
    raw_bytes: int
    shard_bytes: int
    keep_raw: bool

    @property
    def disk_bytes(self) -> int:
        """Raw clips and shards, where they are the most: without `keep_raw`, these take the place of those."""
        return self.raw_bytes + self.shard_bytes if self.keep_raw else max(self.raw_bytes, self.shard_bytes)

    def lines(self) -> list[str]:
        """For people."""
        network = [
            f"requests      {self.videos:,}, one a video",
            f"time          {self.hours:,.1f} h on {self.lanes:,} network address{'es' * (self.lanes != 1)}",
            f"network       {_gigabytes(self.raw_bytes)}",
        ]
        raw, shards = _gigabytes(self.raw_bytes), _gigabytes(self.shard_bytes)
        return [
            f"clips         {self.clips:,}",
            *(network if self.videos else []),
            f"disk          {_gigabytes(self.disk_bytes)}: raw clips {raw}, shards {shards}",
        ]


def estimate(clips: pa.Table, media: MediaFormat, rates_an_hour: Sequence[float], keep_raw: bool = True) -> Estimate:
    """Estimate for a clip table; upper bounds, since not every video is still there.

    Args:
        clips: clip table.
        media: format of the shards.
        rates_an_hour: requests an hour of each network address; empty: the media lie in a folder.
        keep_raw: raw clips stay when they are packed.
    """
    seconds = (pc.sum(clips["end_ms"]).as_py() - pc.sum(clips["start_ms"]).as_py()) / 1000
    videos = 0 if not rates_an_hour else pc.count_distinct(clips["video_id"]).as_py()
    frame = _frame_bytes(media.video.jpeg_qscale) * (media.video.short_side / BUSY_SHORT_SIDE) ** 2
    second = FPS * frame + MEL_RATE * media.log_mel.n_mels * 2
    return Estimate(
        clips=clips.num_rows,
        videos=videos,
        lanes=len(rates_an_hour),
        hours=videos / sum(rates_an_hour) if rates_an_hour else 0.0,
        raw_bytes=round(seconds * RAW_BYTES_A_SECOND) if rates_an_hour else 0,
        shard_bytes=round(seconds * second + clips.num_rows * JSON_BYTES),
        keep_raw=keep_raw,
    )


def check_disk(folder: Path, needed: int) -> None:
    """Make sure that the disk of `folder` has room, counting what lies in the folder already.

    Raises:
        StorageError: it has not.
    """
    free = shutil.disk_usage(nearest_existing(folder)).free
    if needed > free and needed > free + sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()):
        raise StorageError(
            f"the plan needs about {_gigabytes(needed)}, and {folder} has {_gigabytes(free)} left",
            "Choose another --out, take a --limit or --no-keep-raw, or start all the same by --ignore-disk",
        )


def _frame_bytes(qscale: int) -> float:
    below = max(q for q in FRAME_BYTES if q <= qscale)
    above = min(q for q in FRAME_BYTES if q >= qscale)
    share = (qscale - below) / (above - below) if above > below else 0.0
    return FRAME_BYTES[below] + share * (FRAME_BYTES[above] - FRAME_BYTES[below])


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
