"""No request of a source goes around its proxy: pages, byte ranges, whole files and streams."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mbt.manifests.clips import Clip
from mbt.prep.sources.byte_ranges import RawClip
from mbt.prep.sources.ytdlp import YtDlp, parse_ytdlp
from mbt.prep.state.failure_codes import Verdict
from tests.mediaserver import MediaServer, media_server
from tests.prep.sources.conftest import clear
from tests.socks import SocksProxy, socks_proxy

pytestmark = pytest.mark.slow

NOWHERE = "http://site.invalid/watch/{video_id}"
VIDEOS = ("ranges", "whole", "stream")


def fetch(folder: Path, template: str, video_id: str, flags: str = "") -> RawClip | Verdict:
    clip = Clip(f"{video_id}_3000", video_id, 3000, 5000, "train", ())
    (answer,) = YtDlp(folder, template, parse_ytdlp([flags])).fetch(video_id, [clip])
    return answer.result


@pytest.fixture
def proxy(pages: MediaServer) -> Iterator[MediaServer]:
    """An HTTP proxy in front of the site."""
    with media_server() as server:
        server.files = pages.files
        yield server


@pytest.fixture
def socks(pages: MediaServer) -> Iterator[SocksProxy]:
    """A SOCKS5 proxy in front of the site."""
    with socks_proxy(("127.0.0.1", urlsplit(pages.url).port or 0)) as server:
        yield server


@pytest.mark.parametrize("video_id", VIDEOS)
@pytest.mark.parametrize("where", ["--proxy", "ALL_PROXY", "http_proxy"])
def test_an_http_proxy_gets_every_request(
    where: str, video_id: str, proxy: MediaServer, pages: MediaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = proxy.url.replace("://", "://user:p%40ss@")
    if where != "--proxy":
        monkeypatch.setenv(where, address)
    result = fetch(tmp_path, f"{pages.url}/watch/{{video_id}}", video_id, f"--proxy {address}" * (where == "--proxy"))
    assert isinstance(result, RawClip)
    assert not pages.requests
    assert {request.headers["proxy-authorization"] for request in proxy.requests} == {"Basic dXNlcjpwQHNz"}
    assert len(clear(proxy)) >= 2


@pytest.mark.parametrize("video_id", VIDEOS)
@pytest.mark.parametrize("where", ["--proxy", "all_proxy"])
def test_a_socks_proxy_gets_every_request_and_resolves_names(
    where: str, video_id: str, socks: SocksProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"socks5h://me:secret@{socks.address}"
    if where != "--proxy":
        monkeypatch.setenv(where, address)
    result = fetch(tmp_path, NOWHERE, video_id, f"--proxy {address}" * (where == "--proxy"))
    assert isinstance(result, RawClip)
    assert set(socks.asked) == {("site.invalid", 80)}


@pytest.mark.parametrize("video_id", VIDEOS)
def test_an_empty_proxy_overrides_the_environment(
    video_id: str, proxy: MediaServer, pages: MediaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy.url)
    assert isinstance(fetch(tmp_path, f"{pages.url}/watch/{{video_id}}", video_id, "--proxy ''"), RawClip)
    assert not proxy.requests
    assert len(clear(pages)) >= 2


@pytest.mark.parametrize("video_id", VIDEOS)
def test_source_address_and_headers_hold_for_media(video_id: str, pages: MediaServer, tmp_path: Path) -> None:
    flags = "--source-address 127.0.0.2 --add-headers X-Of:all --user-agent us"
    assert isinstance(fetch(tmp_path, f"{pages.url}/watch/{{video_id}}", video_id, flags), RawClip)
    told = {(each.client, each.headers["x-of"], each.headers["user-agent"]) for each in pages.requests}
    assert told == {("127.0.0.2", "all", "us")}


def test_a_proxy_that_refuses_is_at_fault_and_its_password_is_not_told(
    socks: SocksProxy, pages: MediaServer, tmp_path: Path
) -> None:
    result = fetch(tmp_path, NOWHERE, "ranges", f"--proxy socks5h://me:wrongsecret@{socks.address}")
    assert isinstance(result, Verdict)
    assert result.code == "net.proxy"
    assert "wrongsecret" not in result.message
    assert not pages.requests
