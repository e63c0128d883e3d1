"""A simulated day of fetching, checked against the site's own logs; and the site, the clock and the sums by themselves."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.long_run import Report, audioset_like, simulate, table, usable_s
from benchmarks.simulated_site import (
    BOT,
    FORBIDDEN,
    LIMITED,
    OFFLINE,
    REQUEST,
    SERVED,
    SHORT,
    START,
    TIMEOUT,
    UNAVAILABLE,
    VIDEO,
    Incident,
    Site,
    World,
)
from benchmarks.simulated_time import KILLED, Life, SimulatedClock
from tests.site import HandClock

HOUR = 3600.0
CLIPS, CAP = 2000, 196
SPEECH, MUSIC = 0, 137


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Report]:
    """A world in which six lanes take a day for the clips of a thousandth of AudioSet, and what happened in it."""
    folder = tmp_path_factory.mktemp("world")
    world = World(folder, folder / "set", sleep_s=900, quota=4.4)
    return world, simulate(world, CLIPS, CAP)


def logs(world: World) -> list[np.ndarray[Any, Any]]:
    """The requests of each worker."""
    return [np.fromfile(world.folder / f"requests-{worker}", REQUEST) for worker in (0, 1)]


def ledger(world: World) -> list[dict[str, Any]]:
    """The rows of all ledger files that are whole."""
    rows = []
    for path in sorted((world.dataset / "work/ledger").iterdir()):
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                assert line.startswith('{"key": "00000000000_30000"')
    return rows


def test_no_video_is_requested_again_without_a_reason(day: tuple[World, Report]) -> None:
    """By the logs alone: after an answer that is final, a video was requested again only if the answer was lost by a kill."""
    world, report = day
    may_come_again = {UNAVAILABLE, LIMITED, BOT, OFFLINE, TIMEOUT, FORBIDDEN, SHORT}
    repeats = 0
    for log in logs(world):
        for video in np.unique(log["video"]):
            answers = log["answer"][log["video"] == video].tolist()
            repeats += sum(answer not in may_come_again for answer in answers[:-1])
            assert answers.count(UNAVAILABLE) <= 2 + report.lost
    assert repeats <= report.lost
    assert report.early == 0
    served = {int(video) for log in logs(world) for video in log["video"][log["answer"] == SERVED]}
    assert served >= {int(row["key"].partition("_")[0]) for row in ledger(world) if row["code"] == "ok"}
    assert report.ledger_bytes == sum(path.stat().st_size for path in (world.dataset / "work/ledger").iterdir())


def test_the_workers_were_killed_interrupted_and_stopped_and_the_cap_is_kept(day: tuple[World, Report]) -> None:
    world, report = day
    assert report.lives["finished"] == 2
    assert report.lives["killed"] >= 1
    assert report.lives["interrupted"] >= 1
    labels = audioset_like(CLIPS, 0)["labels"].to_pylist()
    served = {int(row["key"].partition("_")[0]) for row in ledger(world) if row["code"] == "ok"}
    for label in (SPEECH, MUSIC):
        alive = sum(label in labels[video] for video in served)
        assert CAP <= alive <= CAP + 40
    assert report.requests == sum((log["answer"] != OFFLINE).sum() for log in logs(world))


def test_the_rate_is_used_and_the_prediction_holds(day: tuple[World, Report]) -> None:
    _, report = day
    assert report.used > 0.97
    open_at_once = 256
    assert 0.95 * report.predicted_requests < report.videos < 1.05 * report.predicted_requests + open_at_once
    assert report.predicted_hours == pytest.approx(report.predicted_requests * 900 / 6 / HOUR, rel=0.001)
    assert report.videos + report.refused + report.lost + report.retries == report.requests
    text = table(report)
    assert f"{report.used:.1%}" in text
    assert "answers perm.private" in text


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Site, HandClock, Any]:
    """A site of three videos that answers at random only where told to, its clock, and its notes on the videos."""
    monkeypatch.setattr("benchmarks.simulated_site.CHANCES", ())
    np.zeros(3, VIDEO).tofile(tmp_path / "videos")
    trouble = (Incident("bot", 0, 1, START + 1000, START + 2000), Incident("offline", 0, 0, START + 5000, START + 6000))
    world = World(tmp_path, tmp_path / "set", quota=3, incidents=trouble)
    clock = HandClock(START)
    return Site(world, 0, clock), clock, np.memmap(tmp_path / "videos", VIDEO, "r+")


def ask(site: Site, clock: HandClock, at: float, video: int = 0, lane: int = 0) -> tuple[int, bool]:
    """The answer to a request `at` seconds after the start, and whether it should not have been made."""
    clock.now = START + at
    site.answer(lane, video)
    row = np.fromfile(site.world.log_file(0), REQUEST)[-1]
    assert (row["time"], row["video"], row["lane"]) == (START + at, video, lane)
    return int(row["answer"]), bool(row["early"])


def test_the_site_notices_a_request_for_a_video_that_was_served(site: tuple[Site, HandClock, Any]) -> None:
    assert ask(*site[:2], 0) == (SERVED, False)
    assert ask(*site[:2], 1e6) == (SERVED, True)
    assert ask(*site[:2], 1e6, video=1) == (SERVED, False)


def test_an_unavailable_video_may_be_requested_once_more_a_day_later(site: tuple[Site, HandClock, Any]) -> None:
    site[2]["before"] = site[2]["after"] = UNAVAILABLE
    assert ask(*site[:2], 0) == (UNAVAILABLE, False)
    assert ask(*site[:2], 23 * HOUR) == (UNAVAILABLE, True)
    assert ask(*site[:2], 0, video=1) == (UNAVAILABLE, False)
    assert ask(*site[:2], 24 * HOUR + 5, video=1) == (UNAVAILABLE, False)
    assert ask(*site[:2], 1000 * HOUR, video=1) == (UNAVAILABLE, True)


def test_a_second_403_in_a_row_must_wait_an_hour_and_answers_lost_by_a_kill_may_be_asked_for_again(
    site: tuple[Site, HandClock, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.simulated_site.CHANCES", ((FORBIDDEN, 1.0),))
    assert [ask(*site[:2], at) for at in (0, 30, 60)] == [(FORBIDDEN, False), (FORBIDDEN, False), (FORBIDDEN, True)]
    monkeypatch.setattr("benchmarks.simulated_site.CHANCES", ())
    assert ask(*site[:2], 2000, video=1, lane=2) == (SERVED, False)
    site[0].forget_in_flight()
    assert ask(*site[:2], 2600, video=1, lane=2) == (SERVED, False)


def test_quota_robots_and_outages(site: tuple[Site, HandClock, Any]) -> None:
    site[2]["before"][1], site[2]["after"][1], site[2]["turn"][1] = UNAVAILABLE, SERVED, START + 500
    assert [ask(*site[:2], at, video=2)[0] for at in (0, 10, 20, 30, 40)] == [SERVED] * 3 + [LIMITED] * 2
    assert [ask(*site[:2], at, video=1, lane=1)[0] for at in (400, 600, 1500)] == [UNAVAILABLE, SERVED, BOT]
    assert [ask(*site[:2], at, lane=2)[0] for at in (5500, 6500)] == [OFFLINE, SERVED]
    assert not site[0].world.during("bot", 0, 1, START + 2000)


def test_the_time_in_which_a_lane_could_request(tmp_path: Path) -> None:
    incidents = (Incident("offline", 0, 0, START + 90_000, START + 91_000),)
    world = World(tmp_path, tmp_path / "set", incidents=incidents)
    lives = [Life(0, START, START + 50_000, KILLED, 0, ""), Life(0, START + 50_600, START + 200_000, "finished", 0, "")]
    rows = [
        (START, SERVED),
        (START + 10_000, LIMITED),
        (START + 13_600, LIMITED),
        (START + 30_000, SERVED),
        (START + 60_000, BOT),
    ]
    log = np.array([(time, time, 0, 0, answer, False) for time, answer in rows], REQUEST)
    paused = 3600 + 2 * 3600 + 6 * 3600
    assert usable_s(world, 0, log, lives, START + 100_000) == 100_000 - paused - 600 - 1000
    assert usable_s(world, 0, log, lives, START + 13_000) == 10_000


class Wire:
    """A connection to a conductor that always answers with the same horizon."""

    def __init__(self, horizon: float) -> None:
        self.horizon, self.sent = horizon, list[float]()

    def send(self, value: float) -> None:
        self.sent.append(value)

    def recv(self) -> float:
        return self.horizon


def test_a_clock_asks_before_it_passes_its_horizon_and_an_alarm_interrupts_a_sleep() -> None:
    wire: Any = Wire(150.0)
    clock, rung = SimulatedClock(wire, 100.0), list[float]()
    clock.set_alarm(145.0, lambda: rung.append(clock.time()))
    clock.set_alarm(99.0, lambda: rung.append(math.nan))
    clock.sleep(20.0)
    clock.sleep(20.0)
    assert (wire.sent, clock.time(), rung) == ([120.0], 140.0, [])
    clock.sleep(20.0)
    assert (wire.sent, clock.time(), rung) == ([120.0], 145.0, [145.0])
    clock.sleep(20.0)
    assert (wire.sent, clock.monotonic()) == ([120.0, 165.0], 165.0)


def test_the_list_is_like_audiosets() -> None:
    labels = audioset_like(20_000, 3)["labels"].to_pylist()
    assert all(row == sorted(set(row)) and row for row in labels)
    speech, music = ({number for number, row in enumerate(labels) if label in row} for label in (SPEECH, MUSIC))
    assert [len(speech) / 20_000, len(music) / 20_000, len(speech & music) / 20_000] == pytest.approx(
        [0.495, 0.495, 0.165], abs=0.02
    )
    assert max(Counter(label for row in labels for label in row if label not in (SPEECH, MUSIC)).values()) < 0.1 * 20_000
