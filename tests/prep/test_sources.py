"""Where media come from: names in a local folder, and yt-dlp against a loopback server; the ledger between them."""

import dataclasses
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import yt_dlp

from manifests.clips import Clip
from manifests.errors import InputError, SourceError
from prep.ledger import Attempt, LedgerWriter, read_ledger
from prep.local import LocalFolder
from prep.ytdlp import Refusal, YtDlp
from tests.conftest import Door, LoopbackServer
from tests.media import Spec


def clip(video_id: str, start_ms: int, key: str | None = None) -> Clip:
    return Clip(key or f"{video_id}_{start_ms}", video_id, start_ms, start_ms + 10_000, "train", ())


@pytest.mark.parametrize(
    ("files", "wanted", "found"),
    [
        (["abc.mp4"], clip("abc", 30_000), ("abc.mp4", 0)),
        (["abc_30000.mp4"], clip("abc", 30_000), ("abc_30000.mp4", 30_000)),
        (["abc_000030.mp4"], clip("abc", 30_000), ("abc_000030.mp4", 30_000)),
        (["abc_000030.mp4"], clip("abc", 33_500), ("abc_000030.mp4", 30_000)),
        (["abc_000030.mp4"], clip("abc", 29_999), None),
        (["abc_000000.mp4"], clip("abc", 0), ("abc_000000.mp4", 0)),
        (["abc_100000.mp4"], clip("abc", 105_000), ("abc_100000.mp4", 100_000)),
        (["abc_000010.mp4", "abc_000020.mp4", "abc_000040.mp4"], clip("abc", 25_000), ("abc_000020.mp4", 20_000)),
        (["my-key.mp4"], clip("abc", 30_000, "my-key"), ("my-key.mp4", 30_000)),
        (["-_a_b-c.webm"], clip("-_a_b-c", 0), ("-_a_b-c.webm", 0)),
        (["-_a_b_000007.mkv"], clip("-_a_b", 7000), ("-_a_b_000007.mkv", 7000)),
        (["deep/er/abc.MP4"], clip("abc", 0), ("deep/er/abc.MP4", 0)),
        (["abc.mp4", "abc_30000.mp4"], clip("abc", 30_000), ("abc_30000.mp4", 30_000)),
        (["ABC.mp4"], clip("abc", 0), None),
        (["abcd.mp4", "xabc.mp4"], clip("abc", 0), None),
    ],
)
def test_file_is_found_by_its_name(tmp_path: Path, files: list[str], wanted: Clip, found: tuple[str, int] | None) -> None:
    for name in [*files, "unrelated.mp4", "abc.txt", "abc_30000.json"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    file = LocalFolder(tmp_path).find(wanted)
    assert (file and (str(file.path.relative_to(tmp_path.resolve())), file.offset_ms)) == found


def test_folder_that_is_missing_or_without_media_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        LocalFolder(tmp_path / "nothing")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="holds no media file"):
        LocalFolder(tmp_path)


def test_ledger_keeps_the_last_attempt_of_each_clip(tmp_path: Path) -> None:
    for worker, code, moment in [("fetch-1", "perm.gone", 2.0), ("fetch-0", "fetch.failed", 1.0), ("fetch-2", "region", 3.0)]:
        with LedgerWriter(tmp_path, worker) as writer:
            writer.append([Attempt(key="a", source="s", code=code, time=moment), Attempt(key=worker, source="s", time=moment)])
    ledger = read_ledger(tmp_path)
    assert ledger["a"].code == "region"
    assert set(ledger) == {"a", "fetch-0", "fetch-1", "fetch-2"}


def test_line_torn_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, "fetch-0") as writer:
        writer.append([Attempt(key="a", source="s"), Attempt(key="b", source="s")])
    path = tmp_path / "work/ledger/fetch-0.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with LedgerWriter(tmp_path, "fetch-0") as writer:
        writer.append([Attempt(key="c", source="s")])
    assert set(read_ledger(tmp_path)) == {"a", "c"}


def test_media_count_only_with_their_recorded_size(tmp_path: Path) -> None:
    (tmp_path / "file.mp4").write_bytes(b"12345")
    attempt = Attempt(key="a", source="s", path="file.mp4", size=5)
    assert attempt.checked(tmp_path) == attempt
    for lost in (dataclasses.replace(attempt, size=6), dataclasses.replace(attempt, path="other.mp4")):
        assert (lost.checked(tmp_path).path, lost.checked(tmp_path).code) == (None, "fetch.lost")


def serving(files: dict[str, bytes], codes: dict[str, int] | None = None) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer that serves these paths, and these status codes for others."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path not in files:
            request.send_error((codes or {}).get(request.path, 404))
            return
        body = files[request.path]
        request.send_response(200)
        request.send_header("Content-Type", "video/mp4")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    return answer


ROWS = ("-two_clips_,0,1,train,a", "-two_clips_,1.5,2.5,train,b", "gone,0,1,train,a", "busy,0,1,train,a", "_one,0,1,eval,a")


@pytest.fixture
def lists(tmp_path: Path) -> list[object]:
    (tmp_path / "clips.csv").write_text("\n".join(["video_id,start,end,split,labels", *ROWS]) + "\n")
    (tmp_path / "labels.csv").write_text("id\na\nb\n")
    return ["--list", tmp_path / "clips.csv", "--labels", tmp_path / "labels.csv"]


def paths(server: LoopbackServer) -> list[str]:
    asked = [path for path, _ in server.requests]
    server.requests.clear()
    return asked


def failures(ledger: dict[str, Attempt]) -> dict[str, tuple[str, bool]]:
    return {key: (attempt.code, attempt.final) for key, attempt in ledger.items() if attempt.code != "ok"}


def test_videos_come_once_and_refusals_are_kept(
    server: LoopbackServer, tmp_path: Path, lists: list[object], mbt: Door, rendered: Callable[[Spec], Path]
) -> None:
    video = rendered(Spec("25.mp4")).read_bytes()
    server.answer = serving({"/-two_clips_.mp4": video, "/_one.mp4": video}, {"/busy.mp4": 500})
    run = [*lists, "--source", server.url + "/{video_id}.mp4", "--out", tmp_path / "out", "--sleep", 0, "--short-side", 64]

    assert mbt("prep", "custom", *run, "--stage", "plan").code == 0
    assert not server.requests
    outcome = mbt("prep", "custom", *run, "--stage", "fetch")
    assert (outcome.code, outcome.out) == (0, "fetch: 3 clips there, 2 not\n")
    first = paths(server)
    assert set(first) == {"/-two_clips_.mp4", "/_one.mp4", "/gone.mp4", "/busy.mp4"}
    ledger = read_ledger(tmp_path / "out")
    assert failures(ledger) == {"gone_0": ("perm.gone", True), "busy_0": ("fetch.failed", False)}
    assert ledger["-two_clips__0"].path == ledger["-two_clips__1500"].path == "raw/-t/-two_clips_.mp4"
    assert (tmp_path / "out/raw/-t/-two_clips_.mp4").read_bytes() == video
    written = (tmp_path / "out/work/ledger/fetch-0.jsonl").read_text().splitlines()
    assert len(written) == 5

    assert mbt("prep", "custom", *run, "--stage", "fetch").code == 0
    assert set(paths(server)) == {"/busy.mp4"}

    server.answer = serving({"/busy.mp4": video})
    assert mbt("prep", "custom", *run).code == 0
    assert set(paths(server)) == {"/busy.mp4"}
    described = json.loads((tmp_path / "out/dataset.json").read_text())
    counts = {name: (split["samples"], split["failures"]) for name, split in described["splits"].items()}
    assert counts == {"train": (3, 1), "eval": (1, 0)}


def test_one_download_serves_all_clips_of_a_video(
    server: LoopbackServer, tmp_path: Path, rendered: Callable[[Spec], Path]
) -> None:
    body = rendered(Spec("25.mp4")).read_bytes()
    server.answer = serving({"/v.mp4": body})
    found = YtDlp(tmp_path, server.url + "/{video_id}.mp4", 0).fetch("v")
    assert found == tmp_path / "raw" / "v" / "v.mp4"
    assert found.read_bytes() == body
    first = len(server.requests)
    assert YtDlp(tmp_path, server.url + "/{video_id}.mp4", 0).fetch("v") == found
    assert len(server.requests) < 2 * first


def test_rate_limit_stops_the_run_and_keeps_what_is_there(
    server: LoopbackServer, tmp_path: Path, lists: list[object], mbt: Door, rendered: Callable[[Spec], Path]
) -> None:
    server.answer = serving({"/-two_clips_.mp4": rendered(Spec("25.mp4")).read_bytes()}, {"/_one.mp4": 429})
    run = [*lists, "--source", server.url + "/{video_id}.mp4", "--out", tmp_path / "out", "--sleep", 0]
    outcome = mbt("prep", "custom", *run)
    assert outcome.code == 2
    assert "error: 127.0.0.1 serves nothing more (rate.429)" in outcome.err.splitlines()[-1]
    assert {key for key, attempt in read_ledger(tmp_path / "out").items() if attempt.code == "ok"} == {
        "-two_clips__0",
        "-two_clips__1500",
    }
    assert not (tmp_path / "out/dataset.json").exists()


def test_page_without_a_video_is_a_refusal(server: LoopbackServer, tmp_path: Path) -> None:
    def page(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "text/html")
        request.end_headers()
        request.wfile.write(b"<html><title>t</title><body>nothing here</body></html>")

    server.answer = page
    result = YtDlp(tmp_path, server.url + "/{video_id}", 0).fetch("v")
    assert isinstance(result, Refusal)
    assert (result.code, result.final) == ("input.bad_url", True)


def test_page_with_several_videos_is_a_refusal(
    server: LoopbackServer, tmp_path: Path, rendered: Callable[[Spec], Path]
) -> None:
    def page(request: BaseHTTPRequestHandler) -> None:
        if request.path != "/v":
            serving({request.path: rendered(Spec("25.mp4")).read_bytes()})(request)
            return
        request.send_response(200)
        request.send_header("Content-Type", "text/html")
        request.end_headers()
        request.wfile.write(
            b'<html><title>t</title><body><video src="/x.mp4"></video><video src="/y.mp4"></video></body></html>'
        )

    server.answer = page
    result = YtDlp(tmp_path, server.url + "/{video_id}", 0).fetch("v")
    assert isinstance(result, Refusal)
    assert (result.code, result.final) == ("input.playlist", True)


def test_template_without_a_place_for_the_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks \{video_id\}"):
        YtDlp(tmp_path, "https://example.org/video.mp4", 0)


def refusing(monkeypatch: pytest.MonkeyPatch, text: str, warning: str = "") -> YtDlp:
    """yt-dlp that fails with these words."""

    class Downloader:
        def __init__(self, options: dict[str, object]) -> None:
            self.options = options

        def __enter__(self) -> "Downloader":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def extract_info(self, _: str) -> None:
            if warning:
                self.options["logger"].warning(warning)  # type: ignore[attr-defined]
            raise yt_dlp.utils.DownloadError(text)

    monkeypatch.setattr(yt_dlp, "YoutubeDL", Downloader)
    return YtDlp(Path("/nowhere"), "https://www.youtube.com/watch?v={video_id}", 0)


YOUTUBE = "ERROR: [youtube] dQw4w9WgXcQ: "


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("perm.private", "Private video. Sign in if you've been granted access to this video"),
        ("perm.private", "This video is private"),
        ("creds.age", "Sign in to confirm your age. This video may be inappropriate for some users."),
        (
            "creds.members",
            "Join this channel to get access to members-only content like this video, and other exclusive perks.",
        ),
        ("creds.members", "This video requires payment to watch"),
        ("creds.members", "This video is only available to Music Premium members"),
        ("region", "Video unavailable. The uploader has not made this video available in your country"),
        ("region", "This video is not available from your location due to geo restriction"),
        ("perm.copyright", "Video unavailable. This video contains content from SME, who has blocked it on copyright grounds"),
        ("perm.copyright", "This video is no longer available due to a trademark claim by a third party"),
        ("perm.removed", "Video unavailable. This video has been removed by the uploader"),
        (
            "perm.removed",
            "Video unavailable. This video is no longer available because the YouTube account has been terminated.",
        ),
        ("perm.removed", "This video is no longer available because the uploader has closed their YouTube account"),
        ("perm.removed", "This live stream recording is not available."),
        ("perm.unavailable", "Video unavailable. This video is unavailable"),
        ("perm.unavailable", "Video unavailable"),
        ("perm.gone", "Unable to download webpage: HTTP Error 410: Gone (caused by <HTTPError 410: Gone>)"),
        ("input.bad_url", "Incomplete YouTube ID dQw4. URL https://www.youtube.com/watch?v=dQw4 looks truncated."),
        ("input.bad_url", "Unsupported URL: http://127.0.0.1/page"),
    ],
)
def test_video_that_will_not_be_served_is_final(monkeypatch: pytest.MonkeyPatch, code: str, text: str) -> None:
    result = refusing(monkeypatch, "\x1b[0;31m" + YOUTUBE + text.replace("'", "’") + "\x1b[0m\n").fetch("dQw4w9WgXcQ")
    assert result == Refusal(code, text, final=True)


@pytest.mark.parametrize(
    "text",
    [
        "Unable to download webpage: HTTP Error 500: Internal Server Error (caused by <HTTPError 500>)",
        "Unable to download API page: The read operation timed out",
        "This live event will begin in 3 hours.",
    ],
)
def test_video_that_may_be_served_later_is_not_final(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert refusing(monkeypatch, YOUTUBE + text).fetch("dQw4w9WgXcQ") == Refusal("fetch.failed", text, final=False)


@pytest.mark.parametrize(
    ("code", "text", "warning"),
    [
        (
            "rate.session",
            "Video unavailable. This content isn’t available, try again later. The current session has been rate-limited by "
            "YouTube for up to an hour.",
            "",
        ),
        ("rate.429", "Unable to download API page: HTTP Error 429: Too Many Requests (caused by <HTTPError 429>)", ""),
        (
            "block.bot",
            "Sign in to confirm you’re not a bot. Use --cookies-from-browser or --cookies for the authentication.",
            "",
        ),
        ("env.js", "Requested format is not available.", "[youtube] No supported JavaScript runtime could be found."),
        ("env.js", "Requested format is not available.", "[youtube] dQw4w9WgXcQ: n challenge solving failed: Some formats"),
    ],
)
def test_source_that_serves_nobody_stops_the_run(monkeypatch: pytest.MonkeyPatch, code: str, text: str, warning: str) -> None:
    source = refusing(monkeypatch, YOUTUBE + text, warning)
    with pytest.raises(SourceError, match=rf"www.youtube.com serves nothing more \({code}\)"):
        source.fetch("dQw4w9WgXcQ")


def test_failures_in_a_row_stop_the_run_unless_the_source_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Refusal("fetch.failed", "The read operation timed out", final=False)
    source = refusing(monkeypatch, YOUTUBE + failed.message)
    assert [source.fetch("dQw4w9WgXcQ") for _ in range(9)] == [failed] * 9
    with pytest.raises(SourceError, match=r"10 videos of .* failed in a row; the last: The read"):
        source.fetch("dQw4w9WgXcQ")
    refusing(monkeypatch, YOUTUBE + "Private video")
    assert source.fetch("dQw4w9WgXcQ") == Refusal("perm.private", "Private video", final=True)
    refusing(monkeypatch, YOUTUBE + failed.message)
    assert [source.fetch("dQw4w9WgXcQ") for _ in range(9)] == [failed] * 9
