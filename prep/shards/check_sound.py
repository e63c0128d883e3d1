"""Checks of the audio of a sample, on its own and against its log-mel (docs/shards.md, section 5.4)."""

import hashlib
from collections.abc import Iterator

import numpy as np

from mbt.manifests.shards import SAMPLE_RATE, LogMelFormat
from mbt.prep.media.ffmpeg import ClipError
from mbt.prep.media.flac import STEPS, decode_flac
from mbt.prep.shards.check_sample import SAMPLES_PER_FRAME, Found

MAGIC = b"fLaC"
STREAMINFO = slice(8, 42)
"""The content of the first metadata block of a FLAC file: 34 bytes (RFC 9639, section 8.2)."""
HALF_PRECISION = 0.004
"""Half the distance between adjacent float16 values from 8 to 16."""


def check_flac(data: bytes, num_frames: int) -> Iterator[Found]:
    """Faults in the header of KEY.flac: it must be 16 kHz, mono, 16 bit, with 640 samples per frame."""
    info = data[STREAMINFO]
    if not data.startswith(MAGIC) or len(info) < STREAMINFO.stop - STREAMINFO.start:
        yield "flac.header", "it is not a FLAC file"
        return
    numbers = int.from_bytes(info[10:18], "big")
    rate, channels, bits, samples = numbers >> 44, (numbers >> 41 & 7) + 1, (numbers >> 36 & 31) + 1, numbers & (1 << 36) - 1
    if (rate, channels, bits) != (SAMPLE_RATE, 1, 16):
        yield "flac.header", f"{rate} Hz, {channels} channels, {bits} bit; it must be {SAMPLE_RATE} Hz, 1 channel, 16 bit"
    if samples != num_frames * SAMPLES_PER_FRAME:
        yield "flac.length", f"{samples} samples for {num_frames} frames"


def check_decoded_flac(data: bytes, num_frames: int, log_mel: np.ndarray, log_mel_format: LogMelFormat) -> Iterator[Found]:
    """Faults of KEY.flac that only decoding can find.

    Args:
        data: the member, with a valid header.
        num_frames: number of frames F of the sample.
        log_mel: the stored log-mel, float16 (4 F, bands).
        log_mel_format: its parameters.
    """
    try:
        samples = decode_flac(data)
    except ClipError as error:
        yield "flac.decode", error.message
        return
    if len(samples) != num_frames * SAMPLES_PER_FRAME:
        yield "flac.length", f"{len(samples)} decoded samples for {num_frames} frames"
    elif hashlib.md5(samples.tobytes(), usedforsecurity=False).digest() != data[STREAMINFO][18:]:
        yield "flac.decode", "the MD5 of its samples is not the one in its header"
    elif (row := first_mismatch(samples, log_mel, log_mel_format)) is not None:
        yield "flac.log_mel", f"row {row} of the log-mel does not match the audio"


def first_mismatch(samples: np.ndarray, log_mel: np.ndarray, log_mel_format: LogMelFormat) -> int | None:
    """The first row of a log-mel that cannot come from these samples; None if every row can.

    Rounding to 16 bit moves a sample by at most half a step. So it moves a value of the spectrum by at most half a step times
    the sum of the window, and the square root of a mel power by at most that times the square root of the sum of the band's
    weights. Rows with samples at the ends of the range are skipped, because the audio may have been clipped there.

    Args:
        samples: int16 (640 F,).
        log_mel: float16 (4 F, bands).
        log_mel_format: its parameters.
    """
    # Imported here because importing torch costs a worker more than a second.
    from mbt.prep.media.log_mel import log_mel as compute
    from mbt.prep.media.log_mel import weights, window

    audio = samples.astype(np.float32) / STEPS
    stored, computed = (np.exp(values.astype(np.float64) / 2) for values in (log_mel, compute(audio, log_mel_format)))
    rounding = window(log_mel_format).sum() / (2 * STEPS) * np.sqrt(weights(log_mel_format).sum(axis=0))
    mismatch = (np.abs(stored - computed) > rounding + HALF_PRECISION * np.maximum(stored, computed)).any(axis=1)
    clipped = np.pad((samples == STEPS - 1) | (samples == -STEPS), (0, log_mel_format.win_length))
    windows = np.lib.stride_tricks.sliding_window_view(clipped, log_mel_format.win_length)[:: log_mel_format.hop_length]
    rows = np.flatnonzero(mismatch & ~windows[: len(mismatch)].any(axis=1))
    return int(rows[0]) if len(rows) else None
