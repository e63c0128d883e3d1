"""When a run must stop: many failures that each seem to be a video's own are the source's, the network's or ours."""

from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal

from mbt.prep.state.failure_codes import SHARES, UPGRADE, Action, Verdict

IN_A_ROW = 10
SHARE_WINDOW = 200
ANSWER_WINDOW = 50
MIN_ANSWERED = 0.2
MAX_BYTES = 0.1
LANES_OUT_WITHIN_S = 900.0
LOOK = "Check the network and the URL, then run again"


@dataclass(frozen=True)
class Stop:
    """What must stop, why (to be read after the source's name), and what to do about it."""

    scope: Literal["lane", "run"]
    reason: str
    remedy: str


class Breaker:
    """Watches the verdicts of a run over all its lanes.

    The run stops at once for a fault of the environment; where half of the lanes went out within 15 minutes; where a code
    with a share in the table comes above it in the last 200 items; where a tenth of the last 50 items failed in the transfer;
    and where less than a fifth of the last 50 was served or refused for a reason of its own. A lane goes out when it is
    blocked or fails 10 times in a row; it must rest when its rate is limited.

    Args:
        lanes: how many there are.
    """

    def __init__(self, lanes: int = 1) -> None:
        self._lanes = lanes
        self._out: dict[int, float] = {}
        self._in_a_row: Counter[int] = Counter()
        self._recent: deque[Verdict | None] = deque(maxlen=SHARE_WINDOW)

    def add(self, verdict: Verdict | None, now_s: float, lane: int = 0) -> Stop | None:
        """Take in what came of an item (None: it was served), and say what must stop.

        Items that fail just as they did in an earlier run tell nothing of this one and are better left out.
        """
        if verdict and verdict.action.ends:
            return self._ended(verdict, now_s, lane)
        self._recent.append(verdict)
        self._in_a_row[lane] = self._in_a_row[lane] + 1 if verdict and _is_stall(verdict) else 0
        if verdict is None:
            return None
        if stop := self._too_many(verdict):
            return stop
        if self._in_a_row[lane] == IN_A_ROW:
            self._in_a_row[lane] = 0
            reason = f"failed for {IN_A_ROW} videos in a row; the last: {verdict.message}"
            return self._lane_out(reason, verdict.remedy or LOOK, now_s, lane)
        return None

    def _ended(self, verdict: Verdict, now_s: float, lane: int) -> Stop:
        reason = f"serves nothing more ({verdict.code}): {verdict.message}"
        if verdict.action is Action.BLOCK:
            return self._lane_out(reason, verdict.remedy, now_s, lane)
        return Stop("run" if verdict.action.ends == "run" else "lane", reason, verdict.remedy)

    def _lane_out(self, reason: str, remedy: str, now_s: float, lane: int) -> Stop:
        self._out[lane] = now_s
        out = sum(now_s - since_s <= LANES_OUT_WITHIN_S for since_s in self._out.values())
        return Stop("run" if 2 * out >= self._lanes else "lane", reason, remedy)

    def _too_many(self, verdict: Verdict) -> Stop | None:
        share = SHARES.get(verdict.code, 1.0)
        same = sum(other is not None and other.code == verdict.code for other in self._recent)
        if same > share * SHARE_WINDOW:
            reason = f"gave {verdict.code} for {same} of the last {len(self._recent)} videos; the last: {verdict.message}"
            return Stop("run", reason, verdict.remedy)
        last = list(self._recent)[-ANSWER_WINDOW:]
        broken = sum(other is not None and other.action is Action.BYTES for other in last)
        if verdict.action is Action.BYTES and broken >= MAX_BYTES * ANSWER_WINDOW:
            return Stop("run", f"broke off {broken} of the last {len(last)} videos; the last: {verdict.message}", UPGRADE)
        answered = sum(other is None or other.answered for other in last)
        if len(last) == ANSWER_WINDOW and answered < MIN_ANSWERED * ANSWER_WINDOW:
            reason = f"served or explained only {answered} of the last {len(last)} videos; the last: {verdict.message}"
            return Stop("run", reason, LOOK)
        return None


def _is_stall(verdict: Verdict) -> bool:
    """Whether ten of these in a row are no chance: "Video unavailable" is too common for that."""
    return not verdict.answered and verdict.code != "confirm.unavailable"
