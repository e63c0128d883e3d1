"""A clip's share of a media file: the bytes that hold it, in their original codecs, as one small file."""

import errno
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mbt.manifests.atomic import storage_errors, write_bytes
from mbt.manifests.shards import FPS
from mbt.prep.fetch.http_ranges import MediaClient, TransferError
from mbt.prep.fetch.sidx import MARGIN_S, NoIndexError, SegmentIndex, are_segments, parse_index
from mbt.prep.media.decode import DEFAULT_LIMITS, SEEK_FROM_S, ClipError, Limits, ffmpeg, run_ffmpeg

HEAD = 16 << 10
"""Bytes of the first request: they hold the index of an hour and a half of five-second segments."""
MAX_HEAD = 1 << 20
"""An index that reaches further than this is not asked for."""
MAX_WHOLE = 60_000_000
"""A file without an index is fetched whole up to this many bytes."""
KEPT_BEHIND_S = 5.0
"""Kept behind the clip: at low frame rates, pictures come seconds out of order."""
PACKET = re.compile(r"^0, *-?\d+, *(-?\d+), *(\d+),", re.MULTILINE)
"""Time stamp and length of a packet, milliseconds in Matroska, as ffmpeg's format framecrc has them."""
MAX_LIST = 10 << 20
"""Bytes of a list of packets."""
INDEXED = re.compile(r"^\[info\] Input #0, (mov,mp4|matroska,webm)", re.MULTILINE)
TIMES = re.compile(r"^\[info\]   Duration: (?:(\d+):(\d+):(\d+\.\d+)|N/A), start: (-?\d+\.\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """A file of one video behind a URL.

    Attributes:
        url: its address.
        headers: what must be sent with every request.
        size: bytes, if they are known exactly; a file of another size is refused.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None


@dataclass(frozen=True)
class RawClip:
    """A fetched clip.

    Attributes:
        path: the media file, Matroska in the original codecs.
        size: its bytes.
        offset_ms: time in the video at which the file begins, for `Attempt.offset_ms`.
    """

    path: Path
    size: int
    offset_ms: int


@dataclass(frozen=True)
class _Stream:
    """A source's bytes on disk.

    Attributes:
        path: the file.
        begins_s: first time stamp of the whole source, on its own clock.
        seek_s: where reading begins, seconds from there; None: at the first byte.
        next_s: where the source goes on behind these bytes, seconds from there; None: nowhere.
    """

    path: Path
    begins_s: float
    seek_s: float | None = None
    next_s: float | None = None


@dataclass(frozen=True)
class _Probe:
    """What ffmpeg says of a file: its first time stamp, its length (None: unknown), and whether it can seek there."""

    begins_s: float
    duration_s: float | None
    indexed: bool


def fetch_slice(
    video: Source,
    audio: Source | None,
    start_s: float,
    end_s: float,
    target: Path,
    client: MediaClient,
    max_whole: int = MAX_WHOLE,
    limits: Limits = DEFAULT_LIMITS,
) -> RawClip:
    """Fetch what holds [start_s, end_s) of a video, and keep it as `target`, a Matroska file.

    A fragmented MP4 costs its first 16 KiB and one range of segments, twice where the last picture of these stays on the
    screen for so long that only the next one tells; any other file is fetched whole, and what lies far from the clip is not
    kept. The start of each source is time 0 of the video, as if both had been merged whole. Matroska,
    because it holds every codec and keeps the time stamps of the video, also those of streams that begin apart and of AAC
    priming, to 1 ms; MP4 was measured to be as exact, but does not hold every codec.

    Args:
        video: the file with the pictures, and with the sound where `audio` is None.
        audio: the file with the sound.
        start_s: start of the clip in the video, seconds.
        end_s: its end.
        target: what is written, whole or not at all.
        client: reads the bytes.
        max_whole: bytes of one file that may be fetched.
        limits: what an ffmpeg child may take.

    Raises:
        TransferError: the bytes did not come; `bytes.large` if they would be more than `max_whole`.
        ClipError: `clip.out_of_range`, the video ends before the clip; `clip.no_video`, `clip.no_audio`; `decode.*`, the
            bytes are no media.
        StorageError: no space left.
    """
    with storage_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="mbt-slice-") as folder:
        streams = [
            _fetch_stream(source, start_s, end_s, Path(folder, name), client, max_whole, limits)
            for name, source in (("video", video), ("audio", audio))
            if source is not None
        ]
        merged = Path(folder, "merged.mkv")
        _merge(streams, end_s, merged, limits)
        while (next_s := streams[0].next_s) is not None and _shown_s(merged, limits) < end_s - 0.5 / FPS:
            streams[0] = _fetch_stream(video, start_s, next_s + MARGIN_S, streams[0].path, client, max_whole, limits)
            _merge(streams, max(end_s, next_s), merged, limits)
        begins_s = _probe(merged, limits).begins_s
        data = merged.read_bytes()
    write_bytes(target, data)
    return RawClip(target, len(data), round(begins_s * 1000))


def _fetch_stream(
    source: Source, start_s: float, end_s: float, path: Path, client: MediaClient, max_whole: int, limits: Limits
) -> _Stream:
    head, size = client.read(source.url, source.headers, 0, HEAD, source.size)
    try:
        head, index = _find_index(source, head, size, client)
        first, last = index.span(start_s, end_s)
    except NoIndexError:
        path.write_bytes(_bytes(source, head, 0, size, size, client, max_whole))
        probe = _probe(path, limits)
        _check_range(start_s, probe.duration_s)
        return _Stream(path, probe.begins_s, start_s - MARGIN_S if probe.indexed and start_s >= SEEK_FROM_S else None)
    _check_range(start_s, index.segments[-1].end_s)
    path.write_bytes(head)
    begins_s = _probe(path, limits).begins_s
    segments = _bytes(source, head, first, last, size, client, max_whole)
    if not are_segments(segments):
        raise TransferError("bytes.wrong", None, f"no segments where the index of {size} bytes says, at {first}-{last - 1}")
    path.write_bytes(head[: index.init] + segments)
    return _Stream(path, begins_s, next_s=next((s.start_s for s in index.segments if s.offset >= last), None))


def _check_range(start_s: float, duration_s: float | None) -> None:
    if duration_s is not None and start_s >= duration_s:
        raise ClipError("clip.out_of_range", f"the clip begins at {start_s:.2f} s, and the video ends at {duration_s:.2f} s")


def _find_index(source: Source, head: bytes, size: int, client: MediaClient) -> tuple[bytes, SegmentIndex]:
    """The index, and the head, longer where the index lies further back."""
    while True:
        try:
            return head, parse_index(head, size)
        except NoIndexError as error:
            if not len(head) < error.needed <= MAX_HEAD:
                raise
            needed = max(error.needed, 2 * len(head))
            head += client.read(source.url, source.headers, len(head), needed, size)[0]


def _bytes(source: Source, head: bytes, first: int, last: int, size: int, client: MediaClient, max_whole: int) -> bytes:
    """Bytes [first, last) of the source; those that the head holds are not asked for again."""
    if last - first > max_whole:
        raise TransferError("bytes.large", None, f"{last - first} bytes are needed, {max_whole} may be fetched")
    have = head[first:last]
    if len(have) == last - first:
        return have
    return have + client.read(source.url, source.headers, first + len(have), last, size)[0]


def _merge(streams: list[_Stream], end_s: float, merged: Path, limits: Limits) -> None:
    inputs: list[str] = []
    for stream in streams:
        if stream.seek_s is not None:
            inputs += ["-noaccurate_seek", "-ss", f"{stream.seek_s:.3f}"]
        inputs += ["-itsoffset", f"{-stream.begins_s:.6f}", *_input(stream.path)]
    output = [
        *("-map", "0:V:0", "-map", "1:a:0" if len(streams) == 2 else "0:a:0?", "-map_metadata", "-1", "-c", "copy"),
        *("-to", f"{end_s + KEPT_BEHIND_S:.3f}", "-avoid_negative_ts", "disabled"),
        *("-fflags", "+bitexact", "-f", "matroska", f"file:{merged}"),
    ]
    _run(["-y", "-copyts", *inputs, *output], limits)


def _probe(path: Path, limits: Limits) -> _Probe:
    log = _run([*_input(path), "-map", "0:v?", "-map", "0:a?", "-c", "copy", "-t", "0", "-f", "null", "-"], limits)
    match = TIMES.search(log)
    if match is None:
        raise ClipError("decode.unreadable", "no time stamp is readable")
    hours, minutes, seconds, begins = match.groups()
    duration = None if hours is None else int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return _Probe(float(begins), duration, INDEXED.search(log) is not None)


def _shown_s(merged: Path, limits: Limits) -> float:
    """Up to when pictures are known to be on the screen, seconds: a decoder takes the last one's length from the rate."""
    command = ["-copyts", *_input(merged), "-map", "0:V:0", "-c", "copy", "-f", "framecrc", "pipe:{video}"]
    packets = PACKET.findall(_ffmpeg(command, limits)["video"].decode())
    return sum(max((int(time), int(length)) for time, length in packets)) / 1000


def _input(path: Path) -> list[str]:
    return ["-protocol_whitelist", "file,pipe", "-i", f"file:{path}"]


def _run(arguments: list[str], limits: Limits) -> str:
    """Run ffmpeg; return what it says."""
    return _ffmpeg(arguments, limits)["log"].decode(errors="replace")


def _ffmpeg(arguments: list[str], limits: Limits) -> dict[str, bytes]:
    try:
        command = [ffmpeg(), "-nostdin", "-nostats", "-hide_banner", "-loglevel", "level+info", *arguments]
        return run_ffmpeg(command, limits, MAX_LIST)
    except ClipError as error:
        if "No space left on device" in error.message:
            raise OSError(errno.ENOSPC, error.message) from error
        raise
