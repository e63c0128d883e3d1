"""A sudden rise of "unavailable" stops the run and harms no clip; a normal share does not."""

import random
from pathlib import Path

import pytest

from mbt.manifests.clips import Clip
from mbt.manifests.errors import SourceError
from mbt.prep.fetch.breaker import UnavailableWatch
from mbt.prep.state.failure_codes import Verdict
from mbt.prep.state.ledger import LedgerReader, late_keys, read_ledger
from tests.site import HandClock, Scripted, fetch_all, plan_of, refusal

DAY = 24 * 3600.0
UNAVAILABLE = refusal("Video unavailable")


def many(count: int) -> list[Clip]:
    return [Clip(f"v{i:04}_0", f"v{i:04}", 0, 1000, "train", (0,)) for i in range(count)]


def gone(clip: Clip) -> bool:
    """One video in six is gone for good."""
    return int(clip.video_id[1:]) % 6 == 0


@pytest.mark.parametrize("runs", [1, 2])
def test_a_rise_stops_the_run_and_confirms_no_death(tmp_path: Path, runs: int) -> None:
    """Two runs: the first was normal, and the second sees refusals from its beginning."""
    clock, folder = HandClock(), plan_of(tmp_path, many(600))
    refuses_from = 300

    def answer(clip: Clip, times: int) -> Verdict | None:
        return UNAVAILABLE if gone(clip) or int(clip.video_id[1:]) >= refuses_from else None

    source = Scripted(folder, answer)
    if runs == 2:
        asked = 0

        def may_request() -> bool:
            nonlocal asked
            asked = len(source.requested)
            return asked < 300

        with pytest.raises(RuntimeError):
            fetch_all(source, clock, may_request=lambda: may_request() or _enough())
    with pytest.raises(
        SourceError, match=r"calls \d+ of the last \d+ videos unavailable, but only \d+ of the \d+ before"
    ) as error:
        fetch_all(source, clock)
    assert "browser" in str(error.value)
    assert 320 <= len(source.requested) < 345
    refused = {key for key in source.requested if int(key[1:5]) >= refuses_from}
    states = read_ledger(folder)
    assert not refused & states.keys()
    assert not refused & late_keys(LedgerReader(folder).new())

    clock.now += 2 * DAY
    healthy = Scripted(folder, lambda clip, times: UNAVAILABLE if gone(clip) else None)
    counts = fetch_all(healthy, clock)
    assert (counts.found, counts.missing) == (500, 100)


def _enough() -> bool:
    raise RuntimeError("enough")


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
def test_a_normal_share_never_stops_a_run(share: float) -> None:
    draw, watch = random.Random(1), UnavailableWatch[int]()
    assert not any(watch.add(draw.random() < share, number, number % 3) for number in range(30_000))


def test_one_lane_that_is_refused_is_noticed_among_many() -> None:
    draw, watch = random.Random(2), UnavailableWatch[int]()
    for number in range(2000):
        assert watch.add(draw.random() < 0.15, number, number % 10) is None
    for number in range(2000, 2400):
        if watch.add(number % 10 == 3 or draw.random() < 0.15, number, number % 10):
            break
    assert number < 2360
    assert number in watch.suspects()


def test_a_false_alarm_does_not_stop_every_later_run(tmp_path: Path) -> None:
    """Forty-five videos in a row are really gone."""
    clock = HandClock()
    source = Scripted(
        plan_of(tmp_path, many(600)), lambda clip, _: UNAVAILABLE if 300 <= int(clip.video_id[1:]) < 345 else None
    )
    for _ in range(2):
        with pytest.raises(SourceError):
            fetch_all(source, clock)
        clock.now += DAY
    counts = fetch_all(source, clock, until_done=True)
    assert (counts.found, counts.missing) == (555, 45)
    assert {(row.code, row.final) for row in read_ledger(source.folder).values()} == {
        ("ok", False),
        ("confirm.unavailable", True),
    }
