"""`mbt prep --stage fetch` in its own process, killed and interrupted; a loopback server plays the site."""

import hashlib
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mbt.prep.state.ledger import read_ledger
from tests.conftest import Door
from tests.forked import ROOT, Forks, Process, forks
from tests.mediaserver import MediaServer, ServedFile, Slow, media_server
from tests.prep.conftest import Served

pytestmark = pytest.mark.slow

KILLS = 10
SEED = 3
VIDEOS = 24
GONE = (5, 17)


@pytest.fixture(scope="module")
def server() -> Iterator[Forks]:
    with forks([ROOT / "tests/plugins"]) as server:
        yield server


@dataclass
class Fetching:
    """A plan of `VIDEOS` videos with one clip each, to be fetched into folders."""

    media: MediaServer
    server: Forks
    mbt: Door
    folder: Path

    def plan(self, name: str) -> Path:
        """Plan a folder."""
        assert self.mbt(*self.arguments(self.folder / name), "--stage", "plan").code == 0
        return self.folder / name

    def arguments(self, out: Path) -> list[object]:
        lists = ["--list", self.folder / "clips.csv", "--labels", self.folder / "labels.csv", "--out", out]
        return ["prep", "custom", *lists, "--source", f"{self.media.url}/watch/{{video_id}}", "--sleep", 0]

    def start(self, out: Path) -> Process:
        """Start fetching, and wait for its first output."""
        return self.server.start([*self.arguments(out), "--stage", "fetch"], out.with_suffix(".log"), b"fetch")

    def page_requests(self) -> Counter[str]:
        """Number of requests for each video's page."""
        return Counter(request.path for request in list(self.media.requests) if request.path.startswith("/watch/"))


@pytest.fixture
def fetching(served: Served, server: Forks, mbt: Door, tmp_path: Path) -> Iterator[Fetching]:
    rows = [f"video{number:06},{number},{number + 10},train,a" for number in range(VIDEOS)]
    (tmp_path / "clips.csv").write_text("\n".join(["video_id,start,end,split,labels", *rows]) + "\n")
    (tmp_path / "labels.csv").write_text("id\na\n")
    with media_server() as media:
        media.files["/v"] = ServedFile(served.content("late30.mp4"))
        media.files["/a"] = ServedFile(served.content("primed.m4a"))
        for number in range(VIDEOS):
            page = {"error": "Private video"} if number in GONE else {"video": "/v", "audio": "/a"}
            media.files[f"/watch/video{number:06}"] = ServedFile(json.dumps(page).encode())
        yield Fetching(media, server, mbt, tmp_path)


def stored(folder: Path) -> dict[str, str]:
    """SHA-256 of each raw clip, by file name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "raw").rglob("*.mkv")}


def test_ten_kills_lose_no_clip_and_repeat_no_request(fetching: Fetching) -> None:
    whole, out = fetching.plan("whole"), fetching.plan("out")
    process, begin = fetching.start(whole), time.monotonic()
    assert process.code() == 0
    seconds = time.monotonic() - begin
    final = stored(whole)
    assert len(final) == VIDEOS - len(GONE)
    fetching.media.requests.clear()

    rng, settled, kills = random.Random(SEED), {}, 0
    for _ in range(KILLS):
        process = fetching.start(out)
        process.ends_within(rng.uniform(0, seconds / 4))
        process.kill()
        code = process.code()
        assert code in (0, -9), process.log.read_text()
        kills += code == -9
        assert stored(out).items() <= final.items(), "a file with its final name is complete"
        requests = fetching.page_requests()
        assert all(requests[video] == times for video, times in settled.items()), "stored clips are not requested again"
        settled = {f"/watch/{key.partition('_')[0]}": requests[f"/watch/{key.partition('_')[0]}"] for key in read_ledger(out)}
    assert kills >= KILLS / 2
    assert len(settled) > 0
    process = fetching.start(out)
    assert process.code() == 0, process.log.read_text()
    assert stored(out) == final
    assert {key for key, attempt in read_ledger(out).items() if attempt.code != "ok"} == {
        f"video{number:06}_{number * 1000}" for number in GONE
    }
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_interrupt_finishes_the_clip_and_a_second_stops_at_once(fetching: Fetching, number: int, code: int) -> None:
    out = fetching.plan("out")
    size = len(fetching.media.files["/v"].content)
    fetching.media.files["/v"].always = Slow(size // 4)
    process = fetching.start(out)
    while not any(request.path == "/v" for request in list(fetching.media.requests)):
        assert not process.ends_within(0.01)
    process.send(number)
    assert process.code() == code
    assert "finishing the work in progress" in process.log.read_text()
    assert len(stored(out)) == len(read_ledger(out)) == 1

    fetching.media.files["/v"].always = Slow(1000)
    fetching.media.requests.clear()
    process = fetching.start(out)
    while not any(request.path == "/v" for request in list(fetching.media.requests)):
        assert not process.ends_within(0.01)
    process.send(number)
    process.wait_for(b"press Ctrl-C again to stop now")
    process.send(number)
    assert process.ends_within(2)
    assert process.code() == code
    assert "run the same command again" in process.log.read_text()
    assert len(stored(out)) == 1
