"""Lanes at work: each requests one video at a time, at its own rate."""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from mbt.manifests.clips import Clip
from mbt.prep.fetch.lanes import Lane
from mbt.prep.sources.ytdlp import Answer
from mbt.prep.workers.clock import Clock

MIN_WAIT_S = 0.01
MAX_CATCH_UP_S = 60.0
"""Maximum seconds by which a lane may be behind its rate and still catch up."""

T = TypeVar("T")


class LanePool(ABC, Generic[T]):
    """Lanes and the items that they work on, one each. A subclass says how the requests run.

    Args:
        lanes: all lanes.
        clock: the time.

    Attributes:
        poll_s: maximum wait in seconds, after which the caller looks at what else has changed.
        busy: the item in flight on each lane that has one, by the lane's index.
    """

    poll_s = 0.5

    def __init__(self, lanes: Sequence[Lane], clock: Clock) -> None:
        self.lanes = lanes
        self.clock = clock
        self.busy: dict[int, T] = {}

    def __enter__(self) -> "LanePool[T]":
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the requests in flight."""

    def free_lane(self) -> int | None:
        """Index of a lane that may make a request now, or None."""
        return next((index for index in self._idle() if not self.lanes[index].wait_s(self.clock)), None)

    def start(self, lane: int, item: T, clips: Sequence[Clip]) -> None:
        """Let a free lane fetch clips of one video, which belong to `item`."""
        chosen = self.lanes[lane]
        behind_s = min(max(chosen.free_since - chosen.next_start, 0.0), MAX_CATCH_UP_S)
        chosen.next_start = self.clock.monotonic() - behind_s + chosen.sleep_s * random.uniform(0.8, 1.2)
        self.busy[lane] = item
        self._request(lane, clips)

    def finished(self, more: bool, timeout_s: float = math.inf) -> list[tuple[int, T, list[Answer]]]:
        """Lane, item and answers of the items that have finished; waits for the first, but at most `poll_s`.

        Args:
            more: items are waiting, so return as soon as another lane may make a request.
            timeout_s: maximum wait in seconds, if less than `poll_s`.
        """
        waits = [max(self.lanes[index].wait_s(self.clock), MIN_WAIT_S) for index in self._idle()] if more else []
        answers = self._answers(min([self.poll_s, max(timeout_s, MIN_WAIT_S), *waits]))
        for lane, _ in answers:
            self.lanes[lane].free_since = self.clock.monotonic()
        return [(lane, self.busy.pop(lane), own) for lane, own in answers]

    @abstractmethod
    def _request(self, lane: int, clips: Sequence[Clip]) -> None:
        """Begin to fetch clips of one video on a lane."""

    @abstractmethod
    def _answers(self, timeout_s: float) -> list[tuple[int, list[Answer]]]:
        """Lanes whose request has finished, with its answers, once there is one or `timeout_s` have passed."""

    def _idle(self) -> list[int]:
        return [index for index in range(len(self.lanes)) if index not in self.busy]


class ThreadedLanes(LanePool[T]):
    """Lanes that request in one thread each."""

    def __init__(self, lanes: Sequence[Lane], clock: Clock) -> None:
        super().__init__(lanes, clock)
        self._threads = ThreadPoolExecutor(len(lanes), thread_name_prefix="lane")
        self._requests: dict[Future[list[Answer]], int] = {}

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _request(self, lane: int, clips: Sequence[Clip]) -> None:
        source = self.lanes[lane].source
        self._requests[self._threads.submit(source.fetch, clips[0].video_id, clips)] = lane

    def _answers(self, timeout_s: float) -> list[tuple[int, list[Answer]]]:
        if not self._requests:
            self.clock.sleep(timeout_s)
        done, _ = wait(self._requests, timeout_s, FIRST_COMPLETED)
        return [(self._requests.pop(request), request.result()) for request in done]
