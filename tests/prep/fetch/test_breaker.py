"""When failures stop a run or a lane, because they are not the videos' own."""

import pytest

from mbt.prep.fetch.breaker import Breaker, Stop
from mbt.prep.state.failure_codes import Problem, Verdict, classify

TIMED_OUT = classify(Problem("The read operation timed out"))
REMOVED = classify(Problem("This video has been removed by the uploader"))
UPCOMING = classify(Problem("Premieres in 5 days"))
UNAVAILABLE = classify(Problem("Video unavailable"))
NO_FORMAT = classify(Problem("Requested format is not available"))
BAD_URL = classify(Problem("Unsupported URL: https://example.org/"))
TRUNCATED = classify(Problem("Incomplete YouTube ID dQw4"))
UNKNOWN = classify(Problem("Something quite new happened"))
EXTRACTOR = classify(Problem("Unable to extract yt initial data"))
DRM = classify(Problem("This video is DRM protected"))
SHORT = classify(Problem("content too short"))
RATE = classify(Problem("HTTP Error 429: Too Many Requests"))
BOT = classify(Problem("Sign in to confirm you're not a bot"))
RELOAD = classify(Problem("The page needs to be reloaded."))


def feed(breaker: Breaker, *verdicts: Verdict | None, lane: int = 0, now_s: float = 0.0) -> tuple[int, Stop | None]:
    """Number of verdicts added up to the first stop, and that stop."""
    for number, verdict in enumerate(verdicts, 1):
        if stop := breaker.add(verdict, now_s, lane):
            return number, stop
    return len(verdicts), None


@pytest.mark.parametrize("verdict", [TIMED_OUT, NO_FORMAT, UNKNOWN])
def test_ten_stalls_in_a_row_stop_the_run(verdict: Verdict) -> None:
    number, stop = feed(Breaker(), *[verdict] * 20)
    assert number == 10
    assert stop == Stop(
        "run",
        f"failed for 10 videos in a row; last error: {verdict.message}",
        verdict.remedy or "Check the network and the URL, then run again",
    )


def test_a_run_whose_first_ten_urls_are_invalid_stops() -> None:
    assert feed(Breaker(), None, *[BAD_URL] * 30) == (31, None)
    number, stop = feed(Breaker(lanes=4), *[BAD_URL, TRUNCATED] * 10)
    assert number == 10
    assert stop
    assert (stop.scope, stop.reason) == (
        "run",
        "rejected the URLs of the first 10 videos; last error: Incomplete YouTube ID dQw4",
    )
    assert stop.remedy.endswith("run again with --recheck input")


@pytest.mark.parametrize("between", [None, REMOVED, UPCOMING, UNAVAILABLE])
def test_an_answer_in_between_resets_the_count(between: Verdict | None) -> None:
    breaker = Breaker()
    assert feed(breaker, *[TIMED_OUT] * 9, between, *[TIMED_OUT] * 9) == (19, None)
    assert feed(breaker, TIMED_OUT)[1] is not None


def test_a_rate_limit_stops_the_lane_and_an_environment_fault_stops_the_run() -> None:
    breaker = Breaker(lanes=4)
    stop = breaker.add(RATE, 0.0)
    assert stop == Stop(
        "lane",
        "stopped serving videos (rate.429): HTTP Error 429: Too Many Requests",
        "Wait an hour, then run again; fetched clips are kept",
    )
    stop = breaker.add(RELOAD, 0.0)
    assert stop
    assert (stop.scope, stop.reason[:36]) == ("run", "stopped serving videos (env.reload):")
    assert "pip install --upgrade" in stop.remedy


def test_the_run_stops_when_half_of_the_lanes_go_out_within_15_minutes() -> None:
    breaker = Breaker(lanes=4)
    assert [stop and stop.scope for stop in (breaker.add(BOT, 0.0, 0), breaker.add(BOT, 60.0, 0))] == ["lane", "lane"]
    late = breaker.add(BOT, 961.0, 1)
    assert late
    assert late.scope == "lane"
    assert feed(breaker, *[TIMED_OUT] * 9, lane=2, now_s=1800.0) == (9, None)
    number, stop = feed(breaker, TIMED_OUT, lane=2, now_s=1861.0)
    assert (number, stop and stop.scope) == (1, "run")


def test_ten_failures_in_a_row_on_one_lane_stop_only_that_lane() -> None:
    breaker = Breaker(lanes=3)
    for moment in range(9):
        assert breaker.add(TIMED_OUT, moment, 0) is None
        assert breaker.add(None, moment, 1) is None
    stop = breaker.add(TIMED_OUT, 9, 0)
    assert (stop and stop.scope) == "lane"
    assert [bool(breaker.add(TIMED_OUT, 10 + n, 0)) for n in range(10)] == [False] * 9 + [True]


@pytest.mark.parametrize(("verdict", "allowed"), [(EXTRACTOR, 10), (DRM, 2)])
def test_a_code_above_its_share_of_the_last_200_stops_the_run(verdict: Verdict, allowed: int) -> None:
    cycle = [verdict, None] * allowed + [None] * (200 - 2 * allowed)
    number, stop = feed(Breaker(), *cycle * 3, verdict, verdict)
    assert number == 602
    assert stop == Stop(
        "run",
        f"returned {verdict.code} for {allowed + 1} of the last 200 videos; last error: {verdict.message}",
        verdict.remedy,
    )


def test_a_tenth_of_broken_transfers_stops_the_run() -> None:
    breaker = Breaker()
    assert feed(breaker, *([SHORT, *[None] * 12] * 8)) == (104, None)
    number, stop = feed(breaker, *([SHORT, *[None] * 9] * 5))
    assert stop
    assert (number, stop.scope) == (11, "run")
    assert stop.reason == "broke off the transfer of 5 of the last 50 videos; last error: content too short"


def test_fewer_than_a_fifth_of_the_last_50_answered_stops_the_run() -> None:
    assert feed(Breaker(), *([None, *[UNAVAILABLE] * 4] * 40)) == (200, None)
    assert feed(Breaker(), *([REMOVED, *[UNAVAILABLE] * 4] * 40)) == (200, None)
    assert feed(Breaker(), *[UNAVAILABLE] * 49) == (49, None)
    number, stop = feed(Breaker(), *[None] * 9, *[UNAVAILABLE] * 60)
    assert stop
    assert (number, stop.scope) == (50, "run")
    assert stop.reason == "served or explained only 9 of the last 50 videos; last error: Video unavailable"


def test_a_refused_lane_does_not_count_as_a_failed_video() -> None:
    breaker = Breaker(lanes=3)
    for _ in range(60):
        stop = breaker.add(RATE, 0.0)
        assert (stop and stop.scope) == "lane"
    assert feed(breaker, *[None] * 40, *[TIMED_OUT] * 9) == (49, None)


def test_which_failures_are_explained_by_the_site() -> None:
    answered = {verdict.code: verdict.answered for verdict in (REMOVED, UPCOMING, DRM, UNAVAILABLE, TIMED_OUT, UNKNOWN, RATE)}
    assert answered == {
        "perm.removed_by_uploader": True,
        "later.upcoming": True,
        "env.drm": False,
        "confirm.unavailable": False,
        "net.timeout": False,
        "unknown": False,
        "rate.429": False,
    }
