"""Generated media whose video and audio reveal their time.

The picture is a grid of black and white cells that encodes the frame number. The audio is a sum of sines that matches no
shifted copy of itself, so that correlation finds its time. Both survive lossy coding.
"""

import io
import subprocess
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from mbt.prep.media.ffmpeg import ffmpeg

CODEC_OPTIONS = {
    "libx264": ("-preset", "veryfast", "-sc_threshold", "0"),
    "libvpx": ("-deadline", "realtime", "-cpu-used", "8", "-b:v", "1M"),
    "mpeg2video": ("-b:v", "2M", "-bf", "2"),
    "mpeg4": ("-b:v", "1M", "-bf", "0"),
}
COLUMNS, ROWS = 4, 6
MARKER = (1, 0, 0, 0)
BITS = 10
RATE = 48_000
SINES = np.random.default_rng(7)
FREQUENCIES = SINES.uniform(200, 3500, 48)
PHASES = SINES.uniform(0, 2 * np.pi, 48)


@dataclass(frozen=True)
class Spec:
    """Properties of a generated file; times in seconds.

    Attributes:
        name: file name; its suffix decides the container.
        fps: frames per second, as ffmpeg reads it; ignored if `frame_ms` is given.
        frame_ms: durations of the frames in milliseconds, repeated, for a variable frame rate.
        seconds: length of the video.
        audio_seconds: length of the audio; that of the video by default.
        video_delay: delay of the first frame.
        audio_delay: delay of the audio.
        rotation: angle of the display matrix, counterclockwise; the stored picture is rotated the other way.
        sar: sample aspect ratio, width of a pixel over its height.
        channels: gains of the channels, which all carry the same audio.
    """

    name: str
    fps: str = "25"
    frame_ms: tuple[int, ...] = ()
    seconds: float = 4.0
    audio_seconds: float | None = None
    video_delay: float = 0.0
    audio_delay: float = 0.0
    width: int = 320
    height: int = 180
    rotation: int = 0
    sar: int = 1
    gop: int = 12
    channels: tuple[float, ...] = (0.5,)
    video: bool = True
    audio: bool = True
    video_codec: str = "libx264"
    audio_codec: str = "aac"


def counter_picture(number: int, width: int, height: int) -> np.ndarray:
    """Gray picture (height, width) that encodes `number`: a marker row, ten bits and their complement."""
    bits = [number >> i & 1 for i in range(BITS)]
    cells = np.array([*MARKER, *bits, *(1 - bit for bit in bits)], np.uint8).reshape(ROWS, COLUMNS)
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return np.where(cells[rows][:, columns], np.uint8(225), np.uint8(30))


def read_counter(picture: np.ndarray) -> int:
    """The number in a picture of any size; ValueError if none is readable, for example because it is not upright."""
    height, width = picture.shape[:2]
    gray = picture.reshape(height, width, -1).mean(-1)
    ys = (np.arange(ROWS) + 0.5) * height / ROWS
    xs = (np.arange(COLUMNS) + 0.5) * width / COLUMNS
    cells = [gray[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4].mean() > 127 for y in ys for x in xs]
    bits, complement = cells[len(MARKER) : -BITS], cells[-BITS:]
    if tuple(cells[: len(MARKER)]) != MARKER or any(a == b for a, b in zip(bits, complement, strict=True)):
        raise ValueError("no counter is readable in the picture")
    return sum(bit << i for i, bit in enumerate(bits))


def counter_of(jpeg: bytes) -> int:
    """The number in a JPEG."""
    return read_counter(np.asarray(Image.open(io.BytesIO(jpeg))))


def sound(times: np.ndarray) -> np.ndarray:
    """The audio at these times, roughly in [-1, 1]; silence before time 0."""
    waves = sum(np.sin(2 * np.pi * f * times + p) for f, p in zip(FREQUENCIES, PHASES, strict=True))
    return np.where(times >= 0, waves / 16, 0.0)


def heard_at(samples: np.ndarray, rate: int = 16_000, longest: float = 24.0) -> float:
    """Time in the audio at which these samples begin, seconds."""
    reference = _reference(rate, longest)
    size = 1 << (len(reference) + len(samples)).bit_length()
    correlation = np.fft.irfft(np.fft.rfft(reference, size) * np.fft.rfft(samples, size).conj(), size)
    peak = int(correlation[: len(reference)].argmax())
    part = reference[peak : peak + len(samples)]
    similarity = np.corrcoef(part, samples[: len(part)])[0, 1]
    assert similarity > 0.8, f"the samples are not in the reference (correlation {similarity:.2f})"
    return peak / rate


_references: dict[tuple[int, float], np.ndarray] = {}


def _reference(rate: int, longest: float) -> np.ndarray:
    if (rate, longest) not in _references:
        _references[rate, longest] = sound(np.arange(int(rate * longest)) / rate)
    return _references[rate, longest]


def frame_times(spec: Spec) -> np.ndarray:
    """Time of each frame in seconds, not counting delays."""
    if spec.frame_ms:
        ends = np.cumsum(np.resize(spec.frame_ms, 10_000)) / 1000
        return np.concatenate([[0.0], ends])[: int((ends < spec.seconds).sum()) + 1]
    top, _, bottom = spec.fps.partition("/")
    rate = float(top) / float(bottom or 1)
    return np.arange(int(np.ceil(spec.seconds * rate - 1e-6))) / rate


def render(folder: Path, spec: Spec) -> Path:
    """Render a file into `folder`."""
    path = folder / spec.name
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [ffmpeg(), "-nostdin", "-hide_banner", "-loglevel", "error", "-y"]
    if spec.video:
        (path.parent / "frames.raw").write_bytes(_frames(spec))
        stored = (spec.height, spec.width) if spec.rotation % 180 else (spec.width, spec.height)
        size = f"{stored[0]}x{stored[1]}"
        command += ["-f", "rawvideo", "-pix_fmt", "gray", "-s", size, "-r", spec.fps, "-i", str(path.parent / "frames.raw")]
    if spec.audio:
        (path.parent / "sound.raw").write_bytes(_samples(spec).astype("<f4").tobytes())
        command += ["-f", "f32le", "-ar", str(RATE), "-ac", str(len(spec.channels))]
        command += ["-i", str(path.parent / "sound.raw")]
    if spec.video:
        command += ["-map", "0:v", "-vf", _video_filter(spec), "-fps_mode", "passthrough", "-pix_fmt", "yuv420p"]
        command += ["-c:v", spec.video_codec, *CODEC_OPTIONS[spec.video_codec], "-g", str(spec.gop), "-threads", "1"]
    if spec.audio:
        delay = f"asetpts=PTS+{spec.audio_delay}/TB"
        command += ["-map", f"{int(spec.video)}:a", "-af", delay, "-c:a", spec.audio_codec, "-b:a", "128k"]
    subprocess.run([*command, str(path)], check=True)
    for raw in ("frames.raw", "sound.raw"):
        (path.parent / raw).unlink(missing_ok=True)
    if spec.rotation:
        upright = path.rename(path.with_name(f"unrotated-{path.name}"))
        rotate = [ffmpeg(), "-nostdin", "-loglevel", "error", "-display_rotation", str(spec.rotation), "-i", str(upright)]
        subprocess.run([*rotate, "-c", "copy", str(path)], check=True)
        upright.unlink()
    return path


def _video_filter(spec: Spec) -> str:
    if not spec.frame_ms:
        return f"setpts=PTS+{spec.video_delay}/TB,setsar={spec.sar}"
    period = sum(spec.frame_ms)
    starts = [sum(spec.frame_ms[:i]) for i in range(len(spec.frame_ms))]
    phase = "+".join(f"eq(mod(N,{len(starts)}),{i})*{start}" for i, start in enumerate(starts))
    return f"settb=1/1000,setpts='{spec.video_delay * 1000:g}+floor(N/{len(starts)})*{period}+{phase}',setsar={spec.sar}"


def _frames(spec: Spec) -> bytes:
    pictures = (counter_picture(n, spec.width, spec.height) for n in range(len(frame_times(spec))))
    return b"".join(np.rot90(picture, -spec.rotation // 90).tobytes() for picture in pictures)


def _samples(spec: Spec) -> np.ndarray:
    seconds = spec.seconds if spec.audio_seconds is None else spec.audio_seconds
    wave = sound(np.arange(round(seconds * RATE)) / RATE)
    return wave[:, None] * np.array(spec.channels)


def container_origin(path: Path) -> float:
    """Content time of the video at the container's first time stamp, read by PyAV; frame 0 has content time 0."""
    with av.open(str(path)) as container:
        first = next(packet.pts for packet in container.demux(video=0) if packet.pts is not None)
        stream = container.streams.video[0]
        return container.start_time / av.time_base - float(min(first, stream.start_time) * stream.time_base)
