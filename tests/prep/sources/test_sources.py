"""Sources of media: yt-dlp against a loopback server; and the ledger."""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from mbt.manifests.clips import Clip
from mbt.manifests.errors import InputError, StorageError
from mbt.prep.fetch.fetch import fetch
from mbt.prep.sources.byte_ranges import RawClip
from mbt.prep.sources.ytdlp import YtDlp
from mbt.prep.state.failure_codes import Action, Verdict
from mbt.prep.state.ledger import Attempt, LedgerWriter, fold, read_ledger
from tests.conftest import Door, LoopbackServer, serving
from tests.media import Spec
from tests.site import HandClock, Site


def clip(video_id: str, start_ms: int, key: str | None = None) -> Clip:
    return Clip(key or f"{video_id}_{start_ms}", video_id, start_ms, start_ms + 10_000, "train", ())


def test_the_last_attempt_is_the_state_of_a_clip(tmp_path: Path) -> None:
    for worker, code, moment in [("fetch-1", "perm.gone", 2.0), ("fetch-0", "unknown", 1.0), ("fetch-2", "region.other", 3.0)]:
        with LedgerWriter(tmp_path, worker) as writer:
            writer.append([Attempt(key="a", source="s", code=code, time=moment), Attempt(key=worker, source="s", time=moment)])
    ledger = read_ledger(tmp_path)
    assert ledger["a"].code == "region.other"
    assert set(ledger) == {"a", "fetch-0", "fetch-1", "fetch-2"}


def test_a_line_cut_off_by_a_crash_is_skipped(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, "fetch-0") as writer:
        writer.append([Attempt(key="a", source="s"), Attempt(key="b", source="s")])
    path = tmp_path / "work/ledger/fetch-0.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with LedgerWriter(tmp_path, "fetch-0") as writer:
        writer.append([Attempt(key="c", source="s")])
    assert set(read_ledger(tmp_path)) == {"a", "c"}


def test_media_files_must_have_their_recorded_size(tmp_path: Path) -> None:
    (tmp_path / "file.mp4").write_bytes(b"12345")
    attempt = Attempt(key="a", source="s", path="file.mp4", size=5)
    assert attempt.checked(tmp_path) == attempt
    for lost in (dataclasses.replace(attempt, size=6), dataclasses.replace(attempt, path="other.mp4")):
        assert (lost.checked(tmp_path).path, lost.checked(tmp_path).code) == (None, "fetch.lost")


ROWS = ("-two_clips_,0,1,train,a", "-two_clips_,1.5,2.5,train,b", "gone,0,1,train,a", "busy,0,1,train,a", "_one,0,1,eval,a")


@pytest.fixture
def lists(tmp_path: Path) -> list[object]:
    (tmp_path / "clips.csv").write_text("\n".join(["video_id,start,end,split,labels", *ROWS]) + "\n")
    (tmp_path / "labels.csv").write_text("id\na\nb\n")
    return ["--list", tmp_path / "clips.csv", "--labels", tmp_path / "labels.csv"]


def new_paths(server: LoopbackServer) -> list[str]:
    """Paths requested since the last call."""
    requested = [path for path, _ in server.requests]
    server.requests.clear()
    return requested


def failures(ledger: dict[str, Attempt]) -> dict[str, tuple[str, str, bool]]:
    return {key: (attempt.code, attempt.action, attempt.final) for key, attempt in ledger.items() if attempt.code != "ok"}


def test_videos_are_fetched_once_and_failures_are_recorded(
    server: LoopbackServer,
    tmp_path: Path,
    lists: list[object],
    mbt: Door,
    rendered: Callable[[Spec], Path],
    clock: HandClock,
) -> None:
    video = rendered(Spec("25.mp4")).read_bytes()
    server.answer = serving({"/-two_clips_.mp4": video, "/_one.mp4": video}, {"/busy.mp4": 500})
    run = [*lists, "--source", server.url + "/{video_id}.mp4", "--out", tmp_path / "out", "--sleep", 0, "--short-side", 64]

    assert mbt("prep", "custom", *run, "--stage", "plan").code == 0
    assert not server.requests
    outcome = mbt("prep", "custom", *run, "--stage", "fetch")
    assert (outcome.code, outcome.out) == (0, "fetch: 3 clips found, 2 missing\n")
    first = new_paths(server)
    assert set(first) == {"/-two_clips_.mp4", "/_one.mp4", "/gone.mp4", "/busy.mp4"}
    ledger = read_ledger(tmp_path / "out")
    assert failures(ledger) == {"gone_0": ("perm.gone", "permanent", True), "busy_0": ("net.5xx", "later", False)}
    assert ledger["-two_clips__0"].path == ledger["-two_clips__1500"].path == "raw/-t/-two_clips_.mp4"
    assert (tmp_path / "out/raw/-t/-two_clips_.mp4").read_bytes() == video
    written = (tmp_path / "out/work/ledger/fetch-0.jsonl").read_text().splitlines()
    assert len(written) == 5

    assert mbt("prep", "custom", *run, "--stage", "fetch").code == 0
    assert not new_paths(server)
    clock.now += HOUR
    assert mbt("prep", "custom", *run, "--stage", "fetch").code == 0
    assert set(new_paths(server)) == {"/busy.mp4"}

    clock.now += 6 * HOUR
    server.answer = serving({"/busy.mp4": video})
    assert mbt("prep", "custom", *run).code == 0
    assert set(new_paths(server)) == {"/busy.mp4"}
    described = json.loads((tmp_path / "out/dataset.json").read_text())
    counts = {name: (split["samples"], split["failures"]) for name, split in described["splits"].items()}
    assert counts == {"train": (3, 1), "eval": (1, 0)}


def test_one_download_serves_all_clips_of_a_video(
    server: LoopbackServer, tmp_path: Path, rendered: Callable[[Spec], Path]
) -> None:
    body = rendered(Spec("25.mp4")).read_bytes()
    server.answer = serving({"/v.mp4": body})
    clips = [clip("v", 0), clip("v", 1000)]
    found, same = YtDlp(tmp_path, server.url + "/{video_id}.mp4").fetch("v", clips)
    assert found.result == same.result
    assert (found.effort.requests, found.effort.transferred) == (1, len(body))
    assert (same.effort.requests, same.effort.transferred, same.effort.extract_s) == (0, 0, 0.0)
    found = found.result
    assert isinstance(found, RawClip)
    assert found.path == tmp_path / "raw" / "v" / "v.mp4"
    assert found.path.read_bytes() == body
    assert (found.size, found.offset_ms) == (len(body), 0)
    found.path.write_bytes(b"changed")
    again = YtDlp(tmp_path, server.url + "/{video_id}.mp4").fetch("v", clips)
    assert [answer.result for answer in again] == [found, found]
    assert found.path.read_bytes() == body


def test_a_page_without_a_video_is_refused(server: LoopbackServer, tmp_path: Path) -> None:
    def page(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "text/html")
        request.end_headers()
        request.wfile.write(b"<html><title>t</title><body>nothing here</body></html>")

    server.answer = page
    (answer,) = YtDlp(tmp_path, server.url + "/{video_id}").fetch("v", [clip("v", 0)])
    result = answer.result
    assert isinstance(result, Verdict)
    assert (result.code, result.action) == ("input.bad_url", Action.INPUT)


def test_a_page_with_several_videos_is_refused(
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
    (answer,) = YtDlp(tmp_path, server.url + "/{video_id}").fetch("v", [clip("v", 0)])
    result = answer.result
    assert isinstance(result, Verdict)
    assert (result.code, result.action) == ("input.playlist", Action.INPUT)


@pytest.mark.parametrize("scheme", ["htps", "s3", "ftp"])
def test_a_template_with_another_scheme_is_refused(tmp_path: Path, scheme: str) -> None:
    with pytest.raises(InputError, match=f"has the scheme '{scheme}'. Give a URL that begins with https:// or http://"):
        YtDlp(tmp_path, f"{scheme}://127.0.0.1/{{video_id}}.mp4")


def test_a_template_without_a_placeholder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks \{video_id\}"):
        YtDlp(tmp_path, "https://example.org/video.mp4")


HOUR = 3600.0
Listing = Callable[..., list[object]]


@pytest.fixture
def listing(tmp_path: Path) -> Listing:
    """Makes the arguments of `mbt` that fetch one clip of each of this many videos from YouTube's URL."""

    def arguments(videos: int) -> list[object]:
        rows = [f"video{number:02},0,1,train,a" for number in range(videos)]
        (tmp_path / "clips.csv").write_text("\n".join(["video_id,start,end,split,labels", *rows]) + "\n")
        (tmp_path / "labels.csv").write_text("id\na\n")
        lists = ["--list", tmp_path / "clips.csv", "--labels", tmp_path / "labels.csv", "--out", tmp_path / "out"]
        return ["prep", "custom", *lists, "--source", "https://www.youtube.com/watch?v={video_id}", "--sleep", 0]

    return arguments


def in_fetching_order(videos: int) -> list[str]:
    """Video ids of `listing` in the pseudo-random order of seed 0."""
    return sorted((f"video{number:02}" for number in range(videos)), key=lambda video: sha256(f"0:{video}".encode()).digest())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandClock:
    """The clock of every run of the fetch stage."""
    clock = HandClock()
    for user in ("run", "side_by_side"):
        monkeypatch.setattr(f"mbt.prep.{user}.fetch", partial(fetch, clock=clock))
    return clock


@pytest.mark.parametrize(
    ("text", "code", "action"),
    [
        ("Private video", "perm.private", "permanent"),
        ("The uploader has not made this video available in your country", "region.uploader", "region"),
        ("Sign in to confirm your age", "creds.age", "credentials"),
        ("Unsupported URL: x", "input.bad_url", "input"),
    ],
)
def test_a_permanent_failure_is_not_retried(
    mbt: Door, listing: Listing, tmp_path: Path, site: Site, clock: HandClock, text: str, code: str, action: str
) -> None:
    site.errors = {"video01": (text, "")}
    assert mbt(*listing(3), "--stage", "plan").code == 0
    for _ in range(2):
        assert mbt(*listing(3), "--stage", "fetch").out == "fetch: 2 clips found, 1 missing\n"
        clock.now += 1000 * HOUR
    assert sorted(site.requested) == ["video00", "video01", "video02"]
    assert failures(read_ledger(tmp_path / "out")) == {"video01_0": (code, action, True)}


def fetches(mbt: Door, arguments: list[object], site: Site, clock: HandClock, hours: list[float]) -> list[int]:
    """Number of requests in each of several runs, each after a wait of this many hours."""
    counts = []
    for wait in hours:
        clock.now += wait * HOUR
        assert mbt(*arguments, "--stage", "fetch").code == 0
        counts.append(len(site.requested))
        site.requested.clear()
    return counts


def test_an_unavailable_video_is_final_once_confirmed_a_day_later(
    mbt: Door, listing: Listing, tmp_path: Path, site: Site, clock: HandClock
) -> None:
    site.errors = {"video00": ("Video unavailable", "")}
    mbt(*listing(1), "--stage", "plan")
    assert fetches(mbt, listing(1), site, clock, [0]) == [1]
    assert failures(read_ledger(tmp_path / "out")) == {"video00_0": ("confirm.unavailable", "confirm", False)}
    assert fetches(mbt, listing(1), site, clock, [23.9, 0.2, 1000]) == [0, 1, 0]
    assert failures(read_ledger(tmp_path / "out")) == {"video00_0": ("confirm.unavailable", "confirm", True)}


def test_waits_grow_up_to_six_attempts(mbt: Door, listing: Listing, tmp_path: Path, site: Site, clock: HandClock) -> None:
    site.errors = {"video00": ("Something new", "")}
    mbt(*listing(1), "--stage", "plan")
    assert fetches(mbt, listing(1), site, clock, [0, 0.9, 0.2, 5.9, 0.2]) == [1, 0, 1, 0, 1]
    site.errors = {"video00": ("The read operation timed out", "")}
    assert fetches(mbt, listing(1), site, clock, [23.9, 0.2, 71.9, 0.2]) == [0, 1, 0, 1]
    site.errors = {"video00": ("Did not get any data blocks", "")}
    assert fetches(mbt, listing(1), site, clock, [71.9, 0.2, 1000]) == [0, 1, 0]
    assert failures(read_ledger(tmp_path / "out")) == {"video00_0": ("bytes.short", "bytes", True)}


@pytest.mark.parametrize(
    ("code", "text", "warning", "remedy"),
    [
        ("block.bot", "Sign in to confirm you’re not a bot.", "", "from another network"),
        (
            "env.js",
            "Requested format is not available.",
            "[youtube] No supported JavaScript runtime could be found.",
            "pip install --upgrade",
        ),
        (
            "env.js",
            "Requested format is not available.",
            "[youtube] dQw4w9WgXcQ: n challenge solving failed: Some formats",
            "pip install --upgrade",
        ),
    ],
)
def test_a_source_that_refuses_us_stops_the_run_and_uses_no_attempt(
    mbt: Door, listing: Listing, tmp_path: Path, site: Site, code: str, text: str, warning: str, remedy: str
) -> None:
    first, second, _ = in_fetching_order(3)
    site.errors = {second: (text, warning)}
    mbt(*listing(3), "--stage", "plan")
    outcome = mbt(*listing(3), "--stage", "fetch")
    last = outcome.err.splitlines()[-1]
    assert outcome.code == 2
    assert f"error: www.youtube.com stopped serving videos ({code}): " in last
    assert remedy in last
    assert site.requested == [first, second]
    assert set(read_ledger(tmp_path / "out")) == {f"{first}_0"}


@pytest.mark.parametrize("text", ["The read operation timed out", "Something quite new happened"])
def test_ten_failures_in_a_row_stop_the_run(
    mbt: Door, listing: Listing, tmp_path: Path, site: Site, clock: HandClock, text: str
) -> None:
    """Failures of the network only if the site was never reached."""
    site.errors = dict.fromkeys(in_fetching_order(20), (text, ""))
    mbt(*listing(20), "--stage", "plan")
    outcome = mbt(*listing(20), "--stage", "fetch")
    assert outcome.code == 2
    assert f"error: www.youtube.com failed for 10 videos in a row; last error: {text}. Check" in outcome.err
    assert len(site.requested) == 10


def test_videos_that_fail_as_before_do_not_stop_a_later_run(mbt: Door, listing: Listing, site: Site, clock: HandClock) -> None:
    site.errors = dict.fromkeys(in_fetching_order(60)[::3], ("Something new", ""))
    mbt(*listing(60), "--stage", "plan")
    assert fetches(mbt, listing(60), site, clock, [0, 1.1]) == [60, 20]


def test_an_unknown_message_is_printed_once(mbt: Door, listing: Listing, site: Site) -> None:
    texts = ["Something new", "Something new", "Private video", "Something newer"]
    site.errors = {video: (text, "") for video, text in zip(in_fetching_order(5), texts, strict=False)}
    mbt(*listing(5), "--stage", "plan")
    outcome = mbt(*listing(5), "--stage", "fetch")
    told = [line.rpartition(": ")[2] for line in outcome.err.splitlines() if "unknown failure, will retry" in line]
    assert (outcome.out, told) == ("fetch: 1 clip found, 4 missing\n", ["Something new", "Something newer"])


def test_a_full_disk_is_not_a_failure_of_a_video(site: Site, tmp_path: Path) -> None:
    site.errors = {"v": ("unable to write data: [Errno 28] No space left on device", "")}
    with pytest.raises(StorageError, match="no space left"):
        YtDlp(tmp_path, "https://www.youtube.com/watch?v={video_id}").fetch("v", [clip("v", 0)])


def failed(hours: float, code: str = "unknown", action: str = "later", source: str = "s") -> Attempt:
    return Attempt(key="a", source=source, code=code, action=action, time=hours * HOUR)


@pytest.mark.parametrize(
    ("attempts", "final", "hours"),
    [
        ([failed(0)], False, 1),
        ([failed(0), failed(1)], False, 1 + 6),
        ([failed(hour) for hour in range(5)], False, 4 + 72),
        ([failed(hour) for hour in range(6)], True, None),
        ([*[failed(hour) for hour in range(5)], failed(9, source="t")], False, 9 + 1),
        ([*[failed(hour) for hour in range(5)], Attempt(key="a", source="s", path="x", time=0), failed(9)], False, 9 + 1),
        ([*[failed(hour) for hour in range(9)], failed(9, "net.5xx", "network")], False, 0),
        ([failed(0, "confirm.unavailable", "confirm"), failed(23.9, "confirm.unavailable", "confirm")], False, 23.9 + 6),
        ([failed(0, "confirm.unavailable", "confirm"), failed(24, "confirm.unavailable", "confirm")], True, None),
        ([failed(0, "env.format", "confirm"), failed(24, "confirm.unavailable", "confirm")], False, 24 + 6),
        ([failed(0), failed(24, "confirm.unavailable", "confirm")], False, 24 + 6),
        ([failed(0, "local.missing", "")] * 9, False, 0),
    ],
)
def test_the_state_of_a_clip_is_the_fold_of_its_attempts(attempts: list[Attempt], final: bool, hours: float | None) -> None:
    state = fold(attempts)
    assert (state.code, state.final) == (attempts[-1].code, final)
    assert final or state.not_before == hours * HOUR


def test_ledgers_of_earlier_versions_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "work/ledger").mkdir(parents=True)
    line = {"key": "a", "source": "s", "path": None, "size": 0, "offset_ms": 0, "message": "", "final": False, "time": 1.0}
    rows = [{**line, "code": "fetch.failed"}, {**line, "key": "b", "code": "perm.removed", "final": True}]
    (tmp_path / "work/ledger/fetch-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert failures(read_ledger(tmp_path)) == {"a": ("fetch.failed", "", False), "b": ("perm.removed", "", True)}
