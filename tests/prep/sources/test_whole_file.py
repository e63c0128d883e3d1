"""Whole videos: exact in time, within limits, at the path that was meant, and with real request counts."""

import time
from pathlib import Path

import numpy as np
import pytest

from mbt.manifests.clips import Clip
from mbt.manifests.shards import VideoFormat
from mbt.prep.media.decode import decode_clip
from mbt.prep.sources.byte_ranges import RawClip
from mbt.prep.sources.whole_file import WholeLimits
from mbt.prep.sources.ytdlp import Answer, YtDlp, parse_ytdlp
from mbt.prep.state.failure_codes import Action, Verdict
from tests.media import counter_of
from tests.mediaserver import Fault, MediaServer, Reset, ServedFile, Short, Slow, Stall, Status
from tests.prep.sources.conftest import clear, raw_files

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning:"),
]
"""yt-dlp leaves the file of a download that fails to the garbage collector."""
FPS = 30


def answers(folder: Path, pages: MediaServer, video_id: str, page: str | None = None, flags: str = "") -> list[Answer]:
    """The answers for two clips of a video whose page is that of another, or its own."""
    pages.files[f"/watch/{video_id}"] = pages.files[f"/watch/{page or video_id}"]
    clips = [Clip(f"k{start}", video_id, start, start + 2000, "train", ()) for start in (3300, 9000)]
    return YtDlp(folder, pages.url + "/watch/{video_id}", parse_ytdlp([flags])).fetch(video_id, clips)


def verdict(folder: Path, pages: MediaServer, video_id: str) -> Verdict:
    first, second = answers(folder, pages, video_id)
    assert isinstance(first.result, Verdict)
    assert first.result == second.result
    assert raw_files(folder) == []
    return first.result


def limit(monkeypatch: pytest.MonkeyPatch, limits: WholeLimits) -> None:
    monkeypatch.setattr("mbt.prep.sources.ytdlp.WHOLE_LIMITS", limits)


@pytest.mark.parametrize(("video_id", "name"), [("whole", "whole.mp4"), ("stream", "stream.mkv"), ("streams", "streams.mkv")])
def test_a_whole_video_is_exact_in_time_and_its_requests_are_counted(
    video_id: str, name: str, pages: MediaServer, tmp_path: Path
) -> None:
    first, second = answers(tmp_path, pages, video_id)
    assert raw_files(tmp_path) == [f"raw/{video_id[:2]}/{name}"]
    media = [request for request in pages.requests if not request.path.startswith("/watch")]
    assert (first.effort.requests, second.effort.requests) == (len(media), 0)
    assert first.effort.transferred == sum(request.sent for request in media)
    assert isinstance(first.result, RawClip)
    assert first.result == second.result
    clip = decode_clip(first.result.path, 3.3 - first.result.offset_ms / 1000, 2.0, VideoFormat(short_side=96))
    late = (np.array([counter_of(jpeg) for jpeg in clip.jpegs]) - (3.3 + np.arange(50) / 25) * FPS) / FPS
    priming_s = 1024 / 44_100 if video_id != "whole" else 0.0
    """MPEG-TS does not tell that its first AAC packet is to be dropped."""
    assert abs(late).max() <= 0.5 / FPS + priming_s + 1e-3


@pytest.mark.parametrize("video_id", ["whole", "stream"])
def test_a_video_beyond_a_limit_is_refused(
    video_id: str, pages: MediaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, WholeLimits(duration_s=41))
    found = verdict(tmp_path, pages, video_id)
    assert (found.code, found.action) == ("bytes.long", Action.INPUT)
    assert "42 s" in found.message
    assert clear(pages) == [f"/watch/{video_id}"]
    limit(monkeypatch, WholeLimits(size=300_000))
    found = verdict(tmp_path, pages, video_id)
    assert (found.code, found.action) == ("bytes.large", Action.INPUT)
    first, _ = answers(tmp_path, pages, video_id)
    assert 300_000 < first.effort.transferred < 500_000


@pytest.mark.parametrize("fault", [Slow(20_000), Stall(1000), Stall(None)])
@pytest.mark.parametrize("video_id", ["whole", "stream"])
def test_a_download_ends_when_its_time_is_over(
    video_id: str, fault: Fault, pages: MediaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("/b", "/list1.ts"):
        pages.files[path].always = fault
    limit(monkeypatch, WholeLimits(wall_s=0.5))
    began = time.monotonic()
    found = verdict(tmp_path, pages, video_id)
    assert (found.code, found.action) == ("bytes.timeout", Action.BYTES)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("video_id", ["whole", "stream"])
def test_a_stalled_read_ends_with_the_timeout_of_sockets(video_id: str, pages: MediaServer, tmp_path: Path) -> None:
    for path in ("/b", "/list1.ts"):
        pages.files[path].always = Stall(1000)
    first, _ = answers(tmp_path, pages, video_id, flags="--socket-timeout 0.1")
    assert isinstance(first.result, Verdict)
    assert first.result.code == "net.timeout"


@pytest.mark.parametrize(
    ("video_id", "path", "fault", "code"),
    [
        ("whole", "/b", Status(403), "bytes.403"),
        ("whole", "/b", Status(404), "bytes.gone"),
        ("whole", "/b", Status(429), "rate.429"),
        ("whole", "/b", Reset(1000), "net.reset"),
        ("stream", "/list2.ts", Status(404), "bytes.gone"),
        ("stream", "/list2.ts", Status(403), "bytes.403"),
        ("stream", "/list2.ts", Short(1000), "bytes.short"),
        ("stream", "/list.m3u8", Status(403), "bytes.403"),
    ],
)
def test_a_failed_download_has_its_code_and_leaves_nothing(
    video_id: str, path: str, fault: Fault, code: str, pages: MediaServer, tmp_path: Path
) -> None:
    pages.files[path].always = fault
    assert verdict(tmp_path, pages, video_id).code == code


def test_a_short_fault_is_retried(pages: MediaServer, tmp_path: Path) -> None:
    pages.files["/list1.ts"].faults = [Status(503), Reset(1000)]
    pages.files["/b"].faults = [Reset(100_000)]
    for video_id in ("stream", "whole"):
        first, _ = answers(tmp_path, pages, video_id)
        assert isinstance(first.result, RawClip)


def test_no_program_downloads_a_stream_that_yt_dlp_cannot(pages: MediaServer, tmp_path: Path) -> None:
    playlist = pages.files["/list.m3u8"].content.decode()
    playlist = playlist.replace("#EXTINF", '#EXT-X-KEY:METHOD=SAMPLE-AES,URI="/key"\n#EXTINF', 1)
    pages.files["/list.m3u8"] = ServedFile(playlist.encode())
    assert verdict(tmp_path, pages, "stream").code == "bytes.protocol"
    assert clear(pages) == ["/watch/stream", "/list.m3u8"]


def test_a_page_instead_of_media_is_refused(pages: MediaServer, tmp_path: Path) -> None:
    playlist = pages.files["/list.m3u8"].content
    pages.files |= {path: ServedFile(playlist) for path in pages.files if path.endswith(".ts")}
    assert verdict(tmp_path, pages, "stream").code == "decode.unreadable"


@pytest.mark.parametrize("name", ["$HOME", "~", "%(id)s", "100%", "%%", "a b"])
@pytest.mark.parametrize("video_id", ["whole", "stream", "ranges"])
def test_the_name_of_a_folder_is_taken_literally(name: str, video_id: str, pages: MediaServer, tmp_path: Path) -> None:
    for answer in answers(tmp_path / name, pages, video_id):
        assert isinstance(answer.result, RawClip)
        assert answer.result.path.is_relative_to(tmp_path / name / "raw")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "video_id", ["../../../etc/x", "..", ".", "a/b", "/etc/x", "~/x", "%(title)s", "$HOME", "a.b", "é" * 200]
)
@pytest.mark.parametrize("page", ["whole", "stream", "ranges"])
def test_no_video_id_leads_out_of_raw(video_id: str, page: str, pages: MediaServer, tmp_path: Path) -> None:
    class Anything(dict[str, ServedFile]):
        """All pages are the same."""

        def __contains__(self, path: object) -> bool:
            return True

        def __missing__(self, path: str) -> ServedFile:
            return self[f"/watch/{page}"]

    out = tmp_path / "set" / "out"
    pages.files = Anything(pages.files)
    results = [answer.result for answer in answers(out, pages, video_id, page)]
    assert all(isinstance(result, RawClip) for result in results)
    found = raw_files(tmp_path)
    assert len(found) == len(set(results))
    assert all(path.startswith("set/out/raw/") for path in found)
    assert all(len(Path(path).parts) == 5 for path in found)
