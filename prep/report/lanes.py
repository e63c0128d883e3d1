"""Count what was fetched over each lane, at what cost and speed, and its pauses."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from mbt.prep.report.model import LaneReport, Pause
from mbt.prep.state.failure_codes import HOUR_S, Action
from mbt.prep.state.ledger import NO_OUTCOME_ACTIONS, Attempt, LedgerReader

REFUSALS = {action.label for action in Action if action.stops == "lane"}
PAUSE_S = 600.0
"""A longer gap between two attempts is a pause of the lane, or of the whole run."""
SAME_VIDEO_S = 1.0
"""The rows of one video are written within this time, and those of the next one later."""


@dataclass
class Traffic:
    """A lane's requests for media, and the bytes that it downloaded."""

    requests: int = 0
    transferred: int = 0


def read_rows(folder: Path) -> tuple[list[Attempt], Mapping[str, Traffic]]:
    """All rows of a folder's ledger in order of time, and the traffic by lane."""
    rows = []
    traffic: defaultdict[str, Traffic] = defaultdict(Traffic)
    for attempt, effort in LedgerReader(folder).new_with_effort():
        rows.append(attempt)
        traffic[attempt.lane].requests += effort.requests
        traffic[attempt.lane].transferred += effort.transferred
    return sorted(rows, key=lambda row: row.time), traffic


def lane_reports(
    rows: Iterable[Attempt], traffic: Mapping[str, Traffic], available: Mapping[str, int], now: float
) -> tuple[LaneReport, ...]:
    """The lanes of a ledger in natural order of their names (2.a before 10.a).

    Args:
        rows: rows of the ledger, in order of time.
        traffic: traffic by lane.
        available: available clips by the lane that fetched them.
        now: Unix time in seconds.
    """
    by_lane: dict[str, list[Attempt]] = defaultdict(list)
    for row in rows:
        if row.lane:
            by_lane[row.lane].append(row)
    names = sorted(by_lane, key=_natural_order)
    return tuple(_lane(name, by_lane[name], traffic[name], available.get(name, 0), now) for name in names)


def _natural_order(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _lane(name: str, rows: Sequence[Attempt], traffic: Traffic, available: int, now: float) -> LaneReport:
    times = np.array([row.time for row in rows if row.action not in NO_OUTCOME_ACTIONS])
    refusals = [row for row in rows if row.action in REFUSALS and row.not_before > row.time]
    return LaneReport(
        name=name,
        attempts=len(times),
        there=available,
        share=available / len(times) if len(times) else None,
        transferred=traffic.transferred,
        requests=traffic.requests,
        last_hour=int((times > now - HOUR_S).sum()),
        hourly=_hourly(times),
        rests=len({row.not_before for row in refusals}),
        resting=_current_pause(refusals, rows[-1].time, now),
    )


def _hourly(times: np.ndarray) -> float | None:
    """Attempts per hour of work; the first attempt after each pause does not count, since it began during the pause."""
    gaps = np.diff(times)
    at_work = gaps[gaps <= PAUSE_S]
    return len(at_work) / float(at_work.sum()) * HOUR_S if at_work.sum() > SAME_VIDEO_S else None


def _current_pause(refusals: Sequence[Attempt], last_s: float, now: float) -> Pause | None:
    """The last pause, unless it is over or the lane was used since, as a new run may do."""
    if not refusals or refusals[-1].not_before <= now or last_s - refusals[-1].time > SAME_VIDEO_S:
        return None
    last = refusals[-1]
    return Pause(until=datetime.fromtimestamp(last.not_before, UTC), code=last.code, message=last.message)
