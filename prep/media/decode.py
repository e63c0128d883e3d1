"""A clip of a media file as JPEG frames and mono samples, by one ffmpeg child that seeks and decodes once."""

import math
import os
import re
import resource
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from io import FileIO
from pathlib import Path
from typing import Literal

import imageio_ffmpeg
import numpy as np

from mbt.manifests.errors import InputError
from mbt.manifests.shards import FPS, SAMPLE_RATE, VideoFormat
from mbt.prep.media.flags import THUMBNAIL_SIDE, is_black, is_frozen, is_silent

Stream = Literal["video", "audio"]

MAX_PADDING_S = 0.5
"""A clip whose media ends at most this much too early is padded; beyond, it is stored shorter and flagged."""
MIN_SHARE = 0.5
"""A clip with less than this share of the wanted length is refused."""
SEEK_FROM_S = 10.0
"""A clip that begins earlier is decoded from the file's start: no seek goes before the first key frame, where sound may be."""
PRIMING_S = 0.2
"""Sound is decoded from this much before the clip's start: its coders need what comes before."""
UNSEEKABLE = frozenset({".m2ts", ".mpeg", ".mpg", ".mts", ".ts", ".vob"})
"""MPEG streams have no index of key frames: a seek loses the pictures up to the next one."""
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
LOUDEST = 1e6
"""Full scale is 1. Damaged floating-point sound has values up to 1e38, and its log-mel none that is finite."""
LOG_BYTES = 1 << 20
"""Of the child's log so much is kept; the rest is read and dropped."""
PIPES = ("video", "thumbnails", "audio")
CHUNK = 1 << 20


class ClipError(Exception):
    """This clip cannot be decoded; `code` is a stable name of the reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Limits:
    """What one decoding child may take."""

    wall_s: float = 60.0
    memory_bytes: int = 3 << 30


@dataclass(frozen=True)
class DecodedClip:
    """A clip, padded to a whole number of frames, picture and sound of the same length.

    Attributes:
        jpegs: baseline JPEG files in time order, frame k of the time k / 25 s; empty where video was not asked for.
        audio: float32 (num_frames * 640,), 16 kHz mono in [-1, 1]; empty where audio was not asked for.
        num_frames: frames of 1/25 s.
        padded_frames: frames at the end that repeat the last real one.
        padded_samples: zeros at the end of `audio` that the media did not have.
        short: the media ended more than 0.5 s before the clip.
        upscaled: the source's short side is smaller than the stored one.
        silent: nothing is to be heard (`flags.is_silent`); False where audio was not asked for.
        frozen: nothing moves (`flags.is_frozen`); False where video was not asked for.
        black: almost nothing is to be seen (`flags.is_black`); False where video was not asked for.
    """

    jpegs: list[bytes]
    audio: np.ndarray
    num_frames: int
    padded_frames: int
    padded_samples: int
    short: bool
    upscaled: bool
    silent: bool
    frozen: bool
    black: bool


DEFAULT_LIMITS = Limits()


def decode_clip(
    path: Path,
    start_s: float,
    duration_s: float,
    video: VideoFormat,
    limits: Limits = DEFAULT_LIMITS,
    streams: Collection[Stream] = ("video", "audio"),
    min_share: float = MIN_SHARE,
) -> DecodedClip:
    """Decode [start_s, start_s + duration_s) of a media file; time 0 is the container's first time stamp.

    Frames are upright, have square pixels and are exact in time to half an output frame (20 ms).

    Args:
        path: the media file; read by ffmpeg only, as a local file.
        start_s: start of the clip in the file, seconds.
        duration_s: length of the clip, seconds; rounded to frames.
        video: how frames are stored.
        limits: what the decoding child may take.
        streams: what is wanted; the file must have it.
        min_share: share of the length that must be there; with 0 a file that ends early is taken as long as it is.

    Raises:
        ClipError: no such stream, a decoding error, too short, or over its limits.
        InputError: ffmpeg cannot be found.
    """
    wanted = round(duration_s * FPS)
    if wanted < 1:
        raise ClipError("clip.empty", f"{duration_s} s hold no frame")
    outputs = run_ffmpeg(decode_command(path, start_s, wanted, video, streams), limits, wanted * _most_frame_bytes(video))
    jpegs = split_jpegs(outputs["video"])
    audio = np.frombuffer(outputs["audio"], "<f4", count=len(outputs["audio"]) // 4)
    if not np.abs(audio).max(initial=0.0) <= LOUDEST:
        raise ClipError("decode.error", "the sound has values that are no numbers or beyond any scale")
    real_s = [len(jpegs) / FPS] * ("video" in streams) + [len(audio) / SAMPLE_RATE] * ("audio" in streams)
    num_frames, short = _length(min(real_s), wanted, min_share)
    size = source_size(outputs["log"].decode(errors="replace"))
    padded_frames = padded_samples = 0
    silent = frozen = black = False
    if "video" in streams:
        jpegs = jpegs[:num_frames]
        thumbnails = np.frombuffer(outputs["thumbnails"], np.uint8).reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE)[: len(jpegs)]
        frozen, black = is_frozen(thumbnails), is_black(thumbnails)
        padded_frames = num_frames - len(jpegs)
        jpegs = jpegs + jpegs[-1:] * padded_frames
    if "audio" in streams:
        audio = audio[: num_frames * SAMPLES_PER_FRAME]
        padded_samples = num_frames * SAMPLES_PER_FRAME - len(audio)
        audio = np.pad(audio, (0, padded_samples))
        silent = is_silent(audio)
    return DecodedClip(
        jpegs=jpegs,
        audio=audio,
        num_frames=num_frames,
        padded_frames=padded_frames,
        padded_samples=padded_samples,
        short=short,
        upscaled=size is not None and min(size) < video.short_side,
        silent=silent,
        frozen=frozen,
        black=black,
    )


def _most_frame_bytes(video: VideoFormat) -> int:
    """More than a frame's JPEG and sound take: 8 bytes a pixel of a square of the short side, and 8 KiB."""
    return 8 * video.short_side**2 + 8192


def _length(real_s: float, wanted: int, min_share: float) -> tuple[int, bool]:
    """Frames to store, and whether that is fewer than wanted."""
    wanted_s = wanted / FPS
    if wanted_s - real_s <= min(MAX_PADDING_S, min_share * wanted_s):
        return wanted, False
    real = math.floor(real_s * FPS)
    if real < 1 or real_s < min_share * wanted_s:
        raise ClipError("clip.short", f"{real_s:.2f} s of {wanted_s:.2f} s are there")
    return real, True


def decode_command(path: Path, start_s: float, wanted: int, video: VideoFormat, streams: Collection[Stream]) -> list[str]:
    """The ffmpeg command that decodes a clip, scales its frames, encodes them, and makes a grey thumbnail of each.

    Args:
        path: media file.
        start_s: start of the clip in the file, seconds.
        wanted: frames.
        video: their format.
        streams: what is wanted of the file.
    """
    # The filters see the frames since a key frame before the start: fps= then knows which picture is on the screen there,
    # and aresample= cuts the sound to the sample. Seeking without accuracy makes the start time 0.
    seek = start_s >= SEEK_FROM_S and path.suffix.lower() not in UNSEEKABLE
    begin = PRIMING_S if seek else start_s
    command = [
        *(ffmpeg(), "-nostdin", "-nostats", "-hide_banner", "-loglevel", "level+info", "-max_error_rate", "0"),
        *("-threads", "1", "-filter_threads", "1", "-protocol_whitelist", "file,pipe"),
        *(("-noaccurate_seek", "-ss", f"{start_s - PRIMING_S:.3f}") if seek else ()),
        *("-i", f"file:{path}"),
    ]
    if "video" in streams:
        side = video.short_side
        picture = (
            f"fps={FPS}:start_time={begin:.3f}:round=near",
            f"scale=w='if(lt(dar,1),{side},2*round({side}*dar/2))':h='if(lt(dar,1),2*round({side}/dar/2),{side})'"
            ":flags=bicubic:out_color_matrix=bt601:out_range=full",
            "setsar=1,format=yuvj420p,split[video][copy]",
        )
        # Frames on their own through a second encoder cost 4 % of the run, all of them as one tall picture cost 1 %.
        size = f"{THUMBNAIL_SIDE}:{THUMBNAIL_SIDE}"
        thumbnails = f"[copy]scale={size}:flags=area:out_range=full,format=gray,tile=1x{wanted}[thumbnails]"
        command += [
            *("-filter_complex_threads", "1", "-filter_complex", f"[0:V:0]{','.join(picture)};{thumbnails}"),
            *("-map", "[video]", "-frames:v", str(wanted), "-fps_mode", "passthrough", "-threads", "1"),
            *("-c:v", "mjpeg", "-q:v", str(video.jpeg_qscale), "-f", "mjpeg", "pipe:{video}"),
            *("-map", "[thumbnails]", "-frames:v", "1", "-c:v", "rawvideo", "-f", "rawvideo", "pipe:{thumbnails}"),
        ]
    if "audio" in streams:
        # rematrix_maxval: without it a mix to float mono adds channels up beyond [-1, 1].
        sound = (
            f"asetpts=PTS-{begin:.3f}/TB",
            f"aresample={SAMPLE_RATE}:async=1:first_pts=0:ochl=mono:osf=flt:rematrix_maxval=1.0",
            f"atrim=end_sample={wanted * SAMPLES_PER_FRAME}",
        )
        command += ["-map", "0:a:0", "-af", ",".join(sound), "-c:a", "pcm_f32le", "-f", "f32le", "pipe:{audio}"]
    return command


def run_ffmpeg(command: list[str], limits: Limits, most_bytes: int = 0) -> dict[str, bytes]:
    """Run ffmpeg with `pipe:{NAME}` of each of `PIPES` in its command as a pipe; return what came out of each, and `log`.

    Args:
        command: the program and its arguments.
        limits: what it may take.
        most_bytes: what may come out of each pipe; of the log only the first MiB is returned.

    Raises:
        ClipError: a `decode.*` or `clip.*` code: ffmpeg failed, or was over its limits.
    """
    pipes = {name: os.pipe() for name in (*PIPES, "log")}
    try:
        numbers = {name: write for name, (_, write) in pipes.items()}
        process = subprocess.Popen(
            [re.sub(r"^pipe:\{(\w+)\}$", lambda match: f"pipe:{numbers[match[1]]}", part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=numbers["log"],
            pass_fds=[numbers[name] for name in PIPES],
            start_new_session=True,
        )
    finally:
        for _, write in pipes.values():
            os.close(write)
    readers = {name: FileIO(read) for name, (read, _) in pipes.items()}
    deadline = time.monotonic() + limits.wall_s
    try:
        resource.prlimit(process.pid, resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
        outputs = _read_all(readers, deadline, most_bytes)
        status = process.wait(max(0.0, deadline - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        raise ClipError("decode.timeout", f"not decoded within {limits.wall_s:g} s") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for reader in readers.values():
            reader.close()
    if status != 0:
        raise _reason(status, outputs["log"].decode(errors="replace"))
    return outputs


def _read_all(readers: dict[str, FileIO], deadline: float, most_bytes: int) -> dict[str, bytes]:
    outputs = {name: bytearray() for name in readers}
    with selectors.DefaultSelector() as selector:
        for name, reader in readers.items():
            selector.register(reader, selectors.EVENT_READ, name)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            for key, _ in selector.select(left):
                data = os.read(key.fd, CHUNK)
                output = outputs[key.data]
                if key.data == "log":
                    output += data[: LOG_BYTES - len(output)]
                elif len(output) + len(data) <= most_bytes:
                    output += data
                else:
                    raise ClipError("decode.memory", f"more than {most_bytes:,} bytes came out of the decoder")
                if not data:
                    selector.unregister(key.fileobj)
    return {name: bytes(output) for name, output in outputs.items()}


def _reason(status: int, log: str) -> ClipError:
    errors = re.findall(r"^(?:\[[^\]]+\] )?\[(?:error|fatal)\] (.+)$", log, re.MULTILINE)
    text = "\n".join(errors)
    if "matches no streams" in text:
        missing = "audio" if source_size(log) else "video"
        return ClipError(f"clip.no_{missing}", f"the file has no {missing} stream")
    if "Cannot allocate memory" in text or "pthread_create() failed" in text or status == -signal.SIGKILL:
        return ClipError("decode.memory", "the memory limit was reached")
    if "Error opening input" in text:
        return ClipError("decode.unreadable", f"no media file: {errors[-1]}"[:300])
    return ClipError("decode.error", (errors or [f"ffmpeg ended with status {status}"])[0][:300])


def source_size(log: str) -> tuple[int, int] | None:
    """Width and height of the first video stream (cover art is none) in ffmpeg's description of its input."""
    for line in log.partition("Output #0")[0].splitlines():
        match = re.search(r"Stream #.*: Video: .*?, (\d+)x(\d+)", line)
        if match and "(attached pic)" not in line:
            return int(match[1]), int(match[2])
    return None


def split_jpegs(stream: bytes) -> list[bytes]:
    """Split concatenated baseline JPEGs (a Motion-JPEG stream) into files.

    Segments before the scan are skipped by their length fields; inside the scan `FF D9` can only be the end (ITU-T T.81, B.1).

    Raises:
        ClipError: the stream is cut short or is no JPEG.
    """
    frames = []
    start = 0
    while start < len(stream):
        try:
            frames.append(stream[start : _jpeg_end(stream, start)])
        except (IndexError, ValueError):
            raise ClipError("decode.jpeg", f"frame {len(frames)} is no whole JPEG") from None
        start += len(frames[-1])
    return frames


def _jpeg_end(stream: bytes, start: int) -> int:
    if stream[start : start + 2] != b"\xff\xd8":
        raise ValueError
    position = start + 2
    has_frame = False
    while True:
        marker, length = stream[position + 1], int.from_bytes(stream[position + 2 : position + 4], "big")
        if stream[position] != 0xFF or length < 2:
            raise ValueError
        position += 2 + length
        has_frame |= marker == 0xC0
        if marker == 0xDA:
            if not has_frame:
                raise ValueError
            return stream.index(b"\xff\xd9", position) + 2


def jpeg_size(jpeg: bytes) -> tuple[int, int]:
    """Width and height of a baseline JPEG, from its SOF0 segment."""
    position = 2
    while jpeg[position + 1] != 0xC0:
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    return int.from_bytes(jpeg[position + 7 : position + 9], "big"), int.from_bytes(jpeg[position + 5 : position + 7], "big")


@cache
def ffmpeg() -> str:
    """Path of ffmpeg: $IMAGEIO_FFMPEG_EXE, the one that imageio-ffmpeg brings, or the one on PATH.

    Raises:
        InputError: there is none.
    """
    try:
        path = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        raise InputError("no ffmpeg found", "Install imageio-ffmpeg from a wheel, or put ffmpeg on PATH") from None
    if shutil.which(path) is None:
        raise InputError(f"$IMAGEIO_FFMPEG_EXE is {path}, which is no program", "Unset it, or set it to the path of ffmpeg")
    return path


@cache
def ffmpeg_version() -> str:
    """Version of `ffmpeg()`, such as 7.1."""
    return imageio_ffmpeg.get_ffmpeg_version()
