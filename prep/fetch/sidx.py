"""The segment index (`sidx`) at the head of a fragmented MP4: which bytes hold which seconds."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

MARGIN_S = 0.1
"""Fetched on both sides of a clip, but where the index rules out that codecs reorder pictures or prime sound across it."""
CLOSED = (0x9000_0000, 0xA000_0000)
"""What an entry says of a segment that begins with an access point of type 1 or 2: a closed group of pictures."""
FIRST_SAMPLE = 1024
"""Bytes behind the first `moof` box that tell ffmpeg when the stream begins."""

Reason = Literal["no_mp4", "not_fragmented", "absent", "incomplete", "several", "hierarchical", "partial", "broken"]


class NoIndexError(Exception):
    """The head has no index that can be used; `reason` says why.

    Attributes:
        reason: `no_mp4`; `not_fragmented`, an MP4 with one table of all samples; `absent`, fragments without an index;
            `incomplete`, the index may lie behind the head; `several` tracks' indexes; `hierarchical`, an index of
            indexes; `partial`, the index does not reach the wanted seconds; `broken`, boxes or sizes that contradict.
        needed: for `incomplete`, how long the head must be for the next look; else 0.
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
        size: bytes.
        start_s: time of its earliest picture or sample, counted from that of the first segment.
        end_s: start of what follows.
        random_access: decoding can begin here.
        margin_s: a clip that begins so much later, or ends so much earlier, needs nothing of the other side of `start_s`: 0
            where a closed group of pictures begins, all of which are shown from `start_s` on, and need none from before.
    """

    offset: int
    size: int
    start_s: float
    end_s: float
    random_access: bool
    margin_s: float

    @property
    def end(self) -> int:
        """The byte behind its last."""
        return self.offset + self.size


@dataclass(frozen=True)
class SegmentIndex:
    """The index of a file with one track.

    Attributes:
        init: bytes [0, init) are `ftyp` and `moov`, without which no segment can be decoded.
        segments: in time order, without gaps in time or bytes.
        whole: the segments reach to the end of the file.
    """

    init: int
    segments: tuple[Segment, ...]
    whole: bool

    def span(self, start_s: float, end_s: float) -> tuple[int, int]:
        """The byte range [first, last) that decodes to [start_s, end_s); empty if the stream ends before `start_s`.

        Raises:
            NoIndexError: `partial`.
        """
        if end_s + MARGIN_S > self.segments[-1].end_s and not self.whole:
            raise NoIndexError("partial")
        if start_s >= self.segments[-1].end_s:
            return self.segments[-1].end, self.segments[-1].end
        starts = [s.offset for s in self.segments if s.random_access and s.start_s + s.margin_s <= start_s]
        ends = [s.end for s in self.segments if s.start_s - s.margin_s < end_s]
        return starts[-1] if starts else self.segments[0].offset, ends[-1]


def parse_index(head: bytes, size: int) -> SegmentIndex:
    """Find and read the index in the first bytes of a file of `size` bytes (ISO/IEC 14496-12, 8.16.3).

    The head must reach 1 KiB into the first segment's media, so that ffmpeg can tell from it when the stream begins.

    Raises:
        NoIndexError: there is none that can be used.
    """
    if head[4:8] != b"ftyp":
        raise NoIndexError("no_mp4")
    init, pictures = 0, False
    index: SegmentIndex | None = None
    for kind, body, end in _boxes(head, size):
        if kind == b"moov":
            if init or index:
                raise NoIndexError("broken")
            moov = _whole(head, body, end, size)
            if not _within(moov, b"mvex"):
                raise NoIndexError("not_fragmented")
            init, pictures = end, _handlers(moov) == [b"vide"]
        elif kind == b"sidx":
            if index:
                raise NoIndexError("several")
            index = _read_sidx(_whole(head, body, end, size), init, end, size, pictures)
        elif kind == b"mdat":
            raise NoIndexError("absent" if init else "not_fragmented")
        elif kind == b"moof":
            if not init or index is None:
                raise NoIndexError("absent")
            _whole(head, body, min(end + FIRST_SAMPLE, size), size)
            return index
    raise NoIndexError("absent")


def _handlers(moov: bytes) -> list[bytes]:
    """What the tracks hold: b"vide", b"soun", ..."""
    media = [mdia for trak in _within(moov, b"trak") for mdia in _within(trak, b"mdia")]
    return [hdlr[8:12] for mdia in media for hdlr in _within(mdia, b"hdlr")]


def _within(data: bytes, wanted: bytes) -> list[bytes]:
    """Contents of the boxes of a kind, right below a box with this content."""
    return [data[body:end] for kind, body, end in _boxes(data, len(data)) if kind == wanted]


def are_segments(data: bytes) -> bool:
    """Whether bytes are whole segments: what the index of a file leads to, unless it belongs to another file."""
    try:
        kinds = [kind for kind, *_ in _boxes(data, len(data))]
    except NoIndexError:
        return False
    return {b"moof", b"mdat"} <= set(kinds)


def _boxes(data: bytes, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each box of a range of `size` bytes of which `data` is the beginning."""
    start = 0
    while start < size:
        body = start + 8
        length, kind = struct.unpack(">I4s", _whole(data, start, body, size))
        if length == 1:
            body += 8
            length = int.from_bytes(_whole(data, start + 8, body, size), "big")
        end = start + length if length else size
        if not body <= end <= size:
            raise NoIndexError("broken")
        yield kind, body, end
        start = end


def _whole(head: bytes, start: int, end: int, size: int) -> bytes:
    if end > size:
        raise NoIndexError("broken")
    if end > len(head):
        raise NoIndexError("incomplete", needed=end)
    return head[start:end]


def _read_sidx(body: bytes, init: int, anchor: int, size: int, pictures: bool) -> SegmentIndex:
    """Read the content of a `sidx` box, of a track with pictures or not, that ends at byte `anchor` of the file."""
    wide = body[:1] != b"\0"
    form = struct.Struct(">4xIIQQ2xH" if wide else ">4xIIII2xH")
    if body[:1] not in (b"\0", b"\1") or len(body) < form.size:
        raise NoIndexError("broken")
    _, timescale, _, first_offset, count = form.unpack_from(body)
    if not init or not timescale or not count or len(body) < form.size + 12 * count:
        raise NoIndexError("broken")
    offset, ticks = anchor + first_offset, 0
    segments: list[Segment] = []
    entries = list(struct.iter_unpack(">III", body[form.size : form.size + 12 * count]))
    marked = any(access >> 31 for *_, access in entries)
    for reference, duration, access in entries:
        if reference >> 31:
            raise NoIndexError("hierarchical")
        if not reference:
            raise NoIndexError("broken")
        times = ticks / timescale, (ticks + duration) / timescale
        margin_s = 0.0 if pictures and access in CLOSED else MARGIN_S
        segments.append(Segment(offset, reference, *times, bool(access >> 31) or not marked, margin_s))
        offset += reference
        ticks += duration
    if offset > size or not ticks:
        raise NoIndexError("broken")
    # What follows the last segment may be an mfra box of some KiB; more than that are segments which the index leaves out.
    return SegmentIndex(init, tuple(segments), size - offset < max(s.size for s in segments) / 2)
