"""The sample, its distribution, and what AS-500K would take, by hand and by the official list."""

import lzma
from pathlib import Path

import numpy as np
import pytest

from mbt.manifests.balance import AS500K_CAP, Balance, balanced_rows
from mbt.manifests.lists.audioset import segments_table
from mbt.manifests.lists.datasets import audioset_clips
from mbt.prep.pilot.forecast import AS500K_REQUESTS, as500k_requests, make_forecast, spread
from mbt.prep.pilot.model import Costs, Interval, PilotLane
from mbt.prep.pilot.run import random_sample
from mbt.prep.report.counts import wilson


def test_the_sample_is_random_and_a_larger_one_contains_it() -> None:
    small, population = random_sample("eval", 200)
    large, _ = random_sample("eval", 2000)
    listed = audioset_clips("eval", None)["key"].to_pylist()
    assert (small.num_rows, population) == (200, len(listed))
    assert small["key"].to_pylist() == large["key"].to_pylist()[:200]
    places = [listed.index(key) / len(listed) for key in large["key"].to_pylist()]
    assert len(set(places)) == 2000
    counts = np.histogram(places, 10, (0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 27.9, "chi-squared with 9 degrees of freedom, p = 0.001"
    assert random_sample("eval", 10**6)[0].num_rows == population


def test_the_distribution_of_values() -> None:
    """1 to 10: mean 5.5, standard deviation 3.02765, standard error 0.95743."""
    found = spread(range(1, 11))
    assert found is not None
    assert (found.of, found.mean.expected, found.median, found.p90, found.max) == (10, 5.5, 5.5, 10, 10)
    assert (found.mean.low, found.mean.high) == pytest.approx((5.5 - 1.96 * 0.95743, 5.5 + 1.96 * 0.95743), abs=1e-3)
    assert spread([]) is None


def exactly(value: float) -> Interval:
    return Interval(low=value, expected=value, high=value)


def lane(per_hour: Interval | None) -> PilotLane:
    return PilotLane(number=1, attempts=9, there=9, rests=0, paused_hours=0.0, per_hour=per_hour)


NOTHING = dict.fromkeys(Costs.model_fields)


def test_a_forecast_by_hand() -> None:
    """With 9 of 10 alive, 580,065 requests and a twentieth more for retries, at 300 per hour over two lanes."""
    raw = spread([1_000_000, 2_000_000])
    costs = Costs(**{**NOTHING, "raw_bytes": raw, "transferred": spread([2e6, 2e6]), "requests": spread([4, 4]),
                     "shard_bytes": spread([4e6, 4e6]), "decode_s": spread([0.36, 0.36])})  # fmt: skip
    lanes = [lane(Interval(low=150, expected=200, high=250)), lane(exactly(100)), lane(None)]
    alive = wilson(900, 1000)
    forecast = make_forecast(alive, costs, lanes, 0.05)
    assert forecast is not None
    clips = 580_065 * 0.9
    assert forecast.requests.expected == pytest.approx(580_065 * 1.05)
    assert forecast.clips.expected == pytest.approx(clips)
    assert forecast.hours.expected == pytest.approx(580_065 * 1.05 / 300)
    assert forecast.hours.low == pytest.approx(as500k_requests(alive.high) * 1.05 / 350)
    assert forecast.hours.high == pytest.approx(as500k_requests(alive.low) * 1.05 / 250)
    assert forecast.media_requests.expected == pytest.approx(4 * clips)
    assert forecast.network_bytes.expected == pytest.approx(2e6 * clips)
    assert forecast.disk_bytes.expected == pytest.approx((1.5e6 + 4e6) * clips)
    assert forecast.disk_bytes_without_raw.expected < forecast.disk_bytes.expected
    assert forecast.core_hours is not None
    assert forecast.core_hours.expected == pytest.approx(clips / 10_000)
    for name in ("requests", "clips", "hours", "disk_bytes"):
        interval = getattr(forecast, name)
        assert interval.low < interval.expected < interval.high, name


def test_no_forecast_from_nothing() -> None:
    full = Costs(**{**NOTHING, "raw_bytes": spread([1, 2]), "transferred": spread([1, 2]), "requests": spread([1, 2])})
    one = full.model_copy(update={"raw_bytes": spread([1])})
    lanes = [lane(exactly(100))]
    assert make_forecast(wilson(2, 3), full, lanes, 0.0) is not None
    assert make_forecast(wilson(1, 3), one, lanes, 0.0) is None
    assert make_forecast(None, full, lanes, 0.0) is None
    assert make_forecast(wilson(2, 3), full, [lane(None)], 0.0) is None


@pytest.mark.slow
def test_requests_for_as500k_are_those_of_the_official_list(
    official_lists: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "unbalanced.csv"
    path.write_bytes(lzma.decompress((official_lists / "audioset" / "unbalanced_train_segments.csv.xz").read_bytes()))
    table = segments_table(path, "train")
    for share in (0.15, 0.9):
        alive = np.random.default_rng(1).random(table.num_rows) < share
        rows = balanced_rows(table, Balance(AS500K_CAP), 527, alive)
        assert as500k_requests(share) == pytest.approx(len(rows), rel=0.01), share
    assert AS500K_REQUESTS[1.0] == 557_794
    monkeypatch.setattr("mbt.prep.pilot.run.audioset_clips", lambda subset, _: table)
    sample, population = random_sample("as500k", 50)
    assert (sample.num_rows, population) == (50, 557_794)
