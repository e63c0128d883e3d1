"""What is odd about a clip: nothing to hear, nothing that moves, nothing to see (docs/shards.md, section 5.1)."""

import numpy as np

from mbt.manifests.shards import FPS, SAMPLE_RATE

SILENT_RMS = 1e-3
"""-60 dB of full scale: above the dither of 16 bit (-93 dB) and the hum of a muted input, below any sound that was meant."""
FROZEN_RANGE = 2
"""Grey levels of 255. The mean of a cell of hundreds of pixels keeps within them under the noise of codecs; a fade does not."""
BLACK_LUMA = 16
"""Grey level of 255 that the mean of a black frame is below."""
BLACK_SHARE = 0.9
"""Share of black frames that makes a clip black: a title that is shown for a moment does not save it."""
THUMBNAIL_SIDE = 16
"""Cells across and down."""


def is_silent(audio: np.ndarray) -> bool:
    """Whether there is no frame (40 ms) in which the sound, less its mean there, has an RMS of -60 dB of full scale or more.

    The loudest frame decides and not the RMS of the whole, so that a clip with one faint word is not silent; the mean is taken
    away, so that a constant offset is.

    Args:
        audio: float (frames * 640,), 16 kHz; full scale is 1.
    """
    return bool(audio.reshape(-1, SAMPLE_RATE // FPS).std(axis=1, dtype=np.float64).max() < SILENT_RMS)


def is_frozen(thumbnails: np.ndarray) -> bool:
    """Whether no cell's levels, over all frames, lie more than 2 apart.

    Args:
        thumbnails: uint8 (frames, 16, 16), full range; each value is the mean of a cell of the frame.
    """
    return bool(np.ptp(thumbnails, axis=0).max() <= FROZEN_RANGE)


def is_black(thumbnails: np.ndarray) -> bool:
    """Whether at least 90 % of the frames have a mean luma below 16.

    Args:
        thumbnails: as for `is_frozen`.
    """
    return bool((thumbnails.mean(axis=(1, 2)) < BLACK_LUMA).mean() >= BLACK_SHARE)
