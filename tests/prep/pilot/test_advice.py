"""Each piece of advice follows from what was measured, and only from it."""

from datetime import UTC, datetime
from typing import Any

import pytest

from mbt.prep.doctor import Finding
from mbt.prep.pilot.advice import advise
from mbt.prep.pilot.model import Chosen, Costs, Ended, Forecast, Interval, PilotReport, Settings
from mbt.prep.report.counts import wilson
from mbt.prep.report.model import Reason, Refusal

NOW = datetime(2026, 11, 21, tzinfo=UTC)
ONE = Interval(low=1, expected=1, high=1)
HEALTHY = PilotReport(
    time=NOW,
    versions={},
    settings=Settings(subset="eval", population=20_371, sample=200, source="youtube", sleep_s=(15.0,), options=()),
    ended=Ended(state="complete"),
    checks=(Finding("disk", "ok", "900 GB"),),
    asked=200,
    there=180,
    not_there=20,
    to_ask=0,
    due_later=0,
    due_from=None,
    packed=180,
    alive=wilson(180, 200),
    reasons=(),
    pack_failures=(),
    refusals=(),
    offered=(),
    chosen=(Chosen(formats="134+140", by_ranges=180, whole=0),),
    extractions=200,
    costs=Costs(**dict.fromkeys(Costs.model_fields)),
    lanes=(),
    free_bytes=10**13,
    forecast=None,
    advice=(),
)


def failed(code: str, clips: int) -> dict[str, Any]:
    reason = Reason(code=code, action="", clips=clips, final=0, retry_from=None, example_key="k", example="why")
    return {"reasons": (reason,)}


def refused(code: str, times: int) -> dict[str, Any]:
    return {"refusals": (Refusal(code=code, action="", times=times, example="why"),)}


def forecast(hours: float = 100.0, disk: float = 1e12) -> dict[str, Any]:
    values = {**dict.fromkeys(Forecast.model_fields, ONE), "lanes": 1, "core_hours": None}
    of = {"hours": hours, "disk_bytes": disk, "disk_bytes_without_raw": disk / 2}
    return {"forecast": Forecast(**{**values, **{name: Interval(low=x, expected=x, high=x) for name, x in of.items()}})}


def test_nothing_stands_out() -> None:
    private = failed("perm.private", 20)
    assert advise(HEALTHY.model_copy(update={**private, **forecast()})) == ()


@pytest.mark.parametrize(
    ("change", "found", "remedy"),
    [
        (failed("creds.age", 3), "3 of 200 clips (2%) are limited by age", "--ytdlp '--cookies FILE'"),
        (refused("creds.cookies_stale", 1), "the cookies were refused once", "Export the cookies again"),
        (refused("rate.429", 2), "the site limited the rate 2 times in 200 requests, with 15 s between", "--sleep 22.5"),
        (refused("rate.429", 2), "the site limited the rate", "--lanes"),
        (refused("block.bot", 1), "the site refused this address once", "another network address"),
        (failed("env.sabr", 7), "7 of 200 clips (4%) failed", "pip install --upgrade"),
        (failed("env.sabr", 7), "faults of the installation: env.sabr", "player client"),
        (refused("env.reload", 1), "the run stopped once for faults of the installation: env.reload", "pip install --upgrade"),
        (failed("bytes.403", 5), "the transfer failed for 5 of 200 clips", "player client"),
        (failed("net.timeout", 5), "5 requests failed in the network", "Check the network"),
        (failed("region.uploader", 5), "5 of 200 clips (2%) are blocked in this country", "another country"),
        (failed("confirm.unavailable", 61), '61 of 200 clips (30%) were "unavailable"', "a day later"),
        (failed("unknown", 1), "1 of 200 clips (0%) failed for a reason that mbt does not know", "issue"),
        ({"pack_failures": failed("decode.unreadable", 4)["reasons"]}, "4 of 180 fetched clips", "issue"),
        ({"chosen": (Chosen(formats="18", by_ranges=0, whole=9),)}, "9 of 180 clips were fetched as whole files", "formats"),
        ({"due_later": 9, "due_from": NOW}, "9 of 200 clips (4%) are due for a retry", "after 2026-11-21 00:00 UTC"),
        ({"ended": Ended(state="stopped", reason="no network")}, "the run stopped: no network", "run the same command again"),
        ({"ended": Ended(state="interrupted")}, "interrupted after 200 of 200 clips", "Run the same command again"),
        ({"checks": (Finding("clock", "fail", "1970", "Set the clock"),)}, "check clock: 1970", "Set the clock"),
        ({"checks": (Finding("yt-dlp", "warn", "90 days old", "Upgrade"),)}, "check yt-dlp: 90 days old", "Upgrade"),
        (forecast(hours=2400.0), "AS-500K would take 100 days with 1 network address", "Add lanes"),
        (forecast(disk=2e13), "AS-500K needs 20 TB on disk (10 TB with --no-keep-raw), and 10 TB are free", "larger disk"),
    ],
)  # fmt: skip
def test_advice(change: dict[str, Any], found: str, remedy: str) -> None:
    [advice] = advise(HEALTHY.model_copy(update=change))
    assert found in advice.found
    assert remedy in advice.remedy


@pytest.mark.parametrize("code", ["bytes.403", "net.timeout", "region.uploader", "confirm.unavailable"])
def test_a_few_failures_are_no_reason_for_advice(code: str) -> None:
    assert advise(HEALTHY.model_copy(update=failed(code, 4))) == ()
