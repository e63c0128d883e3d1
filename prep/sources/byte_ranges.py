"""The part of a video that holds a clip: read by byte range, and stored in its original codecs as one small file."""

import errno
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mbt.manifests.atomic import storage_errors, write_bytes
from mbt.manifests.shards import FPS
from mbt.prep.media.decode import SEEK_FROM_S
from mbt.prep.media.ffmpeg import DEFAULT_LIMITS, ClipError, Limits, ffmpeg, media_input, run_ffmpeg
from mbt.prep.sources.http_ranges import MediaClient, TransferError
from mbt.prep.sources.sidx import MARGIN_S, NoIndexError, SegmentIndex, are_segments, parse_index

HEAD = 16 << 10
"""Bytes of the first request; they hold the index of 90 minutes in five-second segments."""
MAX_HEAD = 1 << 20
"""Maximum bytes of a head; an index beyond them is not read."""
MAX_WHOLE = 60_000_000
"""Maximum bytes of a file without an index, which is fetched whole."""
KEPT_AFTER_S = 5.0
"""Seconds kept after the clip: at low frame rates, pictures are stored seconds out of order."""
PACKET = re.compile(r"^0, *-?\d+, *(-?\d+), *(\d+),", re.MULTILINE)
"""Timestamp and duration of a packet in ffmpeg's framecrc format; milliseconds for Matroska."""
MAX_PACKET_LIST = 10 << 20
"""Maximum bytes of a list of packets."""
SEEKABLE = re.compile(r"^\[info\] Input #0, (mov,mp4|matroska,webm)", re.MULTILINE)
TIMES = re.compile(r"^\[info\]   Duration: (?:(\d+):(\d+):(\d+\.\d+)|N/A), start: (-?\d+\.\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """One file of a video, at a URL.

    Attributes:
        url: address of the file.
        headers: sent with every request.
        size: exact number of bytes, if known; a file of another size is refused.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None


@dataclass(frozen=True)
class RawClip:
    """The media file of a clip.

    Attributes:
        path: the file.
        size: number of bytes.
        offset_ms: time in the video at which the file begins, for `Attempt.offset_ms`.
    """

    path: Path
    size: int
    offset_ms: int


@dataclass(frozen=True)
class _Part:
    """Bytes of a source, on disk.

    Attributes:
        path: file with the bytes.
        start_s: first timestamp of the whole source, on its own clock.
        seek_s: where reading begins, seconds after `start_s`; None: at the first byte.
        next_s: where the source continues after these bytes, seconds after `start_s`; None: it ends with them.
    """

    path: Path
    start_s: float
    seek_s: float | None = None
    next_s: float | None = None


@dataclass(frozen=True)
class _Probe:
    """What ffmpeg reports about a file: its first timestamp, its duration (None: unknown), and whether it can seek."""

    start_s: float
    duration_s: float | None
    is_seekable: bool


def fetch_clip(
    video: Source,
    audio: Source | None,
    start_s: float,
    end_s: float,
    target: Path,
    client: MediaClient,
    max_whole: int = MAX_WHOLE,
    limits: Limits = DEFAULT_LIMITS,
) -> RawClip:
    """Fetch the part of a video that holds seconds [start_s, end_s), and write it to `target`, a Matroska file.

    From a fragmented MP4, only the first 16 KiB and one range of segments are read; both are read again, with the next
    segment, if only the next one tells how long the last picture is shown. Any other file is fetched whole, and the parts far
    from the clip are dropped. The start of each source is time 0 of the video, as if both had been merged whole.

    The file is Matroska because it holds every codec and keeps the video's timestamps to 1 ms, also for streams that begin at
    different times and for AAC priming. MP4 was measured to be as exact, but does not hold every codec.

    Args:
        video: the file with the pictures, and with the sound if `audio` is None.
        audio: the file with the sound.
        start_s: start of the clip in the video, seconds.
        end_s: end of the clip in the video, seconds.
        target: file to write, complete or not at all.
        client: reads the bytes.
        max_whole: maximum bytes fetched from one file.
        limits: limits of each ffmpeg process.

    Raises:
        TransferError: the bytes could not be read; `bytes.large` if they are more than `max_whole`.
        ClipError: `clip.out_of_range`, the video ends before the clip; `clip.no_video`, `clip.no_audio`; `decode.*`, the
            bytes are not media.
        StorageError: no space left.
    """
    with storage_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="mbt-fetch-") as folder:
        parts = [
            _fetch_part(source, start_s, end_s, Path(folder, name), client, max_whole, limits)
            for name, source in (("video", video), ("audio", audio))
            if source is not None
        ]
        merged = Path(folder, "merged.mkv")
        _merge(parts, end_s, merged, limits)
        while (next_s := parts[0].next_s) is not None and _last_shown_s(merged, limits) < end_s - 0.5 / FPS:
            parts[0] = _fetch_part(video, start_s, next_s + MARGIN_S, parts[0].path, client, max_whole, limits)
            _merge(parts, max(end_s, next_s), merged, limits)
        offset_s = _probe(merged, limits).start_s
        data = merged.read_bytes()
    write_bytes(target, data)
    return RawClip(target, len(data), round(offset_s * 1000))


def merge_whole(paths: Sequence[Path], target: Path, limits: Limits = DEFAULT_LIMITS) -> RawClip:
    """Put a whole video into one Matroska file; the start of each of its files is time 0 of the video.

    Args:
        paths: the file with the pictures, and with the sound if that is in a file of its own.
        target: file to write, complete or not at all.
        limits: limits of each ffmpeg process.

    Raises:
        ClipError: `clip.no_video`, `clip.no_audio`; `decode.*`, the files are not media.
        StorageError: no space left.
    """
    merged = paths[0].with_name("merged.mkv")
    with storage_errors(target):
        _merge([_Part(path, _probe(path, limits).start_s) for path in paths], None, merged, limits)
        offset_s = _probe(merged, limits).start_s
        merged.replace(target)
    return RawClip(target, target.stat().st_size, round(offset_s * 1000))


def _fetch_part(
    source: Source, start_s: float, end_s: float, path: Path, client: MediaClient, max_whole: int, limits: Limits
) -> _Part:
    """Write the bytes of a source that hold seconds [start_s, end_s) to `path`: some segments, or the whole file."""
    head, size = client.read(source.url, source.headers, 0, HEAD, source.size)
    try:
        head, index = _read_index(source, head, size, client)
        first, last = index.span(start_s, end_s)
    except NoIndexError:
        path.write_bytes(_read(source, head, 0, size, size, client, max_whole))
        return _whole_part(path, start_s, limits)
    _check_start(start_s, index.segments[-1].end_s)
    path.write_bytes(head)
    source_start_s = _probe(path, limits).start_s
    segments = _read(source, head, first, last, size, client, max_whole)
    if not are_segments(segments):
        message = f"no segments at bytes {first}-{last - 1} of {size}, where the index places them"
        raise TransferError("bytes.wrong", None, message)
    path.write_bytes(head[: index.init] + segments)
    next_s = next((segment.start_s for segment in index.segments if segment.offset >= last), None)
    return _Part(path, source_start_s, next_s=next_s)


def _whole_part(path: Path, start_s: float, limits: Limits) -> _Part:
    """The part that is a whole file, read from shortly before the clip if ffmpeg can seek in it."""
    probe = _probe(path, limits)
    _check_start(start_s, probe.duration_s)
    may_seek = probe.is_seekable and start_s >= SEEK_FROM_S
    return _Part(path, probe.start_s, start_s - MARGIN_S if may_seek else None)


def _check_start(start_s: float, duration_s: float | None) -> None:
    if duration_s is not None and start_s >= duration_s:
        raise ClipError("clip.out_of_range", f"the clip begins at {start_s:.2f} s, but the video ends at {duration_s:.2f} s")


def _read_index(source: Source, head: bytes, size: int, client: MediaClient) -> tuple[bytes, SegmentIndex]:
    """The segment index, and the head, which is extended if the index lies beyond it."""
    while True:
        try:
            return head, parse_index(head, size)
        except NoIndexError as error:
            if not len(head) < error.needed <= MAX_HEAD:
                raise
            needed = max(error.needed, 2 * len(head))
            head += client.read(source.url, source.headers, len(head), needed, size)[0]


def _read(source: Source, head: bytes, first: int, last: int, size: int, client: MediaClient, max_whole: int) -> bytes:
    """Bytes [first, last) of the source; those in the head are not requested again."""
    if last - first > max_whole:
        raise TransferError("bytes.large", None, f"{last - first} bytes are needed, but at most {max_whole} are fetched")
    have = head[first:last]
    if len(have) == last - first:
        return have
    return have + client.read(source.url, source.headers, first + len(have), last, size)[0]


def _merge(parts: list[_Part], end_s: float | None, merged: Path, limits: Limits) -> None:
    """Write video and audio to one Matroska file, up to a few seconds after `end_s`, or all of it."""
    inputs: list[str] = []
    for part in parts:
        if part.seek_s is not None:
            inputs += ["-noaccurate_seek", "-ss", f"{part.seek_s:.3f}"]
        inputs += ["-itsoffset", f"{-part.start_s:.6f}", *media_input(part.path)]
    output = [
        *("-map", "0:V:0", "-map", "1:a:0" if len(parts) == 2 else "0:a:0?", "-map_metadata", "-1", "-c", "copy"),
        *(() if end_s is None else ("-to", f"{end_s + KEPT_AFTER_S:.3f}")),
        *("-avoid_negative_ts", "disabled"),
        *("-fflags", "+bitexact", "-f", "matroska", f"file:{merged}"),
    ]
    _run_ffmpeg(["-y", "-copyts", *inputs, *output], limits)


def _probe(path: Path, limits: Limits) -> _Probe:
    arguments = [*media_input(path), "-map", "0:v?", "-map", "0:a?", "-c", "copy", "-t", "0", "-f", "null", "-"]
    log = _run_ffmpeg(arguments, limits)["log"].decode(errors="replace")
    match = TIMES.search(log)
    if match is None:
        raise ClipError("decode.unreadable", "ffmpeg finds no timestamps")
    hours, minutes, seconds, start = match.groups()
    duration_s = None if hours is None else int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return _Probe(float(start), duration_s, SEEKABLE.search(log) is not None)


def _last_shown_s(merged: Path, limits: Limits) -> float:
    """Time up to which the pictures of a merged file are known to be shown, seconds.

    The last picture may be shown for longer: ffmpeg derives its duration from the frame rate.
    """
    arguments = ["-copyts", *media_input(merged), "-map", "0:V:0", "-c", "copy", "-f", "framecrc", "pipe:{video}"]
    packets = PACKET.findall(_run_ffmpeg(arguments, limits)["video"].decode())
    return sum(max((int(time), int(duration)) for time, duration in packets)) / 1000


def _run_ffmpeg(arguments: list[str], limits: Limits) -> dict[str, bytes]:
    """Run ffmpeg; its pipes by name, and what it logged as `log`."""
    try:
        command = [ffmpeg(), "-nostdin", "-nostats", "-hide_banner", "-loglevel", "level+info", *arguments]
        return run_ffmpeg(command, limits, MAX_PACKET_LIST)
    except ClipError as error:
        if "No space left on device" in error.message:
            raise OSError(errno.ENOSPC, error.message) from error
        raise
