"""The stored frames of a sample as pixels, by an ffmpeg child."""

import resource
import subprocess

import numpy as np

from prep.decode import DEFAULT_LIMITS, ClipError, Limits, ffmpeg


def count_decodable(stream: bytes, limits: Limits = DEFAULT_LIMITS) -> int:
    """How many frames of a Motion-JPEG stream decode without complaint before the first that does not.

    Raises:
        ClipError: over the limits.
    """
    listing, _ = _run(stream, ("-f", "framecrc"), limits)
    return sum(not line.startswith(b"#") for line in listing.splitlines())


def decode_frames(stream: bytes, width: int, height: int, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """Frames of a Motion-JPEG stream, uint8 RGB (frames, height, width, 3).

    Args:
        stream: one JPEG directly after the other.
        width: of every frame, pixels.
        height: of every frame, pixels.
        limits: what the decoding child may take.

    Raises:
        ClipError: a frame does not decode or is of another size, or over the limits.
    """
    pixels, log = _run(stream, ("-f", "rawvideo", "-pix_fmt", "rgb24"), limits)
    if log or len(pixels) % (width * height * 3):
        raise ClipError("decode.jpeg", (log or f"frames are not {width} x {height}").splitlines()[0])
    return np.frombuffer(pixels, np.uint8).reshape(-1, height, width, 3)


def _run(stream: bytes, output: tuple[str, ...], limits: Limits) -> tuple[bytes, str]:
    """What ffmpeg makes of the stream up to its first error, and its log."""
    command = [
        *(ffmpeg(), "-hide_banner", "-loglevel", "error", "-xerror", "-err_detect", "explode", "-protocol_whitelist", "pipe"),
        *("-threads", "1", "-f", "mjpeg", "-i", "pipe:0"),
        *("-fps_mode", "passthrough", "-noautoscale", "-threads", "1", *output, "pipe:1"),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        resource.prlimit(process.pid, resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
        try:
            made, log = process.communicate(stream, limits.wall_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise ClipError("decode.timeout", f"not decoded within {limits.wall_s:g} s") from None
    return made, log.decode(errors="replace")
