"""When to stop a run: failures that each look like a video's own but, together, point to the source, the network or us."""

from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal

from mbt.prep.state.failure_codes import MAX_SHARES, UPGRADE, Action, Verdict

IN_A_ROW = 10
SHARE_WINDOW = 200
ANSWER_WINDOW = 50
MIN_ANSWERED = 0.2
MAX_BROKEN = 0.1
LANES_OUT_WITHIN_S = 900.0
CHECK_NETWORK = "Check the network and the URL, then run again"


@dataclass(frozen=True)
class Stop:
    """What must stop, why (a clause that follows the source's name), and what the user can do."""

    scope: Literal["lane", "run"]
    reason: str
    remedy: str


class Breaker:
    """Watches the results of a run over all its lanes.

    The run stops at once for a fault of the environment; when half of the lanes dropped out within 15 minutes; when a code
    exceeds its `max_share` over the last 200 videos; when the transfer failed for a tenth of the last 50 videos; and when
    fewer than a fifth of the last 50 videos were served or refused for a reason of their own. A lane drops out when it is
    blocked or fails 10 times in a row; it pauses when it is rate-limited.

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
    return not verdict.answered and verdict.code != "confirm.unavailable"
