"""When to stop a run: failures that each look like a video's own but, together, point to the source, the network or us."""

import math
from collections import Counter, deque
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from mbt.prep.state.failure_codes import MAX_SHARES, UPGRADE, Action, Verdict

IN_A_ROW = 10
SHARE_WINDOW = 200
ANSWER_WINDOW = 50
MIN_ANSWERED = 0.2
MAX_BROKEN = 0.1
LANES_OUT_WITHIN_S = 900.0
CHECK_NETWORK = "Check the network and the URL, then run again"
CHECK_URLS = "Check --source and the video ids of the list, then run again with --recheck input"
UNAVAILABLE = "confirm.unavailable"
RISE_WINDOW = 50
MIN_WINDOW, MIN_BEFORE = 20, 200
"""Videos that are needed to tell a rise: recent ones, and ones before them."""
MIN_SHARE = 0.4
"""Of a list, a tenth to a fifth is unavailable; less than this never counts as a rise."""
CHANCE = 1e-9
"""A rise is one that chance makes in fewer than this share of windows."""
RISE_REMEDY = (
    "Look at some of these videos in a browser; if they play, update yt-dlp, wait a day, or use another address, proxy or "
    "client (--ytdlp), then run again. The clips were not harmed"
)

T = TypeVar("T")


@dataclass(frozen=True)
class Stop:
    """What must stop, why (a clause that follows the source's name), and what the user can do."""

    scope: Literal["lane", "run"]
    reason: str
    remedy: str


class Breaker:
    """Watches the results of a run over all its lanes.

    The run stops at once for a fault of the environment; when the URLs of its first 10 videos are all invalid; when half of
    the lanes dropped out within 15 minutes; when a code exceeds its `max_share` over the last 200 videos; when the transfer
    failed for a tenth of the last 50 videos; and when fewer than a fifth of the last 50 videos were served or refused for a
    reason of their own. A lane drops out when it is blocked or fails 10 times in a row; it pauses when it is rate-limited.

    Args:
        lanes: number of lanes.
    """

    def __init__(self, lanes: int = 1) -> None:
        self._lanes = lanes
        self._out_since_s: dict[int, float] = {}
        self._in_a_row: Counter[int] = Counter()
        self._recent: deque[Verdict | None] = deque(maxlen=SHARE_WINDOW)

    def add(self, verdict: Verdict | None, now_s: float, lane: int = 0) -> Stop | None:
        """Add the result of a video (None: it was served), and return what must stop.

        Skip videos that fail as they did in an earlier run: they say nothing about this run.
        """
        if verdict and verdict.action.stops:
            return self._refused(verdict, now_s, lane)
        self._recent.append(verdict)
        self._in_a_row[lane] = self._in_a_row[lane] + 1 if verdict and _is_stall(verdict) else 0
        if verdict is None:
            return None
        if stop := self._too_many(verdict):
            return stop
        if self._in_a_row[lane] == IN_A_ROW:
            self._in_a_row[lane] = 0
            reason = f"failed for {IN_A_ROW} videos in a row; last error: {verdict.message}"
            return self._lane_out(reason, verdict.remedy or CHECK_NETWORK, now_s, lane)
        return None

    def _refused(self, verdict: Verdict, now_s: float, lane: int) -> Stop:
        reason = f"stopped serving videos ({verdict.code}): {verdict.message}"
        if verdict.action is Action.BLOCK:
            return self._lane_out(reason, verdict.remedy, now_s, lane)
        return Stop("run" if verdict.action.stops == "run" else "lane", reason, verdict.remedy)

    def _lane_out(self, reason: str, remedy: str, now_s: float, lane: int) -> Stop:
        self._out_since_s[lane] = now_s
        num_out = sum(now_s - since_s <= LANES_OUT_WITHIN_S for since_s in self._out_since_s.values())
        return Stop("run" if 2 * num_out >= self._lanes else "lane", reason, remedy)

    def _too_many(self, verdict: Verdict) -> Stop | None:
        last_error = f"last error: {verdict.message}"
        if len(self._recent) == IN_A_ROW and all(other and other.action is Action.INPUT for other in self._recent):
            return Stop("run", f"rejected the URLs of the first {IN_A_ROW} videos; {last_error}", CHECK_URLS)
        same = sum(other is not None and other.code == verdict.code for other in self._recent)
        if same > MAX_SHARES.get(verdict.code, 1.0) * SHARE_WINDOW:
            reason = f"returned {verdict.code} for {same} of the last {len(self._recent)} videos; {last_error}"
            return Stop("run", reason, verdict.remedy)
        last = list(self._recent)[-ANSWER_WINDOW:]
        broken = sum(other is not None and other.action is Action.BYTES for other in last)
        if verdict.action is Action.BYTES and broken >= MAX_BROKEN * ANSWER_WINDOW:
            return Stop("run", f"broke off the transfer of {broken} of the last {len(last)} videos; {last_error}", UPGRADE)
        answered = sum(other is None or other.answered for other in last)
        if len(last) == ANSWER_WINDOW and answered < MIN_ANSWERED * ANSWER_WINDOW:
            reason = f"served or explained only {answered} of the last {len(last)} videos; {last_error}"
            return Stop("run", reason, CHECK_NETWORK)
        return None


def _is_stall(verdict: Verdict) -> bool:
    """Whether ten of these in a row cannot be chance. "Video unavailable" is too common for that."""
    return not verdict.answered and verdict.code != UNAVAILABLE


class UnavailableWatch(Generic[T]):
    """Notices a sudden rise of "unavailable": the site then refuses the address, the client or the proxy.

    It compares the share of unavailable videos among the last 50, of a lane and of all, with the share before.

    Args:
        unavailable: number of unavailable videos in earlier runs.
        others: number of all other videos in earlier runs.
    """

    def __init__(self, unavailable: int = 0, others: int = 0) -> None:
        self._counts = Counter({True: unavailable, False: others})
        self._windows: dict[int | None, deque[tuple[bool, T]]] = {}

    def add(self, is_unavailable: bool, video: T, lane: int) -> str | None:
        """Add the result of a video, and return the reason to stop if the share has risen."""
        self._counts[is_unavailable] += 1
        for scope in (None, lane):
            window = self._windows.setdefault(scope, deque(maxlen=RISE_WINDOW))
            window.append((is_unavailable, video))
            if is_unavailable and (reason := self._rise(window)):
                return reason
        return None

    def suspects(self) -> list[T]:
        """The recent unavailable videos, which may be available after all."""
        videos = [video for window in self._windows.values() for is_unavailable, video in window if is_unavailable]
        return list(dict.fromkeys(videos))

    def _rise(self, window: deque[tuple[bool, T]]) -> str | None:
        size, recent = len(window), sum(is_unavailable for is_unavailable, _ in window)
        before = self._counts[True] - recent
        size_before = self._counts.total() - size
        if size < MIN_WINDOW or size_before < MIN_BEFORE or recent < MIN_SHARE * size:
            return None
        if _chance(recent, size, (before + 1) / (size_before + 2)) > CHANCE:
            return None
        return f"calls {recent} of the last {size} videos unavailable, but only {before:,} of the {size_before:,} before"


def _chance(hits: int, size: int, share: float) -> float:
    """Probability of at least `hits` hits among `size`."""
    return sum(math.comb(size, k) * share**k * (1 - share) ** (size - k) for k in range(hits, size + 1))
