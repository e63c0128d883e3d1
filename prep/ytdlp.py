"""yt-dlp as a source: the whole video behind a URL template, at about 360 pixels, kept as it is served."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yt_dlp

from manifests.errors import InputError, SourceError, StorageError
from prep.decode import ffmpeg

PLACEHOLDER = "{video_id}"
MAX_FAILED_IN_A_ROW = 10
FORMAT_SORT = ["res:360", "vcodec:h264", "acodec:aac", "proto:https", "+size"]


@dataclass(frozen=True)
class Refusal:
    """Why a video was not served; `final` means that asking again is no use."""

    code: str
    message: str
    final: bool


WAIT = "Wait an hour, then run again; what is there stays"
STOP = (
    ("rate.session", r"rate-limited by YouTube|isn't available, try again later|hit the request limit", WAIT),
    ("rate.429", r"HTTP Error (429|402)", WAIT),
    (
        "block.bot",
        r"confirm you're not a bot|requiring a captcha|Your IP is likely being blocked",
        "Wait some hours, or run from another network",
    ),
    (
        "env.js",
        r"No supported JavaScript runtime|challenge solving failed|The page needs to be reloaded",
        "Run pip install --upgrade 'yt-dlp[default,deno]', then run again",
    ),
)
"""The source refuses to serve anybody here: stop, nothing is wrong with the video. Checked first: the texts overlap."""

FINAL = (
    ("perm.private", r"Private video|video is private"),
    ("creds.age", r"confirm your age|age-restricted|inappropriate for some users"),
    ("creds.members", r"members-only|channel's members|requires payment|only available to .*Premium"),
    ("region", r"in your country|from your location"),
    ("perm.copyright", r"copyright|trademark claim|privacy claim|court order"),
    ("perm.removed", r"removed|terminated|closed their YouTube account|recording is not available"),
    ("perm.unavailable", r"Video unavailable|video is (unavailable|no longer available|not available)|does not exist"),
    ("perm.gone", r"HTTP Error (404|410)"),
    ("input.bad_url", r"Unsupported URL|is not a valid URL|Incomplete YouTube ID"),
)
"""This video will not be served. What matches neither table is asked for again in the next run."""


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
        self._failed_in_a_row = 0
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

    def fetch(self, video_id: str) -> Path | Refusal:
        """The downloaded file, or why there is none.

        Raises:
            SourceError: the source serves nobody here (rate limit, block, no network, outdated yt-dlp).
            StorageError: no space left.
        """
        target = self.folder / "raw" / video_id[:2] / f"{video_id}.%(ext)s"
        options = {**self._options, "outtmpl": {"default": str(target)}}
        self._warnings.texts.clear()
        try:
            with yt_dlp.YoutubeDL(options) as downloader:
                info = downloader.extract_info(self.template.replace(PLACEHOLDER, video_id))
        except yt_dlp.utils.DownloadError as error:
            return self._classify(_plain(str(error)))
        if "requested_downloads" not in info:
            return Refusal("input.playlist", "the URL gives several videos, not one", final=True)
        self._failed_in_a_row = 0
        return Path(info["requested_downloads"][0]["filepath"])

    def _classify(self, message: str) -> Refusal:
        everything = "\n".join([message, *self._warnings.texts])
        if "No space left on device" in message:
            raise StorageError(
                f"cannot write below {self.folder}: no space left on the disk", "Free some space, then run again"
            )
        for code, pattern, fix in STOP:
            if re.search(pattern, everything, re.IGNORECASE):
                raise SourceError(f"{self.name} serves nothing more ({code}): {message}", fix)
        for code, pattern in FINAL:
            if re.search(pattern, message, re.IGNORECASE):
                self._failed_in_a_row = 0
                return Refusal(code, message, final=True)
        self._failed_in_a_row += 1
        if self._failed_in_a_row == MAX_FAILED_IN_A_ROW:
            raise SourceError(
                f"{MAX_FAILED_IN_A_ROW} videos of {self.name} failed in a row; the last: {message}",
                "Check the network and the URL, then run again",
            )
        return Refusal("fetch.failed", message, final=False)


class _Warnings:
    """yt-dlp's logger: keeps warnings, which often hold the real reason of an error."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def debug(self, message: str) -> None:
        """Progress is of no interest."""

    def warning(self, message: str) -> None:
        """Keep it for the classification of an error that follows."""
        self.texts.append(_plain(message))

    def error(self, message: str) -> None:
        """Errors arrive as exceptions too."""


def _plain(message: str) -> str:
    """One line without colour codes, prefixes and curly apostrophes."""
    message = re.sub(r"\x1b\[[0-9;]*m", "", message).replace("’", "'")
    message = re.sub(r"^ERROR: (\[[^\]]+\] )?([\w-]{11}: )?", "", message)
    return " ".join(message.partition("; please report this issue")[0].split())
