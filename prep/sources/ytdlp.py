"""yt-dlp as a source: clips of the videos at a URL template, at about 360 pixels, in their original codecs."""

import difflib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yt_dlp
import yt_dlp_ejs
from yt_dlp.globals import supported_js_runtimes
from yt_dlp.networking.exceptions import HTTPError, network_exceptions
from yt_dlp.utils import DownloadError, ExtractorError, GeoRestrictedError, YoutubeDLError

from mbt.manifests.clips import Clip
from mbt.manifests.errors import InputError, MbtError, StorageError
from mbt.manifests.toml_value import toml_value
from mbt.prep.media.ffmpeg import ClipError, ffmpeg
from mbt.prep.sources.byte_ranges import RawClip, Source, fetch_clip
from mbt.prep.sources.http_ranges import MediaClient, TransferError
from mbt.prep.state.failure_codes import SEVERAL_VIDEOS, UNEXPECTED, Problem, Verdict, classify, plain, verdict_of
from mbt.prep.state.ledger import Effort

PLACEHOLDER = "{video_id}"
FORMAT_SORT = ["res:360", "vcodec:h264", "acodec:aac", "proto:https", "+size"]
MAX_WAIT_S = 60.0
UNFINISHED = frozenset({"is_live", "post_live"})
"""States of a live stream whose recording is missing or incomplete."""
MEDIA_ERROR = re.compile(r"unable to download video data|\[download\] Got error|fragment \d+ not found", re.IGNORECASE)
"""How yt-dlp's messages about the transfer of the media begin."""


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
        options: yt-dlp options that override ours; `proxy` and `source_address` apply to the media too.

    Raises:
        InputError: the template has no placeholder, or media cannot be fetched through the proxy.
    """

    def __init__(self, folder: Path, template: str, options: Mapping[str, Any] | None = None) -> None:
        if PLACEHOLDER not in template:
            raise InputError(
                f"the URL template {template!r} lacks {PLACEHOLDER}", f"Give one such as https://example.org/{PLACEHOLDER}.mp4"
            )
        self.folder = folder
        self.template = template
        self.name = urlsplit(template).hostname or "url"
        self._warnings = _Warnings()
        self._options: dict[str, Any] = {
            "format": "bv*+ba/b",
            "format_sort": FORMAT_SORT,
            "ffmpeg_location": ffmpeg(),
            "geo_bypass": False,
            "logger": self._warnings,
            "noplaylist": True,
            "noprogress": True,
            "quiet": True,
            "retries": 5,
            "socket_timeout": 30,
            **(options or {}),
        }
        self._client = MediaClient(self._options.get("proxy"), source_address=self._options.get("source_address"))

    def fetch(self, video_id: str, clips: Sequence[Clip]) -> list[Answer]:
        """The result of each clip of a video, from one extraction; after one that stops the lane, the others are not requested.

        Raises:
            StorageError: no space left.
        """
        target = self.folder / "raw" / video_id[:2] / f"{video_id}.%(ext)s"
        effort = Effort(versions=versions())
        began = time.monotonic()
        try:
            with yt_dlp.YoutubeDL({**self._options, "outtmpl": {"default": str(target)}}) as downloader:
                info = self._extract(downloader, video_id)
                effort = replace(effort, extract_s=time.monotonic() - began, warnings=self._warnings.plain())
                if isinstance(info, Problem):
                    return _same_for_all(Answer(classify(info), effort), clips)
                offered = ",".join(str(each["format_id"]) for each in info.get("formats") or ())
                effort = replace(effort, offered=offered, formats=str(info.get("format_id", "")))
                if (sources := _sources(info)) is None:
                    return _same_for_all(self._download(downloader, info, effort), clips)
                effort = replace(effort, wait_s=_wait_until_available(info))
                return self._fetch_clips(clips, *sources, effort)
        except MbtError:
            raise
        except Exception as error:
            if "No space left on device" in str(error):
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

    def _download(self, downloader: Any, info: Mapping[str, Any], effort: Effort) -> Answer:
        """Download a whole video with yt-dlp."""
        began = time.monotonic()
        downloaded = downloader.process_ie_result(info, download=True)
        path = Path(downloaded["requested_downloads"][0]["filepath"])
        size = path.stat().st_size
        effort = replace(effort, requests=1, transferred=size, transfer_s=time.monotonic() - began)
        return Answer(RawClip(path, size, 0), effort)

    def _fetch_clips(self, clips: Sequence[Clip], video: Source, audio: Source, effort: Effort) -> list[Answer]:
        """Fetch the byte ranges of clips, up to the first that stops the lane; the extraction's effort counts for the first."""
        answers: list[Answer] = []
        for clip in clips:
            answers.append(self._fetch_clip(clip, video, audio, effort))
            effort = replace(effort, extract_s=0.0, wait_s=0.0)
            if isinstance(answers[-1].result, Verdict) and answers[-1].result.action.stops:
                break
        return answers

    def _fetch_clip(self, clip: Clip, video: Source, audio: Source, effort: Effort) -> Answer:
        target = self.folder / "raw" / clip.video_id[:2] / f"{clip.key}.mkv"
        began, requests, transferred = time.monotonic(), self._client.requests, self._client.transferred
        result: RawClip | Verdict
        status = None
        try:
            result = fetch_clip(video, audio, clip.start_ms / 1000, clip.end_ms / 1000, target, self._client)
        except (TransferError, ClipError) as error:
            result = verdict_of(error.code, error.message)
            status = error.status if isinstance(error, TransferError) else None
        effort = replace(
            effort,
            http_status=status,
            requests=self._client.requests - requests,
            transferred=self._client.transferred - transferred,
            transfer_s=time.monotonic() - began,
        )
        return Answer(result, effort)


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
    times = [each.get("available_at") or 0 for each in info["requested_formats"]]
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


def parse_options(settings: Sequence[str]) -> dict[str, Any]:
    """yt-dlp options from `OPTION=VALUE` settings.

    Raises:
        InputError: a setting has no value, or yt-dlp has no such option.
    """
    pairs = [setting.partition("=") for setting in settings]
    if wrong := next((name for name, equals, _ in pairs if not equals), None):
        raise InputError(f"--ytdlp {wrong} has no value", "Give it as OPTION=VALUE")
    return check_options({name.strip(): toml_value(value.strip()) for name, _, value in pairs}, "--ytdlp")


def check_options(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options, if yt-dlp has all of them.

    Raises:
        InputError: yt-dlp has no such option; the message begins with `where`.
    """
    known_options = yt_dlp.parse_options([]).ydl_opts if options else {}
    for name in options:
        if name not in known_options:
            near = difflib.get_close_matches(name, known_options, n=1)
            fix = f"Did you mean {near[0]}?" if near else "Use the names of yt-dlp's Python API, such as cookiefile"
            raise InputError(f"{where}: yt-dlp has no option {name}", fix)
    return dict(options)


@cache
def versions() -> str:
    """Versions of yt-dlp, its JavaScript part and deno, for the ledger."""
    deno = find_deno()
    return f"yt-dlp {yt_dlp.version.__version__}, ejs {yt_dlp_ejs.version}, deno {deno.version if deno else 'none'}"


def find_deno() -> Deno | None:
    """The deno that yt-dlp finds, in the environment's bin folder or on PATH."""
    info = supported_js_runtimes.value["deno"]().info
    return info and Deno(info.path, info.version, info.supported)


def problem_of(error: Exception, warnings: Sequence[str] = ()) -> Problem:
    """What is known about an exception that yt-dlp raised: a DownloadError, or whatever a bug in an extractor raises.

    Args:
        error: the exception.
        warnings: yt-dlp's warnings before it.
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
        url_is_media=bool(MEDIA_ERROR.match(message)) or (host or "").endswith(".googlevideo.com"),
        extractor=(extraction and extraction.ie) or Problem.extractor,
    )


def _causes(error: BaseException) -> list[BaseException]:
    """The error and the errors that led to it.

    The context of an ExtractorError is skipped: it may have been raised while an unrelated error was handled.
    """
    found: list[BaseException] = []
    pending: list[object] = [error]
    while pending:
        candidate = pending.pop(0)
        if not isinstance(candidate, BaseException) or candidate in found:
            continue
        found.append(candidate)
        pending += [getattr(candidate, "cause", None), candidate.__cause__]
        if isinstance(candidate, DownloadError) and not candidate.__context__:
            pending += (candidate.exc_info or ())[1:2]
        if not isinstance(candidate, ExtractorError):
            pending.append(candidate.__context__)
    return found
