"""Files in a folder behind a URL: over HTTP, through fsspec (s3, gs, file, ...), or from the output of a command."""

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
"""Time that a command has to exit after SIGTERM."""
FETCH_TRIES = 3
READ_TRIES = 8
"""The waits between them add up to a minute, enough for a server to restart."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
SECRETS = re.compile(r"(?<=://)[^/?]*@|\?.*")
"""User and password, and the query of a URL."""

T = TypeVar("T")


class ByteStream(Protocol):
    """A file that is read forward."""

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes, fewer at the end; -1 reads all that are left."""
        ...

    def close(self) -> None:
        """Release the file or connection."""
        ...


def is_url(text: str) -> bool:
    """Whether the text is a URL, not a local path."""
    return "://" in text or text.startswith(PIPE)


def without_secrets(url: str) -> str:
    """A URL without user, password and query, which may be secret; for messages and files."""
    return SECRETS.sub("", url)


def hide_secrets(text: str, url: str) -> str:
    """A text, such as another library's error message, without the secrets of a URL that it may quote."""
    for secret in SECRETS.findall(url):
        for part in (secret, *re.split(r"[:=@?&]", secret)):
            if len(part) > 3:
                text = text.replace(part, "***").replace(unquote(part), "***")
    return text


def file_system(url: str, refusal: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        InputError: fsspec does not support this kind of URL, or a package for it is missing. The message starts with `refusal`.
    """
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        fix = "Install the package for this kind of URL, for example pip install 'mbt[s3]', or choose another URL"
        raise InputError(f"{refusal}: {hide_secrets(str(error), url)}", fix) from None


class Remote:
    """A folder behind a URL.

    Args:
        url: for example `https://host/set` or `s3://bucket/set`; or `pipe:` and a command that writes a file to its standard
            output, with `{}` for the file name. The command is split into words as by a shell, but runs without one.

    Attributes:
        display_url: the URL without password and query, which may be secret; for messages.

    Raises:
        InputError: fsspec does not support this kind of URL, a package for it is missing, or the command has no `{}`.
    """

    def __init__(self, url: str) -> None:
        self.url, self.display_url = url, url if url.startswith(PIPE) else without_secrets(url)
        if url.startswith(PIPE):
            self._command = _command(url)
        elif not url.startswith(HTTP):
            self._files, self._root = file_system(url, f"cannot read from {self.display_url}")

    def fetch(self, name: str, folder: Path) -> None:
        """Copy a file to a local folder.

        Raises:
            ShardError: it is missing, or cannot be read.
            StorageError: the copy cannot be written.
        """

        def content() -> bytes:
            file, _ = self.open(name)
            try:
                return file.read()
            finally:
                file.close()

        data = self.with_retries(name, content, FETCH_TRIES)
        with storage_errors(folder / name):
            (folder / name).write_bytes(data)

    def open(self, name: str, offset: int = 0) -> tuple[ByteStream, int]:
        """Open a file; return it and its position: `offset`, or 0 if the source cannot start there."""
        if NAME.fullmatch(name) is None:
            raise FileNotFoundError(f"{name!r} is not the name of a file in a dataset folder")
        if self.url.startswith(PIPE):
            return _CommandOutput([word.replace("{}", name) for word in self._command]), 0
        if self.url.startswith(HTTP):
            return _http(self.url, name, offset)
        file = self._files.open(f"{self._root.rstrip('/')}/{name}", "rb", block_size=CHUNK)
        file.seek(offset)
        return file, offset

    def with_retries(self, name: str, work: Callable[[], T], tries: int) -> T:
        """The result of `work`, after up to `tries` attempts with growing waits between them.

        Raises:
            ShardError: all attempts fail, or a retry would be useless (missing file, no permission).
        """
        for attempt in range(tries):
            try:
                return work()
            except Exception as error:
                reason = hide_secrets(str(error) or type(error).__name__, self.url)
                if attempt == tries - 1 or _is_final(error):
                    fix = "Check the address, the credentials and the network"
                    raise ShardError(f"cannot read {name} from {self.display_url}: {reason}", fix) from None
                wait = 2**attempt / 2
                tqdm.write(f"{name} from {self.display_url}: {reason}; retrying in {wait:g} s", file=sys.stderr)
                time.sleep(wait)
        raise AssertionError


class RemoteFile:
    """A file in a folder behind a URL, read forward; after a broken connection, reading resumes at the same byte.

    Args:
        remote: the folder.
        name: the file name.
    """

    def __init__(self, remote: Remote, name: str) -> None:
        self.remote, self.name = remote, name
        self._file: ByteStream | None = None
        self._position = 0

    def __enter__(self) -> "RemoteFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, offset: int, size: int) -> bytes:
        """Read `size` bytes at `offset`; the bytes between the previous read and this one are read and discarded.

        Raises:
            ShardError: they cannot be read, or the file ends too early.
        """
        return self.remote.with_retries(self.name, lambda: self._read(offset, size), READ_TRIES)

    def _read(self, offset: int, size: int) -> bytes:
        try:
            if self._file is None or offset < self._position:
                self.close()
                self._file, self._position = self.remote.open(self.name, offset)
            while self._position < offset:
                self._position += len(_read_exactly(self._file, min(offset - self._position, CHUNK)))
            data = _read_exactly(self._file, size)
        except BaseException:
            self.close()
            raise
        self._position += size
        return data


class _CommandOutput:
    """Standard output of a command; `read` raises ConnectionError if the command fails."""

    def __init__(self, command: list[str]) -> None:
        self._command = shlex.join(command)
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes, or all."""
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) != size and (status := self._process.wait(TIMEOUT_S)):
            raise ConnectionError(f"{self._command} exited with status {status}")
        return data

    def close(self) -> None:
        """Terminate the command."""
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
        raise InputError(f"{url} is not a valid command: {error}", "Quote it as for a shell") from None
    if not any("{}" in word for word in words):
        raise InputError(f"{url} has no {{}} for the file name", f"Write for example --data '{PIPE}ssh host cat /shards/{{}}'")
    return words


def _http(url: str, name: str, offset: int) -> tuple[ByteStream, int]:
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
    """Whether a retry would be useless."""
    if isinstance(error, HTTPError):
        return error.code < 500 and error.code not in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
    return isinstance(error, FileNotFoundError | PermissionError)


def _read_exactly(file: ByteStream, size: int) -> bytes:
    parts: list[bytes] = []
    missing = size
    while missing:
        part = file.read(missing)
        if not part:
            raise EOFError(f"it ends {missing:,} bytes too early")
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
