"""What the specification says of the sound of a sample, and whether it is the sound of its log-mel (docs/shards.md, 5.4)."""

import hashlib
from collections.abc import Iterator

import numpy as np

from mbt.manifests.shards import SAMPLE_RATE, LogMelFormat
from mbt.prep.media.decode import ClipError
from mbt.prep.media.flac import STEPS, decode_flac
from mbt.prep.shards.check_sample import SAMPLES_PER_FRAME, Found

BEGIN = b"fLaC"
STREAMINFO = slice(8, 42)
"""The first metadata block of a FLAC file behind its header: 34 bytes (RFC 9639, section 8.2)."""
HALF_PRECISION = 0.004
"""Half the distance of two float16 values between 8 and 16."""


def check_flac(data: bytes, num_frames: int) -> Iterator[Found]:
    """Faults of KEY.flac that its header shows: 16 kHz, mono, 16 bit, 640 samples a frame."""
    info = data[STREAMINFO]
    if not data.startswith(BEGIN) or len(info) < STREAMINFO.stop - STREAMINFO.start:
        yield "flac.header", "no FLAC file"
        return
    numbers = int.from_bytes(info[10:18], "big")
    rate, channels, bits, samples = numbers >> 44, (numbers >> 41 & 7) + 1, (numbers >> 36 & 31) + 1, numbers & (1 << 36) - 1
    if (rate, channels, bits) != (SAMPLE_RATE, 1, 16):
        yield "flac.header", f"{rate} Hz, {channels} channels, {bits} bit"
    if samples != num_frames * SAMPLES_PER_FRAME:
        yield "flac.length", f"{samples} samples for {num_frames} frames"


def check_decoded_flac(data: bytes, num_frames: int, log_mel: np.ndarray, log_mel_format: LogMelFormat) -> Iterator[Found]:
    """Faults of KEY.flac that decoding it shows.

    Args:
        data: the member, whose header is without fault.
        num_frames: F.
        log_mel: what is stored, float16 (4 F, bands).
        log_mel_format: its parameters.
    """
    try:
        samples = decode_flac(data)
    except ClipError as error:
        yield "flac.decode", error.message
        return
    if len(samples) != num_frames * SAMPLES_PER_FRAME:
        yield "flac.length", f"{len(samples)} samples decode for {num_frames} frames"
    elif hashlib.md5(samples.tobytes(), usedforsecurity=False).digest() != data[STREAMINFO][18:]:
        yield "flac.decode", "the MD5 of its samples is not that of its header"
    elif (row := first_unlike(samples, log_mel, log_mel_format)) is not None:
        yield "flac.log_mel", f"row {row} of the log-mel is not of this sound"


def first_unlike(samples: np.ndarray, log_mel: np.ndarray, log_mel_format: LogMelFormat) -> int | None:
    """The first row of a log-mel that cannot be of these samples; None where each can.

    Rounding to 16 bit moves no sample by more than half a step, so no value of the spectrum by more than half a step times the
    sum of the window, and no square root of a mel power by more than that times the root of the sum of the band's weights.
    Rows of samples at the ends of the range say nothing: there the sound may have been clipped.

    Args:
        samples: int16 (640 F,).
        log_mel: float16 (4 F, bands).
        log_mel_format: its parameters.
    """
    # torch is loaded where it is needed: it costs a worker more than a second.
    from mbt.prep.media.log_mel import log_mel as compute
    from mbt.prep.media.log_mel import weights, window

    audio = samples.astype(np.float32) / STEPS
    stored, heard = (np.exp(values.astype(np.float64) / 2) for values in (log_mel, compute(audio, log_mel_format)))
    rounding = window(log_mel_format).sum() / (2 * STEPS) * np.sqrt(weights(log_mel_format).sum(axis=0))
    unlike = (np.abs(stored - heard) > rounding + HALF_PRECISION * np.maximum(stored, heard)).any(axis=1)
    clipped = np.pad((samples == STEPS - 1) | (samples == -STEPS), (0, log_mel_format.win_length))
    windows = np.lib.stride_tricks.sliding_window_view(clipped, log_mel_format.win_length)[:: log_mel_format.hop_length]
    rows = np.flatnonzero(unlike & ~windows[: len(unlike)].any(axis=1))
    return int(rows[0]) if len(rows) else None
