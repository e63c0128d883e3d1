"""`mbt prep` fetches and packs at the same time; a loopback server plays the site."""

import hashlib
import json
import random
import shutil
import signal
import threading
import time
from collections import Counter, namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yt_dlp

from mbt.manifests.reading.reader import ShardReader
from mbt.prep.side_by_side import DiskFloor
from mbt.prep.state.ledger import read_ledger
from mbt.prep.workers.clock import Clock
from tests.conftest import Door, Outcome
from tests.forked import ROOT, Forks, forks
from tests.mediaserver import MediaServer, ServedFile, media_server
from tests.plugins.yt_dlp_plugins.extractor.standin import StandInIE
from tests.prep.conftest import Served

KILLS = 20
SEED = 5
VIDEOS = 14
GONE = (4, 9)
SHARED = 7
"""A video with two clips."""
SHARD = 4


@pytest.fixture(scope="module")
def server() -> Iterator[Forks]:
    with forks([ROOT / "tests/plugins"]) as server:
        yield server


@dataclass
class Site:
    """A plan of `VIDEOS` videos at a loopback server, of which some are gone.

    Attributes:
        media: the server.
        server: starts processes.
        folder: where the lists are.
    """

    media: MediaServer
    server: Forks
    folder: Path

    def arguments(self, out: Path, *more: object) -> list[object]:
        lists = ["--list", self.folder / "clips.csv", "--labels", self.folder / "labels.csv", "--out", out]
        media = ["--source", f"{self.media.url}/watch/{{video_id}}", "--sleep", 0, "--shard-samples", SHARD, "--short-side", 32]
        return ["prep", "custom", *lists, *media, "--min-free", 1, "--workers", 1, *more]

    def run(self, out: Path, *more: object) -> Outcome:
        """Run a command in a process of its own."""
        log = out.with_name(f"{out.name}.log")
        code = self.server.start(self.arguments(out, *more), log).code()
        return Outcome(code, log.read_text(), "")


@pytest.fixture
def site(served: Served, server: Forks, tmp_path: Path) -> Iterator[Site]:
    rows = [f"video{number:06},{number},{number + 2},train,a" for number in range(VIDEOS)]
    rows.append(f"video{SHARED:06},20,22,train,a")
    (tmp_path / "clips.csv").write_text("\n".join(["video_id,start,end,split,labels", *rows]) + "\n")
    (tmp_path / "labels.csv").write_text("id\na\n")
    with media_server() as media:
        media.files["/v"] = ServedFile(served.content("late30.mp4"))
        media.files["/a"] = ServedFile(served.content("primed.m4a"))
        for number in range(VIDEOS):
            page = {"error": "Private video"} if number in GONE else {"video": "/v", "audio": "/a"}
            media.files[f"/watch/video{number:06}"] = ServedFile(json.dumps(page).encode())
        yield Site(media, server, tmp_path)


def finished(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that readers use, except for the versions and options of the run."""
    paths = [path for path in folder.iterdir() if path.suffix in (".tar", ".idx", ".parquet", ".csv")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def raw(folder: Path) -> set[str]:
    return {path.name for path in (folder / "raw").rglob("*.mkv")}


def keys(folder: Path) -> list[str]:
    with ShardReader(folder, "train") as reader:
        return [reader.key(row) for row in range(len(reader))]


def test_the_result_is_that_of_separate_stages(site: Site, tmp_path: Path) -> None:
    whole = site.run(tmp_path / "one", "--no-keep-raw")
    assert whole.code == 0, whole.out
    for stage in ("plan", "fetch", "pack"):
        assert site.run(tmp_path / "three", "--stage", stage).code == 0
    assert finished(tmp_path / "one") == finished(tmp_path / "three")
    assert len(keys(tmp_path / "one")) == VIDEOS - len(GONE) + 1
    assert len([name for name in finished(tmp_path / "one") if name.endswith(".tar")]) == 4
    assert not raw(tmp_path / "one")
    assert len(raw(tmp_path / "three")) == VIDEOS - len(GONE) + 1


def test_a_shard_is_packed_and_its_media_deleted_while_fetching_goes_on(site: Site, tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert site.run(out, "--stage", "plan").code == 0
    last = pq.read_table(out / "clips.parquet")["video_id"].to_pylist()[-1]
    site.media.files[f"/watch/{last}"].latency_s = 60
    process = site.server.start(site.arguments(out, "--no-keep-raw"), tmp_path / "log")
    deadline = time.monotonic() + 50
    while not ((out / "train-000002.tar").exists() and len(raw(out)) <= SHARD) and time.monotonic() < deadline:
        assert not process.ends_within(0.05), process.log.read_text()
    assert (out / "train-000002.tar").exists()
    assert len(raw(out)) <= SHARD, "media of packed shards are gone"
    assert sum(request.path == f"/watch/{last}" for request in site.media.requests) == 1
    process.kill()
    process.code()


@pytest.mark.slow
def test_killed_twenty_times_every_clip_is_there_once_and_bytes_are_those_of_separate_stages(
    site: Site, tmp_path: Path
) -> None:
    begin = time.monotonic()
    assert site.run(tmp_path / "whole").code == 0
    seconds = time.monotonic() - begin
    final = finished(tmp_path / "whole")
    rng, out, kills = random.Random(SEED), tmp_path / "killed", 0
    for _ in range(KILLS):
        process = site.server.start(site.arguments(out), tmp_path / "log", b"fetch")
        process.ends_within(rng.uniform(0, seconds / 5))
        process.kill()
        kills += process.code() == -9
        tars = {name: digest for name, digest in finished(out).items() if name.endswith(".tar")}
        assert tars.items() <= final.items(), "a file with its final name has its final bytes"
    assert kills >= KILLS / 2
    done = site.run(out)
    assert done.code == 0, done.out
    assert finished(out) == final
    assert len(set(keys(out))) == len(keys(out)) == VIDEOS - len(GONE) + 1
    assert not list(out.rglob("*.tmp")) + list(out.rglob("*.partial"))

    separate = tmp_path / "separate"
    shutil.copytree(out, separate, ignore=lambda folder, names: [name for name in names if name.endswith((".tar", ".idx"))])
    for path in (separate / "work").glob("train-*"):
        path.unlink()
    (separate / "work/assignment.json").unlink()
    assert site.run(separate, "--stage", "pack").code == 0
    assert finished(separate) == final


def test_late_clips_go_to_later_shards(site: Site, tmp_path: Path) -> None:
    """A clip that fails at first and comes in a later run is in none of the shards that were packed before."""
    out = tmp_path / "set"
    late = "video000002"
    page = site.media.files[f"/watch/{late}"]
    site.media.files[f"/watch/{late}"] = ServedFile(
        json.dumps({"error": "This live event will begin in a few moments."}).encode()
    )
    assert site.run(out).code == 0
    first = {name: digest for name, digest in finished(out).items() if name.endswith(".tar")}
    ledger = out / "work/ledger/fetch-0.jsonl"
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    for row in rows:
        row["time"] -= 1e6
        row["not_before"] = max(row["not_before"] - 1e6, 0)
    ledger.write_text("".join(json.dumps(row) + "\n" for row in rows))
    site.media.files[f"/watch/{late}"] = page
    assert site.run(out).code == 0
    second = {name: digest for name, digest in finished(out).items() if name.endswith(".tar")}
    assert first.items() < second.items()
    assert keys(out)[-1] == f"{late}_2000"

    (out / max(second)).unlink()
    assert site.run(out).code == 0
    assert {name: digest for name, digest in finished(out).items() if name.endswith(".tar")} == second


def test_a_cap_holds_whenever_the_clips_come(site: Site, tmp_path: Path) -> None:
    """The first video of the plan answers last, while the others are fetched on three lanes."""
    (tmp_path / "lanes.toml").write_text("".join(f'[[lane]]\nname = "{name}"\n' for name in "abc"))
    options = ("--cap", 6, "--lanes", tmp_path / "lanes.toml")
    for stage in ("plan", "fetch", "pack"):
        assert site.run(tmp_path / "three", *options, "--stage", stage).code == 0
    first = pq.read_table(tmp_path / "three/clips.parquet")["video_id"].to_pylist()[0]
    site.media.files[f"/watch/{first}"].latency_s = 2
    assert site.run(tmp_path / "one", *options).code == 0
    assert len(keys(tmp_path / "one")) == 6
    assert finished(tmp_path / "one") == finished(tmp_path / "three")


def test_an_interrupt_ends_both_and_the_next_run_continues(site: Site, tmp_path: Path) -> None:
    out = tmp_path / "set"
    process = site.server.start(site.arguments(out), tmp_path / "log")
    while len(raw(out)) < SHARD + 1:
        assert not process.ends_within(0.01), process.log.read_text()
    process.send(signal.SIGTERM)
    assert process.code() == 143, process.log.read_text()
    before = Counter(request.path for request in site.media.requests if request.path.startswith("/watch/"))
    stored = {key.partition("_")[0] for key, attempt in read_ledger(out).items() if attempt.path}
    assert site.run(out).code == 0
    after = Counter(request.path for request in site.media.requests if request.path.startswith("/watch/"))
    assert all(after[f"/watch/{video}"] == before[f"/watch/{video}"] for video in stored)
    assert len(keys(out)) == VIDEOS - len(GONE) + 1


def test_an_upload_that_fails_stops_fetching_with_its_reason(site: Site, tmp_path: Path, mbt: Door) -> None:
    """The clips that have been fetched stay in the ledger."""
    out, target = tmp_path / "set", tmp_path / "target"
    target.mkdir()
    (target / "train-000000.idx").mkdir()
    (target / "train-000000.idx" / "in the way").touch()
    failed = site.run(out, "--to", f"file://{target}")
    assert failed.code == 2
    assert "error: " in failed.out.splitlines()[-1]
    assert "train-000000.idx" in failed.out.splitlines()[-1]
    fetched = {key for key, attempt in read_ledger(out).items() if attempt.path}
    assert len(fetched) == len(raw(out)) >= SHARD
    shutil.rmtree(target / "train-000000.idx")
    assert site.run(out, "--to", f"file://{target}").code == 0
    assert len(list(target.glob("*.tar"))) == 4


class StandIn(yt_dlp.YoutubeDL):
    """yt-dlp's own session, which knows only the loopback site."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options, auto_init=False)
        self.add_info_extractor(StandInIE())


Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_pauses_fetching_and_says_so_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Driven(Clock):
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock, free = Driven(), [5]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10, 10 - free[0], free[0]))
    floor = DiskFloor(Path("/data"), 4, clock)
    assert floor.has_room()
    free[0] = 3
    assert floor.has_room(), "the disk is looked at once a second"
    clock.now += 1
    answers = []
    for _ in range(90):
        answers.append(floor.has_room())
        clock.now += 1
    assert not any(answers)
    assert capsys.readouterr().err.count("paused: 0.0 GB free for /data, less than --min-free") == 2
    free[0] = 4
    assert floor.has_room()


def test_fetching_goes_on_when_packing_has_freed_the_disk(
    site: Site, tmp_path: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for six raw clips; all come, since packed ones make room."""
    out, most = tmp_path / "set", [0]
    lock = threading.Lock()

    def usage(folder: Path) -> Usage:
        with lock:
            most[0] = max(most[0], len(raw(out)))
        return Usage(7, len(raw(out)), 7 - len(raw(out)))

    monkeypatch.setattr(yt_dlp, "YoutubeDL", StandIn)
    assert mbt(*site.arguments(out, "--stage", "plan")).code == 0
    monkeypatch.setattr("mbt.prep.side_by_side.CHECK_S", 0.0)
    monkeypatch.setattr(shutil, "disk_usage", usage)
    done = mbt(*site.arguments(out, "--no-keep-raw", "--ignore-disk"))
    assert done.code == 0, done.err
    assert 5 <= most[0] <= 7
    assert len(keys(out)) == VIDEOS - len(GONE) + 1


def test_the_file_of_a_removed_clip_stays_as_long_as_another_clip_needs_it(site: Site, tmp_path: Path, served: Served) -> None:
    """The first clip of a whole video is removed between two runs, before the second is packed."""
    out = tmp_path / "set"
    for number in range(VIDEOS):
        page = {"error": "Private video"} if number != SHARED else {"both": "/both"}
        site.media.files[f"/watch/video{number:06}"] = ServedFile(json.dumps(page).encode())
    site.media.files["/both"] = ServedFile(served.content("both30.mp4"))
    for stage in ("plan", "fetch"):
        assert site.run(out, "--stage", stage).code == 0
    files = [path for path in (out / "raw").rglob("*") if path.is_file()]
    assert len(files) == 1
    planned = [key for key in pq.read_table(out / "clips.parquet")["key"].to_pylist() if f"{SHARED:06}" in key]
    (tmp_path / "removed.txt").write_text(planned[0] + "\n")
    done = site.run(out, "--no-keep-raw", "--removed", tmp_path / "removed.txt")
    assert done.code == 0, done.out
    assert keys(out) == planned[1:]
    assert not files[0].exists()
