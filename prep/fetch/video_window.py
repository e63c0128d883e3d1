"""The videos of a plan in fetching order, of which only the next few are open at a time."""

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from mbt.manifests.clips import Clip, iter_clips
from mbt.prep.fetch.clip_states import ClipStates
from mbt.prep.fetch.worker_share import WorkerShare
from mbt.prep.state.ledger import Attempt


@dataclass(eq=False)
class Video:
    """The clips of one video.

    Attributes:
        video_id: the video's name at its source.
        clips: clips that follow each other in fetching order.
        own: whether this worker fetches them.
        wanted: clips that are still to be requested, or being requested.
        previous: state of the first wanted clip before this run.
    """

    video_id: str
    clips: list[Clip]
    own: bool
    wanted: list[Clip] = field(default_factory=list)
    previous: Attempt | None = None


def videos_in_order(states: ClipStates, share: WorkerShare, seed: int) -> Iterator[Video]:
    """The videos of the plan in fetching order.

    With caps it is the order of the plan, and the videos of other workers are included, since their clips fill the caps too.
    Without caps it is pseudo-random.
    """
    table = states.table
    if not states.has_caps:
        names = (f"{seed}:{video_id}" for video_id in table["video_id"].to_pylist())
        ranks = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in names]
        table = table.take(pa.array(np.argsort(np.array(ranks, np.uint64), kind="stable")))
    for video_id, clips in groupby(iter_clips(table), lambda clip: clip.video_id):
        own = share.owns(video_id)
        if own or states.has_caps:
            yield Video(video_id, list(clips), own)


class VideoWindow:
    """The videos from the first whose outcome is unknown, up to `size` of them.

    Videos are requested before the outcome of those before them is known, so some requests may turn out to exceed a cap; the
    window limits how many.

    Args:
        videos: all videos, in fetching order.
        size: maximum number of open videos.
        states: states of their clips.
        bar: progress bar, in clips that this worker fetches.

    Attributes:
        is_exhausted: no further video will come.
    """

    def __init__(self, videos: Iterator[Video], size: int, states: ClipStates, bar: "tqdm[None]") -> None:
        self.is_exhausted = False
        self._videos = videos
        self._size = size
        self._states = states
        self._bar = bar
        self._open: deque[Video] = deque()

    @property
    def first(self) -> Video:
        """The first video whose outcome is unknown."""
        return self._open[0]

    def advance(self, now: float) -> Iterator[Video]:
        """Open further videos while there is room, and yield those that this worker must request at Unix time `now`."""
        while not self.is_exhausted and len(self._open) < self._size:
            video = next(self._videos, None)
            if video is None:
                self.is_exhausted = True
                return
            self._open.append(video)
            if video.own:
                video.wanted = [clip for clip in video.clips if self._states.is_wanted(clip, now)]
            if video.wanted:
                video.previous = self._states.state(video.wanted[0])
                yield video
            self.settle_known()

    def settle_known(self) -> None:
        """Settle videos, beginning with the first, until one has an unknown outcome."""
        while self._open and self._is_known(self._open[0]):
            self._settle_first()

    def settle_all(self) -> None:
        """Settle the videos that are still open: those that other workers have yet to fetch."""
        while self._open:
            self._settle_first()

    def _settle_first(self) -> None:
        video = self._open.popleft()
        for clip in video.clips:
            self._states.settle(clip, video.own)
        if video.own:
            self._bar.update(len(video.clips))

    def _is_known(self, video: Video) -> bool:
        if video.own:
            return not video.wanted
        unknown = [clip for clip in video.clips if self._states.is_open(clip) and self._states.state(clip) is None]
        if unknown:
            self._states.update_from_ledger()
        return all(self._states.state(clip) is not None for clip in unknown)
