"""Files of a folder behind a URL: over HTTP, by what fsspec knows (s3, gs, file, ...), or from the output of a command."""

import re
import shlex
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit, urlunsplit

import fsspec
from tqdm import tqdm

from mbt.manifests.atomic import storage_errors
from mbt.manifests.errors import InputError, ShardError

PIPE, HTTP = "pipe:", ("http://", "https://")
CHUNK = 8 << 20
TIMEOUT_S = 30
STOP_S = 5
"""What a command gets to end by itself."""
FETCH_TRIES = 3
READ_TRIES = 8
"""Their waits add up to a minute, in which a server may start again."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
SECRETS = re.compile(r"(?<=://)[^/@]*@|\?.*")

T = TypeVar("T")


class Bytes(Protocol):
    """A file that is read forwards."""

    def read(self, size: int = -1, /) -> bytes:
        """So many bytes, or fewer where it ends; -1: all that are left."""
        ...

    def close(self) -> None:
        """Give it up."""
        ...


def is_url(text: str) -> bool:
    """Whether this names a folder behind a URL, not one of this machine."""
    return "://" in text or text.startswith(PIPE)


def file_system(url: str, refusal: str) -> tuple[Any, str]:
    """What fsspec reads and writes the URL by, and the path there.

    Raises:
        InputError: it knows no such kind of URL or lacks what it needs for it; begins with `refusal`.
    """
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        fix = "Install what it needs, such as pip install 'mbt[s3]', or choose another URL"
        raise InputError(f"{refusal}: {error}", fix) from None


class Remote:
    """A folder behind a URL.

    Args:
        url: such as `https://host/set` or `s3://bucket/set`; or `pipe:` and a command that writes the file whose name takes
            the place of `{}` to its standard output. The command is split as a shell does it, and no shell is started.

    Attributes:
        shown: the URL for people, without password and query, which may be secrets.

    Raises:
        InputError: fsspec knows no such kind of URL or lacks what it needs for it, or the command has no `{}`.
    """

    def __init__(self, url: str) -> None:
        self.url, self.shown = url, url if url.startswith(PIPE) else SECRETS.sub("", url)
        if url.startswith(PIPE):
            self._command = _command(url)
        elif not url.startswith(HTTP):
            self._files, self._root = file_system(url, f"cannot read from {self.shown}")

    def fetch(self, name: str, folder: Path) -> None:
        """Copy a file into a folder.

        Raises:
            ShardError: it is not there, or cannot be read.
            StorageError: the copy cannot be written.
        """

        def whole() -> bytes:
            file, _ = self.open(name)
            try:
                return file.read()
            finally:
                file.close()

        data = self.retried(name, whole, FETCH_TRIES)
        with storage_errors(folder / name):
            (folder / name).write_bytes(data)

    def open(self, name: str, offset: int = 0) -> tuple[Bytes, int]:
        """The file, and at which byte it stands: at `offset`, or at 0 where it cannot begin there."""
        if NAME.fullmatch(name) is None:
            raise FileNotFoundError(f"{name!r} is no name of a file in a dataset folder")
        if self.url.startswith(PIPE):
            return _Output([word.replace("{}", name) for word in self._command]), 0
        if self.url.startswith(HTTP):
            return _http(self.url, name, offset)
        file = self._files.open(f"{self._root.rstrip('/')}/{name}", "rb", block_size=CHUNK)
        file.seek(offset)
        return file, offset

    def retried(self, name: str, work: Callable[[], T], tries: int) -> T:
        """What `work` gives, in so many tries with growing waits.

        Raises:
            ShardError: none succeeds, or the file is not there.
        """
        for attempt in range(tries):
            try:
                return work()
            except Exception as error:
                reason = str(error) or type(error).__name__
                if attempt == tries - 1 or _is_final(error):
                    fix = "Check the address, the credentials and the network"
                    raise ShardError(f"cannot read {name} of {self.shown}: {reason}", fix) from error
                wait = 2**attempt / 2
                tqdm.write(f"{name} of {self.shown}: {reason}; trying again in {wait:g} s", file=sys.stderr)
                time.sleep(wait)
        raise AssertionError


class RemoteFile:
    """A file of a folder behind a URL, read forwards; a connection that breaks is made anew where it broke.

    Args:
        remote: the folder.
        name: the file.
    """

    def __init__(self, remote: Remote, name: str) -> None:
        self.remote, self.name = remote, name
        self._file: Bytes | None = None
        self._at = 0

    def __enter__(self) -> "RemoteFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up the connection."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from `offset` on; what lies between the last read and this one is read over.

        Raises:
            ShardError: they cannot be read, or the file ends before.
        """
        return self.remote.retried(self.name, lambda: self._read(offset, size), READ_TRIES)

    def _read(self, offset: int, size: int) -> bytes:
        try:
            if self._file is None or offset < self._at:
                self.close()
                self._file, self._at = self.remote.open(self.name, offset)
            while self._at < offset:
                self._at += len(_exactly(self._file, min(offset - self._at, CHUNK)))
            data = _exactly(self._file, size)
        except BaseException:
            self.close()
            raise
        self._at += size
        return data


class _Output:
    """Standard output of a command; that the command fails is an error of reading."""

    def __init__(self, command: list[str]) -> None:
        self._command = shlex.join(command)
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    def read(self, size: int = -1) -> bytes:
        """So many bytes, or all."""
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) != size and (status := self._process.wait(TIMEOUT_S)):
            raise ConnectionError(f"{self._command} ended with status {status}")
        return data

    def close(self) -> None:
        """End the command."""
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _command(url: str) -> list[str]:
    try:
        words = shlex.split(url.removeprefix(PIPE))
    except ValueError as error:
        raise InputError(f"{url} is no command: {error}", "Quote it as for a shell") from None
    if not any("{}" in word for word in words):
        raise InputError(f"{url} has no {{}} for a file's name", f"Such as --data '{PIPE}ssh host cat /shards/{{}}'")
    return words


def _http(url: str, name: str, offset: int) -> tuple[Bytes, int]:
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    address = urlunsplit(parts._replace(netloc=host, path=f"{parts.path.rstrip('/')}/{name}"))
    headers = {"User-Agent": "mbt"} | ({"Range": f"bytes={offset}-"} if offset else {})
    if user:
        headers["Authorization"] = f"Basic {b64encode(unquote(user).encode()).decode()}"
    request = urllib.request.Request(address, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except HTTPError as error:
        error.close()
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        raise EOFError(f"it ends before byte {offset:,}") from error
    return response, offset if response.status == HTTPStatus.PARTIAL_CONTENT else 0


def _is_final(error: Exception) -> bool:
    """Whether trying again is no use."""
    if isinstance(error, HTTPError):
        return error.code < 500 and error.code not in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
    return isinstance(error, FileNotFoundError | PermissionError)


def _exactly(file: Bytes, size: int) -> bytes:
    parts: list[bytes] = []
    missing = size
    while missing:
        part = file.read(missing)
        if not part:
            raise EOFError(f"it ends {missing:,} bytes too early")
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
