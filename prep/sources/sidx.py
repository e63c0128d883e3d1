"""The segment index (`sidx`) at the head of a fragmented MP4: which bytes hold which seconds."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

MARGIN_S = 0.1
"""Seconds fetched on both sides of a clip, except at borders across which codecs cannot reorder pictures or prime sound."""
CLOSED_GOP = (0x9000_0000, 0xA000_0000)
"""Access word of a segment that begins with a stream access point of type 1 or 2: a closed group of pictures."""
FIRST_SAMPLE = 1024
"""Bytes after the first `moof` box from which ffmpeg can tell when the stream begins."""

Reason = Literal["no_mp4", "not_fragmented", "absent", "incomplete", "several", "hierarchical", "partial", "broken"]


class NoIndexError(Exception):
    """The head of the file has no usable index.

    Attributes:
        reason: `no_mp4`; `not_fragmented`, an MP4 with one table of all samples; `absent`, fragments without an index;
            `incomplete`, the index may lie beyond the head; `several`, indexes of several tracks; `hierarchical`, an index
            of indexes; `partial`, the index ends before the requested time; `broken`, contradictory boxes or sizes.
        needed: for `incomplete`, bytes of the head that the next attempt needs; else 0.
    """

    def __init__(self, reason: Reason, needed: int = 0) -> None:
        super().__init__(f"no usable segment index: {reason}")
        self.reason: Reason = reason
        self.needed = needed


@dataclass(frozen=True)
class Segment:
    """Consecutive bytes of the file that hold consecutive seconds.

    Attributes:
        offset: first byte in the file.
        size: number of bytes.
        start_s: time of its earliest picture or audio sample, counted from that of the first segment.
        end_s: time at which it ends.
        random_access: whether decoding can begin here.
        margin_s: a clip that begins at least this long after `start_s`, or ends at least this long before it, needs nothing
            from the other side of `start_s`. It is 0 where a closed group of pictures begins: all of its pictures are shown
            from `start_s` on, and none depends on an earlier one.
    """

    offset: int
    size: int
    start_s: float
    end_s: float
    random_access: bool
    margin_s: float

    @property
    def end(self) -> int:
        """The byte after its last byte."""
        return self.offset + self.size


@dataclass(frozen=True)
class SegmentIndex:
    """The index of a file with one track.

    Attributes:
        init: bytes [0, init) are `ftyp` and `moov`, which decoding any segment needs.
        segments: the segments in time order, without gaps in time or bytes.
        is_complete: whether the segments reach the end of the file.
    """

    init: int
    segments: tuple[Segment, ...]
    is_complete: bool

    def span(self, start_s: float, end_s: float) -> tuple[int, int]:
        """The byte range [first, last) that decodes to seconds [start_s, end_s); empty if the stream ends before `start_s`.

        Raises:
            NoIndexError: `partial`.
        """
        if end_s + MARGIN_S > self.segments[-1].end_s and not self.is_complete:
            raise NoIndexError("partial")
        if start_s >= self.segments[-1].end_s:
            return self.segments[-1].end, self.segments[-1].end
        starts = [s.offset for s in self.segments if s.random_access and s.start_s + s.margin_s <= start_s]
        ends = [s.end for s in self.segments if s.start_s - s.margin_s < end_s]
        return starts[-1] if starts else self.segments[0].offset, ends[-1]


def parse_index(head: bytes, size: int) -> SegmentIndex:
    """Find and read the index in the first bytes of a file of `size` bytes (ISO/IEC 14496-12, 8.16.3).

    The head must include 1 KiB of the first segment's media, so that ffmpeg can tell when the stream begins.

    Raises:
        NoIndexError: the head has no usable index.
    """
    if head[4:8] != b"ftyp":
        raise NoIndexError("no_mp4")
    init, is_video = 0, False
    index: SegmentIndex | None = None
    for kind, body, end in _boxes(head, size):
        if kind == b"moov":
            if init or index:
                raise NoIndexError("broken")
            moov = _content(head, body, end, size)
            if not _children(moov, b"mvex"):
                raise NoIndexError("not_fragmented")
            init, is_video = end, _handlers(moov) == [b"vide"]
        elif kind == b"sidx":
            if index:
                raise NoIndexError("several")
            index = _read_sidx(_content(head, body, end, size), init, end, size, is_video)
        elif kind == b"mdat":
            raise NoIndexError("absent" if init else "not_fragmented")
        elif kind == b"moof":
            if not init or index is None:
                raise NoIndexError("absent")
            _content(head, body, min(end + FIRST_SAMPLE, size), size)
            return index
    raise NoIndexError("absent")


def _handlers(moov: bytes) -> list[bytes]:
    """Media type of each track: b"vide", b"soun", ..."""
    media = [mdia for trak in _children(moov, b"trak") for mdia in _children(trak, b"mdia")]
    return [hdlr[8:12] for mdia in media for hdlr in _children(mdia, b"hdlr")]


def _children(data: bytes, wanted: bytes) -> list[bytes]:
    """Contents of the child boxes of one kind, given the content of their parent."""
    return [data[body:end] for kind, body, end in _boxes(data, len(data)) if kind == wanted]


def are_segments(data: bytes) -> bool:
    """Whether the bytes are complete segments, as they are unless the index belongs to another file."""
    try:
        kinds = [kind for kind, *_ in _boxes(data, len(data))]
    except NoIndexError:
        return False
    return {b"moof", b"mdat"} <= set(kinds)


def _boxes(data: bytes, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each box in a range of `size` bytes; `data` is the beginning of the range."""
    start = 0
    while start < size:
        body = start + 8
        length, kind = struct.unpack(">I4s", _content(data, start, body, size))
        if length == 1:
            body += 8
            length = int.from_bytes(_content(data, start + 8, body, size), "big")
        end = start + length if length else size
        if not body <= end <= size:
            raise NoIndexError("broken")
        yield kind, body, end
        start = end


def _content(head: bytes, start: int, end: int, size: int) -> bytes:
    """Bytes [start, end) of a file of `size` bytes.

    Raises:
        NoIndexError: `incomplete` if they reach beyond the head; `broken` if they reach beyond the file.
    """
    if end > size:
        raise NoIndexError("broken")
    if end > len(head):
        raise NoIndexError("incomplete", needed=end)
    return head[start:end]


def _read_sidx(body: bytes, init: int, anchor: int, size: int, is_video: bool) -> SegmentIndex:
    """Read the content of a `sidx` box that ends at byte `anchor` of the file."""
    wide = body[:1] != b"\0"
    layout = struct.Struct(">4xIIQQ2xH" if wide else ">4xIIII2xH")
    if body[:1] not in (b"\0", b"\1") or len(body) < layout.size:
        raise NoIndexError("broken")
    _, timescale, _, first_offset, count = layout.unpack_from(body)
    if not init or not timescale or not count or len(body) < layout.size + 12 * count:
        raise NoIndexError("broken")
    offset, ticks = anchor + first_offset, 0
    segments: list[Segment] = []
    entries = list(struct.iter_unpack(">III", body[layout.size : layout.size + 12 * count]))
    marked = any(access >> 31 for *_, access in entries)
    for reference, duration, access in entries:
        if reference >> 31:
            raise NoIndexError("hierarchical")
        if not reference:
            raise NoIndexError("broken")
        times = ticks / timescale, (ticks + duration) / timescale
        margin_s = 0.0 if is_video and access in CLOSED_GOP else MARGIN_S
        segments.append(Segment(offset, reference, *times, bool(access >> 31) or not marked, margin_s))
        offset += reference
        ticks += duration
    if offset > size or not ticks:
        raise NoIndexError("broken")
    # An mfra box of a few KiB may follow the last segment; more bytes than that are segments missing from the index.
    return SegmentIndex(init, tuple(segments), size - offset < max(s.size for s in segments) / 2)
