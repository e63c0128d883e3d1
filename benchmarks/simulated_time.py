"""Processes in simulated time: each leaps from one event to the next, and a conductor keeps their clocks together."""

import heapq
import math
import multiprocessing
import multiprocessing.context
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from mbt.prep.fetch.lane_pool import LanePool
from mbt.prep.fetch.lanes import Lane
from mbt.prep.fetch.video_window import Video
from mbt.prep.sources.ytdlp import Answer
from mbt.prep.workers.clock import Clock

LAG_S = 300.0
"""Maximum seconds between the clocks of two processes: with fewer, switching between them takes most of the real time."""
LIMIT_S = 90 * 86_400.0
"""Seconds after which a simulation is stuck."""
POLL_S = 5.0
"""Simulated seconds after which a worker that waits for another one looks again."""
FINISHED, STOPPED, INTERRUPTED, KILLED, CRASHED = ("finished", "stopped", "interrupted", "killed", "crashed")


@dataclass(frozen=True)
class Life:
    """A process from its start to its end.

    Attributes:
        worker: rank of the worker.
        start: simulated Unix time in seconds.
        end: simulated Unix time in seconds.
        how: how it ended.
        peak_bytes: its peak memory.
        reason: the error that ended it, if any.
    """

    worker: int
    start: float
    end: float
    how: str
    peak_bytes: int
    reason: str


class SimulatedClock(Clock):
    """The clock of a process.

    Args:
        conductor: connection to the conductor: it is told until when the process sleeps, and answers, when that time has come,
            with the time until which the process may go on alone.
        now: Unix time in seconds.
    """

    def __init__(self, conductor: "Connection[Any, Any]", now: float) -> None:
        self._conductor = conductor
        self._now = self._horizon = now
        self._alarms: list[tuple[float, Callable[[], None]]] = []

    def set_alarm(self, at: float, action: Callable[[], None]) -> None:
        """Call `action` at Unix time `at`, unless that is past."""
        if at > self._now:
            self._alarms = sorted([*self._alarms, (at, action)], key=lambda alarm: alarm[0])

    def time(self) -> float:
        """Unix time in seconds."""
        return self._now

    def monotonic(self) -> float:
        """The same."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let time pass, until an alarm interrupts it."""
        target = self._now + seconds
        alarm = self._alarms.pop(0) if self._alarms and self._alarms[0][0] <= target else None
        if alarm:
            target = alarm[0]
        if target > self._horizon:
            self._conductor.send(target)
            self._horizon = self._conductor.recv()
        self._now = target
        if alarm:
            alarm[1]()

    def end(self, how: str, reason: str = "") -> None:
        """Tell the conductor that this process ends now."""
        self._conductor.send((self._now, how, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10, reason))


class SimulatedLanes(LanePool[Video]):
    """Lanes whose requests take the seconds that their answers cost, and no real ones."""

    poll_s = POLL_S

    def __init__(self, lanes: Sequence[Lane], clock: Clock) -> None:
        super().__init__(lanes, clock)
        self._pending: list[tuple[float, int, list[Answer]]] = []

    def _request(self, lane: int, clips: Sequence[Any]) -> None:
        answers = self.lanes[lane].source.fetch(clips[0].video_id, clips)
        end = self.clock.time() + answers[0].effort.extract_s + answers[0].effort.transfer_s
        heapq.heappush(self._pending, (end, lane, answers))

    def _answers(self, timeout_s: float) -> list[tuple[int, list[Answer]]]:
        first_s = self._pending[0][0] - self.clock.time() if self._pending else math.inf
        self.clock.sleep(max(min(timeout_s, first_s), 0.0))
        done = []
        while self._pending and self._pending[0][0] <= self.clock.time():
            _, lane, answers = heapq.heappop(self._pending)
            done.append((lane, answers))
        return done


def processes() -> multiprocessing.context.ForkServerContext:
    """How processes are started: quickly, and with nothing in memory but the code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mbt.prep.fetch.fetch", "mbt.prep.plan.choose"])
    return context


def conduct(
    worker: Callable[["Connection[Any, Any]", float, int], None], number: int, begin: float, down_s: Mapping[str, float]
) -> list[Life]:
    """Run `number` processes together until all have finished.

    Args:
        worker: a process: takes its connection to the conductor, the Unix time in seconds and its rank; ends its clock.
        number: number of workers.
        begin: Unix time in seconds at which they start.
        down_s: by how a process has ended, seconds until it is started again; a finished one is not.
    """
    context = processes()
    wakes = [(begin, rank) for rank in range(number)]
    running: dict[int, tuple[float, Connection[Any, Any]]] = {}
    lives = []
    while wakes:
        now, rank = heapq.heappop(wakes)
        if now > begin + LIMIT_S:
            raise RuntimeError(f"worker {rank} is still at work after {LIMIT_S / 86_400:.0f} simulated days")
        if rank not in running:
            ours, theirs = context.Pipe()
            context.Process(target=worker, args=(theirs, now, rank), daemon=True).start()
            theirs.close()
            running[rank] = now, ours
        else:
            running[rank][1].send(wakes[0][0] + LAG_S if wakes else math.inf)
        start, connection = running[rank]
        message = connection.recv()
        if isinstance(message, float):
            heapq.heappush(wakes, (message, rank))
            continue
        end, how, peak_bytes, reason = message
        if how == CRASHED:
            raise RuntimeError(f"worker {rank} crashed: {reason}")
        lives.append(Life(rank, start, end, how, peak_bytes, reason))
        del running[rank]
        if how != FINISHED:
            heapq.heappush(wakes, (end + down_s[how], rank))
    return lives
