"""`mbt doctor --pilot`, against a stand-in for YouTube: an extractor of yt-dlp and a media server."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yt_dlp
from yt_dlp.extractor.common import InfoExtractor
from yt_dlp.utils import ExtractorError

from mbt.manifests.clips import Clip, clip_table
from mbt.prep.pilot.model import PilotReport
from tests.conftest import Door
from tests.mediaserver import MediaServer, ServedFile, Status, media_server
from tests.prep.conftest import Served

pytestmark = pytest.mark.slow

KINDS = {"range": 9, "whole": 2, "removed": 4, "private": 3, "aged": 2, "dead": 2, "broken": 1, "odd": 1}
"""Videos of each kind; the first two can be fetched."""
CLIPS = 24
AGAIN = 1
"""A 403 on media is asked once more at once, with fresh URLs."""
WAIT_S = 0.1
"""Wait that the site demands before the media of a video of the first kind may be requested."""
TEXTS = {
    "removed": "This video has been removed by the uploader",
    "private": "Private video. Sign in if you've been granted access to this video",
    "aged": "Sign in to confirm your age",
    "dead": "Video unavailable",
}
CODES = {
    "removed": "perm.removed_by_uploader",
    "private": "perm.private",
    "aged": "creds.age",
    "dead": "confirm.unavailable",
    "broken": "bytes.403",
    "odd": "unknown",
}
PICTURES = {"vcodec": "avc1.4d401e", "acodec": "none", "width": 640, "height": 360, "ext": "mp4"}
SOUND = {"vcodec": "none", "acodec": "mp4a.40.2", "ext": "m4a"}
BOTH = {"vcodec": "avc1.42001E", "acodec": "mp4a.40.2", "width": 640, "height": 360, "ext": "mp4"}


@dataclass
class Tube:
    """The stand-in.

    Attributes:
        media: its media server.
        odd: message of the failure that mbt does not know.
        on_request: called with the number of each extraction, from 1; a text is the error to raise.
        extracted: ids of the extracted videos.
    """

    media: MediaServer
    odd: str = "Something else"
    on_request: Callable[[int], str | None] = lambda number: None
    extracted: list[str] = field(default_factory=list)

    def formats(self, kind: str) -> list[dict[str, Any]]:
        url = self.media.url
        if kind == "whole":
            return [{"format_id": "18", "url": f"{url}/both", **BOTH}]
        at = {"available_at": time.time() + WAIT_S} if kind == "range" else {}
        pictures = f"{url}/refused" if kind == "broken" else f"{url}/v"
        return [
            {"format_id": "249", "url": f"{url}/a", "vcodec": "none", "acodec": "opus", "ext": "webm"},
            {"format_id": "140", "url": f"{url}/a", **SOUND},
            {"format_id": "134", "url": pictures, **PICTURES, **at},
        ]


@pytest.fixture
def tube(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tube]:
    """The stand-in in place of yt-dlp, and a list of 24 clips."""
    names = [f"{kind}_{number:0{10 - len(kind)}}" for kind, count in KINDS.items() for number in range(count)]
    clips = [
        Clip(f"{name}_{1000 * i + 300}", name, 1000 * i + 300, 1000 * i + 10_300, "eval", (i,)) for i, name in enumerate(names)
    ]
    monkeypatch.setattr("mbt.prep.pilot.run.audioset_clips", lambda subset, path: clip_table(clips))
    released = date(*map(int, metadata.version("yt-dlp").split(".")[:3]))
    monkeypatch.setattr("mbt.prep.doctor.today", lambda: released + timedelta(7))

    class TubeIE(InfoExtractor):
        _VALID_URL = r"https://www\.youtube\.com/watch\?v=(?P<id>.+)"
        IE_NAME = "youtube"

        def _real_extract(self, url: str) -> dict[str, Any]:
            video_id = self._match_id(url)
            state.extracted.append(video_id)
            kind = video_id.partition("_")[0]
            text = state.on_request(len(state.extracted)) or (state.odd if kind == "odd" else TEXTS.get(kind))
            if text is not None:
                raise ExtractorError(text, expected=True, video_id=video_id)
            return {"id": video_id, "title": "A title", "formats": state.formats(kind)}

    class StandIn(yt_dlp.YoutubeDL):
        def __init__(self, options: dict[str, Any]) -> None:
            super().__init__(options, auto_init=False)
            self.add_info_extractor(TubeIE())

    with media_server() as server:
        server.files["/v"] = ServedFile(served.content("late25.mp4"))
        server.files["/a"] = ServedFile(served.content("primed.m4a"))
        server.files["/both"] = ServedFile(served.content("both30.mp4"))
        server.files["/refused"] = ServedFile(b"", always=Status(403))
        state = Tube(server)
        monkeypatch.setattr(yt_dlp, "YoutubeDL", StandIn)
        yield state


def pilot(mbt: Door, out: Path, *more: object) -> Any:
    return mbt("doctor", "--pilot", 30, "--out", out, "--sleep", 0, *more)


def rows_of(out: Path) -> list[dict[str, Any]]:
    """The ledger, read by other code."""
    return [json.loads(line) for line in (out / "work" / "ledger" / "fetch-0.jsonl").read_text().splitlines()]


def test_the_numbers_are_those_that_the_site_counted(tube: Tube, tmp_path: Path, mbt: Door) -> None:
    out = tmp_path / "pilot"
    done = pilot(mbt, out, "--json")
    assert done.code == 0, done.err
    report = PilotReport.model_validate_json(done.out)
    assert json.loads(done.out) == json.loads((out / "pilot.json").read_text())
    assert report.ended.state == "complete"
    settings = report.settings
    assert (settings.subset, settings.population, settings.sample, settings.source) == ("eval", CLIPS, CLIPS, "youtube")
    assert (report.asked, report.there, report.not_there, report.packed) == (CLIPS, 11, 13, 11)
    assert (report.to_ask, report.due_later) == (0, 2 + 1 + 1), "unavailable, broken and unknown ones"
    assert {(r.code, r.clips, r.final) for r in report.reasons} == {
        (code, KINDS[kind], 0 if kind in ("dead", "broken", "odd") else KINDS[kind]) for kind, code in CODES.items()
    }
    assert all(re.fullmatch(r"\w+_\d+", reason.example_key) for reason in report.reasons)

    assert report.alive is not None
    assert (report.alive.of, report.alive.share) == (22, 0.5)
    weight = 1.959964**2 / 22
    ends = sorted(np.roots([1 + weight, -(1 + weight), 0.25]))
    assert (report.alive.low, report.alive.high) == pytest.approx(tuple(ends))

    assert {row.format: row.videos for row in report.offered} == {"134": 10, "140": 10, "249": 10, "18": 2}
    assert [(row.formats, row.by_ranges, row.whole) for row in report.chosen] == [("134+140", 9, 0), ("18", 0, 2)]

    sent: dict[str, list[int]] = {}
    for request in tube.media.requests:
        sent.setdefault(request.path, []).append(request.sent)
    ranged = [*sent["/v"], *sent["/a"]]
    costs = report.costs
    assert costs.requests is not None
    assert costs.transferred is not None
    assert costs.requests.of == 11
    assert costs.requests.mean.expected == pytest.approx((len(ranged) + 2) / 11)
    assert costs.transferred.mean.expected == pytest.approx((sum(ranged) + 2 * len(tube.media.files["/both"].content)) / 11)
    raw = [path.stat().st_size for path in (out / "raw").rglob("*.*")]
    assert costs.raw_bytes is not None
    assert (costs.raw_bytes.of, costs.raw_bytes.mean.expected) == (11, pytest.approx(np.mean(raw)))
    assert (costs.raw_bytes.median, costs.raw_bytes.max) == (float(np.median(raw)), max(raw))
    index = pq.read_table(out / "eval.parquet")
    members = sum(sum(index[name].to_pylist()) for name in ("json_size", "mel_size", "mjpg_size"))
    assert costs.shard_bytes is not None
    assert costs.shard_bytes.mean.expected == pytest.approx(members / 11)
    assert report.extractions == len(tube.extracted) == CLIPS + AGAIN
    assert costs.wait_s is not None
    assert costs.wait_s.mean.expected == pytest.approx(9 * WAIT_S / 11, rel=0.3)
    assert costs.wait_s.max <= WAIT_S
    for seconds in (costs.extract_s, costs.transfer_s, costs.decode_s):
        assert seconds is not None
        assert seconds.max > 0
        assert 0 <= seconds.mean.low <= seconds.mean.expected <= seconds.mean.high < 60

    [lane] = report.lanes
    assert (lane.number, lane.attempts, lane.there, lane.rests) == (1, CLIPS, 11, 0)
    times = [row["time"] for row in rows_of(out)]
    assert lane.per_hour is not None
    assert lane.per_hour.expected == pytest.approx(3600 * (CLIPS - 1) / (times[-1] - times[0]), rel=1e-3)


def test_the_page_shows_what_the_report_holds(tube: Tube, tmp_path: Path, mbt: Door) -> None:
    out = tmp_path / "pilot"
    done = pilot(mbt, out)
    assert done.code == 0, done.err
    text = (out / "pilot.html").read_text()
    assert "<title>Pilot: 24 clips of AudioSet eval</title>" in text
    for cells in (
        ["134+140", "9", "0"],
        ["18", "0", "2"],
        ["249", "10"],
        ["perm.removed_by_uploader", "permanent", "4", "4", "-"],
        ["yt-dlp", metadata.version("yt-dlp")],
        ["2 of 24 clips (8%) are limited by age or need a login"],
        ["2 of 11 clips were fetched as whole files, not by byte ranges"],
        ["1 of 24 clips (4%) failed for a reason that mbt does not know"],
    ):
        assert re.search("</td>".join(f"<td[^>]*>{re.escape(cell)}" for cell in cells) + "</td>", text), cells
    assert "Alive: 50.0% (30.7% to 69.3%)" in text
    assert "<script" not in text
    assert not re.findall(r"(?:src|href)=", text)
    assert "alive      50.0% (30.7% to 69.3%)" in done.out.splitlines()
    assert done.out.splitlines()[-1].startswith(f"written to {out / 'pilot.html'} and {out / 'pilot.json'}")
    assert "Traceback" not in done.err


def test_nothing_private_is_in_the_report(tube: Tube, tmp_path: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of a proxy, cookies, addresses, folders and names are in the ledger, but not in the page or the JSON."""
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    monkeypatch.setattr("platform.node", lambda: "alices-laptop")
    cookies = tmp_path / "of alice" / "jar.txt"
    cookies.parent.mkdir()
    cookies.write_text("# Netscape HTTP Cookie File\n.youtube.com\tTRUE\t/\tTRUE\t0\tSID\tg.a000secretsid\n")
    port = tube.media.url.rpartition(":")[2]
    proxy = f"http://bob:hunter2@127.0.0.1:{port}"
    tube.odd = (
        f"alice at alices-laptop could not read {cookies} nor /srv/data/alice/x.json over {proxy} from 198.51.100.23 or "
        f"2001:db8::1:2; https://rr3---sn-4g5e.googlevideo.com/videoplayback?ip=198.51.100.23&sig=AOq0QJ8wRQIh failed; "
        f"visitorData CgtEUXl4 {'Zx9' * 20}; see hunter2; Cookie: SID=g.a000secretsid; HSID=abc"
    )
    (tmp_path / "lanes.toml").write_text(
        f'[[lane]]\nname = "officelane"\nytdlp = "--proxy {proxy} --cookies \'{cookies}\'"\n'
        f'[[lane]]\nname = "lablane"\nytdlp = "--source-address 127.0.0.1"\n'
    )
    out = tmp_path / "pilot"
    done = pilot(mbt, out, "--lanes", tmp_path / "lanes.toml", "--ytdlp", "--username carol77 --password pw77")
    assert done.code == 0, done.err
    ledger = (out / "work" / "ledger" / "fetch-0.jsonl").read_text()
    assert "hunter2" in ledger
    assert "officelane" in ledger
    report = (out / "pilot.json").read_text()
    assert '"--proxy"' in report, "the name of an option"
    assert "could not read <private> nor <private> over http://<private> from <private> or <private>; " in report
    assert "https://rr3---sn-4g5e.googlevideo.com/... failed" in report
    private = ["alice", "hunter2", "bob", "127.0.0.1", port, "jar.txt", "/srv", "x.json", "198.51", "2001:db8", "sig=", "AOq0"]
    private += [
        "Zx9Zx9",
        "secretsid",
        "HSID=",
        "officelane",
        "lablane",
        "carol77",
        "s3cret-of-carol",
        str(tmp_path),
        tmp_path.name,
        str(Path.home()),
    ]
    for text in (report, (out / "pilot.html").read_text()):
        assert [secret for secret in private if secret in text] == []


def test_a_stop_by_the_site_is_reported_and_a_later_run_continues(tube: Tube, tmp_path: Path, mbt: Door) -> None:
    out = tmp_path / "pilot"
    tube.on_request = lambda number: "Signature solving failed: no solver" if number == 9 else None
    stopped = pilot(mbt, out)
    assert stopped.code == 1
    assert "error: www.youtube.com stopped serving videos (env.js)" in stopped.err
    report = PilotReport.model_validate_json((out / "pilot.json").read_bytes())
    asked = tube.extracted[:8]
    there = sum(name.startswith(("range", "whole")) for name in asked)
    assert (report.ended.state, "env.js" in report.ended.reason) == ("stopped", True)
    assert (report.asked, report.there, report.packed, report.to_ask) == (8, there, there, CLIPS - 8)
    assert [(refusal.code, refusal.times) for refusal in report.refusals] == [("env.js", 1)]
    [advice] = [each for each in report.advice if "env.js" in each.found and "stopped once" in each.found]
    assert "pip install --upgrade 'yt-dlp[default,deno]'" in advice.remedy
    assert "<td>env.js</td>" in (out / "pilot.html").read_text()

    again = pilot(mbt, out)
    assert again.code == 0, again.err
    report = PilotReport.model_validate_json((out / "pilot.json").read_bytes())
    assert (report.ended.state, report.asked, report.there, report.packed) == ("complete", CLIPS, 11, 11)
    assert len(tube.extracted) == CLIPS + AGAIN + 1, "the refused video was requested once more"
    assert report.alive is not None
    assert report.alive.share == 0.5


def test_a_site_that_serves_nothing_is_reported(tube: Tube, tmp_path: Path, mbt: Door) -> None:
    tube.on_request = lambda number: "Sign in to confirm you’re not a bot"
    done = pilot(mbt, tmp_path / "pilot")
    assert done.code == 1
    report = PilotReport.model_validate_json((tmp_path / "pilot" / "pilot.json").read_bytes())
    assert (report.ended.state, report.asked, report.alive, report.forecast, len(tube.extracted)) == (
        "stopped",
        0,
        None,
        None,
        1,
    )
    assert [(refusal.code, refusal.times) for refusal in report.refusals] == [("block.bot", 1)]
    assert any("the site refused this address once" in advice.found for advice in report.advice)
    assert "<p>Unknown: at least two clips must be fetched.</p>" in (tmp_path / "pilot" / "pilot.html").read_text()


def test_an_interrupted_pilot_is_reported(tube: Tube, tmp_path: Path, mbt: Door) -> None:
    out = tmp_path / "pilot"
    tube.on_request = lambda number: os.kill(os.getpid(), signal.SIGINT) if number == 5 else None
    interrupted = pilot(mbt, out)
    assert interrupted.code == 130
    report = PilotReport.model_validate_json((out / "pilot.json").read_bytes())
    assert (report.ended.state, report.asked, report.packed, report.to_ask) == ("interrupted", 5, 0, CLIPS - 5)
    assert report.advice[0].found == "the run was interrupted after 5 of 24 clips"
    assert pilot(mbt, out).code == 0
    assert len(tube.extracted) == CLIPS + AGAIN


def test_a_failed_check_makes_no_request(tube: Tube, tmp_path: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbt.prep.doctor.today", lambda: date(2019, 1, 1))
    done = pilot(mbt, tmp_path / "pilot", "--json")
    assert done.code == 1
    report = PilotReport.model_validate_json(done.out)
    assert (report.ended.state, report.ended.reason, report.asked, tube.extracted) == ("stopped", "a check failed", 0, [])
    assert report.forecast is None
    assert any("Set the clock" in advice.remedy for advice in report.advice)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "/media"], "--pilot fetches from a URL, but --source /media is a folder"),
        (["--subset", "evil"], "audioset has no subset 'evil'"),
        (["--ytdlp", "--cookie x"], "--ytdlp"),
        (["--lanes", "nothing.toml"], "cannot read the lanes file nothing.toml"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    tmp_path: Path, mbt: Door, arguments: list[str], message: str
) -> None:
    done = pilot(mbt, tmp_path / "pilot", *arguments)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("error: ")
    assert message in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--subset", "--source", "--sleep"])
def test_options_of_the_pilot_require_it(option: str, mbt: Door) -> None:
    done = mbt("doctor", option, "1")
    assert (done.code, done.out) == (2, "")
    assert f"{option} requires --pilot." in done.err


def test_a_folder_with_other_clips_is_refused(tube: Tube, packed: Path, mbt: Door) -> None:
    before = (packed / "clips.parquet").read_bytes()
    done = pilot(mbt, packed)
    assert done.code == 2
    assert done.err == f"error: {packed} holds other clips than this pilot's. Choose another --out.\n"
    assert (packed / "clips.parquet").read_bytes() == before
    assert tube.extracted == []
