"""Counting for a report by lane: what came over each network address, at what cost, how fast, and its rests."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from mbt.prep.report.model import LaneReport, Rest
from mbt.prep.state.failure_codes import HOUR_S, Action
from mbt.prep.state.ledger import STOPPING_ACTIONS, Attempt, LedgerReader

REFUSALS = {action.label for action in Action if action.stops == "lane"}
PAUSE_S = 600.0
"""A lane that asks for nothing for longer rests, or no run goes on."""
AT_ONCE_S = 1.0
"""Within this time the rows of one video are written, and no other."""


@dataclass
class Media:
    """What a lane asked for of media: requests, and bytes that came."""

    requests: int = 0
    transferred: int = 0


def read_rows(folder: Path) -> tuple[list[Attempt], Mapping[str, Media]]:
    """All rows of a folder's ledger in order of time, and the media by lane."""
    rows = []
    media: defaultdict[str, Media] = defaultdict(Media)
    for attempt, effort in LedgerReader(folder).new_with_effort():
        rows.append(attempt)
        media[attempt.lane].requests += effort.requests
        media[attempt.lane].transferred += effort.transferred
    return sorted(rows, key=lambda row: row.time), media


def lane_reports(
    rows: Iterable[Attempt], media: Mapping[str, Media], there: Mapping[str, int], now: float
) -> tuple[LaneReport, ...]:
    """The lanes that the rows name, by name, numbers in it by value.

    Args:
        rows: of the ledger, in order of time.
        media: of each lane.
        there: clips that are there, of lanes that have some.
        now: Unix time in seconds.
    """
    of_lane: dict[str, list[Attempt]] = defaultdict(list)
    for row in rows:
        if row.lane:
            of_lane[row.lane].append(row)
    return tuple(_lane(name, of_lane[name], media[name], there.get(name, 0), now) for name in sorted(of_lane, key=_by_value))


def _by_value(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _lane(name: str, rows: Sequence[Attempt], media: Media, there: int, now: float) -> LaneReport:
    times = np.array([row.time for row in rows if row.action not in STOPPING_ACTIONS])
    refusals = [row for row in rows if row.action in REFUSALS and row.not_before > row.time]
    return LaneReport(
        name=name,
        attempts=len(times),
        there=there,
        share=there / len(times) if len(times) else None,
        transferred=media.transferred,
        requests=media.requests,
        last_hour=int((times > now - HOUR_S).sum()),
        hourly=_hourly(times),
        rests=len({row.not_before for row in refusals}),
        resting=_resting(refusals, rows[-1].time, now),
    )


def _hourly(times: np.ndarray) -> float | None:
    """Of each stretch of work the first attempt took its time before it and does not count."""
    gaps = np.diff(times)
    at_work = gaps[gaps <= PAUSE_S]
    return len(at_work) / float(at_work.sum()) * HOUR_S if at_work.sum() > AT_ONCE_S else None


def _resting(refusals: Sequence[Attempt], last_s: float, now: float) -> Rest | None:
    """The last rest, unless it is over or the lane has asked since, as a new run lets it."""
    if not refusals or refusals[-1].not_before <= now or last_s - refusals[-1].time > AT_ONCE_S:
        return None
    last = refusals[-1]
    return Rest(until=datetime.fromtimestamp(last.not_before, UTC), code=last.code, message=last.message)
