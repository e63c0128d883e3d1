"""Fetching in passes: what is requested in which order, what is reported when, and how ledger and caps agree on it."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mbt.manifests.clips import Clip
from mbt.prep.fetch.lane_pool import ThreadedLanes
from mbt.prep.fetch.worker_share import WorkerShare
from mbt.prep.sources.ytdlp import Answer
from mbt.prep.state.failure_codes import Verdict
from mbt.prep.state.ledger import Attempt, LedgerReader, LedgerWriter, late_keys, read_ledger
from mbt.prep.workers.clock import Clock
from tests.site import HandClock, Scripted, fetch_all, plan_of, refusal, videos

HOUR = 3600.0
PRIVATE, UNKNOWN = refusal("Private video"), refusal("Something quite new")
LIMITED = refusal("HTTP Error 429: Too Many Requests")


class Slow(Scripted):
    """A source that serves one video only once all others have been served."""

    others: threading.Semaphore

    def fetch(self, video_id: str, clips: Sequence[Clip]) -> list[Answer]:
        if video_id == "v00":
            for _ in range(199):
                assert self.others.acquire(timeout=30)
        answers = super().fetch(video_id, clips)
        self.others.release()
        return answers


def test_a_slow_video_holds_up_nothing_and_is_reported_in_its_place(tmp_path: Path) -> None:
    source = Slow(plan_of(tmp_path, videos(200)))
    source.others = threading.Semaphore(0)
    reported: list[tuple[str, str | None]] = []
    counts = fetch_all(source, Clock(), 4, settled=lambda clip, state: reported.append((clip.key, state and state.path)))
    assert counts.found == 200
    assert reported == [(clip.key, f"raw/{clip.key}.mkv") for clip in videos(200)]


def flaky(folder: Path, first: dict[str, Verdict]) -> Scripted:
    """A source that refuses some clips once."""
    return Scripted(folder, lambda clip, times: first.get(clip.key) if not times else None)


def test_new_clips_are_requested_before_retries_that_are_due(tmp_path: Path) -> None:
    clock, folder = HandClock(), plan_of(tmp_path, videos(6))
    source = flaky(folder, {"v01_0": UNKNOWN, "v03_0": PRIVATE})

    def interrupt(clip: Clip, state: Attempt | None) -> None:
        if clip.key == "v03_0":
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fetch_all(source, clock, settled=interrupt)
    clock.now += 2 * HOUR
    source = Scripted(folder)
    assert fetch_all(source, clock).found == 5
    assert source.requested == ["v04_0", "v05_0", "v01_0"]


def test_each_clip_is_reported_once_in_plan_order_and_late_ones_are_not_reported_as_found(tmp_path: Path) -> None:
    clock, folder = HandClock(), plan_of(tmp_path, videos(4))
    source = flaky(folder, {"v01_0": UNKNOWN, "v02_0": PRIVATE})
    for found, states in ((2, ["ok", "unknown", "perm.private", "ok"]), (3, ["ok", "unknown", "perm.private", "ok"])):
        reported: list[tuple[str, str | None]] = []
        counts = fetch_all(source, clock, settled=lambda clip, state: reported.append((clip.key, state and state.code)))  # noqa: B023
        assert (counts.found, counts.missing) == (found, 4 - found)
        assert reported == [(clip.key, code) for clip, code in zip(videos(4), states, strict=True)]
        clock.now += 2 * HOUR
    reported = []
    assert fetch_all(source, clock, settled=lambda clip, state: reported.append((clip.key, state and state.code))).found == 3
    assert reported == [("v00_0", "ok"), ("v01_0", None), ("v02_0", "perm.private"), ("v03_0", "ok")]
    assert late_keys(LedgerReader(folder).new()) == {"v01_0", "v02_0"}
    assert read_ledger(folder)["v01_0"].code == "ok"


def test_on_time_clips_take_the_room_under_a_cap_and_late_ones_what_is_left(tmp_path: Path) -> None:
    clock, folder = HandClock(), plan_of(tmp_path, videos(5), caps={"train": 3})
    first = {"v00_0": UNKNOWN, "v01_0": UNKNOWN}
    source = flaky(folder, first)
    assert fetch_all(source, clock).found == 3
    assert source.requested == ["v00_0", "v01_0", "v02_0", "v03_0", "v04_0"]
    clock.now += 2 * HOUR
    assert fetch_all(source, clock).found == 3
    assert len(source.requested) == 5

    folder = plan_of(tmp_path / "other", videos(4), caps={"train": 3})
    source = flaky(folder, first)
    assert fetch_all(source, clock).found == 2
    clock.now += 2 * HOUR
    counts = fetch_all(source, clock)
    assert (counts.found, source.requested[4:]) == (3, ["v00_0"])


def test_nothing_is_requested_while_the_caller_says_no(tmp_path: Path) -> None:
    clock, folder = HandClock(), plan_of(tmp_path, videos(4))
    begin, source = clock.now, Scripted(folder)
    times: list[float] = []
    source.answers = lambda clip, _: times.append(clock.now)
    assert fetch_all(source, clock, may_request=lambda: not 100 < clock.now - begin < 200, sleep_s=60.0).found == 4
    assert all(not 100 < moment - begin < 200 for moment in times)
    assert len(times) == 4


def test_after_a_rate_limit_the_other_clips_of_the_video_wait(tmp_path: Path) -> None:
    clock, folder = HandClock(), plan_of(tmp_path, videos(2, clips_each=3))
    source = flaky(folder, {"v00_1000": LIMITED})
    assert fetch_all(source, clock).found == 6
    assert source.requested == ["v00_0", "v00_1000", "v00_1000", "v00_2000", "v01_0", "v01_1000", "v01_2000"]
    rows = [attempt for attempt in LedgerReader(folder).new() if attempt.key.startswith("v00")]
    assert [(row.key, row.code) for row in rows] == [
        ("v00_0", "ok"),
        ("v00_1000", "rate.429"),
        ("v00_1000", "ok"),
        ("v00_2000", "ok"),
    ]
    assert rows[2].time - rows[1].time >= HOUR
    assert not late_keys(rows)


def test_a_clip_that_was_not_in_a_local_folder_is_new_elsewhere(tmp_path: Path) -> None:
    folder = plan_of(tmp_path, videos(2))
    with LedgerWriter(folder, "fetch-0") as writer:
        writer.append([Attempt(key=clip.key, source="local", code="local.missing", time=1.0) for clip in videos(2)])
    reported: list[str | None] = []
    fetch_all(Scripted(folder), HandClock(), settled=lambda clip, state: reported.append(state and state.code))
    assert reported == ["ok", "ok"]
    assert not late_keys(LedgerReader(folder).new())


class Impatient(HandClock):
    """A clock that gives up after a day."""

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self.now > 1_800_000_000.0 + 24 * HOUR:
            raise TimeoutError


def test_a_worker_goes_on_without_a_late_one_as_long_as_clips_fit_in_any_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbt.prep.fetch.fetch.OPEN_PER_WORKER", 4)
    monkeypatch.setattr(ThreadedLanes, "poll_s", 60.0)
    clips = [replace(clip, labels=(row % 2,)) for row, clip in enumerate(videos(99))]
    source = Scripted(plan_of(tmp_path, clips, caps={"train": 30}))
    with pytest.raises(TimeoutError):
        fetch_all(source, Impatient(), rank=0, world=2)
    fits = [clip for clip in clips[: 30 + 30 + 4] if WorkerShare(0, 2).owns(clip.video_id)]
    assert source.requested == [clip.key for clip in fits]


def test_a_video_that_no_longer_fits_does_not_keep_the_window_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbt.prep.fetch.fetch.OPEN_PER_LANE", 2)
    source = Scripted(plan_of(tmp_path, [*videos(9), Clip("last_0", "last", 0, 1000, "train", (1,))], caps={"train": 3}))
    assert fetch_all(source, Impatient()).found == 4
    assert source.requested[-1] == "last_0"


def request_times(
    source: Scripted, clock: HandClock, seconds: Callable[[Clip], float], monkeypatch: pytest.MonkeyPatch
) -> list[float]:
    """Seconds from the start to each request of a lane that may make one every 10 s, if the answers take this long."""
    monkeypatch.setattr("random.uniform", lambda low, high: (low + high) / 2)
    begin, times, refuse = clock.now, list[float](), source.answers

    def answer(clip: Clip, number: int) -> Verdict | None:
        times.append(clock.now - begin)
        clock.now += seconds(clip)
        return refuse(clip, number)

    source.answers = answer
    fetch_all(source, clock, sleep_s=10.0)
    return times


def test_a_lane_catches_up_after_a_slow_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Scripted(plan_of(tmp_path, videos(20)))
    times = request_times(source, HandClock(), lambda clip: 35 if clip.key == "v00_0" else 8, monkeypatch)
    assert times == pytest.approx([0.0, *(max(10.0 * number, 27.0 + 8.0 * number) for number in range(1, 20))], abs=0.5)


def test_a_lane_catches_up_a_minute_at_most_and_no_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Scripted(plan_of(tmp_path / "slow", videos(20)))
    times = request_times(source, HandClock(), lambda clip: 1000 if clip.key == "v00_0" else 0, monkeypatch)
    assert times == pytest.approx([0.0, *[1000.0] * 6, *(1000.0 + 10 * number for number in range(13))], abs=0.5)
    source = flaky(plan_of(tmp_path / "paused", videos(4)), {"v01_0": LIMITED})
    times = request_times(source, HandClock(), lambda clip: 0, monkeypatch)
    assert times == pytest.approx([0.0, 10.0, 3610.0, 3620.0, 3630.0], abs=0.5)
