"""Outages of the network, told apart from videos that fail by themselves."""

import sys
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tqdm import tqdm

SUSPICIOUS = 3
"""Videos in a row on one lane; as many failures of the network cannot be the videos' own."""
FIRST_PROBE_S, MAX_PROBE_S = 5.0, 60.0
MAX_PROBES = 20
"""Failures of one video in an outage, after which it may be the reason why the outage does not end."""
LINE_EVERY_S = 60.0

T = TypeVar("T")


@dataclass
class _LaneNetwork(Generic[T]):
    """The network of a lane: failures in a row, and those of them that may still be the videos' own."""

    was_answered: bool = False
    in_a_row: int = 0
    held: list[T] = field(default_factory=list)
    since: float | None = None


class Outages(Generic[T]):
    """Holds failures of the network back until it is known whether they are an outage.

    A failure is the video's own if the same lane is then answered for another video. After three videos in a row the lane has
    an outage: it goes on with one video every few seconds, then one a minute, until one is answered.

    Args:
        lanes: number of lanes.
    """

    def __init__(self, lanes: int) -> None:
        self._lanes: list[_LaneNetwork[T]] = [_LaneNetwork() for _ in range(lanes)]
        self._last_line = 0.0

    def was_answered(self, lane: int) -> bool:
        """Whether the lane was answered in this run."""
        return self._lanes[lane].was_answered

    def is_out(self, lane: int) -> bool:
        """Whether the lane has an outage."""
        return self._lanes[lane].since is not None

    def answered(self, lane: int, now: float) -> list[T]:
        """The lane was answered at Unix time `now`: end its outage, and return the failures that were the videos' own."""
        own = self._lanes[lane]
        if own.since is not None:
            tqdm.write(f"fetch: the network is back after {_minutes(now - own.since)}", file=sys.stderr)
        self._lanes[lane] = _LaneNetwork(was_answered=True)
        return own.held

    def failed(self, lane: int, failure: T, message: str, now: float) -> list[T]:
        """The network failed on a lane at Unix time `now`: return the failures that are known to be an outage."""
        own = self._lanes[lane]
        own.in_a_row += 1
        own.held.append(failure)
        if own.in_a_row < SUSPICIOUS:
            return []
        own.since = own.since or now
        if now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            out = sum(each.since is not None for each in self._lanes)
            where = f" on {out} of {len(self._lanes)} lanes" if len(self._lanes) > 1 else ""
            since = min(each.since for each in self._lanes if each.since is not None)
            text = f"fetch: no network{where} for {_minutes(now - since)}, will resume by itself; last error: {message}"
            tqdm.write(text, file=sys.stderr)
        failures, own.held = own.held, []
        return failures

    def probe_after_s(self, lane: int) -> float:
        """Seconds until a lane with an outage may make its next request."""
        return min(FIRST_PROBE_S * 2.0 ** min(self._lanes[lane].in_a_row - SUSPICIOUS, 10), MAX_PROBE_S)

    def release(self) -> list[T]:
        """All failures that are held back."""
        held = [failure for lane in self._lanes for failure in lane.held]
        for lane in self._lanes:
            lane.held = []
        return held


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min"
