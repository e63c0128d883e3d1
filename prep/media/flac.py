"""The audio of a sample as FLAC, encoded and decoded by an ffmpeg child."""

from collections.abc import Sequence

import numpy as np

from mbt.manifests.shards import SAMPLE_RATE
from mbt.prep.media.ffmpeg import DEFAULT_LIMITS, ClipError, Limits, convert

STEPS = 1 << 15
"""Quantization steps between 0 and full scale."""
PCM = ("-f", "s16le", "-ar", str(SAMPLE_RATE), "-ac", "1")
REPRODUCIBLE = ("-map_metadata", "-1", "-fflags", "+bitexact", "-flags:a", "+bitexact", "-metadata_header_padding", "0")
"""No trace of the program or its version, so that equal samples give equal bytes."""


def encode_flac(audio: np.ndarray, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """FLAC file of 16 kHz mono audio, 16 bit: `round(32768 x)`, clipped where a lossy codec overshot full scale.

    Args:
        audio: float (samples,); full scale is 1.
        limits: limits of the encoding process.

    Raises:
        ClipError: `encode.flac`, or a limit was exceeded.
    """
    samples = np.rint(audio * STEPS).clip(-STEPS, STEPS - 1).astype("<i2")
    options = ("-c:a", "flac", "-compression_level", "8", *REPRODUCIBLE, "-f", "flac")
    return _convert(samples.tobytes(), PCM, options, "encode.flac", limits)


def decode_flac(data: bytes, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """Samples of a FLAC file of 16 kHz mono audio, int16 (samples,).

    Raises:
        ClipError: `flac.decode` if it is damaged, or a limit was exceeded.
    """
    pcm = _convert(data, ("-f", "flac"), ("-c:a", "pcm_s16le", "-f", "s16le"), "flac.decode", limits)
    return np.frombuffer(pcm, "<i2")


def _convert(data: bytes, source: Sequence[str], result: Sequence[str], code: str, limits: Limits) -> bytes:
    converted, log = convert(data, source, result, limits)
    if log:
        raise ClipError(code, log.splitlines()[0])
    return converted
