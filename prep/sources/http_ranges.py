"""Byte ranges of media files over HTTP(S): small requests, exact checks, and typed errors."""

import errno
import http.client
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from yt_dlp.networking import Request, Response
from yt_dlp.networking.exceptions import HTTPError, IncompleteRead, ProxyError, RequestError, SSLError, TransportError
from yt_dlp.socks import ProxyError as SocksProxyError

from mbt.prep.sources.problems import causes

MAX_RANGE = 10_000_000
"""Maximum bytes per request: media servers throttle larger ones."""
CHUNK = 1 << 16
TRANSIENT = frozenset({"bytes.short", "net.5xx", "net.dns", "net.reset", "net.timeout", "net.unreachable"})
"""Errors after which the missing bytes are requested again at once."""
STATUS_CODES = {
    **{403: "bytes.403", 404: "bytes.gone", 410: "bytes.gone", 416: "bytes.416"},
    **{402: "rate.429", 429: "rate.429", 407: "net.proxy", 408: "net.5xx"},
}
UNREACHABLE = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EHOSTDOWN})


class TransferError(Exception):
    """Bytes could not be read.

    Attributes:
        code: `bytes.403`, `bytes.gone` (404, 410), `bytes.416`, `bytes.short`, `bytes.slow`, `bytes.large` (more than the
            maximum), `bytes.wrong` (a response that does not fit the request), `rate.429` (429, 402), `net.reset`,
            `net.timeout`, `net.5xx`, `net.dns`, `net.unreachable`, `net.proxy` or `net.tls`.
        status: the HTTP status, if there was one.
        message: the error in words, without the signed part of the URL.
    """

    def __init__(self, code: str, status: int | None, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.status = status
        self.message = message


@dataclass(frozen=True)
class TransferLimits:
    """Timeouts, minimum speed and retries.

    Attributes:
        stall_s: seconds to connect, and for each read from the network; also the period over which the speed is measured.
        slow_bytes_s: minimum speed, bytes per second.
        tries: attempts per read, including the first.
        backoff_s: seconds before the second attempt, randomly varied by up to 50%; doubled for each further attempt.
    """

    stall_s: float = 20.0
    slow_bytes_s: int = 50 << 10
    tries: int = 5
    backoff_s: float = 1.0


DEFAULT_LIMITS = TransferLimits()


@dataclass
class _Received:
    """What a read has received so far: bytes, and the file's size once it is known."""

    data: bytearray
    size: int | None


class MediaClient:
    """Reads byte ranges of files at URLs, through yt-dlp's network layer. Not thread-safe.

    yt-dlp's layer applies its options to media as to pages: proxies, cookies, source address, impersonation, TLS. On a
    redirect to another host it drops cookies and credentials.

    Args:
        urlopen: `YoutubeDL.urlopen` of the session that found the URLs.
        limits: timeouts, minimum speed and retries.

    Attributes:
        requests: number of requests started so far, including failed ones; a request and its redirects count as one.
        transferred: bytes of media received so far.
    """

    def __init__(self, urlopen: Callable[[Request], Response], limits: TransferLimits = DEFAULT_LIMITS) -> None:
        self._urlopen = urlopen
        self._limits = limits
        self.requests = 0
        self.transferred = 0

    def read(self, url: str, headers: Mapping[str, str], start: int, end: int, size: int | None = None) -> tuple[bytes, int]:
        """Bytes [start, end) of the file at `url`, or up to its end if that comes first, and the file's size.

        Each request is for at most 10 MB. After a transient error only the missing bytes are requested again. A server without
        range support may respond to a request for the beginning of a file with the whole file, up to 10 MB; then all of it is
        returned.

        Args:
            url: an http or https URL.
            headers: sent with every request.
            start: first byte.
            end: the byte after the last; greater than `start`.
            size: the file's size, if known; a file of another size is `bytes.wrong`.

        Raises:
            TransferError: the bytes could not be read.
        """
        received = _Received(bytearray(), size)
        failures = 0
        while received.size is None or start + len(received.data) < min(end, received.size):
            begin = start + len(received.data)
            try:
                self._read_once(url, headers, begin, min(end, begin + MAX_RANGE, received.size or end), received)
            except TransferError as error:
                failures += 1
                if error.code not in TRANSIENT or failures >= self._limits.tries:
                    raise
                time.sleep(self._limits.backoff_s * 2 ** (failures - 1) * random.uniform(0.5, 1.5))
        return bytes(received.data), received.size

    def _read_once(self, url: str, headers: Mapping[str, str], start: int, end: int, received: _Received) -> None:
        """Append bytes [start, end) to what was received, or those that arrive before the transfer breaks off."""
        headers = {**headers, "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        if urlsplit(url).scheme not in ("http", "https"):
            raise TransferError("bytes.wrong", None, f"{url.partition(':')[0]}: is not an http or https URL")
        self.requests += 1
        with _typed_errors(None):
            response = self._urlopen(Request(url, headers=headers, extensions={"timeout": self._limits.stall_s}))
        with closing(response):
            length, size = _check_response(response, start, end)
            if received.size not in (None, size):
                raise TransferError("bytes.wrong", response.status, f"the file has {size} bytes, not {received.size}")
            received.size = size
            with _typed_errors(response.status):
                count = self._receive(response, received.data, length)
        if count < length:
            raise TransferError("bytes.short", response.status, f"received {count} of {length} bytes")

    def _receive(self, response: Response, data: bytearray, length: int) -> int:
        """Append the body, up to `length` bytes, to `data`, and return how many there were.

        Raises:
            TransferError: `bytes.slow`.
        """
        limits = self._limits
        read_once_from_network(response)
        count, counted, since = 0, 0, time.monotonic()
        while count < length and (chunk := response.read(min(CHUNK, length - count))):
            data += chunk
            count += len(chunk)
            self.transferred += len(chunk)
            if (passed := time.monotonic() - since) >= limits.stall_s:
                if count - counted < limits.slow_bytes_s * passed:
                    message = f"only {(count - counted) / passed / 1024:.1f} KiB/s over {passed:.0f} s"
                    raise TransferError("bytes.slow", response.status, message)
                counted, since = count, time.monotonic()
        return count


class _OneReadAtATime:
    """A response's file whose `read(size)` returns after one read from the network, as `read1` does."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int | None = None, **options: Any) -> bytes:
        """Up to `size` bytes; all of them if it is None."""
        return self._file.read(**options) if size is None else self._file.read1(size, **options)


def read_once_from_network(response: Response) -> None:
    """Make `response.read(size)` return what one read from the network gives.

    Otherwise it waits until `size` bytes have come, and every byte restarts the socket's timeout.
    """
    if hasattr(response.fp, "read1"):
        response.fp = _OneReadAtATime(response.fp)


def _check_response(response: Response, start: int, end: int) -> tuple[int, int]:
    """Length of the body, and size of the file, of a response to a request for bytes [start, end).

    Raises:
        TransferError: the response does not fit the request.
    """
    status = response.status
    if status not in (200, 206):
        raise TransferError("bytes.wrong", status, f"the server responded {status} {response.reason or ''}".rstrip())
    length = response.get_header("Content-Length", "")
    if response.get_header("Content-Encoding", "identity") != "identity" or not re.fullmatch(r"[0-9]{1,15}", length):
        raise TransferError("bytes.wrong", status, "the body is encoded, or its length is unknown")
    if response.get_header("Transfer-Encoding") is not None:
        raise TransferError("bytes.wrong", status, "the body is encoded, or its length is unknown")
    if status == 200:
        return _check_whole_file(int(length), start)
    return _check_range(response.get_header("Content-Range", ""), int(length), start, end)


def _check_whole_file(length: int, start: int) -> tuple[int, int]:
    if not length:
        raise TransferError("bytes.short", 200, "the server sent an empty file")
    if start or length > MAX_RANGE:
        raise TransferError("bytes.wrong", 200, f"the server sent all {length} bytes instead of a range")
    return length, length


def _check_range(content_range: str, length: int, start: int, end: int) -> tuple[int, int]:
    match = re.fullmatch(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})", content_range)
    first, last, size = map(int, match.groups()) if match else (0, 0, 0)
    if match is None or first != start or last + 1 != min(end, size) or length != last + 1 - first:
        message = f"Content-Range {content_range[:60]!r} and length {length} in response to {start}-{end - 1}"
        raise TransferError("bytes.wrong", 206, message)
    return length, size


@contextmanager
def _typed_errors(status: int | None) -> Iterator[None]:
    """Turn the exceptions of yt-dlp's network layer into a TransferError, without the URL that their texts may hold."""
    try:
        yield
    except HTTPError as error:
        error.close()
        code = STATUS_CODES.get(error.status, "net.5xx" if error.status >= 500 else "bytes.wrong")
        message = f"the server responded {error.status} {error.reason or ''}".rstrip()
        raise TransferError(code, error.status, message) from error
    except (RequestError, ValueError) as error:
        found = causes(error)
        code, words = _network_failure(found)
        raise TransferError(code, status, f"{words} ({type(found[-1]).__name__})") from error


def _network_failure(found: Sequence[BaseException]) -> tuple[str, str]:
    """Code and description of a failed request, from its error and the causes of that."""

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(error, kinds) for error in found)

    if has(ProxyError, SocksProxyError):
        return "net.proxy", "the proxy refused or failed"
    if has(socket.gaierror):
        return "net.dns", "cannot resolve the host name"
    if has(TimeoutError):
        return "net.timeout", "timed out"
    if has(SSLError) and not has(ssl.SSLEOFError, ssl.SSLZeroReturnError):
        return "net.tls", "TLS failed"
    if any(isinstance(error, OSError) and error.errno in UNREACHABLE for error in found):
        return "net.unreachable", "cannot connect"
    if has(http.client.IncompleteRead, IncompleteRead):
        return "bytes.short", "the response ended early"
    if has(TransportError):
        return "net.reset", "the connection broke"
    return "bytes.wrong", "not a valid request or URL"
