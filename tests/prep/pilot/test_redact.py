"""What is private is removed from texts, and what helps to find a fault stays."""

from pathlib import Path

import pytest

from mbt.prep.fetch.options import FetchOptions
from mbt.prep.pilot.redact import Redactor, option_names, private_values


@pytest.fixture
def redact(monkeypatch: pytest.MonkeyPatch) -> Redactor:
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    monkeypatch.setattr("platform.node", lambda: "al")
    monkeypatch.setenv("https_proxy", "http://u1:p1@proxy.home.corp:3128")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/Alice B"))
    return Redactor(["/data/a set"])


@pytest.mark.parametrize(
    "text",
    [
        "Video unavailable. This video is private",
        "HTTP Error 403: Forbidden (caused by <HTTPError 403: Forbidden>)",
        "dQw4w9WgXcQ: Requested format 134+140 is not available",
        "Use --cookies-from-browser or --cookies for the authentication",
        "raw/dQ/dQw4w9WgXcQ_0.mkv is gone and/or changed",
        "yt-dlp 2026.10.22 at 12:34:56, 5 of 10",
        "a formal alias",
    ],
)
def test_what_helps_to_find_a_fault_stays(redact: Redactor, text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("alice's disk", "<private>'s disk"),
        ("cannot write /data/a set/raw/x.mkv: no space", "cannot write <private>: no space"),
        ("'/home/Alice B/.cache/x' and ~/jar.txt", "'<private>' and <private>"),
        ("proxy http://u:p@10.1.2.3:8080/ refused", "proxy http://<private> refused"),
        ("via socks5h://u:p%40@proxy.corp:1080", "via socks5h://<private>"),
        ("via http://alice:8080/x?y", "via http://<private>"),
        ("GET https://u:p@www.youtube.com/watch?v=dQw4w9WgXcQ&t=1 failed", "GET https://www.youtube.com/... failed"),
        ("https://youtube.com.evil.test/x?sig=1", "https://<private>"),
        ("from 198.51.100.7:443 and fe80::1ff:fe23:4567:890a", "from <private> and <private>"),
        ("[fe80::1]:443, 2001:db8::7 and ::1", "[<private>]:443, <private> and ::1"),
        ("HTTPSConnection(host='proxy.home.corp', port=3128)", "HTTPSConnection(host='<private>', port=3128)"),
        ("Authorization: Bearer abc def", "Authorization: <private>"),
        ("po_token=web+MnQ x", "po_token: <private>"),
        ("id " + "aB3" * 14, "id <private>"),
    ],
)
def test_what_is_private_is_removed(redact: Redactor, text: str, left: str) -> None:
    assert redact(text) == left


def test_values_of_flags_are_private_and_their_names_are_not(tmp_path: Path) -> None:
    lanes = tmp_path / "lanes.toml"
    lanes.write_text(
        'ytdlp = "--socket-timeout 200 --extractor-args youtube:player_client=web;po_token=web+Tok123"\n'
        '[[lane]]\nname = "lab"\nsleep = 2.4\nytdlp = "--proxy=http://bob:pw1@proxy.corp:3128"\n'
    )
    given = ("--cookies '/x/my jar.txt' --username carol", "--proxy socks5://h.corp:1080")
    options = FetchOptions(source="https://media.corp/{video_id}", lanes=lanes, ytdlp=given)
    assert option_names(options) == ["--cookies", "--extractor-args", "--proxy", "--socket-timeout", "--username"]
    redact = Redactor(private_values(options))
    for private in ("web+Tok123", "lab", "bob", "pw1", "proxy.corp", "/x/my jar.txt", "carol", "h.corp", "media.corp"):
        assert redact(f"of '{private}' and") == "of '<private>' and"
    kept = "a proxy, a username, a label; 200 or 2.4; --extractor-args youtube:player_client"
    assert redact(kept) == kept
