"""Measure a pilot: formats, requests, bytes and seconds of its clips, from the ledger, the shards and the raw clips."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from time import perf_counter

from mbt.manifests.clips import Clip, table_clips
from mbt.manifests.shards import VideoFormat
from mbt.prep.media.decode import decode_clip
from mbt.prep.media.ffmpeg import ClipError
from mbt.prep.pilot.forecast import spread
from mbt.prep.pilot.model import Chosen, Costs, Interval, Offered, PilotLane
from mbt.prep.plan.plan import read_plan
from mbt.prep.report.counts import read_records
from mbt.prep.report.lanes import PAUSE_S
from mbt.prep.report.model import LaneReport
from mbt.prep.state.failure_codes import HOUR_S
from mbt.prep.state.ledger import NO_OUTCOME_ACTIONS, Attempt, Effort, LedgerReader, states

DECODED = 8
"""Clips that are decoded once more, to measure what that takes."""
MIN_PERIOD_S = 1e-3

Row = tuple[Attempt, Effort]


@dataclass(frozen=True)
class Measured:
    """A pilot's ledger and clips.

    Attributes:
        folder: the dataset folder.
        rows: the rows of the ledger with their costs, in order of time.
        clips: the planned clips by key.
    """

    folder: Path
    rows: Sequence[Row]
    clips: Mapping[str, Clip]

    @classmethod
    def of(cls, folder: Path) -> "Measured":
        """Read a folder that has a plan."""
        rows = sorted(LedgerReader(folder).new_with_effort(), key=lambda row: row[0].time)
        clips = {clip.key: clip for clip in table_clips(read_plan(folder)[2])}
        return cls(folder, [row for row in rows if row[0].key in clips], clips)

    @property
    def fetched(self) -> list[Row]:
        """The rows of fetched clips."""
        return [row for row in self.rows if row[0].path is not None]

    @property
    def extractions(self) -> int:
        """Number of requests for a video's formats; one may be for several clips."""
        return sum(effort.extract_s > 0 for _, effort in self.rows)

    def offered(self) -> tuple[Offered, ...]:
        """The offered formats, the most frequent first."""
        by_video = {self.clips[attempt.key].video_id: effort.offered for attempt, effort in self.rows if effort.offered}
        counts = Counter(name for offered in by_video.values() for name in set(offered.split(",")))
        return tuple(Offered(format=name, videos=n) for name, n in sorted(counts.items(), key=lambda each: (-each[1], each[0])))

    def chosen(self) -> tuple[Chosen, ...]:
        """The chosen formats of fetched clips, the most frequent first. A file that holds one clip is named after it."""
        counts: dict[str, Counter[bool]] = defaultdict(Counter)
        for attempt, effort in {attempt.key: (attempt, effort) for attempt, effort in self.fetched}.values():
            counts[effort.formats][Path(attempt.path or "").stem == attempt.key] += 1
        rows = [Chosen(formats=name, by_ranges=found[True], whole=found[False]) for name, found in counts.items()]
        return tuple(sorted(rows, key=lambda row: (-row.by_ranges - row.whole, row.formats)))

    def costs(self) -> Costs:
        """What the clips took. Decodes a few of them again."""
        efforts = [effort for _, effort in self.fetched]
        sizes = [row for record in read_records(self.folder) for row in record.rows]
        return Costs(
            requests=spread(effort.requests for effort in efforts),
            transferred=spread(effort.transferred for effort in efforts),
            raw_bytes=spread(attempt.size for attempt, _ in self.fetched),
            shard_bytes=spread(sum(size for name, size in row.items() if name.endswith("_size")) for row in sizes),
            extract_s=spread(effort.extract_s for _, effort in self.rows if effort.extract_s),
            wait_s=spread(effort.wait_s for effort in efforts),
            transfer_s=spread(effort.transfer_s for effort in efforts),
            decode_s=spread(self._decoding()),
        )

    def _decoding(self) -> Iterable[float]:
        """Seconds of decoding each of the first clips that have their media."""
        found = (state.checked(self.folder) for state in states(attempt for attempt, _ in self.rows).values())
        for attempt in [attempt for attempt in found if attempt.path is not None][:DECODED]:
            clip = self.clips[attempt.key]
            start_s = (clip.start_ms - attempt.offset_ms) / 1000
            began = perf_counter()
            try:
                decode_clip(self.folder / str(attempt.path), start_s, clip.duration_ms / 1000, VideoFormat())
            except ClipError:
                continue
            yield perf_counter() - began

    def lanes(self, reports: Sequence[LaneReport]) -> tuple[PilotLane, ...]:
        """The lanes of the report, without their names."""
        return tuple(self._lane(number, report) for number, report in enumerate(reports, 1))

    def _lane(self, number: int, report: LaneReport) -> PilotLane:
        rows = [attempt for attempt, _ in self.rows if attempt.lane == report.name]
        paused_s = _paused_s(rows)
        answered = [row for row in rows if row.action not in NO_OUTCOME_ACTIONS]
        videos = [next(own).time for _, own in groupby(answered, lambda row: self.clips[row.key].video_id)]
        periods = spread(gap for first, second in pairwise(videos) if (gap := second - first) <= PAUSE_S)
        return PilotLane(
            number=number,
            attempts=report.attempts,
            there=report.there,
            rests=report.rests,
            paused_hours=paused_s / HOUR_S,
            per_hour=_per_hour(periods.mean, paused_s / len(videos)) if periods else None,
        )


def _paused_s(rows: Iterable[Attempt]) -> float:
    """Seconds of a lane's pauses after refusals; the clips of one video share a pause."""
    pauses = {row.not_before: row.not_before - row.time for row in rows if row.action in NO_OUTCOME_ACTIONS}
    return sum(max(seconds, 0.0) for seconds in pauses.values())


def _per_hour(period_s: Interval, pause_s: float) -> Interval:
    """Videos per hour, from the time between two of them and their share of the pauses, seconds."""
    low, expected, high = (
        HOUR_S / max(seconds + pause_s, MIN_PERIOD_S) for seconds in (period_s.high, period_s.expected, period_s.low)
    )
    return Interval(low=low, expected=expected, high=high)
