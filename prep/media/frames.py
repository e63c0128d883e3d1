"""The stored frames of a sample as pixels, by an ffmpeg child."""

import numpy as np

from mbt.prep.media.decode import DEFAULT_LIMITS, ClipError, Limits
from mbt.prep.media.ffmpeg import piped

MJPEG = ("-f", "mjpeg")
AS_THEY_ARE = ("-fps_mode", "passthrough", "-noautoscale")


def count_decodable(stream: bytes, limits: Limits = DEFAULT_LIMITS) -> int:
    """How many frames of a Motion-JPEG stream decode without complaint before the first that does not.

    Raises:
        ClipError: over the limits.
    """
    listing, _ = piped(stream, MJPEG, (*AS_THEY_ARE, "-f", "framecrc"), limits)
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
    pixels, log = piped(stream, MJPEG, (*AS_THEY_ARE, "-f", "rawvideo", "-pix_fmt", "rgb24"), limits)
    if log or len(pixels) % (width * height * 3):
        raise ClipError("decode.jpeg", (log or f"frames are not {width} x {height}").splitlines()[0])
    return np.frombuffer(pixels, np.uint8).reshape(-1, height, width, 3)
