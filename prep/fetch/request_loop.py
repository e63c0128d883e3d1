"""The loop that requests videos on free lanes, and writes the results to the ledger."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from mbt.manifests.clips import Clip
from mbt.prep.fetch.breaker import RISE_REMEDY, UNAVAILABLE, Breaker, Stop, UnavailableWatch
from mbt.prep.fetch.clip_states import ClipStates
from mbt.prep.fetch.lane_pool import LanePool
from mbt.prep.fetch.live_line import LiveLine
from mbt.prep.fetch.outage import MAX_PROBES, Outages
from mbt.prep.fetch.video_window import Pass, Video
from mbt.prep.fetch.worker_share import WorkerShare
from mbt.prep.sources.byte_ranges import RawClip
from mbt.prep.sources.ytdlp import Answer
from mbt.prep.state.failure_codes import UNKNOWN, Action, Verdict
from mbt.prep.state.ledger import WITHDRAWN, Attempt, LedgerWriter

QUEUED_PER_LANE = 8
"""Videos per lane that wait for their request."""


@dataclass(frozen=True)
class Visit:
    """One video's answers on a lane.

    Attributes:
        lane: index of the lane.
        video: the video.
        clips: the clips that were answered.
        answers: their answers.
        time: Unix time in seconds.
    """

    lane: int
    video: Video
    clips: Sequence[Clip]
    answers: Sequence[Answer]
    time: float

    @property
    def results(self) -> list[RawClip | Verdict]:
        """The result of each clip."""
        return [answer.result for answer in self.answers]

    @property
    def verdict(self) -> Verdict | None:
        """What went wrong; None if the first clip was served. A failure that stops the lane or the run comes first."""
        result = next(filter(_stops, self.results), self.results[0])
        return result if isinstance(result, Verdict) else None


class RequestLoop:
    """Requests the videos of one pass after another.

    Args:
        folder: the dataset folder.
        states: states of the clips.
        pool: the lanes.
        ledger: where the results are written.
        share: the videos that this worker fetches.
        stop_requested: set once no further request may start.
        may_request: asked before each request; while it returns False, none is started.
        live: shows the state of the run.

    Attributes:
        stop: why the source must not be asked any more; None: no reason.
    """

    def __init__(
        self,
        folder: Path,
        states: ClipStates,
        pool: LanePool[Video],
        ledger: LedgerWriter,
        share: WorkerShare,
        stop_requested: threading.Event,
        may_request: Callable[[], bool],
        live: LiveLine,
    ) -> None:
        self.stop: Stop | None = None
        self._folder = folder
        self._states = states
        self._pool = pool
        self._clock = pool.clock
        self._ledger = ledger
        self._share = share
        self._stop_requested = stop_requested
        self._may_request = may_request
        self._live = live
        self._queue: deque[Video] = deque()
        self._breaker = Breaker(len(pool.lanes))
        self._outages: Outages[Visit] = Outages(len(pool.lanes))
        self._unavailable: UnavailableWatch[tuple[Clip, ...]] = UnavailableWatch(*states.num_unavailable_and_others())
        self._unknown_messages: set[str] = set()
        self._awaited_workers: set[int] = set()
        self._is_doubtful = False

    @property
    def is_stopping(self) -> bool:
        """Whether no further request may start."""
        return self.stop is not None or self._stop_requested.is_set()

    def run(self, videos: Pass) -> None:
        """Request all videos of a pass, until the outcome of each is known or something stops the run."""
        while True:
            self._open(videos)
            is_waiting = self.is_stopping or not self._start_requests()
            if not self._pool.busy:
                if self.is_stopping:
                    break
                if not self._queue and (held := self._outages.release()):
                    for visit in held:
                        self._finish(visit, videos)
                    continue
                if not self._queue and videos.is_exhausted:
                    break
                if not self._queue and videos.awaited:
                    self._report_wait(videos.awaited)
            has_more = not self._queue and not videos.is_exhausted and videos.has_room()
            more = bool(self._queue) and not is_waiting
            for lane, video, answers in self._pool.finished(more, 0.0 if has_more else self._pool.poll_s):
                self._record(lane, video, answers, videos)
            videos.settle(())
            self._live.update()
        for visit in self._outages.release():
            self._write(visit, visit.results)
        if self._is_doubtful:
            self._withdraw()
        if not self.is_stopping:
            videos.end()

    def wait(self, until: float) -> None:
        """Wait until a Unix time, or until the run must stop."""
        while not self.is_stopping and (left_s := until - self._clock.time()) > 0:
            self._pool.finished(False, left_s)
            self._live.update()

    def _open(self, videos: Pass) -> None:
        size = QUEUED_PER_LANE * len(self._pool.lanes)
        if len(self._queue) < size:
            for video in videos.advance():
                self._queue.append(video)
                if len(self._queue) >= size:
                    break

    def _start_requests(self) -> bool:
        """Give every free lane a video; no video is on two lanes at once. Returns whether requests may be made."""
        if not self._may_request():
            return False
        while (lane := self._pool.free_lane()) is not None:
            in_flight = {video.video_id for video in self._pool.busy.values()}
            video = next((video for video in self._queue if video.video_id not in in_flight), None)
            if video is None:
                break
            self._queue.remove(video)
            video.wanted = [clip for clip in video.wanted if self._states.is_open(clip)]
            if video.wanted:
                self._pool.start(lane, video, video.wanted)
        return True

    def _record(self, lane: int, video: Video, answers: list[Answer], videos: Pass) -> None:
        """Take the answers of a lane; failures of the network are held back until it is known whether they are an outage."""
        now = self._clock.time()
        self._live.update(sum(answer.effort.transferred for answer in answers))
        visit = Visit(lane, video, video.wanted[: len(answers)], answers, now)
        if all(_is_network(result) for result in visit.results):
            self._record_network_failure(visit, videos)
            return
        for held in self._outages.answered(lane, now):
            self._finish(held, videos)
        self._finish(visit, videos)

    def _record_network_failure(self, visit: Visit, videos: Pass) -> None:
        verdict, video, lane = visit.verdict, visit.video, visit.lane
        assert verdict is not None
        is_out = self._outages.is_out(lane)
        failed_before = video.network_failures > 0 or (video.previous is not None and video.previous.code.startswith("net."))
        video.network_failures += 1
        if video.network_failures > MAX_PROBES or (failed_before and not is_out):
            self._finish(visit, videos)
            return
        for failure in self._outages.failed(lane, visit, verdict.message, visit.time):
            self._write(failure, failure.results)
            self._queue.append(failure.video)
        if self._outages.is_out(lane):
            chosen = self._pool.lanes[lane]
            chosen.next_start = max(chosen.next_start, self._clock.monotonic() + self._outages.probe_after_s(lane))
        if not self._outages.was_answered(lane):
            self._apply(self._breaker.add(verdict, visit.time, lane), visit)

    def _finish(self, visit: Visit, videos: Pass) -> None:
        """Write results to the ledger; clips that must be asked again, as if they had not been, are queued again."""
        video = visit.video
        results = [_own(result, video) for result in visit.results]
        if any(isinstance(result, RawClip) for result in results):
            self._pool.lanes[visit.lane].num_pauses = 0
        self._check(visit)
        self._states.update(self._write(visit, results))
        again = [clip for clip, result in zip(visit.clips, results, strict=True) if _says_nothing(result)]
        video.refetched |= any(isinstance(result, Verdict) and result.action is Action.AGAIN for result in results)
        video.wanted = [*again, *video.wanted[len(visit.clips) :]]
        if video.wanted:
            self._queue.appendleft(video)
        videos.settle([clip for clip in visit.clips if clip not in again])

    def _write(self, visit: Visit, results: Sequence[RawClip | Verdict]) -> list[Attempt]:
        """Write the results of a visit to the ledger."""
        attempts = [self._attempt(clip, visit, result) for clip, result in zip(visit.clips, results, strict=True)]
        self._ledger.append(zip(attempts, (answer.effort for answer in visit.answers), strict=True))
        return attempts

    def _check(self, visit: Visit) -> None:
        """Stop the run or pause the lane if the failures are not the videos' own."""
        verdict, previous = visit.verdict, visit.video.previous
        if verdict:
            self._report_unknown(verdict)
            is_first_403 = verdict.action is Action.AGAIN and not visit.video.refetched
            if is_first_403 or (previous and verdict.code == previous.code):
                return
        self._apply(self._breaker.add(verdict, visit.time, visit.lane), visit)
        is_new = previous is None and not any(map(self._states.was_withdrawn, visit.clips))
        if is_new and (verdict is None or verdict.action.uses_attempt):
            is_unavailable = verdict is not None and verdict.code == UNAVAILABLE
            if reason := self._unavailable.add(is_unavailable, tuple(visit.clips), visit.lane):
                self.stop = Stop("run", reason, RISE_REMEDY)
            self._is_doubtful |= is_unavailable and self.stop is not None

    def _withdraw(self) -> None:
        """Withdraw what was said of clips by a source that was not to be believed."""
        now = self._clock.time()
        rows = [
            Attempt(key=clip.key, source=self._pool.lanes[0].source.name, code=UNAVAILABLE, action=WITHDRAWN, time=now)
            for clips in self._unavailable.suspects()
            for clip in clips
        ]
        self._ledger.append(rows)
        self._states.update(rows)

    def _apply(self, stop: Stop | None, visit: Visit) -> None:
        if stop and stop.scope == "run":
            self.stop = self.stop or stop
        elif stop and visit.verdict:
            self._pause(visit.lane, visit.verdict)

    def _pause(self, lane: int, verdict: Verdict) -> None:
        chosen = self._pool.lanes[lane]
        chosen.pause(verdict.action.label, self._clock.time())
        until = local_time(chosen.paused_until)
        tqdm.write(f"fetch: lane {chosen.name} paused until {until} ({verdict.code}): {verdict.message}", file=sys.stderr)

    def _attempt(self, clip: Clip, visit: Visit, result: RawClip | Verdict) -> Attempt:
        """The ledger row of a result."""
        chosen = self._pool.lanes[visit.lane]
        attempt = Attempt(key=clip.key, source=chosen.source.name, lane=chosen.name, time=visit.time)
        if isinstance(result, RawClip):
            path = str(result.path.relative_to(self._folder))
            return replace(attempt, path=path, size=result.size, offset_ms=result.offset_ms)
        return replace(
            attempt,
            code=result.code,
            action=result.action.label,
            message=result.message,
            final=result.retry_after_s is None,
            not_before=chosen.paused_until if result.action.stops == "lane" else visit.time + (result.retry_after_s or 0.0),
        )

    def _report_unknown(self, verdict: Verdict) -> None:
        """Print a message that the table of failure codes does not know, once."""
        if verdict.code == UNKNOWN and verdict.message not in self._unknown_messages:
            self._unknown_messages.add(verdict.message)
            tqdm.write(f"fetch: unknown failure, will retry: {verdict.message}", file=sys.stderr)

    def _report_wait(self, video: Video) -> None:
        """Print which worker's video this one waits for, once per worker."""
        owner = self._share.owner(video.video_id)
        if owner not in self._awaited_workers:
            self._awaited_workers.add(owner)
            tqdm.write(f"fetch: waiting for worker {owner} to fetch {video.video_id}", file=sys.stderr)


def local_time(moment: float) -> str:
    """A Unix time for a message, such as 2026-11-21 22:10."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def _own(result: RawClip | Verdict, video: Video) -> RawClip | Verdict:
    """The result as one of the clip's own: a failure of the network, or a second 403 in a row, is retried later."""
    if isinstance(result, Verdict) and (result.action is Action.NETWORK or (result.action is Action.AGAIN and video.refetched)):
        return result.as_later
    return result


def _stops(result: RawClip | Verdict) -> bool:
    """Whether the result stops the lane or the run."""
    return isinstance(result, Verdict) and bool(result.action.stops)


def _says_nothing(result: RawClip | Verdict) -> bool:
    """Whether the result says nothing about the clip."""
    return isinstance(result, Verdict) and not result.action.uses_attempt


def _is_network(result: RawClip | Verdict) -> bool:
    return isinstance(result, Verdict) and result.action is Action.NETWORK
