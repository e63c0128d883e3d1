"""Quality flags of a clip: silent, frozen, black (docs/shards.md, section 5.1)."""

import numpy as np

from mbt.manifests.shards import FPS, SAMPLE_RATE

SILENT_RMS = 1e-3
"""-60 dB of full scale: above 16-bit dither (-93 dB) and the hum of a muted input, below any intended sound."""
FROZEN_RANGE = 2
"""Gray levels of 255. Averaging a cell of hundreds of pixels keeps codec noise within this range; a fade exceeds it."""
BLACK_LUMA = 16
"""A frame is black if its mean luma is below this gray level of 255."""
BLACK_SHARE = 0.9
"""Share of black frames that makes a clip black, even if it shows a title for a moment."""
THUMBNAIL_SIDE = 16
"""Cells across and down."""


def is_silent(audio: np.ndarray) -> bool:
    """Whether every frame (40 ms) of the audio, minus its mean, has an RMS below -60 dB of full scale.

    The loudest frame decides, not the overall RMS, so a clip with one faint word is not silent. The mean is subtracted, so a
    constant offset is silent.

    Args:
        audio: float (frames * 640,), 16 kHz; full scale is 1.
    """
    return bool(audio.reshape(-1, SAMPLE_RATE // FPS).std(axis=1, dtype=np.float64).max() < SILENT_RMS)


def is_frozen(thumbnails: np.ndarray) -> bool:
    """Whether the levels of every cell stay within a range of 2 over all frames.

    Args:
        thumbnails: uint8 (frames, 16, 16), full range; each value is the mean of one cell of the frame.
    """
    return bool(np.ptp(thumbnails, axis=0).max() <= FROZEN_RANGE)


def is_black(thumbnails: np.ndarray) -> bool:
    """Whether at least 90% of the frames have a mean luma below 16.

    Args:
        thumbnails: as for `is_frozen`.
    """
    return bool((thumbnails.mean(axis=(1, 2)) < BLACK_LUMA).mean() >= BLACK_SHARE)
