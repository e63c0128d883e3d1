"""Stand-ins for yt-dlp and for the clock: a site that serves or refuses each video as a test says."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yt_dlp

from mbt.prep.workers.clock import Clock


def session(**options: Any) -> Any:
    """yt-dlp's own session, which opens URLs with these options of its API."""
    return yt_dlp.YoutubeDL({"quiet": True, "socket_timeout": 5, **options}, auto_init=False)


YOUTUBE = "ERROR: [youtube] dQw4w9WgXcQ: "


@dataclass
class Site:
    """A stand-in for `yt_dlp.YoutubeDL` that serves every video without an error.

    Attributes:
        errors: the error for a video, and a warning before it, by video id.
        refuses: the error for a request with these options, or None.
        delay_s: seconds of each extraction.
        requested: video ids in the order of their extraction.
        options: options of each extraction.
    """

    errors: dict[str, tuple[str, str]] = field(default_factory=dict)
    refuses: Callable[[dict[str, Any]], str | None] = lambda options: None
    delay_s: float = 0.0
    requested: list[str] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)

    validate_outtmpl = staticmethod(yt_dlp.YoutubeDL.validate_outtmpl)

    def __call__(self, options: dict[str, Any]) -> "Session":
        return Session(self, options)


@dataclass
class Session:
    """One use of the site, as of a `YoutubeDL` object."""

    site: Site
    options: dict[str, Any]

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def extract_info(self, url: str, download: bool) -> dict[str, Any]:
        assert not download
        video = url.rpartition("=")[2]
        self.site.requested.append(video)
        self.site.options.append(self.options)
        time.sleep(self.site.delay_s)
        text, warning = self.site.errors.get(video, (None, None))
        text = self.site.refuses(self.options) or text
        if warning:
            self.options["logger"].warning(warning)
        if text is not None:
            raise yt_dlp.utils.DownloadError(YOUTUBE + text)
        return {}

    def urlopen(self, request: Any) -> Any:
        raise AssertionError("the site has no media")

    def dl(self, name: str, info: dict[str, Any]) -> tuple[bool, bool]:
        Path(name).write_bytes(b"media")
        return True, True


@dataclass
class HandClock(Clock):
    """A clock that moves only when a test moves it, or something waits."""

    now: float = 1_800_000_000.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
