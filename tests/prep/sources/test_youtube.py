"""From video ids to shards, against a stand-in for YouTube: an extractor of yt-dlp and a media server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yt_dlp
from yt_dlp.extractor.common import InfoExtractor
from yt_dlp.utils import ExtractorError

from mbt.manifests.reading.reader import ShardReader
from tests.conftest import Door
from tests.media import counter_of
from tests.mediaserver import MediaServer, ServedFile, Status, media_server
from tests.prep.conftest import Served

pytestmark = pytest.mark.slow

FPS = 30
GONE = "This video has been removed by the uploader"


@pytest.fixture
def media(served: Served) -> Iterator[MediaServer]:
    with media_server() as server:
        server.files["/v"] = ServedFile(served.content(f"late{FPS}.mp4"))
        server.files["/a"] = ServedFile(served.content("primed.m4a"))
        yield server


@pytest.fixture
def youtube(media: MediaServer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of extracted videos. Videos named `gone...` are removed; the others have pictures and sound in two files."""
    extracted: list[str] = []

    class StandInIE(InfoExtractor):
        _VALID_URL = r"https://www\.youtube\.com/watch\?v=(?P<id>.+)"
        IE_NAME = "youtube"

        def _real_extract(self, url: str) -> dict[str, Any]:
            video_id = self._match_id(url)
            extracted.append(video_id)
            if video_id.startswith("gone"):
                raise ExtractorError(GONE, expected=True, video_id=video_id)
            pictures = {"vcodec": "avc1.4d401e", "acodec": "none", "width": 640, "height": 360, "ext": "mp4"}
            sound = {"vcodec": "none", "acodec": "mp4a.40.2", "ext": "m4a"}
            return {
                "id": video_id,
                "title": "A title",
                "live_status": video_id.removeprefix("live_") if video_id.startswith("live_") else "not_live",
                "formats": [
                    {"format_id": "140", "url": f"{media.url}/a", **sound},
                    {"format_id": "134", "url": f"{media.url}/v", **pictures},
                ],
            }

    class StandIn(yt_dlp.YoutubeDL):
        def __init__(self, options: dict[str, Any]) -> None:
            super().__init__(options, auto_init=False)
            self.add_info_extractor(StandInIE())

    monkeypatch.setattr(yt_dlp, "YoutubeDL", StandIn)
    return extracted


@pytest.fixture
def arguments(tmp_path: Path) -> list[object]:
    rows = ["video000001,3.3,13.3,train,a", "video000001,20,30,train,a", "video000002,27.777,37.777,train,a"]
    rows += ["gone0000003,0,10,train,a"]
    (tmp_path / "clips.csv").write_text("\n".join(["video_id,start,end,split,labels", *rows]) + "\n")
    (tmp_path / "labels.csv").write_text("id\na\n")
    lists = ["--list", tmp_path / "clips.csv", "--labels", tmp_path / "labels.csv", "--out", tmp_path / "set"]
    return [
        "prep",
        "custom",
        *lists,
        "--source",
        "https://www.youtube.com/watch?v={video_id}",
        "--sleep",
        0,
        "--short-side",
        96,
    ]


def test_clips_of_a_video_share_one_extraction_and_are_exact_in_time(
    arguments: list[object], youtube: list[str], media: MediaServer, tmp_path: Path, mbt: Door
) -> None:
    done = mbt(*arguments)
    assert done.code == 0, done.err
    assert sorted(youtube) == ["gone0000003", "video000001", "video000002"]
    whole = 3 * sum(len(file.content) for file in media.files.values())
    assert sum(request.sent for request in media.requests) < 0.6 * whole
    starts = {"video000001_3300": 3.3, "video000001_20000": 20.0, "video000002_27777": 27.777}
    with ShardReader(tmp_path / "set", "train") as reader:
        assert {reader.key(row) for row in range(len(reader))} == set(starts)
        for row in range(len(reader)):
            frames = np.array([counter_of(jpeg) for jpeg in reader[row].frames(list(range(250)))])
            wanted = (starts[reader.key(row)] + np.arange(250) / 25) * FPS
            late = ((frames - wanted + 512) % 1024 - 512) / FPS
            assert abs(late).max() <= 0.5 / FPS + 1e-6
    failures = pq.read_table(tmp_path / "set" / "failures.parquet").to_pylist()
    assert [(row["key"], row["code"]) for row in failures] == [("gone0000003_0", "perm.removed_by_uploader")]
    raw = sorted(path.name for path in (tmp_path / "set" / "raw").rglob("*.*"))
    assert raw == ["video000001_20000.mkv", "video000001_3300.mkv", "video000002_27777.mkv"]


def test_packing_again_makes_no_request(
    arguments: list[object], youtube: list[str], media: MediaServer, tmp_path: Path, mbt: Door
) -> None:
    assert mbt(*arguments).code == 0
    first = (tmp_path / "set" / "train-000000.tar").read_bytes()
    (tmp_path / "set" / "train-000000.tar").unlink()
    youtube.clear()
    media.requests.clear()
    assert mbt(*arguments).code == 0
    assert not youtube
    assert not media.requests
    assert (tmp_path / "set" / "train-000000.tar").read_bytes() == first


@pytest.mark.parametrize(
    ("status", "code", "action"),
    [(403, "bytes.403", "later"), (404, "bytes.gone", "bytes"), (410, "bytes.gone", "bytes"), (416, "bytes.416", "bytes")],
)
def test_refused_bytes_are_retried_later(
    status: int,
    code: str,
    action: str,
    arguments: list[object],
    youtube: list[str],
    media: MediaServer,
    tmp_path: Path,
    mbt: Door,
) -> None:
    media.files["/v"] = ServedFile(b"", faults=[Status(status)] * 50)
    mbt(*arguments, "--stage", "plan")
    done = mbt(*arguments, "--stage", "fetch")
    assert (done.code, done.out) == (0, "fetch: 0 clips found, 4 missing\n"), done.err
    lines = (tmp_path / "set" / "work" / "ledger" / "fetch-0.jsonl").read_text().splitlines()
    kept = {row["key"]: (row["code"], row["action"], row["final"]) for row in map(json.loads, lines)}
    assert kept.pop("gone0000003_0") == ("perm.removed_by_uploader", "permanent", True)
    assert set(kept.values()) == {(code, action, False)}


def test_a_rate_limit_on_media_pauses_the_lane_and_uses_no_attempt(
    arguments: list[object],
    youtube: list[str],
    media: MediaServer,
    tmp_path: Path,
    mbt: Door,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mbt.prep.fetch.lanes.PAUSE_S", {"cool": (0.3, 0.6)})
    media.files["/a"].faults = [Status(429), Status(429)]
    mbt(*arguments, "--stage", "plan")
    done = mbt(*arguments, "--stage", "fetch")
    assert (done.code, done.out) == (0, "fetch: 3 clips found, 1 missing\n"), done.err
    assert done.err.count("fetch: lane direct paused until") == 2
    lines = (tmp_path / "set" / "work" / "ledger" / "fetch-0.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    limited = [row for row in rows if row["code"] == "rate.429"]
    assert {(row["action"], row["http_status"], row["lane"]) for row in limited} == {("cool", 429, "direct")}
    first, second = sorted({row["not_before"] - row["time"] for row in limited})
    assert (first, second) == (pytest.approx(0.3, abs=0.1), pytest.approx(0.6, abs=0.1))


def test_the_ledger_holds_the_cost_of_each_clip(
    arguments: list[object], youtube: list[str], media: MediaServer, tmp_path: Path, mbt: Door
) -> None:
    assert mbt(*arguments, "--stage", "plan").code == 0
    assert mbt(*arguments, "--stage", "fetch").code == 0
    lines = (tmp_path / "set" / "work" / "ledger" / "fetch-0.jsonl").read_text().splitlines()
    rows = {row["key"]: row for row in map(json.loads, lines)}
    stored = [row for row in rows.values() if row["code"] == "ok"]
    assert sum(row["requests"] for row in stored) == len(media.requests)
    assert sum(row["transferred"] for row in stored) == sum(request.sent for request in media.requests)
    assert {(row["formats"], row["offered"]) for row in stored} == {("134+140", "140,134")}
    assert all(row["transfer_s"] > 0 and row["versions"].startswith("yt-dlp 20") for row in stored)
    assert sum(row["extract_s"] > 0 for row in stored if row["key"].startswith("video000001")) == 1
    assert (rows["gone0000003_0"]["requests"], rows["gone0000003_0"]["extract_s"] > 0) == (0, True)


@pytest.mark.parametrize("status", ["is_live", "post_live"])
def test_live_streams_are_retried_later(
    status: str, arguments: list[object], youtube: list[str], media: MediaServer, tmp_path: Path, mbt: Door
) -> None:
    text = (tmp_path / "clips.csv").read_text().replace("video000002", f"live_{status}")
    (tmp_path / "clips.csv").write_text(text)
    assert mbt(*arguments, "--stage", "plan").code == 0
    assert mbt(*arguments, "--stage", "fetch").out == "fetch: 2 clips found, 2 missing\n"
    lines = (tmp_path / "set" / "work" / "ledger" / "fetch-0.jsonl").read_text().splitlines()
    row = next(row for row in map(json.loads, lines) if row["key"].startswith("live"))
    assert (row["code"], row["action"], row["final"]) == ("later.live", "later", False)


def test_raw_clips_need_not_be_kept(
    arguments: list[object], youtube: list[str], media: MediaServer, tmp_path: Path, mbt: Door
) -> None:
    """Packed clips are not requested again, unless their shard is lost."""
    assert mbt(*arguments, "--shard-samples", 2, "--no-keep-raw").code == 0
    assert not list((tmp_path / "set" / "raw").rglob("*.mkv"))
    tars = {path.name: path.read_bytes() for path in (tmp_path / "set").glob("*.tar")}
    assert len(tars) == 2
    youtube.clear()
    again = mbt(*arguments, "--shard-samples", 2, "--no-keep-raw")
    assert (again.code, youtube) == (0, [])
    assert "fetch: 3 clips found, 1 missing" in again.out
    (tmp_path / "set" / "train-000001.tar").unlink()
    assert mbt(*arguments, "--shard-samples", 2, "--no-keep-raw").code == 0
    assert len(youtube) == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").glob("*.tar")} == tars


def test_ytdlp_flags_pass_through(
    arguments: list[object], youtube: list[str], media: MediaServer, tmp_path: Path, mbt: Door
) -> None:
    """An unavailable format makes every video fail."""
    mbt(*arguments, "--stage", "plan", "--ytdlp", "--format nothing")
    done = mbt(*arguments, "--stage", "fetch", "--ytdlp", "--format nothing")
    assert done.out == "fetch: 0 clips found, 4 missing\n"
    ledger = (tmp_path / "set" / "work" / "ledger" / "fetch-0.jsonl").read_text()
    assert ledger.count("env.format") == 3
    assert not media.requests


def test_a_proxy_applies_to_the_media_too(
    arguments: list[object], youtube: list[str], media: MediaServer, tmp_path: Path, mbt: Door
) -> None:
    assert mbt(*arguments, "--stage", "plan").code == 0
    done = mbt(*arguments, "--stage", "fetch", "--ytdlp", "--proxy http://127.0.0.1:9")
    assert done.code == 2
    assert "net.proxy" in done.err.splitlines()[-1]
    assert youtube
    assert not media.requests
