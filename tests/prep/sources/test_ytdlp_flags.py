"""yt-dlp's command-line flags: what is taken, and what is refused before the first request."""

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from mbt.manifests.errors import InputError
from mbt.prep.sources.ytdlp import parse_ytdlp
from tests.conftest import Door

COOKIES = "# Netscape HTTP Cookie File\n.youtube.com\tTRUE\t/\tTRUE\t2000000000\tA\tB\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that the flags name, and no network."""
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    Path("my cookies.txt").write_text(COOKIES)
    Path("bad.txt").write_text("A=B\n")
    Path("flags.conf").write_text("--referer a\n")

    def refuse(*_: object) -> None:
        raise AssertionError("a request was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(
    ("texts", "option", "value"),
    [
        (["--cookies 'my cookies.txt'"], "cookiefile", "my cookies.txt"),
        (["--proxy socks5://me:secret@host:1080"], "proxy", "socks5://me:secret@host:1080"),
        (["--proxy=host:8080"], "proxy", "host:8080"),
        (['--proxy ""'], "proxy", ""),
        (["--proxy http://a:1", "--proxy http://b:1"], "proxy", "http://b:1"),
        (["-4"], "source_address", "0.0.0.0"),
        (["--source-address ::1"], "source_address", "::1"),
        (["--socket-timeout 7"], "socket_timeout", 7.0),
        ([], "socket_timeout", 20.0),
        ([], "geo_bypass", False),
        (["--geo-bypass"], "geo_bypass", True),
        (["--extractor-args youtube:player_client=web"], "extractor_args", {"youtube": {"player_client": ["web"]}}),
        (["--no-check-certificates"], "nocheckcertificate", True),
        (["--sleep-requests 2"], "sleep_interval_requests", 2.0),
    ],
)
def test_flags_become_options(texts: list[str], option: str, value: object) -> None:
    assert parse_ytdlp(texts)[option] == value


def test_no_other_option_is_set() -> None:
    """yt-dlp's own defaults would keep going after errors and use the user's configuration."""
    Path("yt-dlp.conf").write_text("--proxy http://other:1\n")
    ours = {"format", "format_sort", "geo_bypass", "socket_timeout", "noplaylist", "noprogress", "quiet"}
    assert set(parse_ytdlp([])) == ours
    assert set(parse_ytdlp(["--referer a"])) == {*ours, "http_headers"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--frobnicate", "no such option: --frobnicate"),
        ("--cookies", "--cookies option requires 1 argument"),
        ("--socket-timeout soon", "option --socket-timeout: invalid floating-point value: 'soon'"),
        ("https://example.org/x", "'https://example.org/x' is not a flag"),
        ("password=secret", "'password' is not a flag"),
        ("--cookies 'x", "no closing quotation"),
        ("--cookies mistyped.txt", "--cookies: the file mistyped.txt does not exist"),
        ("--cookies bad.txt", "--cookies: 'bad.txt' does not look like a Netscape format cookies file"),
        ("--cookies .", "--cookies: "),
        ("--cookies-from-browser netscape", 'unsupported browser specified for cookies: "netscape"'),
        ("--impersonate chrome", '--impersonate: Impersonate target "chrome" is not available'),
        ("--impersonate netscape", "Give one of chrome, edge, firefox, safari, tor, or remove it"),
        ("--impersonate a:b:c", 'Invalid impersonate target "a:b:c"'),
        ("--proxy http://me:secret@host:port", "--proxy: http://host:port is not a proxy"),
        ("--proxy http://", "--proxy: http:// is not a proxy"),
        ("--proxy ftp://me:secret@host:1", '--proxy: Unsupported proxy type: "ftp"'),
        ("--geo-verification-proxy http://host:port", "--geo-verification-proxy: http://host:port is not a proxy"),
        ("--source-address here", "--source-address: 'here' is not an IP address"),
        ("--client-certificate bad.txt", "--client-certificate: "),
        ("--client-certificate nothing.pem", "--client-certificate: the file nothing.pem does not exist"),
        ("--js-runtimes rhino", "Ignoring unsupported JavaScript runtime"),
        ("--username me", "--username requires --password"),
        ("--ap-mso x --ap-username me", "--ap-username requires --ap-password"),
        ("--format 'bv['", "Invalid format specification"),
        *(
            (flags, f"mbt does not take yt-dlp's {flags.split()[0]}")
            for flags in (
                "--exec 'touch ran'",
                "-o %(title)s",
                "--paths /tmp",
                "--download-archive done.txt",
                "--batch-file -",
                "--simulate",
                "-x",
                "--remux-video mkv",
                "--config-locations flags.conf",
                "--yes-playlist",
                "--match-filters duration<60",
                "--downloader ffmpeg",
                "--ffmpeg-location /tmp",
                "--netrc-cmd 'touch ran'",
                "--plugin-dirs /tmp",
                "--enable-file-urls",
                "--ignore-errors",
                "--limit-rate 1M",
                "--sleep-interval 3",
                "--update",
                "--verbose",
            )
        ),
    ],
)
def test_wrong_flags_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        parse_ytdlp([text])
    assert caught.value.what.startswith("--ytdlp")
    assert "secret" not in str(caught.value) or message.startswith("no closing")
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


def test_a_malformed_proxy_of_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://host:70")
    with pytest.raises(InputError, match='Unsupported proxy type: "gopher"'):
        parse_ytdlp(["--referer a"])


def test_a_cookie_file_is_only_read(monkeypatch: pytest.MonkeyPatch) -> None:
    parse_ytdlp(["--cookies 'my cookies.txt'"])
    assert Path("my cookies.txt").read_text() == COOKIES


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[[], list[object]]:
    """Makes the arguments of `mbt` that fetch one clip."""

    def make() -> list[object]:
        (tmp_path / "clips.csv").write_text("video_id,start,end,split,labels\nv,0,1,train,a\n")
        (tmp_path / "labels.csv").write_text("id\na\n")
        lists = ["--list", tmp_path / "clips.csv", "--labels", tmp_path / "labels.csv", "--out", tmp_path / "out"]
        return ["prep", "custom", *lists, "--source", "http://site.invalid/{video_id}"]

    return make


def test_the_command_refuses_flags_before_the_first_request(mbt: Door, arguments: Callable[[], list[object]]) -> None:
    done = mbt(*arguments(), "--ytdlp", "--cookies mistyped.txt")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(
        "error: --ytdlp: --cookies: the file mistyped.txt does not exist. Give the path"
    )
    assert len(done.err.splitlines()) == 1
