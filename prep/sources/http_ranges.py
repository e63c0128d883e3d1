"""Byte ranges of media files over HTTP(S): small requests, exact checks, and typed errors."""

import base64
import errno
import http.client
import random
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from mbt.manifests.errors import InputError

MAX_RANGE = 10_000_000
"""Maximum bytes per request: media servers throttle larger ones."""
MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
CHUNK = 1 << 16
TRANSIENT = frozenset({"bytes.short", "net.5xx", "net.dns", "net.reset", "net.timeout", "net.unreachable"})
"""Errors after which the missing bytes are requested again at once."""
STATUS_CODES = {
    **{403: "bytes.403", 404: "bytes.gone", 410: "bytes.gone", 416: "bytes.416"},
    **{402: "rate.429", 429: "rate.429", 407: "net.proxy", 408: "net.5xx"},
}
UNREACHABLE = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EHOSTDOWN})
SECRET_HEADERS = frozenset({"authorization", "cookie"})


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
        connect_s: seconds to connect, including TLS.
        stall_s: seconds in which the response must begin; then the period over which the speed is measured.
        slow_bytes_s: minimum speed, bytes per second.
        tries: attempts per read, including the first.
        backoff_s: seconds before the second attempt, randomly varied by up to 50%; doubled for each further attempt.
    """

    connect_s: float = 15.0
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
    """Reads byte ranges of files at URLs. Not thread-safe.

    Args:
        proxy: `http://[user:password@]host:port`; None: the environment's (`http_proxy`, `https_proxy`, `no_proxy`).
        limits: timeouts, minimum speed and retries.
        source_address: address of this machine to connect from.

    Attributes:
        requests: number of requests sent so far, including failed ones.
        transferred: bytes of media received so far.

    Raises:
        InputError: the proxy is not of the form `http://host:port`.
    """

    def __init__(
        self, proxy: str | None = None, limits: TransferLimits = DEFAULT_LIMITS, source_address: str | None = None
    ) -> None:
        self._proxy = None if proxy is None else _proxy_parts(proxy)
        self._limits = limits
        self._source = None if source_address is None else (source_address, 0)
        self._tls = ssl.create_default_context()
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
            InputError: the environment's proxy is not of the form `http://host:port`.
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
        headers = {**headers, "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity", "Connection": "close"}
        with _typed_errors(None):
            connection, response = self._follow_redirects(url, headers)
        try:
            with _typed_errors(response.status):
                length, size = _check_response(response, start, end)
                if received.size not in (None, size):
                    message = f"the file has {size} bytes, not {received.size}"
                    raise TransferError("bytes.wrong", response.status, message)
                received.size = size
                count = self._receive(response, received.data)
            if count < length:
                raise TransferError("bytes.short", response.status, f"received {count} of {length} bytes")
        finally:
            response.close()
            connection.close()

    def _follow_redirects(
        self, url: str, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """The first response that is not a redirect."""
        for _ in range(MAX_REDIRECTS + 1):
            parts = urlsplit(url)
            connection, response = self._request(parts, headers)
            location = response.getheader("Location")
            if response.status not in REDIRECTS or location is None:
                return connection, response
            response.close()
            connection.close()
            url = urljoin(url, location)
            if urlsplit(url).netloc != parts.netloc:
                headers = {name: value for name, value in headers.items() if name.lower() not in SECRET_HEADERS}
        raise TransferError("bytes.wrong", response.status, f"more than {MAX_REDIRECTS} redirects")

    def _request(
        self, parts: SplitResult, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Connect, send a GET request, and wait for the response to begin."""
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise TransferError("bytes.wrong", None, f"{parts.scheme}://{parts.hostname} is not an http or https URL")
        proxy = self._proxy_for(parts)
        target = quote((parts.path or "/") + (parts.query and f"?{parts.query}"), safe="!$%&'()*+,/:;=?@[]~")
        if proxy and parts.scheme == "http":
            target = f"http://{parts.netloc.rpartition('@')[2]}{target}"
            headers = {**headers, **_credentials(proxy)}
        connection = self._connection(parts, proxy)
        self.requests += 1
        try:
            _connect(connection, proxy)
            connection.sock.settimeout(self._limits.stall_s)
            with _deadline(connection.sock, self._limits.stall_s):
                connection.request("GET", target, headers=headers)
                return connection, connection.getresponse()
        except BaseException:
            connection.close()
            raise

    def _connection(self, parts: SplitResult, proxy: SplitResult | None) -> http.client.HTTPConnection:
        """A connection to the server or to the proxy, not yet open."""
        first_hop = proxy or parts
        assert first_hop.hostname is not None
        host, port, timeout = first_hop.hostname, first_hop.port, self._limits.connect_s
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=timeout, source_address=self._source)
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, source_address=self._source, context=self._tls)
        if proxy:
            assert parts.hostname is not None
            connection.set_tunnel(parts.hostname, parts.port, headers=_credentials(proxy))
        return connection

    def _proxy_for(self, parts: SplitResult) -> SplitResult | None:
        if self._proxy is not None or urllib.request.proxy_bypass(parts.hostname or ""):
            return self._proxy
        proxy = urllib.request.getproxies().get(parts.scheme)
        return _proxy_parts(proxy) if proxy else None

    def _receive(self, response: http.client.HTTPResponse, data: bytearray) -> int:
        """Append the body to `data`, and return its length.

        Raises:
            TransferError: `bytes.slow`.
        """
        limits = self._limits
        count, counted, since = 0, 0, time.monotonic()
        while chunk := response.read1(CHUNK):
            data += chunk
            count += len(chunk)
            self.transferred += len(chunk)
            if (passed := time.monotonic() - since) >= limits.stall_s:
                if count - counted < limits.slow_bytes_s * passed:
                    message = f"only {(count - counted) / passed / 1024:.1f} KiB/s over {passed:.0f} s"
                    raise TransferError("bytes.slow", response.status, message)
                counted, since = count, time.monotonic()
        return count


def _check_response(response: http.client.HTTPResponse, start: int, end: int) -> tuple[int, int]:
    """Length of the body, and size of the file, of a response to a request for bytes [start, end).

    Raises:
        TransferError: the response does not fit the request.
    """
    status = response.status
    if status not in (200, 206):
        code = STATUS_CODES.get(status, "net.5xx" if status >= 500 else "bytes.wrong")
        raise TransferError(code, status, f"the server responded {status} {response.reason}".rstrip())
    if response.getheader("Content-Encoding", "identity") != "identity" or response.length is None:
        raise TransferError("bytes.wrong", status, "the body is encoded, or its length is unknown")
    if status == 200:
        return _check_whole_file(response.length, start)
    return _check_range(response.getheader("Content-Range", ""), response.length, start, end)


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


def _connect(connection: http.client.HTTPConnection, proxy: SplitResult | None) -> None:
    """Connect; an error before the proxy has opened the tunnel is reported as the proxy's."""
    try:
        connection.connect()
    except ssl.SSLError:
        raise
    except OSError as error:
        if proxy is None:
            raise
        raise TransferError("net.proxy", None, f"proxy {proxy.hostname}:{proxy.port}: {error}") from error


@contextmanager
def _deadline(sock: socket.socket, seconds: float) -> Iterator[None]:
    """Shut the connection down after `seconds`; the socket's own timeout restarts with every byte."""
    expired = threading.Event()

    def shut_down() -> None:
        expired.set()
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException):
        if not expired.is_set():
            raise
    finally:
        timer.cancel()
    if expired.is_set():
        raise TimeoutError(f"no response within {seconds:g} s")


@contextmanager
def _typed_errors(status: int | None) -> Iterator[None]:
    """Turn the exceptions of sockets, TLS and http.client into a TransferError."""
    try:
        yield
    except socket.gaierror as error:
        raise TransferError("net.dns", status, f"cannot resolve the host name: {error.strerror}") from error
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
        raise TransferError("net.reset", status, f"the TLS connection broke: {error.reason}") from error
    except TimeoutError as error:
        raise TransferError("net.timeout", status, f"timed out: {error}") from error
    except ssl.SSLError as error:
        raise TransferError("net.tls", status, f"TLS failed: {error}") from error
    except (ValueError, http.client.InvalidURL) as error:
        raise TransferError("bytes.wrong", status, f"not a valid URL: {type(error).__name__}") from error
    except http.client.HTTPException as error:
        raise TransferError("net.reset", status, f"the response broke off: {type(error).__name__}") from error
    except OSError as error:
        code = "net.unreachable" if error.errno in UNREACHABLE else "net.reset"
        raise TransferError(code, status, f"{type(error).__name__}: {error.strerror or error}") from error


def _proxy_parts(proxy: str) -> SplitResult:
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        if parts.scheme == "http" and parts.hostname and parts.port:
            return parts
    except ValueError:
        pass
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    raise InputError(f"cannot fetch media through the proxy {shown}", "Give a proxy of the form http://HOST:PORT")


def _credentials(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
