"""Failures that are not the videos' own, and what is asked again, in runs against a scripted source and a clock."""

from pathlib import Path

import pytest

from mbt.manifests.clips import Clip
from mbt.manifests.errors import InputError, SourceError
from mbt.prep.state.failure_codes import Verdict, is_rechecked, recheck_codes, verdict_of
from mbt.prep.state.ledger import LedgerReader, late_keys, read_ledger
from tests.site import HandClock, Scripted, fetch_all, plan_of, refusal, videos

HOUR = 3600.0
DNS = refusal("Temporary failure in name resolution")
TIMED_OUT = refusal("The read operation timed out")
FORBIDDEN = verdict_of("bytes.403", "the server responded 403 Forbidden")
RESET = refusal("Connection reset by peer")


def out_between(clock: HandClock, begin: float, end: float, verdict: Verdict, folder: Path) -> Scripted:
    """A source that fails between two times after now, in seconds."""
    now = clock.now
    return Scripted(folder, lambda clip, times: verdict if begin <= clock.now - now < end else None)


@pytest.mark.parametrize("verdict", [DNS, TIMED_OUT, RESET, refusal("Network is unreachable"), refusal("HTTP Error 503: x")])
@pytest.mark.parametrize("lanes", [1, 3])
def test_an_outage_pauses_and_goes_on_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verdict: Verdict, lanes: int
) -> None:
    clock, folder = HandClock(), plan_of(tmp_path, videos(60))
    begin = clock.now
    source = out_between(clock, 100, 2 * HOUR, verdict, folder)
    counts = fetch_all(source, clock, lanes, sleep_s=15.0)
    assert (counts.found, counts.missing) == (60, 0)
    assert clock.now - begin < 2 * HOUR + 60 * 20
    assert not late_keys(LedgerReader(folder).new())
    probes = len(source.requested) - 60
    assert 100 * lanes < probes < 140 * lanes
    told = [line for line in capsys.readouterr().err.splitlines() if "no network" in line]
    assert 100 < len(told) < 125
    assert verdict.message in told[-1]


def test_a_video_that_the_network_always_fails_for_counts_its_attempts(tmp_path: Path) -> None:
    clock, folder = HandClock(), plan_of(tmp_path, videos(12))
    source = Scripted(folder, lambda clip, times: TIMED_OUT if clip.video_id in ("v03", "v11") else None)
    begin = clock.now
    counts = fetch_all(source, clock, until_done=True)
    assert (counts.found, counts.missing) == (10, 2)
    for key in ("v03_0", "v11_0"):
        state = read_ledger(folder)[key]
        assert (state.code, state.action, state.final) == ("net.timeout", "later", True)
        assert source.requested.count(key) == 6
    assert (1 + 6 + 24 + 72 + 72) * HOUR <= clock.now - begin < (175 + 2) * HOUR
    assert late_keys(LedgerReader(folder).new()) == {"v03_0", "v11_0"}


def test_one_video_in_ten_that_hangs_is_no_outage(tmp_path: Path) -> None:
    clock, folder = HandClock(), plan_of(tmp_path, videos(100))
    hanging = {f"v{number:02}" for number in (5, 20, 21, 22, 23, 40, 60, 97, 98, 99)}
    source = Scripted(folder, lambda clip, times: TIMED_OUT if clip.video_id in hanging else None)
    begin = clock.now
    counts = fetch_all(source, clock)
    assert (counts.found, counts.missing) == (90, 10)
    assert clock.now - begin < 3 * HOUR
    assert late_keys(LedgerReader(folder).new()) == {f"{video}_0" for video in hanging}


def test_an_outage_before_the_first_answer_ends_the_run(tmp_path: Path) -> None:
    source = Scripted(plan_of(tmp_path, videos(30)), lambda clip, times: DNS)
    with pytest.raises(SourceError, match="failed for 10 videos in a row"):
        fetch_all(source, HandClock(), sleep_s=15.0)
    assert not read_ledger(source.folder)
    assert fetch_all(Scripted(source.folder), HandClock()).found == 30


def test_a_403_is_asked_again_at_once_and_speaks_neither_against_clip_nor_lane(tmp_path: Path) -> None:
    clock, folder = HandClock(), plan_of(tmp_path, videos(40, clips_each=2))
    source = Scripted(folder, lambda clip, times: FORBIDDEN if clip.key.endswith("_1000") and not times else None)
    counts = fetch_all(source, clock)
    assert (counts.found, counts.missing) == (80, 0)
    assert source.requested[:4] == ["v00_0", "v00_1000", "v00_1000", "v01_0"]
    assert not late_keys(LedgerReader(folder).new())


def test_persistent_403s_are_retried_for_days(tmp_path: Path) -> None:
    clock, folder = HandClock(), plan_of(tmp_path, videos(30))
    source = Scripted(folder, lambda clip, times: FORBIDDEN if clip.video_id == "v07" else None)
    begin = clock.now
    assert fetch_all(source, clock, until_done=True).missing == 1
    state = read_ledger(folder)["v07_0"]
    assert (state.code, state.action, state.final) == ("bytes.403", "later", True)
    assert clock.now - begin > 13 * 24 * HOUR


def test_until_done_asks_again_what_is_due_later_until_nothing_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock, folder = HandClock(), plan_of(tmp_path, videos(20))
    begin = clock.now

    def answer(clip: Clip, times: int) -> Verdict | None:
        if clip.video_id == "v01":
            return refusal("Premieres in 5 days") if clock.now < begin + 5 * 24 * HOUR else None
        if clip.video_id == "v02":
            return refusal("Video unavailable")
        return refusal("Something new") if clip.video_id == "v03" and times < 2 else None

    source = Scripted(folder, answer)
    counts = fetch_all(source, clock, until_done=True)
    assert (counts.found, counts.missing) == (19, 1)
    states = read_ledger(folder)
    assert (states["v02_0"].code, states["v02_0"].final) == ("confirm.unavailable", True)
    assert [source.requested.count(f"v0{n}_0") for n in (0, 1, 2, 3)] == [1, 5, 2, 3]
    assert "fetch: waiting until" in capsys.readouterr().err
    again = fetch_all(Scripted(folder), clock, until_done=True)
    assert (again.found, again.missing) == (19, 1)


def test_recheck_asks_once_more_for_what_is_final_or_waiting(tmp_path: Path) -> None:
    clock, folder = HandClock(), plan_of(tmp_path, videos(6))
    texts = {"v01": "Sign in to confirm your age", "v02": "Video unavailable", "v03": "Private video", "v04": "Something new"}
    refusals = {video: refusal(text) for video, text in texts.items()}
    source = Scripted(folder, lambda clip, times: refusals.get(clip.video_id))
    assert fetch_all(source, clock).missing == 4
    source.requested.clear()
    assert fetch_all(source, clock, recheck=frozenset({"creds", "unknown"}), until_done=False).missing == 4
    assert source.requested == ["v01_0", "v04_0"]
    assert read_ledger(folder)["v01_0"].final
    del refusals["v01"]
    source.requested.clear()
    counts = fetch_all(source, clock, recheck=frozenset({"creds.age", "perm.private"}), until_done=True)
    assert (counts.found, counts.missing) == (3, 3)
    assert source.requested.count("v01_0") == source.requested.count("v03_0") == 1
    assert read_ledger(folder)["v01_0"].path is not None
    assert fetch_all(Scripted(folder), clock).found == 3


def test_recheck_takes_codes_and_their_beginnings_only() -> None:
    assert recheck_codes("creds, region.uploader,net.") == {"creds", "region.uploader", "net"}
    assert recheck_codes("") == frozenset()
    assert is_rechecked("region.other", {"region"})
    assert not is_rechecked("region.other", {"reg", "region.uploader"})
    with pytest.raises(InputError, match="--recheck cred: no failure has this code") as error:
        recheck_codes("region,cred")
    assert "creds.age" in str(error.value)
