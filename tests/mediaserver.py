"""A loopback server that behaves like a media server: byte ranges, throttling, expiring URLs, and faults on demand.

    with media_server() as server:
        server.files["/video"] = ServedFile(content, faults=[Reset(after=1000), Status(503)])
        ...  # GET server.url + "/video": a reset, then 503, then the bytes
        assert [(r.range, r.sent) for r in server.requests] == [...]

It also works as a proxy: for `GET http://host/path` it serves `/path`. CONNECT is refused.
"""

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TICK_S = 0.02
CHUNK = 1 << 16
SIDX_HEAD = {0: 22, 1: 30}
"""Bytes of a `sidx` box's content before the number of its entries, by version."""


@dataclass(frozen=True)
class Status:
    """Respond with this status and no media; `location` makes it a redirect."""

    code: int
    location: str | None = None


@dataclass(frozen=True)
class Short:
    """Close the connection cleanly after this many bytes of the body, though more were announced."""

    after: int


@dataclass(frozen=True)
class Reset:
    """Reset the connection after this many bytes of the body; None: before any response."""

    after: int | None


@dataclass(frozen=True)
class Stall:
    """Stop sending after this many bytes of the body, but keep the connection; None: no response at all."""

    after: int | None


@dataclass(frozen=True)
class Slow:
    """Send this many bytes per second."""

    bytes_s: int


@dataclass(frozen=True)
class Drip:
    """Send one header line every 2 ms, without end."""


@dataclass(frozen=True)
class Whole:
    """Ignore the range: respond 200 with all bytes."""


@dataclass(frozen=True)
class Header:
    """Replace a header of the response; None removes it."""

    name: str
    value: str | None


Fault = Status | Short | Reset | Stall | Slow | Drip | Whole | Header


@dataclass
class ServedFile:
    """What is served at a path.

    Attributes:
        content: the bytes.
        faults: faults of the next requests, one each (None: no fault); after them `always` applies.
        always: fault of all other requests.
        next_content: bytes served from the second request on, if different.
        max_requests: requests after which the URL has expired (403).
        expires_at: `time.monotonic()` from which the URL has expired (403).
        throttled_above: requests for more bytes than this are throttled.
        throttled_bytes_s: bytes per second of a throttled request.
        latency_s: seconds before each response.
        served: number of requests so far.
    """

    content: bytes
    faults: list[Fault | None] = field(default_factory=list)
    always: Fault | None = None
    next_content: bytes | None = None
    max_requests: int | None = None
    expires_at: float | None = None
    throttled_above: int = 10 << 20
    throttled_bytes_s: int = 32 << 10
    latency_s: float = 0.0
    served: int = 0

    def expired(self) -> bool:
        """Whether the URL has expired."""
        late = self.expires_at is not None and time.monotonic() >= self.expires_at
        return late or (self.max_requests is not None and self.served >= self.max_requests)


@dataclass
class Request:
    """A request and its response.

    Attributes:
        path: path without the query.
        range: first and last byte requested, or None; an open range ends with the file.
        headers: headers of the request, names in lower case.
        status: status of the response; 0 if there was none.
        sent: bytes of the body sent.
        time: `time.monotonic()` when the request arrived.
        client: address that the request came from.
    """

    path: str
    range: tuple[int, int] | None
    headers: dict[str, str]
    status: int = 0
    sent: int = 0
    time: float = field(default_factory=time.monotonic)
    client: str = ""


@dataclass
class MediaServer:
    """The running server: its URL, what it serves by path, and the requests in order."""

    url: str
    files: dict[str, ServedFile] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)


def with_access_points(content: bytes, kind: int = 1) -> bytes:
    """Mark each segment in a file's index as beginning with an access point of this type (ISO/IEC 14496-12, 8.16.3).

    ffmpeg leaves the type unspecified (0). YouTube's files are said to have type 1, a closed group of pictures; this was never
    checked.
    """
    body = content.index(b"sidx") + 4
    count_at = body + SIDX_HEAD[content[body]]
    count, first = int.from_bytes(content[count_at : count_at + 2], "big"), count_at + 2
    marked = bytearray(content)
    for entry in range(first, first + 12 * count, 12):
        marked[entry + 8 : entry + 12] = (1 << 31 | kind << 28).to_bytes(4, "big")
    return bytes(marked)


@contextlib.contextmanager
def media_server() -> Iterator[MediaServer]:
    """Run a media server on 127.0.0.1; it ends stalled requests when it stops."""

    class Handler(_Handler):
        server_state: MediaServer

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.server_state = state = MediaServer(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": TICK_S})
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        http.shutdown()
        thread.join()
        http.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_state: MediaServer

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        state = self.server_state
        path = urlsplit(self.path).path
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        last = len(state.files[path].content) - 1 if path in state.files else 0
        requested = (int(match[1]), int(match[2] or last)) if match else None
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(path, requested, headers, client=self.client_address[0])
        state.requests.append(request)
        with contextlib.suppress(OSError):
            if path in state.files:
                self._serve(state.files[path], request)
            else:
                self._refuse(request, Status(404))
        self.close_connection = True

    def _serve(self, file: ServedFile, request: Request) -> None:
        content = file.content if file.served == 0 or file.next_content is None else file.next_content
        expired = file.expired()
        self.server_state.closing.wait(file.latency_s)
        fault = file.faults.pop(0) if file.faults else file.always
        file.served += 1
        if expired:
            fault = Status(403)
        match fault:
            case Status():
                self._refuse(request, fault)
            case Reset(after=None):
                self._reset()
            case Stall(after=None):
                self.server_state.closing.wait()
            case Drip():
                self._drip()
            case _:
                self._respond(file, content, request, fault)

    def _refuse(self, request: Request, status: Status) -> None:
        request.status = status.code
        self.send_response(status.code)
        self.send_header("Content-Length", "0")
        if status.location is not None:
            self.send_header("Location", status.location)
        self.end_headers()

    def _respond(self, file: ServedFile, content: bytes, request: Request, fault: Fault | None) -> None:
        first, last = (0, len(content) - 1) if request.range is None or isinstance(fault, Whole) else request.range
        partial = request.range is not None and not isinstance(fault, Whole)
        if partial and first >= len(content):
            return self._refuse(request, Status(416))
        body = content[first : last + 1]
        headers: dict[str, str | None] = {"Content-Length": str(len(body))}
        if partial:
            headers["Content-Range"] = f"bytes {first}-{first + len(body) - 1}/{len(content)}"
        if isinstance(fault, Header):
            headers[fault.name] = fault.value
        request.status = 206 if partial else 200
        self.send_response(request.status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        match fault:
            case Short(after=int(after)):
                self._send(body[:after], request)
            case Reset(after=int(after)):
                self._send(body[:after], request)
                self._reset()
            case Stall(after=int(after)):
                self._send(body[:after], request)
                self.server_state.closing.wait()
            case Slow(bytes_s=bytes_s):
                self._send(body, request, bytes_s)
            case _:
                self._send(body, request, file.throttled_bytes_s if len(body) > file.throttled_above else None)

    def _send(self, body: bytes, request: Request, bytes_s: int | None = None) -> None:
        step = CHUNK if bytes_s is None else max(int(bytes_s * TICK_S), 1)
        for start in range(0, len(body), step):
            part = body[start : start + step]
            self.wfile.write(part)
            request.sent += len(part)
            if bytes_s is not None and self.server_state.closing.wait(TICK_S):
                return

    def _drip(self) -> None:
        self.wfile.write(b"HTTP/1.1 206 Partial Content\r\n")
        while not self.server_state.closing.wait(TICK_S / 10):
            self.wfile.write(b"X: y\r\n")

    def _reset(self) -> None:
        self.rfile.close()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
