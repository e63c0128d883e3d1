"""`mbt doctor`: this machine passes; whatever is broken on purpose is found, with a remedy and exit code 1."""

import json
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from mbt.manifests.errors import ConfigError
from mbt.prep.doctor import CheckWarning, Finding, examine, media_checks, report
from mbt.prep.media.ffmpeg import ffmpeg, ffmpeg_version
from tests.conftest import Door, LoopbackServer, serving
from tests.media import Spec

Usage = namedtuple("Usage", "total used free")
RELEASED = date(*map(int, metadata.version("yt-dlp").split(".")[:3]))


def find(check: str, out: Path, canary: str | None = None) -> Finding:
    """The result of one of the media checks."""
    [finding] = examine(each for each in media_checks(out, canary) if each[0] == check)
    return finding


@pytest.fixture
def on_day(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the clock to a number of days after yt-dlp's release."""
    return lambda days: monkeypatch.setattr("mbt.prep.doctor.today", lambda: RELEASED + timedelta(days))


@pytest.fixture
def fresh_ffmpeg() -> Iterator[None]:
    """Clear the cached path and version of ffmpeg, before and after the test."""
    for cached in (ffmpeg, ffmpeg_version):
        cached.cache_clear()
    yield
    for cached in (ffmpeg, ffmpeg_version):
        cached.cache_clear()


def test_this_machine_is_ready(
    tmp_path: Path, mbt: Door, on_day: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_day(7)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 123_400_000_000))
    outcome = mbt("doctor", "--out", tmp_path / "a" / "b")
    found = {line[6:19].rstrip(): line[21:] for line in outcome.out.splitlines() if line.startswith("ok    ")}
    assert outcome.code == 0, outcome.out
    assert list(found) == [
        *("python", "clock", "disk", "cache", "shared memory", "ffmpeg", "decode", "yt-dlp", "yt-dlp-ejs", "deno"),
        *("torch", "cuda", "dali", "deepspeed"),
    ]
    assert len(outcome.out.splitlines()) == len(found)
    assert "25 frames, 16000 samples, 100 x 128" in found["decode"]
    assert found["yt-dlp"] == f"{metadata.version('yt-dlp')}, 7 days old"
    assert found["disk"] == f"123.4 GB free at {tmp_path}"
    assert list(tmp_path.iterdir()) == []


def test_json_report(tmp_path: Path, mbt: Door, on_day: Callable[[int], None]) -> None:
    on_day(100)
    outcome = mbt("doctor", "--out", tmp_path, "--json")
    printed = json.loads(outcome.out)
    assert (outcome.code, printed["ready"]) == (0, True)
    [aged] = [each for each in printed["checks"] if each["check"] == "yt-dlp"]
    assert (aged["state"], "100 days old" in aged["found"]) == ("warn", True)
    assert "pip install --upgrade 'yt-dlp[default,deno]'" in aged["remedy"]


@pytest.mark.parametrize(
    ("days", "check", "state"),
    [
        (0, "yt-dlp", "ok"),
        (30, "yt-dlp", "ok"),
        (31, "yt-dlp", "warn"),
        (180, "yt-dlp", "warn"),
        (181, "yt-dlp", "fail"),
        (0, "clock", "ok"),
        (-1, "clock", "fail"),
    ],
)
def test_age_of_yt_dlp_and_clock(tmp_path: Path, on_day: Callable[[int], None], days: int, check: str, state: str) -> None:
    on_day(days)
    finding = find(check, tmp_path)
    assert finding.state == state
    assert bool(finding.remedy) == (state != "ok")


def test_a_failure_exits_with_1(tmp_path: Path, mbt: Door, on_day: Callable[[int], None]) -> None:
    on_day(500)
    outcome = mbt("doctor", "--out", tmp_path)
    assert outcome.code == 1
    [line] = [line for line in outcome.out.splitlines() if line.startswith("fail")]
    assert "500 days old. Run pip install --upgrade 'yt-dlp[default,deno]'" in line
    assert "Traceback" not in outcome.out + outcome.err


@pytest.mark.usefixtures("fresh_ffmpeg")
def test_missing_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nothing"))
    for check in ("ffmpeg", "decode"):
        finding = find(check, tmp_path)
        assert (finding.state, "is not a program" in finding.found) == ("fail", True)
        assert "IMAGEIO_FFMPEG_EXE" in finding.found or "IMAGEIO_FFMPEG_EXE" in finding.remedy


@pytest.mark.usefixtures("fresh_ffmpeg")
def test_ffmpeg_without_a_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\nprintf ' V....D vp9     Google VP9\\n A....D aac     AAC\\n A....D opus    Opus\\n'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(fake))
    finding = find("ffmpeg", tmp_path)
    assert (finding.state, finding.found) == ("fail", f"{fake} has no decoder for h264")
    assert find("decode", tmp_path).state == "fail"


def test_a_lost_tone_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mbt.prep.media import log_mel

    original = log_mel.log_mel
    monkeypatch.setattr(log_mel, "log_mel", lambda audio, form: original(audio * 0, form))
    finding = find("decode", tmp_path)
    assert (finding.state, "tone of the test clip is lost" in finding.found) == ("fail", True)


def test_wrong_counts_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mbt.prep.media import log_mel

    original = log_mel.log_mel
    monkeypatch.setattr(log_mel, "log_mel", lambda audio, form: original(audio, form)[1:])
    finding = find("decode", tmp_path)
    assert (finding.state, "(25, 16000, 99, 128)" in finding.found) == ("fail", True)


def test_missing_deno(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = find("deno", tmp_path)
    assert (finding.state, "cannot find deno" in finding.found) == ("fail", True)
    assert "yt-dlp[default,deno]" in finding.remedy


@pytest.mark.parametrize(("version", "state"), [("2.2.12", "fail"), ("2.3.0", "ok"), ("2.10.0", "ok")])
def test_age_of_deno(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, state: str) -> None:
    program = tmp_path / "deno"
    program.write_text(f"#!/bin/sh\necho 'deno {version} (stable, release, x86_64-unknown-linux-gnu)'\n")
    program.chmod(0o755)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    finding = find("deno", tmp_path)
    assert (finding.state, version in finding.found, str(program) in finding.found) == (state, True, True)


def test_yt_dlp_ejs_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["requests<3", "yt-dlp-ejs==0.99.1; extra == 'default'"])
    finding = find("yt-dlp-ejs", tmp_path)
    assert finding.state == "fail"
    assert finding.found == f"{metadata.version('yt-dlp-ejs')}, but yt-dlp requires 0.99.1"


@pytest.mark.parametrize(
    ("free", "state"), [(50_000_000_000, "ok"), (49_999_999_999, "warn"), (1_000_000_000, "warn"), (999_999_999, "fail")]
)
def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - free, free))
    finding = find("disk", tmp_path)
    assert (finding.state, bool(finding.remedy)) == (state, state != "ok")


def test_small_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 << 20, 0, 64 << 20))
    finding = find("shared memory", tmp_path)
    assert (finding.state, "--shm-size" in finding.remedy) == ("warn", True)


def test_folders_that_are_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    monkeypatch.setenv("MBT_CACHE", str(blocker / "cache"))
    for finding, remedy in ((find("cache", tmp_path), "MBT_CACHE"), (find("disk", blocker / "out"), "--out")):
        assert (finding.state, finding.found) == ("fail", f"cannot write to {blocker}: Not a directory")
        assert remedy in finding.remedy


def test_canary_is_requested_but_not_downloaded(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rendered: Callable[[Spec], Path]
) -> None:
    server.answer = serving({"/v.mp4": rendered(Spec("25.mp4")).read_bytes()})
    monkeypatch.chdir(tmp_path)
    url = f"{server.url}/v.mp4"
    finding = find("canary", tmp_path, url)
    assert finding.state == "ok", finding
    assert finding.found.startswith(f"{url}: 1 format; mbt prep would download whole files of mp4")
    assert list(tmp_path.iterdir()) == []


def test_canary_that_is_refused(server: LoopbackServer, tmp_path: Path) -> None:
    finding = find("canary", tmp_path, f"{server.url}/v.mp4")
    assert (finding.state, ": perm.gone: " in finding.found) == ("fail", True)
    assert finding.remedy == "Try another video"


def test_canary_without_a_network(tmp_path: Path) -> None:
    finding = find("canary", tmp_path, "http://127.0.0.1:9/v.mp4")
    assert (finding.state, ": net.unreachable: " in finding.found) == ("fail", True)
    assert finding.remedy.startswith("Check the network")


def test_canary_id_is_requested_from_youtube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []

    def refuse(downloader: object, url: str, download: bool) -> None:
        requested.append((url, download))
        raise OSError("Network is unreachable")

    monkeypatch.setattr("yt_dlp.YoutubeDL.extract_info", refuse)
    assert find("canary", tmp_path, "-abcdefghij").state == "fail"
    assert requested == [("https://www.youtube.com/watch?v=-abcdefghij", False)]


@pytest.mark.parametrize("warning", ["", "forcing SABR streaming"])
def test_canary_that_allows_byte_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warning: str) -> None:
    parts = [{"url": f"https://a.invalid/{name}", "protocol": "https"} for name in ("video", "audio")]
    info = {"formats": [*parts, {}], "format": "134+140", "requested_formats": parts}

    def extract(downloader: Any, url: str, download: bool) -> dict[str, Any]:
        if warning:
            downloader.report_warning(warning)
        return info

    monkeypatch.setattr("yt_dlp.YoutubeDL.extract_info", extract)
    finding = find("canary", tmp_path, "abcdefghijk")
    found = "abcdefghijk: 3 formats; mbt prep would download only the clips' bytes of 134+140"
    assert finding.found == found + ("; yt-dlp warns: forcing SABR streaming" if warning else "")
    assert (finding.state, "--upgrade" in finding.remedy) == (("warn", True) if warning else ("ok", False))


LANES = """
ytdlp = "--add-headers X-Of:all"
[[lane]]
name = "office"
ytdlp = "--source-address 127.0.0.2"
[[lane]]
name = "lab"
ytdlp = "--proxy http://127.0.0.1:9"
[[lane]]
name = "limited"
ytdlp = "--add-headers X-Of:limited"
[[lane]]
name = "wrong"
ytdlp = "--source-address 203.0.113.1"
"""


def test_canary_over_each_lane(
    server: LoopbackServer, tmp_path: Path, mbt: Door, rendered: Callable[[Spec], Path], on_day: Callable[[int], None]
) -> None:
    """One lane works, with its own options; the others fail, each for its own reason and with its own remedy."""
    on_day(0)
    serve = serving({"/v.mp4": rendered(Spec("25.mp4")).read_bytes()})
    clients = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        clients.append((request.client_address[0], request.headers["X-Of"]))
        request.send_error(429) if request.headers["X-Of"] == "limited" else serve(request)

    server.answer = answer
    (tmp_path / "lanes.toml").write_text(LANES)
    url = f"{server.url}/v.mp4"
    command = ("doctor", "--out", tmp_path, "--canary", url, "--lanes", tmp_path / "lanes.toml")
    outcome = mbt(*command, "--json")
    assert outcome.code == 1
    office, lab, limited, wrong = (each for each in json.loads(outcome.out)["checks"] if each["check"].startswith("canary"))
    assert set(clients) == {("127.0.0.2", "all"), ("127.0.0.1", "limited")}
    assert (office["check"], office["state"], office["remedy"]) == ("canary office", "ok", "")
    assert office["found"].startswith(f"{url}: 1 format; mbt prep would download whole files of mp4")
    for lane, name, code, remedy in (
        (lab, "lab", "net.proxy", "Check the proxy"),
        (limited, "limited", "rate.429", "Wait an hour"),
        (wrong, "wrong", "net.other", "Check the network and the lane's options"),
    ):
        assert (lane["check"], lane["state"]) == (f"canary {name}", "fail")
        assert lane["found"].startswith(f"{url}: {code}: ")
        assert lane["remedy"].startswith(remedy)
    assert [path.name for path in tmp_path.iterdir()] == ["lanes.toml"]

    lines = [line for line in mbt(*command).out.splitlines() if line[6:].startswith("canary")]
    assert [line.split()[:3] for line in lines] == [
        [state, "canary", name] for state, name in (("ok", "office"), ("fail", "lab"), ("fail", "limited"), ("fail", "wrong"))
    ]

    (tmp_path / "lanes.toml").write_text('[[lane]]\nname = "a"\n[[lane]]\nname = "b"\n')
    outcome = mbt(*command)
    assert outcome.code == 0, outcome.out
    assert outcome.out.count("\nok    canary ") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--lanes", "lanes.toml"),
            "--lanes lanes.toml requires --canary or --pilot. Add --canary VIDEO_ID, the video to request.",
        ),
        (
            ("--ytdlp", "--cookies private.txt"),
            "--ytdlp requires --canary or --pilot. Add --canary VIDEO_ID, the video to request.",
        ),
        (("--canary", "x", "--lanes", "nothing.toml"), "cannot read the lanes file nothing.toml"),
        (("--canary", "x", "--lanes", "lanes.toml"), "lanes.toml: lane a: ytdlp: no such option: --prozy"),
    ],
)
def test_wrong_use_of_lanes(
    tmp_path: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lanes.toml").write_text('[[lane]]\nname = "a"\nytdlp = "--prozy http://a:1"\n')
    outcome = mbt("doctor", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {message}")
    assert len(outcome.err.splitlines()) == 1


def raising(error: Exception) -> Callable[[], str]:
    def look() -> str:
        print("noise")
        raise error

    return look


def test_every_exception_of_a_check_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    checks = [
        ("a", lambda: "1.0", "never"),
        ("b", lambda: CheckWarning("2.0", "Do that"), "never"),
        ("c", raising(ConfigError("3.0 is wrong", "Fix it")), "never"),
        ("d", raising(RuntimeError("4.0\nbroke.")), "Try this"),
    ]
    assert report(checks[:2], as_json=False)
    assert not report(checks[2:], as_json=False)
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "ok    a              1.0",
        "warn  b              2.0. Do that.",
        "fail  c              3.0 is wrong. Fix it.",
        "fail  d              RuntimeError: 4.0 broke. Try this.",
    ]
    assert err == "noise\n" * 2
