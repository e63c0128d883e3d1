"""The segment index, compared with boxes written by hand and PyAV's packets of real files; and arbitrary bytes."""

import contextlib
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbt.prep.media.ffmpeg import ffmpeg
from mbt.prep.sources.sidx import NoIndexError, SegmentIndex, are_segments, parse_index
from tests.media import Spec

MVEX = b"\0\0\0\x08mvex"


def box(kind: bytes, content: bytes = b"", large: bool = False) -> bytes:
    if large:
        return struct.pack(">I4sQ", 1, kind, 16 + len(content)) + content
    return struct.pack(">I4s", 8 + len(content), kind) + content


def sidx(entries: list[tuple[int, int, int]], version: int = 0, timescale: int = 1000, first_offset: int = 0) -> bytes:
    times = struct.pack(">QQ" if version else ">II", 7, first_offset)
    content = struct.pack(">B3xII", version, 1, timescale) + times + struct.pack(">HH", 0, len(entries))
    return box(b"sidx", content + b"".join(struct.pack(">III", *entry) for entry in entries))


def moov(*handlers: bytes) -> bytes:
    """The `moov` box of a fragmented file with tracks of these types."""
    traks = (box(b"trak", box(b"mdia", box(b"hdlr", bytes(8) + handler + bytes(12)))) for handler in handlers)
    return box(b"moov", b"".join(traks) + MVEX)


FTYP, MOOV = box(b"ftyp", b"dash"), box(b"moov", MVEX)
SAP = 1 << 31
THREE = [(3000, 5000, SAP), (4000, 5000, SAP), (2000, 2500, SAP)]


def file_of(index: bytes, before: bytes = FTYP + MOOV) -> bytes:
    """A file whose segments are the 9000 bytes of `THREE`."""
    return before + index + box(b"moof", bytes(92)) + box(b"mdat", bytes(8892))


def refusal(data: bytes, size: int) -> NoIndexError | None:
    try:
        parse_index(data, size)
    except NoIndexError as error:
        return error
    return None


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("large", [False, True])
def test_an_index_written_by_hand(version: int, large: bool) -> None:
    before = FTYP + box(b"free", bytes(10)) + box(b"moov", MVEX, large)
    data = file_of(sidx(THREE, version), before=before)
    index = parse_index(data, len(data))
    assert index.init == len(before)
    first = len(before) + (76 if version else 68)
    assert [(s.offset, s.size, s.start_s, s.end_s) for s in index.segments] == [
        (first, 3000, 0.0, 5.0),
        (first + 3000, 4000, 5.0, 10.0),
        (first + 7000, 2000, 10.0, 12.5),
    ]
    assert index.is_complete


def test_segments_begin_at_the_first_offset() -> None:
    index = sidx(THREE, first_offset=24)
    data = file_of(index + box(b"free", bytes(16)))
    assert parse_index(data, len(data)).segments[0].offset == len(FTYP + MOOV + index) + 24


@pytest.mark.parametrize(
    ("start_s", "end_s", "first", "last"),
    [(0, 3, 0, 0), (0, 4.95, 0, 1), (5.05, 9, 0, 1), (5.2, 9.8, 1, 1), (11, 12, 2, 2), (4, 30, 0, 2), (12.4, 22, 2, 2)],
)
def test_the_span_includes_a_margin_of_100_ms(start_s: float, end_s: float, first: int, last: int) -> None:
    data = file_of(sidx(THREE))
    index = parse_index(data, len(data))
    assert index.span(start_s, end_s) == (index.segments[first].offset, index.segments[last].end)


def test_the_span_after_the_end_is_empty() -> None:
    data = file_of(sidx(THREE))
    first, last = parse_index(data, len(data)).span(12.5, 20)
    assert first == last


def test_the_span_begins_at_a_random_access_point() -> None:
    data = file_of(sidx([(3000, 5000, SAP), (4000, 5000, 0), (2000, 2500, 0)]))
    index = parse_index(data, len(data))
    assert index.span(11, 12) == (index.segments[0].offset, index.segments[2].end)
    unmarked = file_of(sidx([(3000, 5000, 0), (4000, 5000, 0), (2000, 2500, 0)]))
    assert parse_index(unmarked, len(unmarked)).span(11, 12)[0] == index.segments[2].offset


def typed(*access: int, before: bytes = FTYP + moov(b"vide")) -> SegmentIndex:
    """The index of three segments of 5, 5 and 2.5 s, with these access words."""
    data = file_of(sidx([(size, ticks, word) for (size, ticks, _), word in zip(THREE, access, strict=True)]), before=before)
    return parse_index(data, len(data))


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize(
    ("start_s", "end_s", "first", "last"),
    [(5, 10, 1, 1), (4.999, 10, 0, 1), (5, 10.001, 1, 2), (5.001, 9.999, 1, 1), (0, 5, 0, 0), (10, 12.5, 2, 2)],
)
def test_the_span_of_closed_groups_of_pictures_has_no_margin(
    kind: int, start_s: float, end_s: float, first: int, last: int
) -> None:
    index = typed(*[SAP | kind << 28] * 3)
    assert index.span(start_s, end_s) == (index.segments[first].offset, index.segments[last].end)


@pytest.mark.parametrize(
    ("word", "before"),
    [
        (SAP, FTYP + moov(b"vide")),
        (SAP | 3 << 28, FTYP + moov(b"vide")),
        (SAP | 4 << 28, FTYP + moov(b"vide")),
        (SAP | 1 << 28 | 1, FTYP + moov(b"vide")),
        (SAP | 1 << 28, FTYP + moov(b"soun")),
        (SAP | 1 << 28, FTYP + moov(b"vide", b"soun")),
        (SAP | 1 << 28, FTYP + MOOV),
    ],
)
def test_other_borders_keep_the_margin(word: int, before: bytes) -> None:
    index = typed(word, word, word, before=before)
    assert index.span(5, 9.95) == (index.segments[0].offset, index.segments[2].end)


def test_each_border_has_its_own_margin() -> None:
    index = typed(SAP, SAP | 1 << 28, SAP)
    assert index.span(5, 9.95) == (index.segments[1].offset, index.segments[2].end)
    assert index.span(10.05, 12) == (index.segments[1].offset, index.segments[2].end)


def test_a_partial_index_serves_only_what_it_covers() -> None:
    data = file_of(sidx(THREE))
    index = parse_index(data, len(data) + 100_000)
    assert index.span(1, 9) == (index.segments[0].offset, index.segments[1].end)
    with pytest.raises(NoIndexError, match="partial"):
        index.span(1, 12.45)
    with pytest.raises(NoIndexError, match="partial"):
        index.span(20, 30)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no_mp4"),
        (b"\x1aE\xdf\xa3" + bytes(100), "no_mp4"),
        (FTYP + box(b"mdat", bytes(100)) + box(b"moov"), "not_fragmented"),
        (FTYP + box(b"moov", box(b"mvhd", bytes(100))) + box(b"mdat"), "not_fragmented"),
        (FTYP + MOOV + box(b"moof") + box(b"mdat"), "absent"),
        (FTYP + MOOV + box(b"mdat"), "absent"),
        (FTYP + MOOV, "absent"),
        (file_of(sidx(THREE) + sidx(THREE)), "several"),
        (file_of(sidx([(3000 | SAP, 5000, SAP)])), "hierarchical"),
        (file_of(sidx([])), "broken"),
        (file_of(sidx([(0, 5000, SAP)])), "broken"),
        (file_of(sidx([(3000, 0, SAP)])), "broken"),
        (file_of(sidx([(90_000, 5000, SAP)])), "broken"),
        (file_of(sidx(THREE, timescale=0)), "broken"),
        (file_of(sidx(THREE, version=2)), "broken"),
        (file_of(sidx(THREE), before=FTYP), "broken"),
        (file_of(box(b"sidx", bytes(9))), "broken"),
        (FTYP + struct.pack(">I4s", 4, b"moov"), "broken"),
        (file_of(sidx(THREE), before=FTYP + box(b"moov", box(b"trak", struct.pack(">I4s", 4, b"mdia")) + MVEX)), "broken"),
        (FTYP + struct.pack(">I4s", 400, b"moov"), "broken"),
    ],
)
def test_an_unusable_index_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    error = refusal(data, len(data))
    assert error is not None
    assert (error.reason, error.needed) == (reason, 0)


def test_an_index_beyond_the_head_says_how_many_bytes_are_needed() -> None:
    data = file_of(sidx(THREE), before=FTYP + box(b"free", bytes(70_000)) + MOOV)
    head, reads = data[:65_536], 0
    while (error := refusal(head, len(data))) is not None:
        assert error.reason == "incomplete"
        assert error.needed > len(head)
        head, reads = data[: error.needed], reads + 1
    assert parse_index(head, len(data)) == parse_index(data, len(data))
    assert len(head) < len(data)
    assert reads < 10


def served_file(rendered: Callable[[Spec], Path], folder: Path, *options: str) -> Path:
    source = rendered(Spec("indexed.mp4", fps="30", seconds=7, gop=60, audio=False))
    path = folder / "fragmented.mp4"
    copy = [ffmpeg(), "-nostdin", "-v", "error", "-i", str(source), "-c", "copy", *options, str(path)]
    subprocess.run(copy, check=True)
    return path


@pytest.mark.parametrize("delay", ["", "+delay_moov"])
def test_packets_are_where_the_index_says(rendered: Callable[[Spec], Path], tmp_path: Path, delay: str) -> None:
    path = served_file(
        rendered, tmp_path, "-movflags", f"+dash+global_sidx+frag_keyframe+default_base_moof{delay or '+empty_moov'}"
    )
    data = path.read_bytes()
    index = parse_index(data[:4096], len(data))
    with av.open(str(path)) as container:
        packets = [(p.pos, float(p.pts * p.time_base)) for p in container.demux(video=0) if p.pts is not None]
    origin = min(time for _, time in packets)
    assert [(s.start_s, s.end_s) for s in index.segments] == [(0, 2), (2, 4), (4, 6), (6, 7)]
    for segment in index.segments:
        inside = sorted(time - origin for position, time in packets if segment.offset <= position < segment.end)
        assert inside[0] == pytest.approx(segment.start_s, abs=1e-5)
        assert inside[-1] == pytest.approx(segment.end_s - 1 / 30, abs=1e-5)
        assert are_segments(data[segment.offset : segment.end])
    assert not are_segments(data[index.segments[1].offset + 1 : index.segments[1].end])
    assert not are_segments(data[index.segments[1].offset : index.segments[1].end - 1])


def test_an_index_per_fragment_is_not_taken_for_the_whole_file(rendered: Callable[[Spec], Path], tmp_path: Path) -> None:
    path = served_file(rendered, tmp_path, "-movflags", "+dash+frag_keyframe+empty_moov+default_base_moof")
    data = path.read_bytes()
    with pytest.raises(NoIndexError, match="partial"):
        parse_index(data, len(data)).span(3, 6)


def survives(data: bytes, size: int) -> None:
    """Parsing the data ends, with an index whose ranges are inside the file or with NoIndexError."""
    are_segments(data)
    error = refusal(data, size)
    if error is not None:
        assert error.needed == 0 or len(data) < error.needed <= size
        return
    index = parse_index(data, size)
    with contextlib.suppress(NoIndexError):
        first, last = index.span(1.0, 2.0)
        assert index.init <= first <= last <= size


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=400), st.integers(0, 1 << 50))
def test_any_bytes_give_an_index_or_its_error(data: bytes, more: int) -> None:
    survives(data, len(data) + more)
    survives(FTYP + data, len(FTYP + data) + more)
    survives(FTYP + MOOV + box(b"sidx", data), len(data) + more + len(FTYP + MOOV) + 8)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 219), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, 300))
def test_any_change_to_a_valid_head_gives_an_index_or_its_error(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(file_of(sidx(THREE, version=1)))
    for position, value in changes:
        data[position] = value
    survives(bytes(data), len(data))
    survives(bytes(data[:cut]), len(data))
