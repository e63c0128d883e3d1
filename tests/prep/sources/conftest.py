"""A video site behind yt-dlp's own sessions, whose pages name the media."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yt_dlp
from yt_dlp.extractor.common import InfoExtractor

from mbt.prep.media.ffmpeg import ffmpeg
from tests.mediaserver import MediaServer, ServedFile, media_server
from tests.prep.conftest import Served

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class PageIE(InfoExtractor):
    """A page at /watch/ID is JSON: fields of the video, with media URLs relative to the site."""

    _VALID_URL = r"(?P<site>http://[^/]+)/watch/(?P<id>.+)"
    IE_NAME = "page"

    def _real_extract(self, url: str) -> dict[str, Any]:
        video_id = self._match_id(url)
        site = self._match_valid_url(url)["site"]
        page = json.loads(self._download_webpage(url, video_id))
        for each in page["formats"]:
            each["url"] = site + each["url"]
        return {"id": video_id, "title": "A title", **page}


class PageSession(yt_dlp.YoutubeDL):
    """yt-dlp's own session, which knows only `PageIE`."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options, auto_init=False)
        self.add_info_extractor(PageIE())


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without proxies."""
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def segments(served: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A playlist of MPEG-TS segments of five seconds, pictures and sound in one, by path."""
    folder = tmp_path_factory.mktemp("segments")
    source = ("-i", served.folder / "both30.mp4", "-c", "copy", "-t", 20)
    target = ("-f", "hls", "-hls_time", 5, "-hls_list_size", 0, folder / "list.m3u8")
    subprocess.run([ffmpeg(), "-nostdin", "-v", "error", *map(str, (*source, *target))], check=True)
    return {f"/{path.name}": path.read_bytes() for path in folder.iterdir()}


PICTURES = {
    "format_id": "134",
    "url": "/v",
    "vcodec": "avc1.4d401e",
    "acodec": "none",
    "width": 640,
    "height": 360,
    "ext": "mp4",
}
SOUND = {"format_id": "140", "url": "/a", "vcodec": "none", "acodec": "mp4a.40.2", "ext": "m4a"}
WHOLE = {
    "format_id": "18",
    "url": "/b",
    "vcodec": "avc1.42001E",
    "acodec": "mp4a.40.2",
    "width": 640,
    "height": 360,
    "ext": "mp4",
}
STREAM = {**WHOLE, "format_id": "93", "url": "/list.m3u8", "protocol": "m3u8_native"}
STREAMS = [
    {**STREAM, "format_id": "230", "acodec": "none"},
    {**SOUND, "format_id": "234", "url": "/list.m3u8", "protocol": "m3u8_native"},
]
PAGES = {"ranges": [PICTURES, SOUND], "whole": [WHOLE], "stream": [STREAM], "streams": STREAMS}


@pytest.fixture
def pages(
    served: Served, segments: dict[str, bytes], no_proxies: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MediaServer]:
    """The site: videos `ranges`, `whole`, `stream` and `streams`, by the form of their media."""
    monkeypatch.setattr(yt_dlp, "YoutubeDL", PageSession)
    with media_server() as server:
        for video_id, formats in PAGES.items():
            server.files[f"/watch/{video_id}"] = ServedFile(json.dumps({"formats": formats, "duration": 42}).encode())
        for path, name in (("/v", "late30.mp4"), ("/a", "primed.m4a"), ("/b", "both30.mp4")):
            server.files[path] = ServedFile(served.content(name))
        server.files |= {path: ServedFile(content) for path, content in segments.items()}
        yield server


def clear(server: MediaServer) -> list[str]:
    """Paths requested since the last call."""
    paths = [request.path for request in server.requests]
    server.requests.clear()
    return paths


def raw_files(folder: Path) -> list[str]:
    """Paths of all files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
