"""yt-dlp as a source: the whole video behind a URL template, at about 360 pixels, kept as it is served."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yt_dlp
from yt_dlp.networking.exceptions import HTTPError, network_exceptions
from yt_dlp.utils import DownloadError, ExtractorError, GeoRestrictedError, YoutubeDLError

from manifests.errors import InputError, StorageError
from prep.decode import ffmpeg
from prep.taxonomy import SEVERAL_VIDEOS, UNEXPECTED, Problem, Verdict, classify, plain

PLACEHOLDER = "{video_id}"
FORMAT_SORT = ["res:360", "vcodec:h264", "acodec:aac", "proto:https", "+size"]
TRANSFER = re.compile(r"unable to download video data|\[download\] Got error|fragment \d+ not found", re.IGNORECASE)
"""How yt-dlp begins what it says of the transfer of the media."""


class YtDlp:
    """Downloads whole videos into `folder`/raw by yt-dlp, from `template` with `{video_id}` filled in.

    Args:
        folder: the dataset folder.
        template: URL with the placeholder `{video_id}`.
        sleep_s: pause before each download; YouTube's guest quota is about 300 videos an hour.

    Raises:
        InputError: the template has no placeholder.
    """

    def __init__(self, folder: Path, template: str, sleep_s: float) -> None:
        if PLACEHOLDER not in template:
            raise InputError(
                f"the URL template {template!r} lacks {PLACEHOLDER}", f"Such as https://example.org/{PLACEHOLDER}.mp4"
            )
        self.folder = folder
        self.template = template
        self.name = urlsplit(template).hostname or "url"
        self._warnings = _Warnings()
        self._options: dict[str, Any] = {
            "format": "bv*+ba/b",
            "format_sort": FORMAT_SORT,
            "ffmpeg_location": ffmpeg(),
            "logger": self._warnings,
            "noplaylist": True,
            "noprogress": True,
            "quiet": True,
            "retries": 5,
            "sleep_interval": sleep_s,
            "socket_timeout": 30,
        }

    def fetch(self, video_id: str) -> Path | Verdict:
        """The downloaded file, or why there is none.

        Raises:
            StorageError: no space left.
        """
        target = self.folder / "raw" / video_id[:2] / f"{video_id}.%(ext)s"
        options = {**self._options, "outtmpl": {"default": str(target)}}
        self._warnings.texts.clear()
        try:
            with yt_dlp.YoutubeDL(options) as downloader:
                info = downloader.extract_info(self.template.replace(PLACEHOLDER, video_id))
            if "requested_downloads" not in info:
                return classify(Problem(SEVERAL_VIDEOS))
            return Path(info["requested_downloads"][0]["filepath"])
        except Exception as error:
            if "No space left on device" in str(error):
                raise StorageError(
                    f"cannot write below {self.folder}: no space left on the disk", "Free some space, then run again"
                ) from None
            return classify(problem_of(error, self._warnings.texts))


def problem_of(error: Exception, warnings: Sequence[str] = ()) -> Problem:
    """What is known of an error that came out of yt-dlp: a DownloadError, or a bug of an extractor as it is.

    Args:
        error: as it was caught.
        warnings: what yt-dlp warned of before.
    """
    errors = _causes(error)
    extraction = next((e for e in errors if isinstance(e, ExtractorError)), None)
    http = next((e for e in errors if isinstance(e, HTTPError)), None)
    region = next((e for e in errors if isinstance(e, GeoRestrictedError)), None)
    kind = {type(e).__name__ for e in errors}
    if extraction:
        message, expected = extraction.orig_msg, extraction.expected
        if not expected and extraction.cause:
            message += f" (caused by {extraction.cause!r})"
    elif isinstance(error, YoutubeDLError):
        message = str(error)
        expected = "please report this issue" not in message
    else:
        message, expected = f"{type(error).__name__}: {error}", isinstance(error, OSError)
    if not expected and not any(isinstance(e, network_exceptions) for e in errors):
        kind.add(UNEXPECTED)
    message = plain(message)
    host = urlsplit(http.response.url).hostname if http else None
    return Problem(
        message=message,
        kind=frozenset(kind),
        status=http.status if http else None,
        countries=tuple(region.countries or ()) if region else (),
        warnings=tuple(plain(text) for text in warnings),
        url_is_media=bool(TRANSFER.match(message)) or (host or "").endswith(".googlevideo.com"),
        extractor=(extraction and extraction.ie) or Problem.extractor,
    )


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what led to it; of an ExtractorError only what it names, as it may have come amid something else."""
    found: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or one in found:
            continue
        found.append(one)
        waiting += [getattr(one, "cause", None), one.__cause__]
        if isinstance(one, DownloadError) and not one.__context__:
            waiting += (one.exc_info or ())[1:2]
        if not isinstance(one, ExtractorError):
            waiting.append(one.__context__)
    return found


class _Warnings:
    """yt-dlp's logger: keeps warnings, which often hold the real reason of an error."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def debug(self, message: str) -> None:
        """Progress is of no interest."""

    def warning(self, message: str) -> None:
        """Keep it for the classification of an error that follows."""
        self.texts.append(message)

    def error(self, message: str) -> None:
        """Errors arrive as exceptions too."""
