"""Decoding: the right frames and audio at the right time, in the right shape, within limits."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mbt.manifests.shards import LogMelFormat, VideoFormat
from mbt.prep.media.decode import DecodedClip, decode_clip
from mbt.prep.media.ffmpeg import ClipError, Limits, ffmpeg
from mbt.prep.media.log_mel import log_mel
from tests.media import Spec, container_origin, counter_of, frame_times, heard_at, sound

Rendered = Callable[[Spec], Path]
ROOT = Path(__file__).parents[3]
VIDEO = VideoFormat()
SMALL = VideoFormat(short_side=64)
MS = 0.001
LATE = 0.8

STEADY = (
    Spec("25.mp4"),
    Spec("30.mp4", fps="30"),
    Spec("2997.mp4", fps="30000/1001"),
    Spec("125.mp4", fps="25/2"),
    Spec("60.webm", fps="60", video_codec="libvpx", audio_codec="libopus"),
    Spec("vfr.mp4", frame_ms=(20, 60, 100)),
    Spec("vfr.mkv", frame_ms=(10, 35, 20, 250)),
    Spec("30.mkv", fps="30"),
    Spec("30.ts", fps="30"),
    Spec("30.flv", fps="30"),
    Spec("30.mpg", fps="30", video_codec="mpeg2video", audio_codec="mp2"),
    Spec("video-late.mp4", video_delay=LATE),
    Spec("video-late.mkv", video_delay=LATE),
    Spec("video-late.ts", video_delay=LATE),
    Spec("sound-late.mp4", audio_delay=LATE),
    Spec("sound-late.mkv", audio_delay=LATE),
    Spec("vfr-late.mkv", frame_ms=(20, 60, 100), video_delay=LATE),
)
LONG = (
    Spec("long.mp4", fps="30", gop=400, seconds=16),
    Spec("long.mkv", fps="30000/1001", gop=400, seconds=16),
    Spec("long.ts", fps="25", gop=400, seconds=16),
    Spec("long-video-late.mp4", fps="25", gop=400, seconds=16, video_delay=LATE),
    Spec("long-sound-late.mkv", fps="25", gop=100, seconds=16, audio_delay=LATE),
)


def picture_errors(spec: Spec, clip: DecodedClip, start_s: float) -> list[float]:
    """By how many seconds each real frame misses the time at which its picture is on the screen; `start_s` in content time."""
    starts = frame_times(spec)
    errors = []
    for k, jpeg in enumerate(clip.jpegs[: clip.num_frames - clip.padded_frames]):
        n, now = counter_of(jpeg), start_s + k / 25
        too_early = starts[n] - now if n > 0 else 0.0
        too_late = now - starts[n + 1] if n + 1 < len(starts) else 0.0
        errors.append(max(too_early, too_late, 0.0))
    return errors


def sound_error(clip: DecodedClip, start_s: float, at_s: float = 0.1) -> float:
    """By how many seconds the audio is off; `start_s` in content time."""
    first = round(at_s * 16_000)
    return abs(heard_at(clip.audio[first : first + 8000]) - start_s - at_s)


def names(specs: tuple[Spec, ...]) -> list[str]:
    return [spec.name for spec in specs]


@pytest.mark.parametrize("spec", STEADY, ids=names(STEADY))
@pytest.mark.parametrize("start", [0.0, 1.013, 2.3])
def test_video_and_audio_are_from_the_right_time(rendered: Rendered, spec: Spec, start: float) -> None:
    path = rendered(spec)
    clip = decode_clip(path, start, 1.6 if start < 2 else 0.64, SMALL)
    begin = start + container_origin(path)
    assert max(picture_errors(spec, clip, begin)) <= 21 * MS
    late = spec.video_delay - spec.audio_delay
    measured_at = 0.9 if start == 0 and spec.audio_delay else 0.1
    assert sound_error(clip, begin + late, measured_at) <= 2 * MS


@pytest.mark.parametrize("spec", LONG, ids=names(LONG))
@pytest.mark.parametrize("start", [3.3, 10.0, 12.3456])
def test_clip_from_the_middle_of_a_long_group_of_pictures(rendered: Rendered, spec: Spec, start: float) -> None:
    path = rendered(spec)
    clip = decode_clip(path, start, 1.0, SMALL)
    begin = start + container_origin(path)
    assert max(picture_errors(spec, clip, begin)) <= 21 * MS
    assert sound_error(clip, begin + spec.video_delay - spec.audio_delay) <= 2 * MS
    assert (clip.num_frames, clip.padded_frames) == (25, 0)


@pytest.mark.parametrize("start", [11.0, 12.0, 12.02])
def test_audio_is_complete_from_its_first_sample_when_a_clip_begins_at_a_key_frame(rendered: Rendered, start: float) -> None:
    """Without B-frames the seek ends at that key frame, but AAC needs the packets before it."""
    path = rendered(Spec("keys.mp4", seconds=16, gop=25, width=64, height=48, video_codec="mpeg4"))
    full = decode_clip(path, 0, 16, VideoFormat(short_side=48)).audio
    begin = round(start * 16_000)
    first = decode_clip(path, start, 2, VideoFormat(short_side=48)).audio[:640]
    near = [full[begin + late : begin + late + 640] for late in (-1, 0, 1)]
    assert max(np.corrcoef(first, part)[0, 1] for part in near) > 0.95


def test_mpegts_does_not_begin_at_time_zero(rendered: Rendered) -> None:
    with av.open(str(rendered(Spec("30.ts", fps="30")))) as container:
        assert container.start_time / av.time_base > 1


def test_every_frame_of_a_25_fps_file_is_kept(rendered: Rendered) -> None:
    clip = decode_clip(rendered(Spec("25.mp4")), 1.0, 2.0, SMALL)
    assert [counter_of(jpeg) for jpeg in clip.jpegs] == list(range(25, 75))


def test_every_other_frame_of_a_50_fps_file_is_kept(rendered: Rendered) -> None:
    clip = decode_clip(rendered(Spec("50.mp4", fps="50", seconds=2)), 0, 1.0, SMALL)
    numbers = np.array([counter_of(jpeg) for jpeg in clip.jpegs])
    assert set(np.diff(numbers)) == {2}
    assert numbers[0] in (0, 1)


def test_first_frame_is_repeated_before_its_time(rendered: Rendered) -> None:
    clip = decode_clip(rendered(Spec("video-late.mp4", video_delay=LATE)), 0, 2.0, SMALL)
    numbers = [counter_of(jpeg) for jpeg in clip.jpegs]
    assert numbers == [0] * 20 + list(range(30))


def test_audio_is_silent_before_it_begins(rendered: Rendered) -> None:
    audio = decode_clip(rendered(Spec("sound-late.mp4", audio_delay=LATE)), 0, 2.0, SMALL).audio
    assert np.abs(audio[: round(0.77 * 16_000)]).max() == 0
    assert np.abs(audio[round(0.81 * 16_000) :][:1600]).mean() > 0.05


def test_ten_seconds_are_250_frames_and_1000_rows(rendered: Rendered) -> None:
    clip = decode_clip(rendered(Spec("ten.mp4", fps="30", seconds=10.5)), 0.25, 10.0, VIDEO)
    assert (len(clip.jpegs), clip.audio.shape, clip.audio.dtype) == (250, (160_000,), np.float32)
    assert (clip.num_frames, clip.padded_frames, clip.padded_samples) == (250, 0, 0)
    assert log_mel(clip.audio, LogMelFormat()).shape == (1000, 128)
    assert not clip.short


@pytest.mark.parametrize(("duration", "frames"), [(0.04, 1), (0.05, 1), (0.061, 2), (1.0, 25), (1.99, 50)])
def test_length_is_rounded_to_frames(rendered: Rendered, duration: float, frames: int) -> None:
    clip = decode_clip(rendered(Spec("25.mp4")), 0, duration, SMALL)
    assert (len(clip.jpegs), len(clip.audio)) == (frames, 640 * frames)


def test_one_stream_can_be_decoded_alone(rendered: Rendered) -> None:
    path = rendered(Spec("25.mp4"))
    video = decode_clip(path, 0, 1.0, SMALL, streams=("video",))
    audio = decode_clip(path, 0, 1.0, SMALL, streams=("audio",))
    assert (len(video.jpegs), len(video.audio)) == (25, 0)
    assert (len(audio.jpegs), len(audio.audio)) == (0, 16_000)


def picture(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg))


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (Spec("wide.mp4", seconds=1), (455.1, 256)),
        (Spec("tall.mp4", seconds=1, width=180, height=320), (256, 455.1)),
        (Spec("square.mp4", seconds=1, width=300, height=300), (256, 256)),
        (Spec("sar.mp4", seconds=1, width=160, height=180, sar=2), (455.1, 256)),
        (Spec("sar-tall.mp4", seconds=1, width=100, height=320, sar=2), (256, 409.6)),
        (Spec("rotated-90.mp4", seconds=1, rotation=90), (455.1, 256)),
        (Spec("rotated-180.mp4", seconds=1, rotation=180), (455.1, 256)),
        (Spec("rotated-270.mp4", seconds=1, rotation=270, width=180, height=320), (256, 455.1)),
    ],
    ids=lambda value: value.name if isinstance(value, Spec) else "",
)
def test_picture_is_upright_with_square_pixels_and_short_side_256(
    rendered: Rendered, spec: Spec, size: tuple[float, float]
) -> None:
    clip = decode_clip(rendered(spec), 0, 1.0, VIDEO)
    assert [counter_of(jpeg) for jpeg in clip.jpegs] == list(range(25))
    for jpeg in clip.jpegs:
        assert min(picture(jpeg).size) == 256
        assert picture(jpeg).size == pytest.approx(size, abs=1.01)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_files_are_stored_rotated(rendered: Rendered, rotation: int) -> None:
    size = {"width": 180, "height": 320} if rotation == 270 else {}
    with av.open(str(rendered(Spec(f"rotated-{rotation}.mp4", seconds=1, rotation=rotation, **size)))) as container:
        frame = next(container.decode(video=0))
        assert frame.rotation % 360 == rotation
        with pytest.raises(ValueError, match="no counter"):
            counter_of(jpeg_bytes(frame.to_image()))


def jpeg_bytes(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def test_frames_are_baseline_420_without_exif(rendered: Rendered) -> None:
    for jpeg in decode_clip(rendered(Spec("25.mp4")), 0, 0.2, VIDEO).jpegs:
        image = picture(jpeg)
        assert (image.format, image.mode) == ("JPEG", "RGB")
        assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]
        assert "progressive" not in image.info
        assert b"\xff\xc0" in jpeg
        assert not image.getexif()


def test_quantizer_scale_decides_the_size(rendered: Rendered) -> None:
    path = rendered(Spec("25.mp4"))
    fine, coarse = (decode_clip(path, 0, 0.2, VideoFormat(jpeg_qscale=q)).jpegs for q in (2, 31))
    assert len(fine[0]) > 1.5 * len(coarse[0])


def test_gray_levels_keep_their_full_range(rendered: Rendered) -> None:
    pixels = np.asarray(picture(decode_clip(rendered(Spec("25.mp4")), 0, 0.04, VIDEO).jpegs[0]).convert("L"))
    assert np.percentile(pixels, [20, 80]) == pytest.approx([30, 225], abs=6)


@pytest.mark.parametrize(("height", "upscaled"), [(180, True), (256, False), (288, False)])
def test_small_sources_are_flagged(rendered: Rendered, height: int, upscaled: bool) -> None:
    spec = Spec(f"height-{height}.mp4", seconds=1, width=height * 16 // 9 // 2 * 2, height=height)
    assert decode_clip(rendered(spec), 0, 0.2, VIDEO).upscaled is upscaled


def test_media_that_end_a_little_early_are_padded(rendered: Rendered) -> None:
    clip = decode_clip(rendered(Spec("early.mp4", seconds=3.68)), 0, 4.0, SMALL)
    assert (clip.num_frames, clip.padded_frames, clip.short) == (100, 8, False)
    assert clip.padded_samples == pytest.approx(0.32 * 16_000, abs=400)
    assert len(set(clip.jpegs[91:])) == 1
    assert [counter_of(jpeg) for jpeg in (clip.jpegs[90], clip.jpegs[91], clip.jpegs[99])] == [90, 91, 91]
    assert not clip.audio[-clip.padded_samples :].any()
    assert np.abs(clip.audio[-clip.padded_samples - 1600 : -clip.padded_samples]).max() > 0.1


def test_audio_that_ends_a_little_early_is_padded_alone(rendered: Rendered) -> None:
    clip = decode_clip(rendered(Spec("sound-early.mkv", audio_seconds=3.6, audio_codec="pcm_s16le")), 0, 4.0, SMALL)
    assert (clip.num_frames, clip.padded_frames, clip.short) == (100, 0, False)
    assert clip.padded_samples == pytest.approx(6400, abs=32)


def test_media_that_end_much_too_early_are_stored_shorter(rendered: Rendered) -> None:
    clip = decode_clip(rendered(Spec("25.mp4")), 0, 6.0, SMALL)
    assert (clip.num_frames, len(clip.jpegs), len(clip.audio), clip.short) == (100, 100, 64_000, True)
    assert (clip.padded_frames, clip.padded_samples) == (0, 0)


def test_the_shorter_stream_decides_the_length(rendered: Rendered) -> None:
    clip = decode_clip(rendered(Spec("sound-short.mkv", audio_seconds=3.0, audio_codec="pcm_s16le")), 0, 4.0, SMALL)
    assert (clip.num_frames, len(clip.audio), clip.short) == (75, 48_000, True)


def test_less_than_half_is_rejected_unless_requested(rendered: Rendered) -> None:
    path = rendered(Spec("25.mp4"))
    assert code(path, 0, 9.0) == "clip.short"
    clip = decode_clip(path, 0, 9.0, SMALL, min_share=0)
    assert (clip.num_frames, clip.short) == (100, True)


def code(path: Path, start: float = 0.0, duration: float = 1.0, limits: Limits | None = None) -> str:
    with pytest.raises(ClipError) as error:
        decode_clip(path, start, duration, SMALL, limits or Limits())
    assert error.value.message
    assert "\n" not in str(error.value)
    return error.value.code


@pytest.mark.parametrize("start", [4.5, 9.9, 10.0, 50.0, 1e6])
def test_start_beyond_the_end_is_rejected(rendered: Rendered, start: float) -> None:
    assert code(rendered(Spec("25.mp4")), start) == "clip.out_of_range"


def test_missing_streams_are_named(rendered: Rendered) -> None:
    assert code(rendered(Spec("silent.mp4", seconds=2, audio=False))) == "clip.no_audio"
    assert code(rendered(Spec("blind.mp4", seconds=2, video=False))) == "clip.no_video"
    assert code(rendered(Spec("blind.wav", seconds=2, video=False, audio_codec="pcm_s16le"))) == "clip.no_video"


def test_clip_without_a_frame_is_rejected(rendered: Rendered) -> None:
    assert code(rendered(Spec("25.mp4")), 0, 0.01) == "clip.empty"


def test_files_that_are_not_media_are_unreadable(rendered: Rendered, tmp_path: Path) -> None:
    media = rendered(Spec("25.mp4")).read_bytes()
    for name, data in {"text": b"hello " * 1000, "empty": b"", "cut": media[: len(media) // 2]}.items():
        (tmp_path / f"{name}.mp4").write_bytes(data)
        assert code(tmp_path / f"{name}.mp4") == "decode.unreadable", name
    assert code(tmp_path / "nothing.mp4") == "decode.unreadable"


def test_playlists_and_urls_are_not_followed(rendered: Rendered, tmp_path: Path) -> None:
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {rendered(Spec('25.mp4'))}\n")
    assert code(tmp_path / "list.mp4") == "decode.unreadable"
    assert code(Path("http:/127.0.0.1:9/x.mp4")) == "decode.unreadable"


def test_flipped_bytes_are_an_error(rendered: Rendered, tmp_path: Path) -> None:
    data = bytearray(rendered(Spec("25.mp4")).read_bytes())
    begin = data.index(b"mdat") + 200
    for position in range(begin, begin + 20_000, 50):
        data[position] ^= 0xFF
    (tmp_path / "flipped.mp4").write_bytes(data)
    assert code(tmp_path / "flipped.mp4", 0, 4.0) == "decode.error"


def children() -> set[str]:
    """Ids of the child processes that are running or not yet reaped."""
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


def test_child_that_exceeds_its_time_is_killed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never.mp4")
    before, start = children(), time.monotonic()
    assert code(tmp_path / "never.mp4", limits=Limits(wall_s=0.3)) == "decode.timeout"
    assert time.monotonic() - start < 5
    assert children() <= before


def test_very_short_limit_is_a_timeout(rendered: Rendered) -> None:
    before = children()
    assert code(rendered(Spec("ten.mp4", fps="30", seconds=10.5)), 0, 10.0, Limits(wall_s=0.01)) == "decode.timeout"
    assert children() <= before


def test_memory_limit_holds(rendered: Rendered) -> None:
    before = children()
    path = rendered(Spec("25.mp4"))
    assert code(path, limits=Limits(memory_bytes=160 << 20)) in {
        "decode.memory",
        "decode.error",
        "decode.unreadable",
        "decode.interrupted",
    }
    assert children() <= before
    assert decode_clip(path, 0, 0.2, SMALL).num_frames == 5


def test_no_descriptor_stays_open(rendered: Rendered, tmp_path: Path) -> None:
    """In a fresh process, where no other test's garbage can close a descriptor meanwhile."""
    program = """
import contextlib, os, sys
from pathlib import Path
from mbt.manifests.shards import VideoFormat
from mbt.prep.media.decode import decode_clip
from mbt.prep.media.ffmpeg import ClipError, Limits

def descriptors():
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return found

media, fifo, missing = map(Path, sys.argv[1:])
before = descriptors()
for path, limits, code in (
    (media, Limits(), None), (missing, Limits(), "decode.unreadable"), (fifo, Limits(wall_s=0.2), "decode.timeout")
) * 2:
    try:
        decode_clip(path, 0, 0.2, VideoFormat(short_side=64), limits)
        assert code is None
    except ClipError as error:
        assert error.code == code, error
after = descriptors()
assert after == before, (before, after)
"""
    os.mkfifo(tmp_path / "never.mp4")
    paths = rendered(Spec("25.mp4")), tmp_path / "never.mp4", tmp_path / "missing.mp4"
    subprocess.run([sys.executable, "-c", program, *map(str, paths)], check=True, cwd=ROOT)


def gain(channels: tuple[float, ...], rendered: Rendered) -> float:
    """Amplitude of the decoded audio relative to one channel of amplitude one."""
    spec = Spec(f"mix-{'_'.join(map(str, channels))}.mkv", seconds=1, channels=channels, audio_codec="pcm_s16le")
    audio = decode_clip(rendered(spec), 0, 1.0, SMALL, streams=("audio",)).audio[1600:14_400]
    reference = sound(np.arange(1600, 14_400) / 16_000)
    return float(audio @ reference / (reference @ reference))


@pytest.mark.parametrize("channels", [(0.5,), (0.5, 0.5), (0.5, 0.0), (0.3, -0.3), (0.2, 0.2, 0.2, 0.0, 0.2, 0.2)])
def test_mono_is_the_mean_of_equal_channels(rendered: Rendered, channels: tuple[float, ...]) -> None:
    wanted = {(0.5, 0.0): 0.25, (0.3, -0.3): 0.0}.get(channels, channels[0])
    assert gain(channels, rendered) == pytest.approx(wanted, abs=0.01)


def test_other_sample_rates_keep_their_pitch(tmp_path: Path) -> None:
    subprocess.run(
        [ffmpeg(), "-loglevel", "error", "-f", "lavfi", "-i", "sine=1000:r=11025:d=2", str(tmp_path / "tone.wav")], check=True
    )
    audio = decode_clip(tmp_path / "tone.wav", 0, 1.0, SMALL, streams=("audio",)).audio
    assert int(np.abs(np.fft.rfft(audio)).argmax()) == 1000


@pytest.mark.parametrize("matrix", ["bt709", "smpte170m"])
@pytest.mark.parametrize("color", [(200, 40, 40), (40, 180, 60), (50, 60, 210)])
def test_colors_are_preserved(tmp_path: Path, matrix: str, color: tuple[int, int, int]) -> None:
    source = f"color=0x{bytes(color).hex()}:s=320x256:d=0.4:r=25,format=rgb24"
    tags = ["-colorspace", matrix, "-color_primaries", matrix, "-color_trc", matrix, "-color_range", "tv"]
    convert = f"scale=out_color_matrix={matrix}:out_range=tv,format=yuv420p"
    command = [ffmpeg(), "-loglevel", "error", "-f", "lavfi", "-i", source, "-vf", convert, *tags, "-qp", "5"]
    subprocess.run([*command, str(tmp_path / "color.mp4")], check=True)
    jpeg = decode_clip(tmp_path / "color.mp4", 0, 0.2, VIDEO, streams=("video",)).jpegs[0]
    assert np.asarray(picture(jpeg)).mean((0, 1)) == pytest.approx(color, abs=5)
