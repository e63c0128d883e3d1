"""A clip of a media file as JPEG frames and mono samples, by one ffmpeg child that seeks and decodes once."""

import math
from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mbt.manifests.reading.jpeg import EOI, scan_start
from mbt.manifests.shards import FPS, SAMPLE_RATE, VideoFormat
from mbt.prep.media.ffmpeg import (
    DEFAULT_LIMITS,
    ClipError,
    Limits,
    ffmpeg,
    media_input,
    run_ffmpeg,
    source_seconds,
    source_size,
)
from mbt.prep.media.flags import THUMBNAIL_SIDE, is_black, is_frozen, is_silent

Stream = Literal["video", "audio"]

MAX_PADDING_S = 0.5
"""A clip whose media end early by at most this much is padded; otherwise it is stored shorter and flagged."""
MIN_SHARE = 0.5
"""A clip with less than this share of the requested length is rejected."""
SEEK_FROM_S = 10.0
"""An earlier clip is decoded from the start of the file, because a seek would skip audio before the first key frame."""
PRIMING_S = 0.2
"""Audio is decoded from this long before the start of the clip, because its decoders need the preceding packets."""
UNSEEKABLE = frozenset({".m2ts", ".mpeg", ".mpg", ".mts", ".ts", ".vob"})
"""MPEG streams have no index of key frames: a seek loses the frames up to the next one."""
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
MAX_AMPLITUDE = 1e6
"""Full scale is 1. Damaged floating-point audio has values up to 1e38, whose log-mel would not be finite."""


@dataclass(frozen=True)
class DecodedClip:
    """A clip, padded to a whole number of frames, with video and audio of the same length.

    Attributes:
        jpegs: baseline JPEG files in time order; frame k is at k / 25 s. Empty if video was not requested.
        audio: float32 (num_frames * 640,), 16 kHz mono in [-1, 1]. Empty if audio was not requested.
        num_frames: frames of 1/25 s.
        padded_frames: frames at the end that repeat the last real one.
        padded_samples: zeros appended to `audio`.
        short: the media ended more than 0.5 s before the clip.
        upscaled: the short side of the source is smaller than the stored one.
        silent: see `flags.is_silent`; False if audio was not requested.
        frozen: see `flags.is_frozen`; False if video was not requested.
        black: see `flags.is_black`; False if video was not requested.
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

    Frames are upright, have square pixels and are within half an output frame (20 ms) of their time.

    Args:
        path: the media file; ffmpeg reads it as a local file only.
        start_s: start of the clip in the file, seconds.
        duration_s: length of the clip, seconds; rounded to frames.
        video: how frames are stored.
        limits: limits of the decoding process.
        streams: which streams to decode; the file must have them.
        min_share: minimum share of the requested length; with 0, a file that ends early is decoded as far as it goes.

    Raises:
        ClipError: a missing stream, a decoding error, a clip that is too short or begins after the end of the file, or a limit
            that was exceeded.
        InputError: ffmpeg was not found.
    """
    wanted = round(duration_s * FPS)
    if wanted < 1:
        raise ClipError("clip.empty", f"{duration_s} s is shorter than one frame")
    outputs = run_ffmpeg(decode_command(path, start_s, wanted, video, streams), limits, wanted * _max_frame_bytes(video))
    jpegs = split_jpegs(outputs.get("video", b""))
    samples = outputs.get("audio", b"")
    audio = np.frombuffer(samples, "<f4", count=len(samples) // 4)
    if not np.abs(audio).max(initial=0.0) <= MAX_AMPLITUDE:
        raise ClipError("decode.error", "the audio has values that are not numbers or far beyond full scale")
    real_s = [len(jpegs) / FPS] * ("video" in streams) + [len(audio) / SAMPLE_RATE] * ("audio" in streams)
    log = outputs["log"].decode(errors="replace")
    if start_s > 0 and (not any(real_s) or (min(real_s) == 0.0 and start_s >= source_seconds(log))):
        raise ClipError("clip.out_of_range", f"the clip begins at {start_s:.2f} s, but the file ends before")
    num_frames, short = _length(min(real_s), wanted, min_share)
    size = source_size(log)
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


def _max_frame_bytes(video: VideoFormat) -> int:
    """An upper bound for one frame's JPEG or audio: 8 bytes per pixel of a square of the short side, plus 8 KiB."""
    return 8 * video.short_side**2 + 8192


def _length(real_s: float, wanted: int, min_share: float) -> tuple[int, bool]:
    """Number of frames to store, and whether the clip is stored shorter than wanted."""
    wanted_s = wanted / FPS
    if wanted_s - real_s <= min(MAX_PADDING_S, min_share * wanted_s):
        return wanted, False
    real = math.floor(real_s * FPS)
    if real < 1 or real_s < min_share * wanted_s:
        raise ClipError("clip.short", f"only {real_s:.2f} s of {wanted_s:.2f} s could be decoded")
    return real, True


def decode_command(path: Path, start_s: float, wanted: int, video: VideoFormat, streams: Collection[Stream]) -> list[str]:
    """The ffmpeg command that decodes a clip, scales and encodes its frames, and makes a gray thumbnail of each.

    Args:
        path: media file.
        start_s: start of the clip in the file, seconds.
        wanted: number of frames.
        video: their format.
        streams: which streams to decode.
    """
    # The filters see all frames from a key frame before the start, so fps= knows which picture is on the screen at the start,
    # and aresample= trims the audio to the sample. -noaccurate_seek makes the seek point time 0.
    seek = start_s >= SEEK_FROM_S and path.suffix.lower() not in UNSEEKABLE
    begin = PRIMING_S if seek else start_s
    command = [
        *(ffmpeg(), "-nostdin", "-nostats", "-hide_banner", "-loglevel", "level+info", "-max_error_rate", "0"),
        *("-threads", "1", "-filter_threads", "1"),
        *(("-noaccurate_seek", "-ss", f"{start_s - PRIMING_S:.3f}") if seek else ()),
        *media_input(path),
    ]
    if "video" in streams:
        side = video.short_side
        picture = (
            f"fps={FPS}:start_time={begin:.3f}:round=near",
            f"scale=w='if(lt(dar,1),{side},2*round({side}*dar/2))':h='if(lt(dar,1),2*round({side}/dar/2),{side})'"
            ":flags=bicubic:out_color_matrix=bt601:out_range=full",
            "setsar=1,format=yuvj420p,split[video][copy]",
        )
        # Thumbnails that go through a second encoder one by one cost 4% of the run; all of them as one tall picture cost 1%.
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


def split_jpegs(stream: bytes) -> list[bytes]:
    """Split a Motion-JPEG stream (concatenated baseline JPEGs) into files.

    Raises:
        ClipError: the stream is truncated or not Motion JPEG.
    """
    data = np.frombuffer(stream, np.uint8)
    second = np.flatnonzero(data[1:] == EOI[1])  # Rarer than the first byte: this is ten times faster than a search.
    ends = (second[data[second] == EOI[0]] + len(EOI)).tolist()
    frames: list[bytes] = []
    start = 0
    while start < len(stream):
        try:
            end = ends[bisect_left(ends, scan_start(stream, start) + len(EOI))]
        except (IndexError, ValueError):
            raise ClipError("decode.jpeg", f"frame {len(frames)} is not a complete JPEG") from None
        frames.append(stream[start:end])
        start = end
    return frames
