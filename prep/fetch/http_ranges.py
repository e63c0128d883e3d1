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
"""Bytes of one request at most: media servers slow larger ones down."""
MAX_REDIRECTS = 5
CHUNK = 1 << 16
TRANSIENT = frozenset({"bytes.short", "net.5xx", "net.dns", "net.reset", "net.timeout", "net.unreachable"})
"""Faults after which the rest is asked for again at once."""
STATUS_CODES = {
    **{403: "bytes.403", 404: "bytes.gone", 410: "bytes.gone", 416: "bytes.416"},
    **{402: "rate.429", 429: "rate.429", 407: "net.proxy", 408: "net.5xx"},
}
UNREACHABLE = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EHOSTDOWN})
SECRET_HEADERS = frozenset({"authorization", "cookie"})


class TransferError(Exception):
    """Bytes did not come.

    Attributes:
        code: `bytes.403`, `bytes.gone` (404, 410), `bytes.416`, `bytes.short`, `bytes.slow`, `bytes.large` (more than may
            be fetched), `bytes.wrong` (an answer that does not fit the request), `rate.429` (429, 402), `net.reset`,
            `net.timeout`, `net.5xx`, `net.dns`, `net.unreachable`, `net.proxy` or `net.tls`.
        status: the HTTP status, where there was one.
        message: the error in words, without the address's signed part.
    """

    def __init__(self, code: str, status: int | None, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.status = status
        self.message = message


@dataclass(frozen=True)
class TransferLimits:
    """How patient the client is.

    Attributes:
        connect_s: seconds for a connection, with TLS.
        stall_s: seconds in which the answer must begin, then in which at least `slow_bytes_s` a second must come.
        slow_bytes_s: bytes a second.
        tries: attempts at one read, the first one included.
        backoff_s: pause before the second attempt, give or take a half; each further one is twice as long.
    """

    connect_s: float = 15.0
    stall_s: float = 20.0
    slow_bytes_s: int = 50 << 10
    tries: int = 5
    backoff_s: float = 1.0


DEFAULT_LIMITS = TransferLimits()


@dataclass
class _Got:
    """What a read has so far: bytes, and the file's size once it is known."""

    data: bytearray
    size: int | None


class MediaClient:
    """Reads byte ranges of files behind URLs, for one thread.

    Args:
        proxy: `http://[user:password@]host:port`; None: that of the environment (`http_proxy`, `https_proxy`, `no_proxy`).
        limits: how patient it is.
        source_address: of this machine, from which to connect.

    Attributes:
        requests: requests sent so far, those that failed included.
        transferred: bytes of media received so far.

    Raises:
        InputError: the proxy is of another kind.
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
        """Bytes [start, end) of the file at `url`, or to its end if that comes before, and the file's size.

        No request is for more than 10 MB. After a transient fault only what is missing is asked for again. A server that
        knows no ranges may send a whole file of up to 10 MB when asked for its beginning: then all of it is returned.

        Args:
            url: an http or https address.
            headers: sent with every request.
            start: first byte.
            end: the byte behind the last, beyond `start`.
            size: the file's size, if it is known; a file of another size is `bytes.wrong`.

        Raises:
            TransferError: the bytes did not come.
            InputError: the proxy of the environment is of another kind than `http://host:port`.
        """
        got = _Got(bytearray(), size)
        failures = 0
        while got.size is None or start + len(got.data) < min(end, got.size):
            begin = start + len(got.data)
            try:
                self._request(url, headers, begin, min(end, begin + MAX_RANGE, got.size or end), got)
            except TransferError as error:
                failures += 1
                if error.code not in TRANSIENT or failures >= self._limits.tries:
                    raise
                time.sleep(self._limits.backoff_s * 2 ** (failures - 1) * random.uniform(0.5, 1.5))
        return bytes(got.data), got.size

    def _request(self, url: str, headers: Mapping[str, str], start: int, end: int, got: _Got) -> None:
        """Append bytes [start, end) to what was got, or those that come before the transfer breaks off."""
        asked = {**headers, "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity", "Connection": "close"}
        with _typed_errors(None):
            connection, response = self._answer(url, asked)
        try:
            with _typed_errors(response.status):
                length, size = _expected(response, start, end)
                if got.size not in (None, size):
                    raise TransferError("bytes.wrong", response.status, f"the file has {size} bytes, not {got.size}")
                got.size = size
                came = self._receive(response, got.data)
            if came < length:
                raise TransferError("bytes.short", response.status, f"{came} of {length} bytes came")
        finally:
            response.close()
            connection.close()

    def _receive(self, response: http.client.HTTPResponse, data: bytearray) -> int:
        limits = self._limits
        came, counted, since = 0, 0, time.monotonic()
        while chunk := response.read1(CHUNK):
            data += chunk
            came += len(chunk)
            self.transferred += len(chunk)
            if (passed := time.monotonic() - since) >= limits.stall_s:
                if came - counted < limits.slow_bytes_s * passed:
                    message = f"{(came - counted) / passed / 1024:.1f} KiB a second over {passed:.0f} s"
                    raise TransferError("bytes.slow", response.status, message)
                counted, since = came, time.monotonic()
        return came

    def _answer(self, url: str, headers: dict[str, str]) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """The first answer that is no redirection."""
        for _ in range(MAX_REDIRECTS + 1):
            parts = urlsplit(url)
            connection, response = self._send(parts, headers)
            location = response.getheader("Location")
            if response.status not in (301, 302, 303, 307, 308) or location is None:
                return connection, response
            response.close()
            connection.close()
            url = urljoin(url, location)
            if urlsplit(url).netloc != parts.netloc:
                headers = {name: value for name, value in headers.items() if name.lower() not in SECRET_HEADERS}
        raise TransferError("bytes.wrong", response.status, f"more than {MAX_REDIRECTS} redirections")

    def _send(self, parts: SplitResult, headers: dict[str, str]) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise TransferError("bytes.wrong", None, f"{parts.scheme}://{parts.hostname} is no http address")
        target = quote((parts.path or "/") + (parts.query and f"?{parts.query}"), safe="!$%&'()*+,/:;=?@[]~")
        proxy = self._proxy_for(parts)
        host, port = proxy.hostname if proxy else parts.hostname, proxy.port if proxy else parts.port
        assert host is not None
        timeout, source = self._limits.connect_s, self._source
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(host, port, timeout=timeout, source_address=source, context=self._tls)
            if proxy:
                connection.set_tunnel(parts.hostname, parts.port, headers=_credentials(proxy))
        else:
            connection = http.client.HTTPConnection(host, port, timeout=timeout, source_address=source)
            if proxy:
                target = f"http://{parts.netloc.rpartition('@')[2]}{target}"
                headers = {**headers, **_credentials(proxy)}
        self.requests += 1
        try:
            _connect(connection, proxy)
            connection.sock.settimeout(self._limits.stall_s)
            with _cut_off(connection.sock, self._limits.stall_s):
                connection.request("GET", target, headers=headers)
                return connection, connection.getresponse()
        except BaseException:
            connection.close()
            raise

    def _proxy_for(self, parts: SplitResult) -> SplitResult | None:
        if self._proxy is not None or urllib.request.proxy_bypass(parts.hostname or ""):
            return self._proxy
        proxy = urllib.request.getproxies().get(parts.scheme)
        return _proxy_parts(proxy) if proxy else None


def _expected(response: http.client.HTTPResponse, start: int, end: int) -> tuple[int, int]:
    """Length of the body, and size of the file, of an answer to a request for bytes [start, end)."""
    status = response.status
    if status not in (200, 206):
        code = STATUS_CODES.get(status, "net.5xx" if status >= 500 else "bytes.wrong")
        raise TransferError(code, status, f"the server answers {status} {response.reason}".rstrip())
    if response.getheader("Content-Encoding", "identity") != "identity" or response.length is None:
        raise TransferError("bytes.wrong", status, "an encoded body, or one without a length")
    if status == 200:
        if not response.length:
            raise TransferError("bytes.short", status, "the server sends an empty file")
        if start or response.length > MAX_RANGE:
            raise TransferError("bytes.wrong", status, f"the server sends all of {response.length} bytes in place of a range")
        return response.length, response.length
    text = response.getheader("Content-Range", "")
    match = re.fullmatch(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})", text)
    first, last, size = map(int, match.groups()) if match else (0, 0, 0)
    if match is None or first != start or last + 1 != min(end, size) or response.length != last + 1 - first:
        message = f"Content-Range {text[:60]!r} and length {response.length} in answer to {start}-{end - 1}"
        raise TransferError("bytes.wrong", status, message)
    return response.length, size


def _connect(connection: http.client.HTTPConnection, proxy: SplitResult | None) -> None:
    """Connect; what goes wrong before the proxy has opened the way is the proxy's fault."""
    try:
        connection.connect()
    except ssl.SSLError:
        raise
    except OSError as error:
        if proxy is None:
            raise
        raise TransferError("net.proxy", None, f"the proxy {proxy.hostname}:{proxy.port} fails: {error}") from error


@contextmanager
def _cut_off(sock: socket.socket, seconds: float) -> Iterator[None]:
    """End the connection after so many seconds: a timeout of the socket's own begins anew with every byte."""
    expired = threading.Event()

    def cut() -> None:
        expired.set()
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
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
        raise TimeoutError(f"no answer within {seconds:g} s")


@contextmanager
def _typed_errors(status: int | None) -> Iterator[None]:
    """Turn what sockets, TLS and http.client raise into a TransferError."""
    try:
        yield
    except socket.gaierror as error:
        raise TransferError("net.dns", status, f"the host's name is not known: {error.strerror}") from error
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
        raise TransferError("net.reset", status, f"the TLS connection broke: {error.reason}") from error
    except TimeoutError as error:
        raise TransferError("net.timeout", status, f"nothing came in time: {error}") from error
    except ssl.SSLError as error:
        raise TransferError("net.tls", status, f"no trusted connection: {error}") from error
    except (ValueError, http.client.InvalidURL) as error:
        raise TransferError("bytes.wrong", status, f"an address that cannot be asked: {type(error).__name__}") from error
    except http.client.HTTPException as error:
        raise TransferError("net.reset", status, f"the answer broke off: {type(error).__name__}") from error
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
    raise InputError(f"media cannot be fetched through the proxy {shown}", "Give one of the form http://HOST:PORT")


def _credentials(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
