"""The flags silent, frozen and black, on arrays and on rendered files."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mbt.manifests.shards import VideoFormat
from mbt.prep.media.decode import DecodedClip, decode_clip
from mbt.prep.media.ffmpeg import ffmpeg
from mbt.prep.media.flags import is_black, is_frozen, is_silent
from tests.media import Spec

SECONDS = 2
SMALL = VideoFormat(short_side=64)
NOISE = np.random.default_rng(5)


def tone(rms: float, seconds: float = 2.0) -> np.ndarray:
    return np.sqrt(2) * rms * np.sin(2 * np.pi * 500 * np.arange(round(16_000 * seconds)) / 16_000)


def with_burst(length: int, level: float) -> np.ndarray:
    audio = np.zeros(32_000)
    audio[6400 : 6400 + length] = level * np.resize([1, -1], length)
    return audio


@pytest.mark.parametrize(
    ("audio", "silent"),
    [
        (np.zeros(32_000), True),
        (NOISE.uniform(-1, 1, 32_000) / 32_768, True),
        (np.full(32_000, 0.05), True),
        (tone(0.00099), True),
        (tone(0.00101), False),
        (with_burst(640, 0.0009), True),
        (with_burst(640, 0.0011), False),
        (with_burst(1, 0.02), True),
        (with_burst(64, 0.02), False),
        (np.concatenate([tone(0.00101, 0.04), np.zeros(31_360)]), False),
    ],
    ids=["zero", "dither", "offset", "-60.1 dB", "-59.9 dB", "faint", "audible", "click", "knock", "first frame"],
)
def test_silent_means_every_frame_is_below_minus_sixty_decibels(audio: np.ndarray, silent: bool) -> None:
    assert is_silent(audio.astype(np.float32)) is silent


@pytest.mark.parametrize(("levels", "frozen"), [((100, 102, 101), True), ((100, 103, 101), False), ((7,), True)])
def test_frozen_means_a_range_of_two_levels_in_every_cell(levels: tuple[int, ...], frozen: bool) -> None:
    thumbnails = np.random.default_rng(1).integers(0, 256, (1, 16, 16), np.uint8).repeat(len(levels), axis=0)
    thumbnails[:, 3, 14] = levels
    assert is_frozen(thumbnails) is frozen


@pytest.mark.parametrize(("luma", "dark", "black"), [(15, 45, True), (15, 44, False), (16, 50, False), (0, 50, True)])
def test_black_means_nine_tenths_of_the_frames(luma: int, dark: int, black: bool) -> None:
    thumbnails = np.full((50, 16, 16), 120, np.uint8)
    thumbnails[:dark] = luma
    assert is_black(thumbnails) is black


def flags(clip: DecodedClip) -> set[str]:
    return {name for name in ("silent", "frozen", "black") if getattr(clip, name)}


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str, str], DecodedClip]:
    """Decodes two seconds of video and audio that ffmpeg's filters generate."""

    def make(picture: str, sound: str) -> DecodedClip:
        path = tmp_path / "made.mp4"
        inputs = ["-f", "lavfi", "-i", f"{picture},format=yuv420p", "-f", "lavfi", "-i", sound]
        codecs = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "30", "-c:a", "aac", "-t", str(SECONDS)]
        subprocess.run([ffmpeg(), "-v", "error", "-y", *inputs, *codecs, str(path)], check=True)
        return decode_clip(path, 0, SECONDS, SMALL)

    return make


MOVING = "testsrc2=s=320x180:r=25"
STILL = "testsrc2=s=320x180:r=25,loop=-1:1"
BLACK = "color=black:s=320x180:r=25"
TONE = "sine=r=48000"


@pytest.mark.parametrize(
    ("picture", "sound", "expected"),
    [
        (MOVING, TONE, set()),
        (MOVING, "anullsrc=r=48000", {"silent"}),
        (MOVING, "aevalsrc=(random(0)-0.5)/16384:s=48000", {"silent"}),
        (MOVING, f"{TONE},volume=-30dB:enable='between(t,1,1.1)',volume=0:enable='not(between(t,1,1.1))'", set()),
        (STILL, TONE, {"frozen"}),
        (f"{STILL},noise=alls=8:allf=t", TONE, {"frozen"}),
        (f"{STILL},eq=brightness=0.03*t/2:eval=frame", TONE, set()),
        ("color=gray:s=320x180:r=25,drawbox=x=40:y=60:w=20:h=20:color=white:t=fill:enable='eq(n,30)'", TONE, set()),
        (BLACK, TONE, {"frozen", "black"}),
        (f"{BLACK},drawbox=x=40:y=60:w=90:h=20:color=white:t=fill:enable='lt(n,5)'", TONE, {"black"}),
        (f"{BLACK},drawbox=color=gray:t=fill:enable='lt(n,6)'", TONE, set()),
        (f"{MOVING},eq=brightness=-0.48:contrast=0.2", TONE, {"black"}),
    ],
    ids=["both", "no sound", "dither", "a tenth of a second", "still", "noise", "slow fade", "one frame", "black", "title",
         "too long a title", "dark"],
)  # fmt: skip
def test_rendered_files_get_their_flags(
    picture: str, sound: str, expected: set[str], made: Callable[[str, str], DecodedClip]
) -> None:
    assert flags(made(picture, sound)) == expected


def test_stream_that_is_not_requested_has_no_flag(made: Callable[[str, str], DecodedClip], tmp_path: Path) -> None:
    assert flags(made(BLACK, "anullsrc=r=48000")) == {"silent", "frozen", "black"}
    assert flags(decode_clip(tmp_path / "made.mp4", 0, SECONDS, SMALL, streams=("video",))) == {"frozen", "black"}
    assert flags(decode_clip(tmp_path / "made.mp4", 0, SECONDS, SMALL, streams=("audio",))) == {"silent"}


def test_only_the_clip_itself_counts(rendered: Callable[[Spec], Path], tmp_path: Path) -> None:
    """A second of a moving picture with audio between black and silence."""
    path, inner = tmp_path / "middle.mp4", rendered(Spec("25.mp4"))
    pad = "tpad=start_duration=2:stop_duration=2"
    sound = "adelay=2000:all=1,apad=pad_dur=2"
    command = [ffmpeg(), "-v", "error", "-t", "1", "-i", str(inner), "-vf", pad, "-af", sound, "-g", "10", str(path)]
    subprocess.run(command, check=True)
    assert flags(decode_clip(path, 0, 1.9, SMALL)) == {"silent", "frozen", "black"}
    assert flags(decode_clip(path, 2, 1, SMALL)) == set()
    assert flags(decode_clip(path, 3.2, 1.5, SMALL)) == {"silent", "frozen", "black"}


def test_thumbnails_do_not_change_the_jpegs(rendered: Callable[[Spec], Path]) -> None:
    """Both are made in the same run of ffmpeg."""
    path = rendered(Spec("30.mp4", fps="30"))
    scale = "scale=114:64:flags=bicubic:out_color_matrix=bt601:out_range=full,setsar=1,format=yuvj420p"
    plain = [
        "-i",
        str(path),
        "-vf",
        f"fps=25:start_time=0:round=near,{scale}",
        "-frames:v",
        "50",
        "-q:v",
        "3",
        "-threads",
        "1",
        "-f",
        "mjpeg",
        "-",
    ]
    expected = subprocess.run([ffmpeg(), "-v", "error", *plain], check=True, stdout=subprocess.PIPE).stdout
    assert b"".join(decode_clip(path, 0, SECONDS, SMALL).jpegs) == expected
