"""Stand-ins for yt-dlp, for a source and for the clock: a site that serves or refuses each video as a test says."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yt_dlp

from mbt.manifests.clips import Clip, clip_table
from mbt.manifests.labels import Label, LabelSet
from mbt.prep.fetch.clip_states import Fetched
from mbt.prep.fetch.fetch import fetch
from mbt.prep.fetch.lane_pool import ThreadedLanes
from mbt.prep.fetch.lanes import Lane
from mbt.prep.fetch.options import FetchOptions
from mbt.prep.fetch.video_window import Video
from mbt.prep.plan.plan import Plan, write_plan
from mbt.prep.sources.byte_ranges import RawClip
from mbt.prep.sources.ytdlp import Answer, Offer
from mbt.prep.state.failure_codes import Problem, Verdict, classify
from mbt.prep.state.ledger import Effort
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


@dataclass
class Scripted:
    """A source without yt-dlp that answers each request for a clip as a test says.

    Attributes:
        folder: the dataset folder.
        answers: returns why a clip is refused, or None; called with the clip and the number of earlier requests for it.
        requested: keys of the requested clips, in order.
    """

    folder: Path
    answers: Callable[[Clip, int], Verdict | None] = lambda clip, times: None
    requested: list[str] = field(default_factory=list)
    name: str = "site"

    def fetch(self, video_id: str, clips: Sequence[Clip]) -> list[Answer]:
        """Answers up to the first that stops the lane."""
        answers: list[Answer] = []
        for clip in clips:
            refusal = self.answers(clip, self.requested.count(clip.key))
            self.requested.append(clip.key)
            answers.append(Answer(refusal or self._store(clip), Effort()))
            if refusal and refusal.action.stops:
                break
        return answers

    def probe(self, video_id: str) -> Offer | Verdict:
        raise NotImplementedError

    def _store(self, clip: Clip) -> RawClip:
        path = self.folder / "raw" / f"{clip.key}.mkv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"media")
        return RawClip(path, 5, clip.start_ms)


def refusal(text: str) -> Verdict:
    """The verdict on an error message of yt-dlp."""
    return classify(Problem(text))


def plan_of(folder: Path, clips: Iterable[Clip], caps: dict[str, int] | None = None, num_classes: int = 4) -> Path:
    """A dataset folder with a plan of these clips, in this order."""
    labels = LabelSet(tuple(Label(str(i), str(i)) for i in range(num_classes)))
    write_plan(folder, Plan(dataset="d", task="multilabel", caps=caps or {}), labels, clip_table(clips))
    return folder


def videos(count: int, clips_each: int = 1, labels: tuple[int, ...] = (0,)) -> list[Clip]:
    """Clips of `count` videos: v00_0, v00_1000, ..."""
    starts = [1000 * number for number in range(clips_each)]
    return [Clip(f"v{i:02}_{at}", f"v{i:02}", at, at + 1000, "train", labels) for i in range(count) for at in starts]


class Patient(ThreadedLanes[Video]):
    """Lanes that wait in steps of a minute, so that a day by a clock of hand takes little time."""

    poll_s = 60.0


def fetch_all(source: Scripted, clock: Clock, lanes: int = 1, sleep_s: float = 0.0, **options: Any) -> Fetched:
    """Fetch the plan of the source's folder; options are those of `fetch` or of the fetch stage."""
    hooks = {name: options.pop(name) for name in ("settled", "may_request", "note") if name in options}
    made = [Lane(f"lane{number}", source, sleep_s) for number in range(lanes)]
    return fetch(source.folder, made, FetchOptions(**options), clock=clock, make_pool=Patient, **hooks)
