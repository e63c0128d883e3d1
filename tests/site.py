"""In the place of yt-dlp and of the clock: a site that says what a test wants of each video."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yt_dlp

YOUTUBE = "ERROR: [youtube] dQw4w9WgXcQ: "


@dataclass
class Site:
    """In the place of `yt_dlp.YoutubeDL`: serves every video of which nothing else is said.

    Attributes:
        says: the error for a video, and a warning before it.
        refuses: the error for whoever asks with these options now, or None.
        takes_s: seconds of each extraction.
        asked: ids that were extracted, in order.
        options: of each extraction.
    """

    says: dict[str, tuple[str, str]] = field(default_factory=dict)
    refuses: Callable[[dict[str, Any]], str | None] = lambda options: None
    takes_s: float = 0.0
    asked: list[str] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)

    validate_outtmpl = staticmethod(yt_dlp.YoutubeDL.validate_outtmpl)

    def __call__(self, options: dict[str, Any]) -> "Session":
        return Session(self, options)


@dataclass
class Session:
    """One use of the site."""

    site: Site
    options: dict[str, Any]

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def extract_info(self, url: str, download: bool) -> dict[str, Any]:
        assert not download
        video = url.rpartition("=")[2]
        self.site.asked.append(video)
        self.site.options.append(self.options)
        time.sleep(self.site.takes_s)
        text, warning = self.site.says.get(video, (None, None))
        text = self.site.refuses(self.options) or text
        if warning:
            self.options["logger"].warning(warning)
        if text is not None:
            raise yt_dlp.utils.DownloadError(YOUTUBE + text)
        return {}

    def process_ie_result(self, info: dict[str, Any], download: bool) -> dict[str, Any]:
        assert download
        path = Path(self.options["outtmpl"]["default"].replace("%(ext)s", "mp4"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"media")
        return {"requested_downloads": [{"filepath": str(path)}]}


@dataclass
class Clock:
    """The time of fetching."""

    now: float = 1_800_000_000.0

    def time(self) -> float:
        return self.now
