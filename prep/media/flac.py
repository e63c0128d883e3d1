"""The sound of a sample as FLAC, by an ffmpeg child."""

from collections.abc import Sequence

import numpy as np

from mbt.manifests.shards import SAMPLE_RATE
from mbt.prep.media.decode import DEFAULT_LIMITS, ClipError, Limits
from mbt.prep.media.ffmpeg import piped

STEPS = 1 << 15
PCM = ("-f", "s16le", "-ar", str(SAMPLE_RATE), "-ac", "1")
ALIKE = ("-map_metadata", "-1", "-fflags", "+bitexact", "-flags:a", "+bitexact", "-metadata_header_padding", "0")
"""Nothing of the program or its version, so that equal samples give equal bytes."""


def encode_flac(audio: np.ndarray, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """FLAC file of 16 kHz mono samples, 16 bit: `round(32768 x)`, clipped where a lossy codec went beyond full scale.

    Args:
        audio: float (samples,); full scale is 1.
        limits: what the encoding child may take.

    Raises:
        ClipError: `encode.flac`, or over the limits.
    """
    samples = np.rint(audio * STEPS).clip(-STEPS, STEPS - 1).astype("<i2")
    return _made(
        samples.tobytes(), PCM, ("-c:a", "flac", "-compression_level", "8", *ALIKE, "-f", "flac"), "encode.flac", limits
    )


def decode_flac(data: bytes, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """Samples of a FLAC file of 16 kHz mono sound, int16 (samples,).

    Raises:
        ClipError: `flac.decode`: it is damaged; or over the limits.
    """
    return np.frombuffer(_made(data, ("-f", "flac"), ("-c:a", "pcm_s16le", "-f", "s16le"), "flac.decode", limits), "<i2")


def _made(data: bytes, source: Sequence[str], result: Sequence[str], code: str, limits: Limits) -> bytes:
    made, log = piped(data, source, result, limits)
    if log:
        raise ClipError(code, log.splitlines()[0])
    return made
