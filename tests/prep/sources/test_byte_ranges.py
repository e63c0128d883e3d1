"""Byte ranges of served files decode to the clip: pictures by frame counter, sound by correlation, bytes by the index."""

import random
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mbt.manifests.errors import StorageError
from mbt.manifests.shards import VideoFormat
from mbt.prep.media.decode import DecodedClip, decode_clip
from mbt.prep.media.ffmpeg import ClipError
from mbt.prep.sources import byte_ranges
from mbt.prep.sources.byte_ranges import HEAD, RawClip, Source, fetch_clip
from mbt.prep.sources.http_ranges import MediaClient, TransferError, TransferLimits
from tests.media import Spec, counter_of, heard_at, sound
from tests.mediaserver import (
    Fault,
    MediaServer,
    Reset,
    ServedFile,
    Short,
    Status,
    Whole,
    media_server,
    with_access_points,
)
from tests.prep.conftest import INDEXED, SECONDS, Served, ffmpeg_run
from tests.site import session

pytestmark = pytest.mark.slow

FAST = TransferLimits(tries=3, backoff_s=0.01)


@pytest.fixture
def media(served: Served) -> Iterator[MediaServer]:
    with media_server() as server:
        for path in served.folder.iterdir():
            server.files[f"/{path.name}"] = ServedFile(path.read_bytes())
        yield server


def fetched(
    media: MediaServer, folder: Path, video: str, audio: str | None, start_s: float, seconds: float = 10, **options: int
) -> RawClip:
    sound = None if audio is None else Source(f"{media.url}/{audio}")
    client = MediaClient(session().urlopen, FAST)
    return fetch_clip(Source(f"{media.url}/{video}"), sound, start_s, start_s + seconds, folder / "raw.mkv", client, **options)


def decoded(raw: RawClip, start_s: float, seconds: float = 10) -> DecodedClip:
    return decode_clip(raw.path, start_s - raw.offset_ms / 1000, seconds, VideoFormat(short_side=96))


def video_errors(clip: DecodedClip, fps: int, start_s: float) -> np.ndarray:
    """Seconds by which each picture is late."""
    frames = np.array([counter_of(jpeg) for jpeg in clip.jpegs])
    wanted = (start_s + np.arange(len(frames)) / 25) * fps
    return ((frames - wanted + 512) % 1024 - 512) / fps


def sound_error(clip: DecodedClip, start_s: float) -> float:
    """Seconds by which the sound is late, from its first 0.1 s on."""
    return heard_at(clip.audio[1600:], longest=SECONDS) - start_s - 0.1


def sent(media: MediaServer) -> int:
    """Bytes sent so far."""
    return sum(request.sent for request in media.requests)


STARTS = [0.0, 4.99, 10.0, 27.777, 38.9]


@pytest.mark.parametrize("start_s", STARTS)
@pytest.mark.parametrize(
    ("video", "audio", "fps"),
    [("late25.mp4", "primed.m4a", 25), ("late30.mp4", "edited.m4a", 30), ("edited30.mp4", "primed.m4a", 30)],
)
def test_byte_ranges_decode_to_the_clip(
    media: MediaServer, tmp_path: Path, video: str, audio: str, fps: int, start_s: float
) -> None:
    raw = fetched(media, tmp_path, video, audio, start_s, seconds=3)
    clip = decoded(raw, start_s, seconds=3)
    assert len(clip.jpegs) == 75
    assert clip.padded_frames == clip.padded_samples == 0
    assert np.abs(video_errors(clip, fps, start_s)).max() <= 0.5 / fps + 0.001
    assert abs(sound_error(clip, start_s)) <= 0.025
    assert raw.size == raw.path.stat().st_size


def test_byte_ranges_decode_like_the_whole_file(media: MediaServer, served: Served, tmp_path: Path) -> None:
    clip = decoded(fetched(media, tmp_path, "edited30.mp4", "edited.m4a", 12.34), 12.34)
    whole = decode_clip(served.folder / "both30.mp4", 12.34, 10, VideoFormat(short_side=96))
    assert clip.jpegs == whole.jpegs
    assert len(clip.jpegs) == 250
    assert abs(heard_at(clip.audio, longest=SECONDS) - heard_at(whole.audio, longest=SECONDS)) <= 0.0005


HALF = 1 / 60
VIDEO_BORDER, SOUND_BORDER = 20.0, 20.0107
AT_BORDERS = [VIDEO_BORDER + off for off in (-0.05, -HALF, -0.001, 0.0, 0.001, HALF, 0.05)]
AT_BORDERS += [SOUND_BORDER + off for off in (-0.001, 0.0, 0.001, 0.1)]


def flags(clip: DecodedClip) -> tuple[int, int, int, bool]:
    return clip.num_frames, clip.padded_frames, clip.padded_samples, clip.short


def correlation(clip: DecodedClip, first: int, last: int) -> float:
    """Correlation of samples [first, last) with the sound that belongs there, by the time at which the clip is heard."""
    times = heard_at(clip.audio, longest=SECONDS) + np.arange(len(clip.audio)) / 16_000
    return float(np.corrcoef(sound(times)[first:last], clip.audio[first:last])[0, 1])


@pytest.mark.parametrize("start_s", sorted(round(start_s, 3) for start_s in AT_BORDERS))
def test_clips_at_the_borders_of_closed_groups_are_complete(
    media: MediaServer, served: Served, tmp_path: Path, start_s: float
) -> None:
    seconds = 5
    media.files["/v"] = ServedFile(with_access_points(served.content("late30.mp4")))
    clip = decoded(fetched(media, tmp_path, "v", "primed.m4a", start_s, seconds), start_s, seconds)
    whole = decode_clip(served.folder / "both30.mp4", start_s, seconds, VideoFormat(short_side=96))
    assert clip.jpegs == whole.jpegs
    assert flags(clip) == flags(whole) == (25 * seconds, 0, 0, False)
    assert np.abs(video_errors(clip, 30, start_s)).max() <= 0.5 / 25 + 0.001
    assert abs(sound_error(clip, start_s)) <= 0.025
    assert correlation(clip, 0, 320) > 0.95
    assert correlation(clip, len(clip.audio) - 320, len(clip.audio)) > 0.95


@pytest.mark.parametrize(("seconds", "video_segments"), [(10, (4, 6)), (9.999, (4, 6)), (10.001, (4, 7))])
@pytest.mark.parametrize("kind", [0, 1])
def test_closed_groups_need_no_further_segment(
    media: MediaServer, served: Served, tmp_path: Path, kind: int, seconds: float, video_segments: tuple[int, int]
) -> None:
    content = with_access_points(served.content("late30.mp4"), kind)
    media.files["/v"] = ServedFile(content)
    fetched(media, tmp_path, "v", "primed.m4a", VIDEO_BORDER, seconds)
    borders = segment_borders(content)
    first, last = video_segments if kind else (3, 7)
    assert [request.range for request in media.requests if request.path == "/v"][1] == (borders[first], borders[last] - 1)


@pytest.mark.parametrize("fps", [1, 5])
def test_low_frame_rates_at_a_border(
    media: MediaServer, served: Served, rendered: Callable[[Spec], Path], tmp_path: Path, fps: int
) -> None:
    """The last picture before the border is shown up to it."""
    source = rendered(Spec(f"few{fps}.mp4", fps=str(fps), seconds=20, gop=5 * fps, width=160, height=96, audio=False))
    ffmpeg_run("-i", source, "-c", "copy", "-movflags", f"{INDEXED}+empty_moov", tmp_path / "few.mp4")
    media.files["/v"] = ServedFile(with_access_points((tmp_path / "few.mp4").read_bytes()))
    clip = decoded(fetched(media, tmp_path, "v", "primed.m4a", 5.0, 5), 5.0, 5)
    assert flags(clip) == (125, 0, 0, False)
    assert {counter_of(jpeg) for jpeg in clip.jpegs} == set(range(5 * fps, 10 * fps))


@pytest.mark.parametrize(
    ("start_s", "kind", "times_fetched"),
    [(6.0, 0, 1), (6.0, 1, 2), (7.0, 0, 2), (7.0, 1, 2), (8.5, 0, 2), (8.5, 1, 2), (9.3, 0, 1), (9.3, 1, 1)],
)
def test_a_picture_shown_up_to_a_border_is_not_mistaken_for_the_last(
    media: MediaServer, rendered: Callable[[Spec], Path], tmp_path: Path, start_s: float, kind: int, times_fetched: int
) -> None:
    """Nine pictures of 40 ms and a tenth of 2.64 s, in groups of 3 s: the frame rate does not tell the tenth's duration."""
    times = (40,) * 9 + (2640,)
    source = rendered(Spec("held.mp4", frame_ms=times, seconds=24, gop=10, width=160, height=96, audio=False))
    ffmpeg_run("-i", source, "-c", "copy", "-movflags", f"{INDEXED}+empty_moov", tmp_path / "held.mp4")
    media.files["/v"] = ServedFile(with_access_points((tmp_path / "held.mp4").read_bytes(), kind))
    clip = decoded(fetched(media, tmp_path, "v", "primed.m4a", start_s, 3), start_s, 3)
    assert flags(clip) == (75, 0, 0, False)
    assert [request.range for request in media.requests if request.path == "/v"].count((0, HEAD - 1)) == times_fetched
    first_shown = (np.cumsum((0, *times * 8))[:-1] - round(1000 * start_s) + 20) // 40
    wanted = np.searchsorted(first_shown, np.arange(75), side="right") - 1
    assert [counter_of(jpeg) for jpeg in clip.jpegs] == wanted.tolist()


def segment_borders(content: bytes) -> list[int]:
    """Where each fragment begins and where the last one ends, found by walking the boxes."""
    borders, start, end = [], 0, 0
    while start < len(content):
        size, kind = struct.unpack(">I4s", content[start : start + 8])
        if kind == b"moof":
            borders.append(start)
        elif kind == b"mdat":
            end = start + size
        start += size
    return [*borders, end]


@pytest.mark.parametrize(
    ("start_s", "video_segments", "audio_segments"), [(12.34, (2, 5), (1, 3)), (20.0, (3, 7), (1, 4)), (32, (6, 9), (3, 5))]
)
def test_only_the_head_and_one_range_per_stream_are_transferred(
    media: MediaServer,
    served: Served,
    tmp_path: Path,
    start_s: float,
    video_segments: tuple[int, int],
    audio_segments: tuple[int, int],
) -> None:
    raw = fetched(media, tmp_path, "edited30.mp4", "edited.m4a", start_s)
    video, audio = (segment_borders(served.content(name)) for name in ("edited30.mp4", "edited.m4a"))
    ranges = [
        (0, HEAD - 1),
        (video[video_segments[0]], video[video_segments[1]] - 1),
        (0, HEAD - 1),
        (audio[audio_segments[0]], audio[audio_segments[1]] - 1),
    ]
    assert [(request.path, request.range) for request in media.requests] == [
        *(("/edited30.mp4", requested) for requested in ranges[:2]),
        *(("/edited.m4a", requested) for requested in ranges[2:]),
    ]
    assert sent(media) == sum(b - a + 1 for a, b in ranges)
    assert raw.size < sent(media)


def test_bytes_in_the_head_are_not_requested_twice(media: MediaServer, served: Served, tmp_path: Path) -> None:
    borders = segment_borders(served.content("edited30.mp4"))
    fetched(media, tmp_path, "edited30.mp4", "edited.m4a", 0, seconds=3)
    video = [request.range for request in media.requests if request.path == "/edited30.mp4"]
    assert video == [(0, HEAD - 1), (HEAD, borders[1] - 1)]


def test_a_file_that_fits_into_the_head_costs_one_request(
    media: MediaServer, rendered: Callable[[Spec], Path], tmp_path: Path
) -> None:
    path = rendered(Spec("tiny.mp4", seconds=2, width=64, height=48, audio_seconds=0.5))
    assert path.stat().st_size <= HEAD
    media.files["/tiny.mp4"] = ServedFile(path.read_bytes())
    fetched(media, tmp_path, "tiny.mp4", None, 0, seconds=2)
    assert (len(media.requests), sent(media)) == (1, path.stat().st_size)


def test_an_index_beyond_the_head(media: MediaServer, served: Served, tmp_path: Path) -> None:
    content = served.content("late30.mp4")
    large = struct.pack(">I4s", 8 + 40_000, b"free") + bytes(40_000)
    start = int.from_bytes(content[:4], "big")
    media.files["/v"] = ServedFile(content[:start] + large + content[start:])
    raw = fetched(media, tmp_path, "v", "edited.m4a", 12.34, seconds=3)
    assert np.abs(video_errors(decoded(raw, 12.34, seconds=3), 30, 12.34)).max() <= 0.5 / 30 + 0.001
    assert sent(media) < 1_000_000
    requested = [request.range for request in media.requests if request.path == "/v"]
    assert requested[0] == (0, HEAD - 1)
    assert all(b[0] >= a[1] + 1 for a, b in pairwise(requested) if a and b)


@pytest.mark.parametrize("start_s", [0.0, 12.34])
@pytest.mark.parametrize(
    ("video", "audio"), [("plain30.mp4", "plain.m4a"), ("both30.mp4", None), ("edited30.mp4", "plain.m4a"), ("v.webm", None)]
)
def test_files_without_an_index_are_fetched_whole(
    media: MediaServer, served: Served, tmp_path: Path, video: str, audio: str | None, start_s: float
) -> None:
    if video == "v.webm":
        webm(served)
        media.files["/v.webm"] = ServedFile(served.content("v.webm"))
    raw = fetched(media, tmp_path, video, audio, start_s, seconds=3)
    clip = decoded(raw, start_s, seconds=3)
    assert len(clip.jpegs) == 75
    assert np.abs(video_errors(clip, 30, start_s)).max() <= 0.5 / 30 + 0.001
    assert abs(sound_error(clip, start_s)) <= 0.025
    if video != "edited30.mp4":
        assert sent(media) == sum(len(served.content(name)) for name in (video, audio) if name)
    assert raw.size < 1_300_000


def webm(served: Served) -> None:
    """Make a file with another container and other codecs, once."""
    path = served.folder / "v.webm"
    if not path.exists():
        video = ("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", 16, "-g", 150, "-b:v", "400k")
        ffmpeg_run("-i", served.folder / "both30.mp4", *video, "-c:a", "libopus", "-t", 18, path)


def test_a_file_without_an_index_that_is_too_large(media: MediaServer, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=r"bytes\.large"):
        fetched(media, tmp_path, "plain30.mp4", "plain.m4a", 12, max_whole=1_000_000)
    assert sent(media) == HEAD
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("video", "audio"), [("late30.mp4", "edited.m4a"), ("both30.mp4", None)])
def test_a_clip_after_the_end(media: MediaServer, tmp_path: Path, video: str, audio: str | None) -> None:
    with pytest.raises(ClipError, match=r"clip\.out_of_range"):
        fetched(media, tmp_path, video, audio, SECONDS + 1)
    assert not list(tmp_path.iterdir())


def test_a_clip_across_the_end_is_short(media: MediaServer, tmp_path: Path) -> None:
    clip = decoded(fetched(media, tmp_path, "late25.mp4", "edited.m4a", 36), 36)
    assert clip.short
    assert clip.num_frames == 150


@pytest.mark.parametrize("faults", [[Reset(2000)], [None, Short(90_000), Status(503)], [Status(500), Short(0)]])
def test_transient_faults_change_nothing(media: MediaServer, tmp_path: Path, faults: list[Fault | None]) -> None:
    whole = fetched(media, tmp_path / "whole", "late30.mp4", "edited.m4a", 12.34)
    requests = len(media.requests)
    media.files["/late30.mp4"].faults = list(faults)
    recovered = fetched(media, tmp_path / "recovered", "late30.mp4", "edited.m4a", 12.34)
    assert recovered.path.read_bytes() == whole.path.read_bytes()
    assert recovered.offset_ms == whole.offset_ms
    assert len(media.requests) == 2 * requests + sum(fault is not None for fault in faults)


def test_a_url_that_expires_leaves_the_old_file(media: MediaServer, tmp_path: Path) -> None:
    (tmp_path / "raw.mkv").write_bytes(b"old file")
    media.files["/edited.m4a"].max_requests = 1
    with pytest.raises(TransferError, match=r"bytes\.403"):
        fetched(media, tmp_path, "late30.mp4", "edited.m4a", 12.34)
    assert (tmp_path / "raw.mkv").read_bytes() == b"old file"
    assert [path.name for path in tmp_path.iterdir()] == ["raw.mkv"]


def test_a_file_that_changes_between_requests(media: MediaServer, served: Served, tmp_path: Path) -> None:
    content = served.content("late30.mp4")
    for other in (content[:-1], content[:5000] + content[5001:] + b"\0"):
        media.files["/late30.mp4"] = ServedFile(content, next_content=other)
        with pytest.raises(TransferError, match=r"bytes\.wrong"):
            fetched(media, tmp_path, "late30.mp4", "edited.m4a", 12.34)


def test_a_known_size_is_checked(media: MediaServer, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=r"bytes\.wrong"):
        fetch_clip(
            Source(f"{media.url}/late30.mp4", {}, 5), None, 0, 1, tmp_path / "raw.mkv", MediaClient(session().urlopen, FAST)
        )


def test_a_server_without_range_support(media: MediaServer, tmp_path: Path) -> None:
    media.files["/both30.mp4"].always = Whole()
    raw = fetched(media, tmp_path, "both30.mp4", None, 12.34, seconds=3)
    assert len(media.requests) == 1
    assert np.abs(video_errors(decoded(raw, 12.34, seconds=3), 30, 12.34)).max() <= 0.5 / 30 + 0.001


def test_bytes_that_are_not_media(media: MediaServer, tmp_path: Path) -> None:
    media.files["/v"] = ServedFile(random.Random(1).randbytes(100_000))
    with pytest.raises(ClipError, match=r"decode\."):
        fetched(media, tmp_path, "v", None, 0)
    with pytest.raises(ClipError, match=r"clip\.no_video"):
        fetched(media, tmp_path, "edited.m4a", None, 0)


def test_a_full_disk_is_not_a_failure_of_the_clip(media: MediaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> dict[str, bytes]:
        raise ClipError("decode.error", "Error writing trailer: No space left on device")

    monkeypatch.setattr(byte_ranges, "run_ffmpeg", full)
    with pytest.raises(StorageError, match="no space left"):
        fetched(media, tmp_path, "late30.mp4", "edited.m4a", 0)


def test_the_same_bytes_give_the_same_file(media: MediaServer, tmp_path: Path) -> None:
    first, second = (fetched(media, tmp_path / name, "late25.mp4", "primed.m4a", 10) for name in ("a", "b"))
    assert first.path.read_bytes() == second.path.read_bytes()
