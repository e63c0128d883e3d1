"""Byte ranges from a server that throttles, expires URLs, sends wrong headers, breaks off and refuses."""

import random
import socket
import time
from collections.abc import Iterator

import pytest

from mbt.prep.sources.http_ranges import MediaClient, TransferError, TransferLimits
from tests.mediaserver import (
    Drip,
    Fault,
    Header,
    MediaServer,
    Reset,
    ServedFile,
    Short,
    Slow,
    Stall,
    Status,
    Whole,
    media_server,
)
from tests.site import session

PATIENT = TransferLimits(tries=2, backoff_s=0.01)
QUICK = TransferLimits(stall_s=0.3, tries=2, backoff_s=0.01)
CONTENT = random.Random(3).randbytes(300_000)


@pytest.fixture
def media(monkeypatch: pytest.MonkeyPatch) -> Iterator[MediaServer]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with media_server() as server:
        yield server


def serve(media: MediaServer, *faults: Fault | None, always: Fault | None = None, content: bytes = CONTENT) -> str:
    media.files["/v"] = ServedFile(content, list(faults), always)
    return f"{media.url}/v?signature=secret"


def limits(fault: Fault) -> TransferLimits:
    return QUICK if isinstance(fault, Stall | Drip | Slow) else PATIENT


def failure(client: MediaClient, url: str, start: int = 0, end: int = 100_000, size: int | None = None) -> TransferError:
    with pytest.raises(TransferError) as caught:
        client.read(url, {}, start, end, size)
    assert "secret" not in str(caught.value)
    return caught.value


def test_a_range_is_read_exactly_and_headers_are_sent(media: MediaServer) -> None:
    client = MediaClient(session().urlopen, PATIENT)
    data, size = client.read(serve(media), {"User-Agent": "a browser", "Accept-Encoding": "gzip"}, 1000, 66_536)
    assert (data, size) == (CONTENT[1000:66_536], 300_000)
    assert (client.requests, client.transferred) == (1, 65_536)
    (request,) = media.requests
    assert request.range == (1000, 66_535)
    assert request.headers["user-agent"] == "a browser"
    assert request.headers["accept-encoding"] == "identity"


def test_a_range_ends_with_the_file(media: MediaServer) -> None:
    client = MediaClient(session().urlopen, PATIENT)
    assert client.read(serve(media), {}, 299_990, 400_000) == (CONTENT[-10:], 300_000)
    assert client.requests == 1


def test_no_request_is_larger_than_10_mb(media: MediaServer) -> None:
    content = random.Random(4).randbytes(100_000) * 210
    client = MediaClient(session().urlopen, PATIENT)
    data, _ = client.read(serve(media, content=content), {}, 0, 30_000_000)
    assert data == content
    assert [r.range for r in media.requests] == [(0, 9_999_999), (10_000_000, 19_999_999), (20_000_000, 20_999_999)]


@pytest.mark.parametrize(
    "fault",
    [
        Reset(None),
        Reset(50_000),
        Short(50_000),
        Short(0),
        Stall(50_000),
        Stall(None),
        Drip(),
        Status(500),
        Status(503),
        Status(408),
    ],
)
def test_only_missing_bytes_are_requested_again(media: MediaServer, fault: Fault) -> None:
    client = MediaClient(session().urlopen, limits(fault))
    data, _ = client.read(serve(media, fault), {}, 10_000, 110_000)
    assert data == CONTENT[10_000:110_000]
    assert client.requests == len(media.requests) == 2
    assert client.transferred == 100_000
    _, second = media.requests
    assert second.range is not None
    assert second.range[1] == 109_999
    if isinstance(fault, Short | Stall):
        assert second.range[0] == 10_000 + (fault.after or 0)


@pytest.mark.parametrize(
    ("fault", "code", "status", "requests"),
    [
        (Status(403), "bytes.403", 403, 1),
        (Status(404), "bytes.gone", 404, 1),
        (Status(410), "bytes.gone", 410, 1),
        (Status(416), "bytes.416", 416, 1),
        (Status(429), "rate.429", 429, 1),
        (Status(402), "rate.429", 402, 1),
        (Status(407), "net.proxy", 407, 1),
        (Status(500), "net.5xx", 500, 2),
        (Status(503), "net.5xx", 503, 2),
        (Status(408), "net.5xx", 408, 2),
        (Status(401), "bytes.wrong", 401, 1),
        (Status(204), "bytes.wrong", 204, 1),
        (Short(0), "bytes.short", 206, 2),
        (Reset(None), "net.reset", None, 2),
        (Stall(None), "net.timeout", None, 2),
        (Stall(0), "net.timeout", 206, 2),
        (Drip(), "net.reset", None, 2),
        (Slow(30_000), "bytes.slow", 206, 1),
        (Whole(), "bytes.wrong", 200, 1),
        (Header("Content-Length", None), "bytes.wrong", 206, 1),
        (Header("Content-Length", "99999"), "bytes.wrong", 206, 1),
        (Header("Content-Length", "100001"), "bytes.wrong", 206, 1),
        (Header("Content-Range", None), "bytes.wrong", 206, 1),
        (Header("Content-Range", "bytes 0-99999/300000"), "bytes.wrong", 206, 1),
        (Header("Content-Range", "bytes 10000-109999/*"), "bytes.wrong", 206, 1),
        (Header("Content-Range", "bytes 10000-109998/300000"), "bytes.wrong", 206, 1),
        (Header("Content-Encoding", "gzip"), "bytes.wrong", 206, 1),
        (Header("Transfer-Encoding", "chunked"), "bytes.wrong", 206, 1),
    ],
)
def test_every_fault_has_its_code(media: MediaServer, fault: Fault, code: str, status: int | None, requests: int) -> None:
    client = MediaClient(session().urlopen, limits(fault))
    error = failure(client, serve(media, always=fault), 10_000, 110_000)
    assert (error.code, error.status, client.requests) == (code, status, requests)


def test_different_faults_of_one_read_count_together(media: MediaServer) -> None:
    client = MediaClient(session().urlopen, PATIENT)
    assert failure(client, serve(media, Short(1000), Status(500))).code == "net.5xx"
    assert client.requests == 2


def test_pauses_double(media: MediaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    failure(MediaClient(session().urlopen, TransferLimits(tries=5, backoff_s=1.0)), serve(media, always=Status(503)))
    assert len(pauses) == 4
    assert all(0.5 * 2**n <= pause <= 1.5 * 2**n for n, pause in enumerate(pauses))


def test_a_server_without_range_support_may_send_a_small_file_whole(media: MediaServer) -> None:
    client = MediaClient(session().urlopen, PATIENT)
    assert client.read(serve(media, always=Whole()), {}, 0, 1000) == (CONTENT, 300_000)
    large = serve(media, always=Whole(), content=bytes(10_000_001))
    assert failure(client, large, 0, 1000).code == "bytes.wrong"
    assert failure(client, serve(media, content=b""), 0, 1000).code == "bytes.416"
    assert failure(client, serve(media, always=Whole(), content=b""), 0, 1000).code == "bytes.short"


def test_a_start_after_the_end(media: MediaServer) -> None:
    assert failure(MediaClient(session().urlopen, PATIENT), serve(media), 300_000, 300_001).code == "bytes.416"


def test_a_file_of_another_size_is_refused(media: MediaServer) -> None:
    client = MediaClient(session().urlopen, PATIENT)
    assert failure(client, serve(media), size=300_001).code == "bytes.wrong"
    assert client.transferred == 0
    url = serve(media, Short(1000))
    media.files["/v"].next_content = CONTENT[:-1]
    assert failure(client, url).code == "bytes.wrong"


def test_an_expired_url(media: MediaServer) -> None:
    url = serve(media)
    media.files["/v"].max_requests = 1
    client = MediaClient(session().urlopen, PATIENT)
    client.read(url, {}, 0, 10)
    assert failure(client, url).code == "bytes.403"
    media.files["/v"] = ServedFile(CONTENT, expires_at=time.monotonic() - 1)
    assert failure(client, url).code == "bytes.403"


def test_a_throttled_range_is_slow(media: MediaServer) -> None:
    url = serve(media)
    media.files["/v"].throttled_above = 50_000
    client = MediaClient(session().urlopen, QUICK)
    assert failure(client, url).code == "bytes.slow"
    assert 0 < client.transferred < 50_000
    client.read(url, {}, 0, 50_000)


def test_redirects_are_followed_without_secrets_to_other_hosts(media: MediaServer) -> None:
    with media_server() as other:
        other.files["/moved"] = ServedFile(CONTENT)
        url = serve(media, Status(307, other.url.replace("127.0.0.1", "localhost") + "/moved"))
        client = MediaClient(session(http_headers={"Authorization": "Bearer all"}).urlopen, PATIENT)
        data, _ = client.read(url, {"Cookie": "login", "Referer": "home"}, 5, 10)
        assert data == CONTENT[5:10]
        (asked,), (moved,) = media.requests, other.requests
        assert (asked.headers["cookie"], asked.headers["authorization"]) == ("login", "Bearer all")
        assert not {"cookie", "authorization"} & set(moved.headers)
        assert (moved.headers["referer"], moved.range) == ("home", (5, 9))


@pytest.mark.parametrize("location", ["/v", "file:///etc/passwd", "http://[", "http://a b/", "http://x:port/", "//"])
def test_redirects_that_lead_nowhere(media: MediaServer, location: str) -> None:
    client = MediaClient(session().urlopen, PATIENT)
    error = failure(client, serve(media, always=Status(302, location)))
    assert error.code in ("bytes.wrong", "net.dns")
    assert client.requests <= 2
    assert len(media.requests) <= 31


@pytest.mark.parametrize("url", ["file:///etc/passwd", "data:text/plain,abc", "ftp://127.0.0.1/v"])
def test_only_http_is_read(url: str) -> None:
    client = MediaClient(session(enable_file_urls=True).urlopen, PATIENT)
    assert failure(client, url).code == "bytes.wrong"
    assert client.requests == 0


def test_an_unknown_host_and_a_closed_port() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = MediaClient(session().urlopen, PATIENT)
    assert failure(client, f"http://127.0.0.1:{port}/v").code == "net.unreachable"
    assert failure(client, "http://nowhere.invalid/v").code == "net.dns"
    assert client.requests == 4


def test_a_server_without_tls(media: MediaServer) -> None:
    assert failure(MediaClient(session().urlopen, PATIENT), serve(media).replace("http:", "https:")).code in (
        "net.tls",
        "net.reset",
    )


def test_a_proxy_receives_its_credentials(media: MediaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(media)
    proxy = media.url.replace("http://", "http://user:p%40ss@")
    data, _ = MediaClient(session(proxy=proxy).urlopen, PATIENT).read("http://media.invalid:81/v?a=b", {}, 0, 10)
    assert data == CONTENT[:10]
    assert media.requests[-1].headers["host"] == "media.invalid:81"
    assert media.requests[-1].headers["proxy-authorization"] == "Basic dXNlcjpwQHNz"
    monkeypatch.setenv("http_proxy", media.url)
    assert MediaClient(session().urlopen, PATIENT).read("http://media.invalid/v", {}, 0, 10)[0] == CONTENT[:10]
    assert "proxy-authorization" not in media.requests[-1].headers
    monkeypatch.setenv("no_proxy", "media.invalid")
    assert failure(MediaClient(session().urlopen, PATIENT), "http://media.invalid/v").code == "net.dns"


def test_a_proxy_that_fails(media: MediaServer) -> None:
    serve(media)
    assert failure(MediaClient(session(proxy=media.url).urlopen, PATIENT), "https://media.invalid/v").code == "net.proxy"
    assert (
        failure(MediaClient(session(proxy="http://nowhere.invalid:1").urlopen, PATIENT), "http://media.invalid/v").code
        == "net.proxy"
    )
    assert (
        failure(MediaClient(session(proxy="http://127.0.0.1:9").urlopen, PATIENT), "https://media.invalid/v").code
        == "net.proxy"
    )
