"""What is known about an error that yt-dlp raised."""

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from yt_dlp.networking.exceptions import HTTPError, network_exceptions
from yt_dlp.utils import DownloadError, ExtractorError, GeoRestrictedError, YoutubeDLError

from mbt.prep.state.failure_codes import UNEXPECTED, Problem, plain

MEDIA_ERROR = re.compile(r"unable to download video data|\[download\] Got error|fragment \d+ not found", re.IGNORECASE)
"""How yt-dlp's messages about the transfer of the media begin."""


def problem_of(error: Exception, warnings: Sequence[str] = ()) -> Problem:
    """What is known about an exception that yt-dlp raised: a DownloadError, or whatever a bug in an extractor raises.

    Args:
        error: the exception.
        warnings: yt-dlp's warnings before it.
    """
    errors = causes(error)
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
    message = _without_secrets(plain(message))
    host = urlsplit(http.response.url).hostname if http else None
    return Problem(
        message=message,
        kind=frozenset(kind),
        status=http.status if http else None,
        countries=tuple(region.countries or ()) if region else (),
        warnings=tuple(_without_secrets(plain(text)) for text in warnings),
        url_is_media=bool(MEDIA_ERROR.match(message)) or (host or "").endswith(".googlevideo.com"),
        extractor=(extraction and extraction.ie) or Problem.extractor,
    )


def causes(error: BaseException) -> list[BaseException]:
    """The error and the errors that led to it, nearest first.

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


def _without_secrets(message: str) -> str:
    """A message whose URLs have no credentials and no query, which may be signed; a YouTube id is kept."""
    message = re.sub(r"://[^/@\s]*@", "://", message)
    return re.sub(r"(/[^\s?'\"]*\?)(?!v=)[^\s'\")]+", r"\1...", message)
