"""What is measured, for ledgers written by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from mbt.manifests.clips import Clip, clip_table
from mbt.manifests.labels import Label, LabelSet
from mbt.prep.pilot.measure import Measured
from mbt.prep.pilot.model import PilotLane
from mbt.prep.plan.plan import Plan, write_plan
from mbt.prep.report.counts import make_report
from mbt.prep.state.ledger import Attempt, Effort, LedgerWriter

NOW = 1_700_000_000.0
HOUR = 3600.0
CLIPS = [Clip(f"v{i}_{start}", f"v{i}", start, start + 10_000, "eval", ()) for i in range(9) for start in (0, 20_000)]


def write(folder: Path, *rows: tuple[Attempt, Effort]) -> Measured:
    write_plan(folder, Plan(dataset="hand", task="multilabel"), LabelSet((Label("a", "Alpha"),)), clip_table(CLIPS))
    with LedgerWriter(folder, "fetch-0") as writer:
        writer.append(rows)
    return Measured.of(folder)


def attempt(video: int, at: float, lane: str = "a", start: int = 0, path: str | None = None, code: str = "ok") -> Attempt:
    return Attempt(key=f"v{video}_{start}", source="host", lane=lane, path=path, code=code, time=NOW + at, final=True)


def limited(video: int, at: float, until: float, start: int = 0) -> Attempt:
    return replace(attempt(video, at, code="rate.429", start=start), action="cool", final=False, not_before=NOW + until)


def lanes(folder: Path, measured: Measured) -> tuple[PilotLane, ...]:
    return measured.lanes(make_report(folder, NOW + 10 * HOUR).lanes)


def test_the_rate_of_a_lane_includes_its_pauses(tmp_path: Path) -> None:
    """Six videos, one every 20 s, and one pause of an hour, which is ten minutes per video."""
    rows = [attempt(i, 20.0 * i + delay, start=start, code="perm.private")
            for i in range(3) for start, delay in ((0, 0.0), (20_000, 0.1))]  # fmt: skip
    rows += [limited(3, 60.0, 60 + HOUR), limited(3, 60.0, 60 + HOUR, start=20_000)]
    later = HOUR + 100
    rows += [attempt(i, later + 20.0 * i, code="perm.private") for i in (3, 4, 5)]
    [lane] = lanes(tmp_path, write(tmp_path, *((row, Effort()) for row in rows)))
    assert (lane.number, lane.attempts, lane.there, lane.rests, lane.paused_hours) == (1, 9, 0, 1, pytest.approx(1.0))
    assert lane.per_hour is not None
    assert lane.per_hour.expected == pytest.approx(3600 / (20 + 600))


def test_a_gap_between_two_runs_does_not_slow_a_lane(tmp_path: Path) -> None:
    rows = [attempt(i, 15.0 * i + (i > 2) * 9 * HOUR, lane="b", code="perm.private") for i in range(6)]
    one = attempt(6, 0.0, lane="a", code="perm.private")
    first, second = lanes(tmp_path, write(tmp_path, *((row, Effort()) for row in (one, *rows))))
    assert (first.number, first.attempts, first.per_hour) == (1, 1, None)
    assert second.per_hour is not None
    assert second.per_hour.expected == pytest.approx(240)


def test_formats_count_once_per_video_or_clip(tmp_path: Path) -> None:
    """A video of two clips, one of them fetched twice since its file was lost; a whole file; a video without its formats."""
    ranges = Effort(offered="18,134,140", formats="134+140", extract_s=1.0)
    shared = replace(ranges, extract_s=0.0)
    measured = write(
        tmp_path,
        (attempt(0, 0, path="raw/v0/v0_0.mkv"), ranges),
        (attempt(0, 0, path="raw/v0/v0_20000.mkv", start=20_000), shared),
        (attempt(0, 9, path="raw/v0/v0_0.mkv"), ranges),
        (attempt(1, 15, path="raw/v1/v1.mp4"), Effort(offered="18", formats="18", extract_s=2.0)),
        (attempt(2, 30, code="perm.private"), Effort(extract_s=3.0)),
        (replace(attempt(3, 45, path="raw/x/x.mp4"), key="of_another_plan"), Effort(offered="99", formats="99", extract_s=4.0)),
    )
    assert {row.format: row.videos for row in measured.offered()} == {"18": 2, "134": 1, "140": 1}
    assert measured.offered()[0].format == "18"
    assert [(row.formats, row.by_ranges, row.whole) for row in measured.chosen()] == [("134+140", 2, 0), ("18", 0, 1)]
    assert measured.extractions == 4
    costs = measured.costs()
    assert costs.extract_s is not None
    assert (costs.extract_s.of, costs.extract_s.mean.expected) == (4, (1 + 1 + 2 + 3) / 4)
    assert costs.decode_s is None
    assert costs.shard_bytes is None


def test_nothing_was_measured(tmp_path: Path) -> None:
    measured = write(tmp_path)
    assert (measured.offered(), measured.chosen(), measured.extractions) == ((), (), 0)
    assert set(measured.costs().model_dump().values()) == {None}
