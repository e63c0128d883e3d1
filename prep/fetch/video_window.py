"""The videos of a pass in order, of which only the next few are open at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from mbt.manifests.clips import Clip, iter_clips
from mbt.prep.fetch.clip_states import ClipStates
from mbt.prep.fetch.worker_share import WorkerShare
from mbt.prep.state.ledger import Attempt

MAX_STEPS = 10_000
"""Maximum videos that are opened in one call, so that the caller can see to other things."""
MAX_OPEN = 50_000
"""Maximum videos in the window of the first pass: a limit of memory."""
Settled = Callable[[Clip, Attempt | None], None]


@dataclass(eq=False)
class Video:
    """Clips of one video that follow each other in the order of a pass.

    Attributes:
        video_id: the video's name at its source.
        clips: the clips.
        own: whether this worker fetches them.
        wanted: clips that are still to be requested, or being requested.
        previous: state of the first wanted clip before this run.
        refetched: whether its URLs were extracted anew since it was opened.
        network_failures: how often the network failed since it was opened.
        will_fit: whether its clips fit under the caps, whatever comes of the videos before it, or are not requested.
    """

    video_id: str
    clips: list[Clip]
    own: bool
    wanted: list[Clip] = field(default_factory=list)
    previous: Attempt | None = None
    refetched: bool = False
    network_failures: int = 0
    will_fit: bool = True


def planned_videos(states: ClipStates, share: WorkerShare) -> Iterator[Video]:
    """The videos of the plan in its order; those of other workers only with caps, which their clips fill too."""
    for video_id, clips in groupby(iter_clips(states.table), lambda clip: clip.video_id):
        own = share.owns(video_id)
        if own or states.has_caps:
            yield Video(video_id, list(clips), own)


def videos_of(clips: Iterable[Clip]) -> Iterator[Video]:
    """The videos of clips that this worker fetches."""
    for video_id, own in groupby(clips, lambda clip: clip.video_id):
        yield Video(video_id, list(own), True)


class Pass:
    """One pass over videos: opens them in order.

    Args:
        videos: the videos.
        states: states of their clips.

    Attributes:
        is_exhausted: no further video will come.
    """

    def __init__(self, videos: Iterator[Video], states: ClipStates) -> None:
        self.is_exhausted = False
        self.states = states
        self._videos = videos

    @property
    def awaited(self) -> Video | None:
        """A video of another worker, for whose outcome this pass waits."""
        return None

    def advance(self) -> Iterator[Video]:
        """Open further videos, and yield those that this worker must request."""
        for _ in range(MAX_STEPS):
            if not self.has_room() or (video := self._next()) is None:
                return
            if video.own:
                video.wanted = [clip for clip in video.clips if self.is_wanted(clip)]
            if video.wanted:
                video.previous = self.states.state(video.wanted[0])
            self.opened(video)
            if video.wanted:
                yield video

    def has_room(self) -> bool:
        """Whether a further video may be opened."""
        return True

    def is_wanted(self, clip: Clip) -> bool:
        """Whether a clip must be requested in this pass."""
        return self.states.is_open(clip)

    def opened(self, video: Video) -> None:
        """Called with each video, before it is requested."""

    def settle(self, clips: Iterable[Clip]) -> None:
        """Count what has become known; `clips` have got their outcome."""
        self.states.settle_late(clips)

    def end(self) -> None:
        """Called when all of its videos have been requested."""

    def _next(self) -> Video | None:
        video = next(self._videos, None)
        self.is_exhausted = video is None
        return video


class FirstPass(Pass):
    """The pass over the plan, in which every clip that has no outcome is requested.

    The window holds the videos from the first whose outcome is unknown. Videos are requested before the outcome of those before
    them is known. So requests may turn out to exceed a cap once it is nearly reached; a limit of the window says how many.

    Args:
        videos: the videos of the plan, in its order.
        states: states of their clips.
        size: maximum number of videos in the window that may not fit under a cap.
        counted: called with each clip, in order, once its outcome is known.
        settled: the same, with its state (None if it was never requested or came late).
    """

    def __init__(
        self,
        videos: Iterator[Video],
        states: ClipStates,
        size: int,
        counted: Callable[[Clip], None],
        settled: Settled | None = None,
    ) -> None:
        super().__init__(videos, states)
        self._size = size
        self._counted = counted
        self._settled = settled
        self._window: deque[Video] = deque()
        self._num_uncertain = 0

    @property
    def awaited(self) -> Video | None:
        """The first video of the window, if another worker fetches it."""
        return self._window[0] if self._window and not self._window[0].own else None

    def has_room(self) -> bool:
        """Whether the window has room for a video."""
        return self._num_uncertain < self._size and len(self._window) < MAX_OPEN

    def is_wanted(self, clip: Clip) -> bool:
        """Whether a clip has no outcome and can still become part of the dataset."""
        return self.states.is_new(clip)

    def opened(self, video: Video) -> None:
        """Add a video to the window."""
        self._window.append(video)
        fits = [self.states.reserve(clip) or not self.states.is_new(clip) for clip in video.clips]
        video.will_fit = all(fits)
        self._num_uncertain += not video.will_fit
        if not video.wanted:
            self.settle(())

    def settle(self, clips: Iterable[Clip]) -> None:
        """Settle videos, beginning with the first, until one has an unknown outcome."""
        while self._window and self._is_known(self._window[0]):
            self._settle_first()

    def end(self) -> None:
        """Settle the videos that other workers have yet to fetch, and then the clips that came late."""
        while self._window:
            self._settle_first()
        self.states.settle_late()

    def _settle_first(self) -> None:
        video = self._window.popleft()
        self._num_uncertain -= not video.will_fit
        for clip in video.clips:
            self.states.release(clip)
            attempt = self.states.settle(clip, self._settled is not None)
            self._counted(clip)
            if self._settled is not None:
                self._settled(clip, attempt)

    def _is_known(self, video: Video) -> bool:
        if video.own:
            return not video.wanted
        unknown = [clip for clip in video.clips if self.states.is_new(clip)]
        if unknown:
            self.states.update_from_ledger()
        return not any(self.states.is_new(clip) for clip in unknown)
