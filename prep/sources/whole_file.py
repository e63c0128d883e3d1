"""Whole videos, downloaded by yt-dlp within limits: where pictures and sound cannot be read by byte ranges."""

import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yt_dlp.networking import Request, Response
from yt_dlp.utils import DownloadError

from mbt.prep.media.ffmpeg import DEFAULT_LIMITS as FFMPEG_LIMITS
from mbt.prep.sources.byte_ranges import RawClip, merge_whole
from mbt.prep.sources.http_ranges import CHUNK, TransferError, read_once_from_network

OPTIONS = {
    "external_downloader": {"default": "native"},
    "ffmpeg_location": os.devnull,
    "fragment_retries": 5,
    "retries": 5,
    "skip_unavailable_fragments": False,
    "updatetime": False,
}
"""yt-dlp may run no program to download or to parse media: programs know neither its proxies nor our limits."""
NO_PROGRAM = re.compile(r"ffmpeg could not be found|ffmpeg not found|rtmpdump")
TRANSPORT_FILES = ("m3u8", "dash", "ism", "f4m")
"""Parts of names of protocols whose files are joined segments, which need a container."""


@dataclass(frozen=True)
class WholeLimits:
    """What one whole video may take.

    Attributes:
        size: bytes, of all its files.
        duration_s: seconds of the video, if the site tells them.
        wall_s: seconds of wall-clock time.
    """

    size: int = 500_000_000
    duration_s: float = 3 * 3600.0
    wall_s: float = 1200.0


DEFAULT_LIMITS = WholeLimits()


class Meter:
    """`YoutubeDL.urlopen` that counts what passes through, and fails beyond the limits.

    Args:
        urlopen: the function that sends the requests.
        stall_s: seconds that each read from the network may take.
        limits: of bytes and time; the time begins now.

    Attributes:
        requests: number of requests started so far.
        transferred: bytes received so far.
    """

    def __init__(self, urlopen: Callable[[Any], Response], stall_s: float, limits: WholeLimits) -> None:
        self._urlopen = urlopen
        self._stall_s = stall_s
        self._limits = limits
        self._deadline = time.monotonic() + limits.wall_s
        self.requests = 0
        self.transferred = 0

    def urlopen(self, request: Request | str) -> Response:
        """Send a request; reading its response fails beyond the limits.

        Raises:
            TransferError: `bytes.large` or `bytes.timeout`.
        """
        left_s = self._check()
        request = Request(request) if isinstance(request, str) else request
        request.extensions["timeout"] = min(left_s, self._stall_s)
        self.requests += 1
        response = self._urlopen(request)
        read_once_from_network(response)
        read = response.read

        def metered(size: int | None = None) -> bytes:
            data = bytearray()
            while size is None or not data:
                self._check()
                part = read(CHUNK if size is None else size)
                self.transferred += len(part)
                data += part
                if not part:
                    break
            self._check()
            return bytes(data)

        response.read = metered
        return response

    def _check(self) -> float:
        """Seconds left."""
        if self.transferred > self._limits.size:
            raise TransferError("bytes.large", None, f"the video has more than {self._limits.size:,} bytes, the maximum")
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TransferError("bytes.timeout", None, f"the download did not finish within {self._limits.wall_s:g} s")
        return left_s


def fetch_whole(downloader: Any, info: Mapping[str, Any], target: Path, meter: Meter, limits: WholeLimits) -> RawClip:
    """Download a whole video; it begins at its first byte, and holds all clips.

    Files that are joined segments, and pictures and sound in separate files, are put into one Matroska file.

    Args:
        downloader: the `YoutubeDL` that extracted the video, with OPTIONS.
        info: its description of the video.
        target: file to write, without a suffix; complete or not at all.
        meter: sends the requests.
        limits: the limits of duration and size, as far as the site tells them.

    Raises:
        TransferError: `bytes.long`, `bytes.large`, `bytes.timeout`: the video exceeds a limit; `bytes.protocol`: only another
            program could download it.
        ClipError: the downloaded files are not media.
        DownloadError: as yt-dlp raises it.
    """
    formats = info.get("requested_formats") or [info]
    _check_limits(info, formats, limits)
    folder = target.with_name(f".{target.name}.download")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    downloader.urlopen = meter.urlopen
    try:
        paths = [_download(downloader, {**info, **each}, folder / f"{i}") for i, each in enumerate(formats)]
        if len(paths) > 1 or any(word in (formats[0].get("protocol") or "") for word in TRANSPORT_FILES):
            return merge_whole(paths, target.with_name(f"{target.name}.mkv"), FFMPEG_LIMITS)
        final = target.with_name(f"{target.name}.{_suffix(info)}")
        paths[0].replace(final)
        return RawClip(final, final.stat().st_size, 0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_limits(info: Mapping[str, Any], formats: list[Mapping[str, Any]], limits: WholeLimits) -> None:
    duration_s = info.get("duration") or 0
    if duration_s > limits.duration_s:
        message = f"the whole video would be needed, but it lasts {duration_s:.0f} s; the maximum is {limits.duration_s:g} s"
        raise TransferError("bytes.long", None, message)
    size = sum(each.get("filesize") or 0 for each in formats)
    if size > limits.size:
        raise TransferError("bytes.large", None, f"the video has {size:,} bytes; the maximum is {limits.size:,}")


def _download(downloader: Any, description: dict[str, Any], path: Path) -> Path:
    """Download one file to `path`, a name that yt-dlp takes literally."""
    description.pop("requested_formats", None)
    description.pop("available_at", None)
    try:
        done, _ = downloader.dl(str(path), description)
    except DownloadError as error:
        if not NO_PROGRAM.search(str(error)):
            raise
        done = False
    if not done:
        protocol = description.get("protocol")
        raise TransferError("bytes.protocol", None, f"yt-dlp cannot download {protocol} without another program")
    return path


def _suffix(info: Mapping[str, Any]) -> str:
    """The file's usual suffix, which tells the decoder of MPEG streams; letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", str(info.get("ext") or "").lower())[:8] or "mp4"
