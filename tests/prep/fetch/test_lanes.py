"""Lanes and workers: several network addresses that fetch one plan, each at its own rate."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mbt.manifests.balance import Balance, balanced_rows, ordered_rows
from mbt.manifests.clips import Clip, clip_table, table_clips
from mbt.manifests.errors import InputError
from mbt.manifests.labels import Label, LabelSet
from mbt.prep.fetch.fetch import Fetched, fetch
from mbt.prep.fetch.lanes import Lane
from mbt.prep.fetch.options import FetchOptions
from mbt.prep.fetch.worker_share import WorkerShare, find_share
from mbt.prep.plan.plan import Plan, read_plan, write_plan
from mbt.prep.sources.ytdlp import YtDlp
from mbt.prep.state.ledger import LedgerReader, late_keys, read_ledger
from mbt.prep.state.selection import Selection, select_clips
from tests.conftest import Collection, Door
from tests.site import Site

URL = "https://www.youtube.com/watch?v={video_id}"
LIMITED = "Unable to download API page: HTTP Error 429: Too Many Requests"
BOT = "Sign in to confirm you’re not a bot."


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., list[object]]:
    """Makes the arguments of `mbt` for a list with this many videos, and a lanes file with this content."""

    def make(videos: int, lanes: str | None = None) -> list[object]:
        rows = [f"video{number:02},0,1,train,a" for number in range(videos)]
        (tmp_path / "clips.csv").write_text("\n".join(["video_id,start,end,split,labels", *rows]) + "\n")
        (tmp_path / "labels.csv").write_text("id\na\n")
        lists = ["--list", tmp_path / "clips.csv", "--labels", tmp_path / "labels.csv", "--out", tmp_path / "out"]
        run = ["prep", "custom", *lists, "--source", URL, "--sleep", 0]
        if lanes is not None:
            (tmp_path / "lanes.toml").write_text(lanes)
            run += ["--lanes", tmp_path / "lanes.toml"]
        return run

    return make


def lanes(*names: str) -> str:
    return "".join(f'[[lane]]\nname = "{name}"\nytdlp = "--proxy http://{name}:1"\n' for name in names)


def refusing(proxy: str, text: str, times: int) -> Callable[[dict[str, object]], str | None]:
    """Refuses this many requests through a proxy."""
    left = [text] * times
    return lambda options: left.pop() if options.get("proxy") == f"http://{proxy}:1" and left else None


def test_lanes_share_the_videos_and_fetch_one_each_at_a_time(
    mbt: Door, arguments: Callable[..., list[object]], site: Site
) -> None:
    at_once: list[int] = []

    def count(options: dict[str, Any]) -> None:
        at_once.append(len(site.requested) - len(at_once))

    site.delay_s = 0.1
    site.refuses = count
    run = arguments(20, lanes("a", "b"))
    assert mbt(*run, "--stage", "plan").code == 0
    assert mbt(*run, "--stage", "fetch").out == "fetch: 20 clips found, 0 missing\n"
    assert max(at_once) == 2
    assert sorted(site.requested) == [f"video{number:02}" for number in range(20)]
    by_lane = [options["proxy"] for options in site.options]
    assert 8 <= by_lane.count("http://a:1") <= 12


def test_each_lane_keeps_its_own_rate(mbt: Door, arguments: Callable[..., list[object]], site: Site) -> None:
    run = arguments(12, '[[lane]]\nname = "slow"\nytdlp = "--proxy http://slow:1"\nsleep = 0.5\n' + lanes("quick"))
    assert mbt(*run, "--stage", "plan").code == 0
    assert mbt(*run, "--stage", "fetch").out == "fetch: 12 clips found, 0 missing\n"
    assert sum(options["proxy"] == "http://slow:1" for options in site.options) == 1


def test_a_rate_limited_lane_pauses_and_another_takes_its_video(
    mbt: Door, arguments: Callable[..., list[object]], site: Site, tmp_path: Path
) -> None:
    site.delay_s = 0.02
    site.refuses = refusing("a", LIMITED, 1)
    run = arguments(10, lanes("a", "b"))
    assert mbt(*run, "--stage", "plan").code == 0
    done = mbt(*run, "--stage", "fetch")
    assert done.out == "fetch: 10 clips found, 0 missing\n", done.err
    assert "fetch: lane a paused until" in done.err
    proxies = [options["proxy"] for options in site.options]
    assert (proxies.count("http://a:1"), proxies.count("http://b:1")) == (1, 10)
    assert {attempt.code for attempt in read_ledger(tmp_path / "out").values()} == {"ok"}
    (limited,) = [attempt for attempt in LedgerReader(tmp_path / "out").new() if attempt.action == "cool"]
    assert (limited.lane, limited.not_before - limited.time) == ("a", pytest.approx(3600, abs=5))


def test_a_pause_holds_in_the_next_run(mbt: Door, arguments: Callable[..., list[object]], site: Site, tmp_path: Path) -> None:
    site.errors = {"video01": ("Private video", "")}
    site.refuses = refusing("a", LIMITED, 1)
    run = arguments(6, lanes("a", "b"))
    assert mbt(*run, "--stage", "plan").code == 0
    assert mbt(*run, "--stage", "fetch").code == 0
    (tmp_path / "out/raw/vi/video03.mp4").unlink()
    site.options.clear()
    assert mbt(*run, "--stage", "fetch").out == "fetch: 5 clips found, 1 missing\n"
    assert [options["proxy"] for options in site.options] == ["http://b:1"]


def test_pauses_grow(tmp_path: Path) -> None:
    lane = Lane("a", YtDlp(tmp_path, URL), 15.0)
    for hours in (1, 2, 4, 4):
        lane.pause("cool", 1000.0)
        assert lane.paused_until == 1000 + hours * 3600


def test_the_run_stops_when_half_of_the_lanes_are_blocked(
    mbt: Door, arguments: Callable[..., list[object]], site: Site
) -> None:
    site.delay_s = 0.01
    site.refuses = refusing("a", BOT, 1)
    run = arguments(12, lanes("a", "b", "c"))
    assert mbt(*run, "--stage", "plan").code == 0
    assert mbt(*run, "--stage", "fetch").out == "fetch: 12 clips found, 0 missing\n"
    run = arguments(24, lanes("a", "b", "c"))
    refusals = refusing("a", BOT, 1), refusing("b", BOT, 1)
    site.refuses = lambda options: refusals[0](options) or refusals[1](options)
    assert mbt(*run, "--stage", "plan").code == 0
    done = mbt(*run, "--stage", "fetch")
    assert done.code == 2
    assert "stopped serving videos (block.bot)" in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lane"),
        ("[[lane]]\nytdlp = '--proxy http://a:1'\n", "lane.0.name"),
        ("[[lane]]\nname = 'a'\nproxy = 'http://a:1'\n", "lane.0.proxy is not valid"),
        (lanes("a") + lanes("a"), "a lane name is used twice"),
        ("[[lane]]\nname = 'a'\nytdlp = '--cookiez x'\n", "lane a: ytdlp: no such option: --cookiez"),
        ("ytdlp = '--proxi x'\n[[lane]]\nname = 'a'\n", "lane a: ytdlp: no such option: --proxi"),
        ("[[lane]]\nname = 'a'\nytdlp = '--proxy ftp://a:1'\n", "--proxy: Unsupported proxy type"),
        ("[[lane", "cannot read the lanes file"),
        ("[[lane]]\nname = 'a'\nytdlp = '--cookies nowhere.txt'\n", "--cookies: the file nowhere.txt does not exist"),
    ],
)
def test_malformed_lanes_files_are_refused(mbt: Door, arguments: Callable[..., list[object]], text: str, message: str) -> None:
    done = mbt(*arguments(1, text))
    assert (done.code, message in done.err) == (2, True), done.err


def test_flags_of_one_lane_override_those_of_all(mbt: Door, arguments: Callable[..., list[object]], site: Site) -> None:
    run = arguments(1, 'ytdlp = "--referer all --user-agent all"\n[[lane]]\nname = "a"\nytdlp = "--referer one"\n')
    run += ["--ytdlp", "--referer none --socket-timeout 3", "--ytdlp", "--proxy ''"]
    assert mbt(*run, "--stage", "plan").code == 0
    assert mbt(*run, "--stage", "fetch").code == 0
    (options,) = site.options
    assert (options["http_headers"]["Referer"], options["http_headers"]["User-Agent"]) == ("one", "all")
    assert (options["socket_timeout"], options["proxy"]) == (3.0, "")


NUM_CLASSES = 6
CAP = 25


@pytest.fixture
def capped(tmp_path: Path, site: Site) -> tuple[Path, set[str]]:
    """A planned folder with a cap over survivors, where a quarter of the videos is gone; and the keys that must be selected."""
    draws = np.random.default_rng(5)
    labels = [tuple(sorted(draws.choice(NUM_CLASSES, draws.integers(1, 4), replace=False).tolist())) for _ in range(300)]
    clips = clip_table(Clip(f"v{i}_0", f"v{i}", 0, 1000, "train", own) for i, own in enumerate(labels))
    balance = Balance(CAP, "common-first", 0)
    plan = clips.take(pa.array(ordered_rows(clips, balance, NUM_CLASSES)))
    gone = {f"v{i}" for i in range(300) if draws.random() < 0.25}
    site.errors = dict.fromkeys(gone, ("Private video", ""))
    label_set = LabelSet(tuple(Label(str(i), str(i)) for i in range(NUM_CLASSES)))
    write_plan(tmp_path / "set", Plan(dataset="d", task="multilabel", caps={"train": CAP}), label_set, plan)
    alive = plan.filter(pa.array([video not in gone for video in plan["video_id"].to_pylist()]))
    kept = alive.take(pa.array(balanced_rows(alive, Balance(CAP, "list", 0), NUM_CLASSES)))
    return tmp_path / "set", set(kept["key"].to_pylist())


def packed(folder: Path) -> set[str]:
    """Keys of the clips that would be packed."""
    plan, labels, table = read_plan(folder)
    ledger, late = read_ledger(folder), late_keys(LedgerReader(folder).new())
    chosen = [clip for _, clip in select_clips(table_clips(table), ledger, late, Selection(plan.caps, len(labels)))]
    return {clip.key for clip in chosen if ledger[clip.key].path is not None}


def test_a_cap_over_survivors_is_exact_with_several_lanes(capped: tuple[Path, set[str]], site: Site) -> None:
    folder, kept = capped
    site.delay_s = 0.002
    counts = fetch(folder, [Lane(name, YtDlp(folder, URL), 0) for name in "abcd"])
    assert packed(folder) == kept
    assert len(kept) <= counts.found + counts.missing <= len(site.requested) < 250


def test_a_cap_over_survivors_is_exact_with_several_workers(capped: tuple[Path, set[str]], site: Site) -> None:
    folder, kept = capped
    site.delay_s = 0.002
    found: dict[int, Fetched] = {}

    def work(rank: int) -> None:
        time.sleep(0.1 * rank)
        found[rank] = fetch(folder, [Lane(f"{rank}.direct", YtDlp(folder, URL), 0)], FetchOptions(rank=rank, world=3))

    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert set(found) == {0, 1, 2}
    assert packed(folder) == kept
    assert len(site.requested) == len(set(site.requested)) < 250
    assert {path.name for path in (folder / "work/ledger").iterdir()} == {f"fetch-{rank}.jsonl" for rank in range(3)}


@pytest.mark.slow
def test_a_worker_waits_for_another_that_falls_behind(
    capped: tuple[Path, set[str]], site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, kept = capped
    monkeypatch.setattr("mbt.prep.fetch.fetch.OPEN_PER_WORKER", 20)
    lane = Lane("0.direct", YtDlp(folder, URL), 0)
    first = threading.Thread(target=fetch, args=(folder, [lane], FetchOptions(rank=0, world=2)))
    first.start()
    time.sleep(1)
    assert first.is_alive()
    assert len(site.requested) < 40
    assert "fetch: waiting for worker 1 to fetch v" in capsys.readouterr().err
    fetch(folder, [Lane("1.direct", YtDlp(folder, URL), 0)], FetchOptions(rank=1, world=2))
    first.join(60)
    assert not first.is_alive()
    assert packed(folder) == kept


def test_workers_fetch_each_video_once(mbt: Door, arguments: Callable[..., list[object]], site: Site) -> None:
    run = arguments(30)
    assert mbt(*run, "--stage", "plan").code == 0
    outputs = [mbt(*run, "--stage", "fetch", "--rank", rank, "--world", 3).out for rank in range(3)]
    assert sorted(site.requested) == [f"video{number:02}" for number in range(30)]
    counts = [int(line.split()[1]) for line in outputs]
    assert (sum(counts), min(counts) >= 4) == (30, True)
    assert outputs[1].endswith("0 missing (worker 1 of 3)\n")
    assert mbt(*run, "--stage", "fetch").out == "fetch: 30 clips found, 0 missing\n"


def test_only_the_fetch_stage_can_be_shared(
    mbt: Door, arguments: Callable[..., list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = mbt(*arguments(1), "--rank", 0, "--world", 2)
    assert (done.code, "--stage fetch with every worker" in done.err) == (2, True)
    assert mbt(*arguments(1), "--rank", 0, "--world", 2, "--dry-run").code == 0
    done = mbt(*arguments(1), "--stage", "fetch", "--rank", 2, "--world", 2)
    assert (done.code, "--rank 2 does not exist with --world 2" in done.err) == (2, True)
    done = mbt(*arguments(1), "--stage", "fetch", "--rank", 1)
    assert (done.code, "must be given together" in done.err) == (2, True)


def test_slurm_does_not_share_a_folder_or_another_stage(
    collection: Collection, tmp_path: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every job of an array may prepare its own folder of clips; only --rank and --world share explicitly."""
    for name, value in {"ID": "3", "COUNT": "4"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    run = collection.arguments(tmp_path / "set", "--limit", 1, "--short-side", 32)
    done = mbt(*run, "--stage", "plan")
    assert (done.code, done.err) == (0, "")
    assert "fetch: 2 clips found, 0 missing\n" in mbt(*run).out
    refused = mbt(*run, "--rank", 3, "--world", 4)
    assert (refused.code, "this is worker 3 of 4" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("slurm", "share"),
    [
        ({}, WorkerShare(0, 1)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, WorkerShare(3, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, WorkerShare(0, 1)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "14",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_ARRAY_TASK_COUNT": "4",
            },
            WorkerShare(2, 4),
        ),
        (
            {
                "SLURM_ARRAY_TASK_ID": "1",
                "SLURM_ARRAY_TASK_COUNT": "2",
                "SLURM_PROCID": "2",
                "SLURM_STEP_NUM_TASKS": "3",
            },
            WorkerShare(5, 6),
        ),
    ],
)
def test_slurm_variables_give_the_share(slurm: dict[str, str], share: WorkerShare) -> None:
    assert find_share(None, None, slurm) == share
    assert find_share(1, 2, slurm) == WorkerShare(1, 2)


def test_shares_are_disjoint_and_complete() -> None:
    owners = [[share.rank for share in (WorkerShare(rank, 5) for rank in range(5)) if share.owns(f"v{i}")] for i in range(1000)]
    assert all(len(own) == 1 for own in owners)
    counts = np.bincount([own for (own,) in owners])
    assert counts.min() > 150
    with pytest.raises(InputError):
        WorkerShare(5, 5)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_finishes_the_requests_in_flight(
    mbt: Door, arguments: Callable[..., list[object]], site: Site, tmp_path: Path, number: int, code: int
) -> None:
    """This test's own process gets the signal."""
    site.delay_s = 0.3
    run = arguments(20, lanes("a", "b"))
    assert mbt(*run, "--stage", "plan").code == 0

    def interrupt() -> None:
        while len(site.requested) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    done = mbt(*run, "--stage", "fetch")
    assert done.code == code
    assert "finishing the work in progress" in done.err
    assert "run the same command again" in done.err
    requested = len(site.requested)
    assert 2 <= requested <= 8
    assert len(read_ledger(tmp_path / "out")) == requested
    assert len(list((tmp_path / "out/raw").rglob("*.mp4"))) == requested
    site.delay_s = 0.0
    assert mbt(*run, "--stage", "fetch").out == "fetch: 20 clips found, 0 missing\n"
    assert len(site.requested) == 20
