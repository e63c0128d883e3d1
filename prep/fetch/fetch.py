"""Fetching: every clip of the plan gets its media file, or a reason in the ledger."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from mbt.manifests.clips import Clip
from mbt.manifests.errors import SourceError
from mbt.manifests.progress import progress
from mbt.prep.fetch.breaker import Breaker, Stop
from mbt.prep.fetch.clip_states import ClipStates, Fetched
from mbt.prep.fetch.lane_pool import LanePool, ThreadedLanes
from mbt.prep.fetch.lanes import Lane, restore_pauses
from mbt.prep.fetch.options import FetchOptions
from mbt.prep.fetch.video_window import Video, VideoWindow, videos_in_order
from mbt.prep.fetch.worker_share import WorkerShare
from mbt.prep.sources.byte_ranges import RawClip
from mbt.prep.sources.ytdlp import Answer
from mbt.prep.state.failure_codes import UNKNOWN, Action, Verdict
from mbt.prep.state.ledger import Attempt, LedgerWriter
from mbt.prep.workers.clock import Clock
from mbt.prep.workers.interrupt import graceful_interrupts

OPEN_PER_LANE = 8
"""Videos per lane that are open at a time, where one worker fetches the plan."""
OPEN_PER_WORKER = 256
"""Videos that are open at a time, where several workers fetch the plan."""
DEFAULTS = FetchOptions()
REAL_TIME = Clock()


def fetch(
    folder: Path,
    lanes: Sequence[Lane],
    options: FetchOptions = DEFAULTS,
    *,
    clock: Clock = REAL_TIME,
    make_pool: Callable[[Sequence[Lane], Clock], LanePool[Video]] = ThreadedLanes,
) -> Fetched:
    """Request every clip of the plan that has no media file, is not known to be gone, and is not waiting for a retry.

    The order is pseudo-random, so that the clips fetched so far are always a fair sample. Where a split has a cap, it is the
    order of the plan, and a clip is requested only while it can still fit under the cap. The clips of one video share one
    extraction. Fetched clips are kept: the run can be stopped and restarted at any time.

    Args:
        folder: the dataset folder.
        lanes: the network addresses to fetch from; a rate-limited or blocked lane pauses while the others continue.
        options: options of the fetch stage.
        clock: the time.
        make_pool: returns the pool in which the lanes work.

    Raises:
        SourceError: the source does not serve us at all (blocked, no network, wrong installation).
        StorageError: no space left.
        KeyboardInterrupt: after Ctrl-C, once the requests in flight have ended.
    """
    share = options.share
    states = ClipStates(folder, lanes[0].source.name, options.removed)
    restore_pauses(lanes, folder)
    total = sum(share.owns(video_id) for video_id in states.table["video_id"].to_pylist())
    with (
        graceful_interrupts() as stop_requested,
        LedgerWriter(folder, f"fetch-{share.rank}") as ledger,
        progress(total, "fetch", "clip") as bar,
        make_pool(lanes, clock) as pool,
    ):
        size = OPEN_PER_WORKER if share.world > 1 else OPEN_PER_LANE * len(lanes)
        window = VideoWindow(videos_in_order(states, share, options.seed), size, states, bar)
        _Run(folder, states, window, pool, ledger, share, stop_requested).run()
    return states.counts


@dataclass
class _Run:
    """One pass over the plan: videos are requested on free lanes, and the results go to the ledger."""

    folder: Path
    states: ClipStates
    window: VideoWindow
    pool: LanePool[Video]
    ledger: LedgerWriter
    share: WorkerShare
    stop_requested: threading.Event

    def __post_init__(self) -> None:
        self._queue: deque[Video] = deque()
        self._breaker = Breaker(len(self.pool.lanes))
        self._stop: Stop | None = None
        self._unknown_messages: set[str] = set()
        self._awaited_workers: set[int] = set()

    def run(self) -> None:
        """Request all videos, until the outcome of each is known or something stops the run."""
        while True:
            self._queue.extend(self.window.advance(self.pool.clock.time()))
            stopping = self._stop is not None or self.stop_requested.is_set()
            if not stopping:
                self._start_requests()
            if not self.pool.busy:
                if stopping or (self.window.is_exhausted and not self._queue):
                    break
                if not self._queue:
                    self._report_wait(self.window.first)
            for lane, video, answers in self.pool.finished(bool(self._queue) and not stopping):
                self._record(lane, video, answers)
            self.window.settle_known()
        if self._stop:
            raise SourceError(f"{self.pool.lanes[0].source.name} {self._stop.reason}", self._stop.remedy)
        self.window.settle_all()

    def _start_requests(self) -> None:
        """Give every free lane a video; no video is on two lanes at once."""
        while (lane := self.pool.free_lane()) is not None:
            in_flight = {video.video_id for video in self.pool.busy.values()}
            video = next((video for video in self._queue if video.video_id not in in_flight), None)
            if video is None:
                return
            self._queue.remove(video)
            video.wanted = [clip for clip in video.wanted if self.states.is_open(clip)]
            if video.wanted:
                self.pool.start(lane, video, video.wanted)

    def _record(self, lane: int, video: Video, answers: list[Answer]) -> None:
        """Write the results of a video to the ledger; clips whose lane or run was stopped are queued again."""
        results = [answer.result for answer in answers]
        self._check(lane, results, video.previous)
        if any(isinstance(result, RawClip) for result in results):
            self.pool.lanes[lane].num_pauses = 0
        attempts = [self._attempt(clip, lane, result) for clip, result in zip(video.wanted, results, strict=True)]
        self.ledger.append(zip(attempts, (answer.effort for answer in answers), strict=True))
        self.states.update(attempts)
        video.wanted = [clip for clip, result in zip(video.wanted, results, strict=True) if _stops(result)]
        if video.wanted:
            self._queue.appendleft(video)

    def _check(self, lane: int, results: list[RawClip | Verdict], previous: Attempt | None) -> None:
        """Stop the run or pause the lane if the failures are not the videos' own."""
        result = next(filter(_stops, results), results[0])
        verdict = result if isinstance(result, Verdict) else None
        if verdict:
            self._report_unknown(verdict)
            if previous and verdict.code == previous.code and verdict.action is not Action.NETWORK:
                return
        stop = self._breaker.add(verdict, self.pool.clock.time(), lane)
        if stop and stop.scope == "run":
            self._stop = self._stop or stop
        elif stop and verdict:
            self._pause(lane, verdict)

    def _pause(self, lane: int, verdict: Verdict) -> None:
        chosen = self.pool.lanes[lane]
        chosen.pause(verdict.action.label, self.pool.clock.time())
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(chosen.paused_until))
        tqdm.write(f"fetch: lane {chosen.name} paused until {until} ({verdict.code}): {verdict.message}", file=sys.stderr)

    def _attempt(self, clip: Clip, lane: int, result: RawClip | Verdict) -> Attempt:
        """The ledger row of a result."""
        chosen, now = self.pool.lanes[lane], self.pool.clock.time()
        attempt = Attempt(key=clip.key, source=chosen.source.name, lane=chosen.name, time=now)
        if isinstance(result, RawClip):
            path = str(result.path.relative_to(self.folder))
            return replace(attempt, path=path, size=result.size, offset_ms=result.offset_ms)
        return replace(
            attempt,
            code=result.code,
            action=result.action.label,
            message=result.message,
            final=result.retry_after_s is None,
            not_before=chosen.paused_until if result.action.stops == "lane" else now + (result.retry_after_s or 0.0),
        )

    def _report_unknown(self, verdict: Verdict) -> None:
        """Print a message that the table of failure codes does not know, once."""
        if verdict.code == UNKNOWN and verdict.message not in self._unknown_messages:
            self._unknown_messages.add(verdict.message)
            tqdm.write(f"fetch: unknown failure, will retry: {verdict.message}", file=sys.stderr)

    def _report_wait(self, video: Video) -> None:
        """Print which worker's video this one waits for, once per worker."""
        owner = self.share.owner(video.video_id)
        if owner not in self._awaited_workers:
            self._awaited_workers.add(owner)
            tqdm.write(f"fetch: waiting for worker {owner} to fetch {video.video_id}", file=sys.stderr)


def _stops(result: RawClip | Verdict) -> bool:
    """Whether the result stops the lane or the run, and so says nothing about the clip."""
    return isinstance(result, Verdict) and bool(result.action.stops)
