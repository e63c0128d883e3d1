"""Remove from texts what is nobody else's business: secrets, addresses, folders and names of the user and the machine."""

import getpass
import platform
import re
import shlex
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mbt.prep.fetch.options import FetchOptions

PRIVATE = "<private>"
MIN_LENGTH = 3
"""Characters; shorter private strings are too common in other words' places."""
PUBLIC_HOSTS = r"(?:[\w-]+\.)*(?:youtube\.com|youtu\.be|googlevideo\.com|googleapis\.com|ytimg\.com|google\.com|github\.com)"
PATTERNS = (
    (re.compile(rf"(\w[\w+.-]*://)(?:[^\s/@'\"]*@)?({PUBLIC_HOSTS})(?![\w.-])[^\s'\"<>)\]]*"), r"\1\2/..."),
    (re.compile(r"(\w[\w+.-]*://)(?!(?:[\w-]+\.)+[a-z]+/\.\.\.)[^\s'\"<>)\]]+"), rf"\1{PRIVATE}"),
    (
        re.compile(
            r"(?i)\b(cookies?|authorization|x-goog-[\w-]+|visitor_?data|po_?token|password|token)\b[\"']?\s*[:=]\s*\S.*"
        ),
        rf"\1: {PRIVATE}",
    ),
    (re.compile(r"(?<![\w:/.<])~?/[^\s'\":,;)\]]+"), PRIVATE),
    (re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])(?::\d+)?"), PRIVATE),
    (re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{0,4}(?![\w:])"), PRIVATE),
    (re.compile(r"[A-Za-z0-9_%=-]{32,}"), PRIVATE),
)
"""URLs (of YouTube's, the host is kept), headers and tokens by name, absolute paths, IP addresses, long random strings."""


class Redactor:
    """Replaces private parts of texts.

    Args:
        private: strings that must not be in any text, such as paths and values of options.
    """

    def __init__(self, private: Iterable[str]) -> None:
        found = {text for text in (*private, *_surroundings()) if len(text) >= MIN_LENGTH}
        longest_first = sorted(found, key=lambda text: (-len(text), text))
        self._private = re.compile("|".join(rf"(?<!\w){re.escape(text)}(?!\w)" for text in longest_first))

    def __call__(self, text: str) -> str:
        """The text without its private parts."""
        text = self._private.sub(PRIVATE, text)
        for pattern, replacement in PATTERNS:
            text = pattern.sub(replacement, text)
        return re.sub(rf"{PRIVATE}(?:[/:@]?{PRIVATE})+", PRIVATE, text)


def _surroundings() -> Iterator[str]:
    yield from (str(Path.home()), str(Path.cwd()), tempfile.gettempdir(), platform.node())
    try:
        yield getpass.getuser()
    except (KeyError, OSError):  # A user without an entry in the password file, as in some containers.
        return


def option_names(options: FetchOptions) -> list[str]:
    """The names of the yt-dlp flags that are set for any lane."""
    return sorted({name for text in _given(options) for name in re.findall(r"(?:^|\s)(--?[a-z][\w-]*)", text)})


def private_values(options: FetchOptions) -> Iterator[str]:
    """The values of all flags and settings, with the parts of URLs and the longer words among them."""
    words = [word.rpartition("=")[2] for text in _given(options) for word in _words(text) if not word.isdecimal()]
    for value in [*words, str(options.lanes or ""), *([options.source] if not is_youtube(options.source) else [])]:
        yield value
        yield from re.findall(r"[\w+./%-]{8,}", value)
        if "://" in value:
            parts = urlsplit(value)
            address = parts.netloc.rpartition("@")[2]
            yield from (part for part in (parts.netloc, address, parts.hostname, parts.username, parts.password) if part)


def _words(text: str) -> list[str]:
    """The words of a command line, without flags that have no value in the same word."""
    try:
        words = shlex.split(text)
    except ValueError:  # Such as the closing quote of a name.
        words = text.split()
    return [word for word in words if "=" in word or not word.startswith("-")]


def is_youtube(source: str) -> bool:
    """Whether a URL is one of YouTube's."""
    host = urlsplit(source).hostname or ""
    return host == "youtube.com" or host.endswith(".youtube.com")


def _given(options: FetchOptions) -> Iterator[str]:
    """The texts in `--ytdlp` and in the lanes file, which has been checked before."""
    yield from options.ytdlp
    if options.lanes is not None:
        yield from _texts(tomllib.loads(options.lanes.read_text(encoding="utf-8")))


def _texts(value: Any) -> Iterator[str]:
    """All strings in a TOML value."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield value
