"""yt-dlp as a source: clips of the videos at a URL template, at about 360 pixels, in their original codecs."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import yt_dlp
import yt_dlp_ejs
from yt_dlp.globals import supported_js_runtimes
from yt_dlp.utils import YoutubeDLError

from mbt.manifests.clips import Clip
from mbt.manifests.errors import InputError, MbtError, StorageError
from mbt.prep.media.ffmpeg import ClipError
from mbt.prep.sources.byte_ranges import RawClip, Source, fetch_clip
from mbt.prep.sources.http_ranges import MediaClient, TransferError, TransferLimits
from mbt.prep.sources.problems import problem_of
from mbt.prep.sources.whole_file import DEFAULT_LIMITS as WHOLE_LIMITS
from mbt.prep.sources.whole_file import OPTIONS, Meter, fetch_whole
from mbt.prep.sources.ytdlp_flags import parse_flags
from mbt.prep.state.failure_codes import SEVERAL_VIDEOS, Problem, Verdict, classify, plain, verdict_of
from mbt.prep.state.ledger import Effort

PLACEHOLDER = "{video_id}"
OVER_HTTPS = "[protocol^=http][protocol!*=dash]"
FORMAT = "/".join(
    (
        f"bv{OVER_HTTPS}+ba{OVER_HTTPS}[format_id!*=drc]",
        f"bv{OVER_HTTPS}+ba{OVER_HTTPS}",
        f"b{OVER_HTTPS}",
        "bv+ba",
        "b",
    )
)
"""Pictures and sound in separate files, whose byte ranges can be read; otherwise one file; otherwise streams. Sound without
compressed dynamic range (drc) comes first."""
FORMAT_SORT = "lang,res:360,vcodec:h264,hdr:sdr,fps:30,quality,acodec:aac"
"""The original language; about 360 pixels on the short side; H.264 and AAC, which cost the least to decode."""
FLAGS = (
    *("--format", FORMAT, "--format-sort", FORMAT_SORT, "--no-geo-bypass", "--socket-timeout", "20"),
    *("--no-playlist", "--quiet"),
)
"""Our flags of yt-dlp. The user's may override those in the first line."""
MAX_WAIT_S = 60.0
MAX_NAME = 200
"""Characters of a file name without its suffix; a longer one is replaced by its SHA-256."""
NO_SPACE = "No space left on device"
UNFINISHED = frozenset({"is_live", "post_live"})
"""States of a live stream whose recording is missing or incomplete."""


@dataclass(frozen=True)
class Offer:
    """What a site offers for a video.

    Attributes:
        num_formats: number of available formats.
        chosen: yt-dlp's description of the formats that would be fetched.
        by_ranges: whether only the byte ranges of the clips would be fetched, not the whole video.
        warnings: yt-dlp's warnings, as `plain` text.
    """

    num_formats: int
    chosen: str
    by_ranges: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Deno:
    """The JavaScript runtime that yt-dlp uses.

    Attributes:
        path: path by which yt-dlp runs it.
        version: such as 2.9.8.
        supported: whether yt-dlp supports this version.
    """

    path: str
    version: str
    supported: bool


@dataclass(frozen=True)
class Answer:
    """The result of requesting a clip, and what the request cost."""

    result: RawClip | Verdict
    effort: Effort


class YtDlp:
    """Fetches clips of videos; `template` with its `{video_id}` replaced is the URL of a video. Not thread-safe.

    yt-dlp extracts the URLs of the media. Where pictures and sound are in separate files, as on YouTube, only the byte ranges
    of the clips are fetched; other videos are downloaded whole by yt-dlp. Both go below `folder`/raw.

    Args:
        folder: the dataset folder.
        template: URL with the placeholder `{video_id}`.
        options: yt-dlp options by their names in its API, as `parse_ytdlp` gives them; they apply to pages and media.

    Raises:
        InputError: the template has no placeholder, or a scheme other than http and https.
    """

    def __init__(self, folder: Path, template: str, options: Mapping[str, Any] | None = None) -> None:
        if PLACEHOLDER not in template:
            raise InputError(
                f"the URL template {template!r} lacks {PLACEHOLDER}", f"Give one such as https://example.org/{PLACEHOLDER}.mp4"
            )
        if "://" in template and (scheme := urlsplit(template).scheme) not in ("http", "https"):
            raise InputError(
                f"the URL template {template!r} has the scheme {scheme!r}", "Give a URL that begins with https:// or http://"
            )
        self.folder = folder
        self.template = template
        self.name = urlsplit(template).hostname or "url"
        self._warnings = _Warnings()
        self._options: dict[str, Any] = {
            **parse_ytdlp(()),
            **(options or {}),
            **OPTIONS,
            "logger": self._warnings,
        }

    def fetch(self, video_id: str, clips: Sequence[Clip]) -> list[Answer]:
        """The result of each clip of a video, from one extraction; after one that stops the lane, the others are not requested.

        Raises:
            StorageError: no space left.
        """
        effort = Effort(versions=versions())
        began = time.monotonic()
        try:
            with yt_dlp.YoutubeDL(dict(self._options)) as downloader:
                info = self._extract(downloader, video_id)
                effort = replace(effort, extract_s=time.monotonic() - began, warnings=self._warnings.plain())
                if isinstance(info, Problem):
                    return _same_for_all(Answer(classify(info), effort), clips)
                offered = ",".join(str(each["format_id"]) for each in info.get("formats") or ())
                effort = replace(effort, offered=offered, formats=str(info.get("format_id", "")))
                effort = replace(effort, wait_s=_wait_until_available(info))
                if (sources := _sources(info)) is None:
                    return _same_for_all(self._download(downloader, info, video_id, effort), clips)
                client = MediaClient(downloader.urlopen, TransferLimits(stall_s=self._options["socket_timeout"]))
                return self._fetch_clips(clips, *sources, client, effort)
        except MbtError:
            raise
        except Exception as error:
            if NO_SPACE in str(error):
                fix = "Free some space, then run again"
                raise StorageError(f"cannot write below {self.folder}: no space left on the disk", fix) from None
            problem = problem_of(error, self._warnings.texts)
            extract_s = effort.extract_s or time.monotonic() - began
            effort = replace(effort, extract_s=extract_s, warnings=self._warnings.plain(), http_status=problem.status)
            return _same_for_all(Answer(classify(problem), effort), clips)

    def probe(self, video_id: str) -> Offer | Verdict:
        """What the site offers for a video, or why it offers nothing; no media are downloaded."""
        try:
            with yt_dlp.YoutubeDL(dict(self._options)) as downloader:
                info = self._extract(downloader, video_id)
            if isinstance(info, Problem):
                return classify(info)
            return Offer(len(info["formats"]), info["format"], _sources(info) is not None, self._warnings.plain())
        except Exception as error:
            return classify(problem_of(error, self._warnings.texts))

    def _extract(self, downloader: Any, video_id: str) -> Mapping[str, Any] | Problem:
        """yt-dlp's description of a video, or why the video cannot be fetched."""
        self._warnings.texts.clear()
        info = downloader.extract_info(self.template.replace(PLACEHOLDER, video_id), download=False)
        if info is None or "entries" in info:
            return Problem(SEVERAL_VIDEOS)
        if info.get("live_status") in UNFINISHED:
            return Problem("the video is a live stream that has not ended", frozenset({info["live_status"]}))
        return info

    def _download(self, downloader: Any, info: Mapping[str, Any], video_id: str, effort: Effort) -> Answer:
        """Download a whole video with yt-dlp."""
        began = time.monotonic()
        meter = Meter(downloader.urlopen, self._options["socket_timeout"], WHOLE_LIMITS)
        result: RawClip | Verdict
        status = None
        try:
            result = fetch_whole(downloader, info, self._raw(video_id, _file_name(video_id)), meter, WHOLE_LIMITS)
        except (TransferError, ClipError) as error:
            result = verdict_of(error.code, error.message)
        except YoutubeDLError as error:
            if NO_SPACE in str(error):
                raise
            problem = replace(problem_of(error, self._warnings.texts), url_is_media=True)
            result, status = classify(problem), problem.status
        effort = replace(
            effort,
            http_status=status,
            requests=meter.requests,
            transferred=meter.transferred,
            transfer_s=time.monotonic() - began,
        )
        return Answer(result, effort)

    def _fetch_clips(
        self, clips: Sequence[Clip], video: Source, audio: Source, client: MediaClient, effort: Effort
    ) -> list[Answer]:
        """Fetch the byte ranges of clips, up to the first that stops the lane; the extraction's effort counts for the first."""
        answers: list[Answer] = []
        for clip in clips:
            answers.append(self._fetch_clip(clip, video, audio, client, effort))
            effort = replace(effort, extract_s=0.0, wait_s=0.0)
            if isinstance(answers[-1].result, Verdict) and answers[-1].result.action.stops:
                break
        return answers

    def _fetch_clip(self, clip: Clip, video: Source, audio: Source, client: MediaClient, effort: Effort) -> Answer:
        target = self._raw(clip.video_id, f"{clip.key}.mkv")
        began, requests, transferred = time.monotonic(), client.requests, client.transferred
        result: RawClip | Verdict
        status = None
        try:
            result = fetch_clip(video, audio, clip.start_ms / 1000, clip.end_ms / 1000, target, client)
        except (TransferError, ClipError) as error:
            result = verdict_of(error.code, error.message)
            status = error.status if isinstance(error, TransferError) else None
        effort = replace(
            effort,
            http_status=status,
            requests=client.requests - requests,
            transferred=client.transferred - transferred,
            transfer_s=time.monotonic() - began,
        )
        return Answer(result, effort)

    def _raw(self, video_id: str, name: str) -> Path:
        """A path below raw/, in a folder named after the first two characters of the video id."""
        return self.folder / "raw" / _file_name(video_id[:2]) / name


def _file_name(text: str) -> str:
    """The text as part of a file name: unchanged if it has only letters, digits, `_` and `-`, as YouTube's ids do."""
    name = quote(text, safe="").replace(".", "%2E").replace("~", "%7E")
    return name if len(name) <= MAX_NAME else hashlib.sha256(text.encode()).hexdigest()


def _same_for_all(answer: Answer, clips: Sequence[Clip]) -> list[Answer]:
    """One answer for all clips of a video; its effort counts for the first clip."""
    nothing = replace(answer.effort, requests=0, transferred=0, extract_s=0.0, wait_s=0.0, transfer_s=0.0)
    return [answer, *[replace(answer, effort=nothing)] * (len(clips) - 1)]


def _sources(info: Mapping[str, Any]) -> tuple[Source, Source] | None:
    """The chosen files with the pictures and with the sound; None unless they are two files that serve byte ranges."""
    formats = info.get("requested_formats") or []
    if len(formats) != 2 or any(each.get("protocol") not in ("http", "https") for each in formats):
        return None
    video, audio = (Source(each["url"], each.get("http_headers") or {}, each.get("filesize")) for each in formats)
    return video, audio


def _wait_until_available(info: Mapping[str, Any]) -> float:
    """Wait as long as the site demands before its media may be requested; return the seconds."""
    times = [each.get("available_at") or 0 for each in info.get("requested_formats") or [info]]
    wait_s = min(max(max(times) - time.time(), 0.0), MAX_WAIT_S)
    time.sleep(wait_s)
    return wait_s


class _Warnings:
    """yt-dlp's logger: keeps warnings, which often hold the real reason for an error."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def plain(self) -> tuple[str, ...]:
        """The warnings as plain text."""
        return tuple(map(plain, self.texts))

    def debug(self, message: str) -> None:
        """Ignore progress."""

    def warning(self, message: str) -> None:
        """Keep a warning, for the classification of an error that follows."""
        self.texts.append(message)

    def error(self, message: str) -> None:
        """Ignore errors: they are raised too."""


def parse_ytdlp(texts: Sequence[str], where: str = "--ytdlp") -> dict[str, Any]:
    """yt-dlp options from texts with its command-line flags, and from ours; `parse_flags` says what is refused."""
    return parse_flags(FLAGS, texts, where)


@cache
def versions() -> str:
    """Versions of yt-dlp, its JavaScript part and deno, for the ledger."""
    deno = find_deno()
    return f"yt-dlp {yt_dlp.version.__version__}, ejs {yt_dlp_ejs.version}, deno {deno.version if deno else 'none'}"


def find_deno() -> Deno | None:
    """The deno that yt-dlp finds, in the environment's bin folder or on PATH."""
    info = supported_js_runtimes.value["deno"]().info
    return info and Deno(info.path, info.version, info.supported)
