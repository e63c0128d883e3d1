"""The stored frames of a sample as pixels, decoded by an ffmpeg child."""

import numpy as np

from mbt.prep.media.ffmpeg import DEFAULT_LIMITS, ClipError, Limits, convert

MJPEG = ("-f", "mjpeg")
UNCHANGED = ("-fps_mode", "passthrough", "-noautoscale")
"""No frame is dropped, repeated or scaled."""


def count_decodable(stream: bytes, limits: Limits = DEFAULT_LIMITS) -> int:
    """Number of frames of a Motion-JPEG stream that decode before the first one that does not.

    Raises:
        ClipError: a limit was exceeded.
    """
    listing, _ = convert(stream, MJPEG, (*UNCHANGED, "-f", "framecrc"), limits)
    return sum(not line.startswith(b"#") for line in listing.splitlines())


def decode_frames(stream: bytes, width: int, height: int, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """Frames of a Motion-JPEG stream, uint8 RGB (frames, height, width, 3).

    Args:
        stream: concatenated JPEGs.
        width: width of every frame in pixels.
        height: height of every frame in pixels.
        limits: limits of the decoding process.

    Raises:
        ClipError: a frame does not decode or has another size, or a limit was exceeded.
    """
    pixels, log = convert(stream, MJPEG, (*UNCHANGED, "-f", "rawvideo", "-pix_fmt", "rgb24"), limits)
    if log or len(pixels) % (width * height * 3):
        raise ClipError("decode.jpeg", (log or f"the frames are not {width} x {height}").splitlines()[0])
    return np.frombuffer(pixels, np.uint8).reshape(-1, height, width, 3)
