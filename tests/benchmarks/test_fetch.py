"""The fetch benchmark at its smallest size, its sums by hand, and what it needs from the media server."""

import json
import struct
import time
import urllib.request
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import fetch
from benchmarks.fetch import ANY_TIME, OURS, SECTIONS, TENS, UNTYPED, WHOLE, WORST, Clip, Lanes, cost_rows, lane_usage, table
from mbt.manifests.errors import InputError
from mbt.prep.sources.byte_ranges import HEAD
from tests.mediaserver import Request, ServedFile, media_server, with_access_points

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """The report of a run with two clips of each kind."""
    outcome = CliRunner().invoke(fetch.main, ["--clips", "2", "--lanes", "2", "--sleep", "0.4", "--latency", "20", "--json"])
    assert outcome.exit_code == 0, outcome.output
    return json.loads(outcome.stdout)


def test_every_program_has_its_row(report: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == [*OURS, WHOLE, SECTIONS]
    assert {rows[name]["requests"] for name in OURS} == {4.0}
    for row in rows.values():
        assert row["mean_bytes"] == pytest.approx(row["share"] * 300 * 680_000 / 8, rel=0.01)
        assert row["mean_bytes"] <= row["max_bytes"] < 1.1 * row["mean_bytes"]
    assert rows[WHOLE]["share"] == 1.0
    assert 0.03 < rows[SECTIONS]["share"] < 0.3


def test_the_number_of_segments_that_each_kind_of_clip_needs(report: dict[str, Any]) -> None:
    """Groups of pictures have 344 kB, sound segments 162 kB: clips need two or three sound segments, the worst kind three."""
    cost = {row["name"]: row["mean_bytes"] - 2 * HEAD for row in report["rows"]}

    def groups(name: str, sounds: float) -> float:
        return (cost[name] - sounds * 162_300) / 344_000

    assert min(abs(groups(ANY_TIME, sounds) - 3) for sounds in (2, 2.5, 3)) < 0.1
    assert min(abs(groups(TENS, sounds) - 2) for sounds in (2, 2.5, 3)) < 0.1
    assert min(abs(groups(UNTYPED, sounds) - 4) for sounds in (2, 2.5, 3)) < 0.1
    assert abs(groups(WORST, 3) - 3) < 0.1


def test_lanes_keep_their_rate(report: dict[str, Any]) -> None:
    lanes = report["lanes"]
    assert (lanes["lanes"], lanes["sleep_s"], lanes["allowed"]) == (2, 0.4, 5 * 3600)
    assert lanes["busy"] == pytest.approx(lanes["made"] / lanes["allowed"])
    assert 0 < lanes["busy"] <= 1.25


def test_rows_count_what_the_server_sent() -> None:
    clips = [Clip("a", "v1", 0), Clip("a", "v2", 0), Clip("b", "v3", 0)]
    sent = [("/watch/v1", 9), ("/video/v1", 100), ("/audio/v1", 20), ("/video/v2", 300), ("/video/v3", 7), ("/watch/v3", 9)]
    first, second = cost_rows(clips, [Request(path, None, {}, 206, size) for path, size in sent], 1000)
    assert (first.clips, first.requests, first.mean_bytes, first.max_bytes, first.share) == (2, 1.5, 210, 300, 0.21)
    assert (second.name, second.clips, second.requests, second.mean_bytes) == ("b", 1, 1, 7)


def test_how_busy_lanes_are_follows_from_page_times() -> None:
    def pages(*times: float) -> list[Request]:
        return [Request("/watch/v", None, {}, time=at) for at in times] + [Request("/video/v", None, {}, time=999)]

    assert lane_usage(pages(9.5, 10, 12, 14, 16), 1, 2.0, 0.0) == Lanes(1, 2.0, 0.0, 1800, 1800, 1.0)
    assert lane_usage(pages(8, 8, 10, 10, 14, 14), 2, 2.0, 0.3) == Lanes(2, 2.0, 0.3, 1800, 3600, 0.5)
    assert lane_usage(pages(8, 8, 10, 10), 2, 2.0, 0.0) is None
    assert lane_usage(pages(8, 10, 12), 1, 0.0, 0.0) is None


def test_the_table_shows_bytes_share_and_targets() -> None:
    text = table([fetch.Row("x", 3, 4.0, 1_234_567, 2_345_678, 0.05)], Lanes(2, 1.0, 0.3, 7100, 7200, 0.986))
    _, row, _, target, lanes = text.splitlines()
    assert row.split() == ["x", "3", "4.0", "1.23", "2.35", "5.0%"]
    assert "at most 1.5 MB" in target
    assert "300 ms: 7,100 of 7,200 requests per hour, 99%; target >= 95%" in lanes


def test_a_program_that_fails_is_a_one_line_error() -> None:
    with pytest.raises(InputError, match="a program under test failed: Error: No such command 'nothing'"):
        fetch._python("cli", "nothing")


def test_clips_are_inside_the_video() -> None:
    for clip in fetch.choose(200, index_of([10_000] * 30)):
        assert 10 <= clip.start_s <= 280.1
        assert clip.row != TENS or clip.start_s % 10 == 0
        assert clip.row != WORST or clip.start_s % 10 == pytest.approx(0.05)


def index_of(milliseconds: list[int]) -> bytes:
    """The smallest fragmented MP4 with an index of segments of these durations, 100 bytes each."""

    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(content), kind) + content

    entries = b"".join(struct.pack(">III", 100, duration, 0) for duration in milliseconds)
    sidx = box(b"sidx", struct.pack(">IIIIIHH", 0, 1, 1000, 0, 0, 0, len(milliseconds)) + entries)
    segments = (box(b"moof", bytes(42)) + box(b"mdat", bytes(42))) * len(milliseconds)
    return box(b"ftyp", b"dash") + box(b"moov", box(b"mvex", b"")) + sidx + segments


def test_only_access_points_are_marked() -> None:
    plain = index_of([10, 20, 30])
    marked = with_access_points(plain, 2)
    start = plain.index(b"sidx") + 28
    assert [struct.unpack_from(">III", marked, start + 12 * i) for i in range(3)] == [
        (100, 10, 0xA000_0000),
        (100, 20, 0xA000_0000),
        (100, 30, 0xA000_0000),
    ]
    assert sum(a != b for a, b in zip(plain, marked, strict=True)) == 3


def test_the_server_waits_before_a_page_and_supports_open_ranges() -> None:
    with media_server() as server:
        server.files["/page"] = ServedFile(b"0123456789", latency_s=0.2)
        began = time.monotonic()
        asked = urllib.request.Request(f"{server.url}/page", headers={"Range": "bytes=7-"})
        with urllib.request.urlopen(asked) as answer:
            assert (answer.read(), answer.headers["Content-Range"]) == (b"789", "bytes 7-9/10")
        assert time.monotonic() - began >= 0.2
        (request,) = server.requests
        while request.sent < 3 and time.monotonic() < began + 10:
            time.sleep(0.01)
        assert (request.range, request.sent) == ((7, 9), 3)
        assert began <= request.time < began + 0.2
