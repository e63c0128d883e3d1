"""Views: windows of a clip, and which frames and log-mel rows they are made of.

Inside, time is counted in frames of 1/25 s; a frame is four log-mel rows. A clip that is shorter than the window is repeated
from its start, as in the official code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mbt.manifests.shards import FPS, MEL_RATE

ROWS_PER_FRAME = MEL_RATE // FPS


class Start(NamedTuple):
    """Where a view begins in each modality, in frames of 1/25 s."""

    rgb: int
    spec: int


@dataclass(frozen=True)
class Window:
    """What a model sees at once.

    Attributes:
        seconds: t, a multiple of 1/25 s.
        frames: F; frame k is shown at `start + k * t / F`.
        rgb_seconds: t of the frames, where it is not that of the sound.

    Raises:
        ValueError: t is no multiple of 1/25 s, or holds fewer than F frames.
    """

    seconds: float
    frames: int
    rgb_seconds: float | None = None

    def __post_init__(self) -> None:
        _check_length(self.seconds)
        if self.rgb_seconds is not None:
            _check_length(self.rgb_seconds)
        if not 1 <= self.frames <= self.rgb_length:
            raise ValueError(f"frames {self.frames} is outside 1..{self.rgb_length}, the frames in the window")

    @property
    def length(self) -> int:
        """t of the sound in frames of 1/25 s."""
        return round(self.seconds * FPS)

    @property
    def rgb_length(self) -> int:
        """t of the frames in frames of 1/25 s."""
        return self.length if self.rgb_seconds is None else round(self.rgb_seconds * FPS)

    @property
    def mel_rows(self) -> int:
        """t in log-mel rows."""
        return self.length * ROWS_PER_FRAME

    def frame_numbers(self, start: int, clip_frames: int) -> list[int]:
        """Numbers of the F frames of the view from frame `start` on, in a clip of `clip_frames`."""
        return [(start + k * self.rgb_length // self.frames) % clip_frames for k in range(self.frames)]

    def mel_spans(self, start: int, clip_frames: int) -> list[tuple[int, int]]:
        """Spans [from, to) of log-mel rows that make up the view from frame `start` on, in order."""
        rows, clip_rows = self.mel_rows, clip_frames * ROWS_PER_FRAME
        spans = []
        row = start * ROWS_PER_FRAME
        while rows > 0:
            stop = min(row + rows, clip_rows)
            spans.append((row, stop))
            rows -= stop - row
            row = 0
        return spans

    def random_start(self, draws: Sequence[float] | np.ndarray, clip_frames: int, synchronised: bool = True) -> Start:
        """Start of a training view: uniform over all at which its window fits in the clip.

        Args:
            draws: two uniform in [0, 1), for rgb and spec.
            clip_frames: frames of the clip.
            synchronised: picture and sound begin together, by the first draw, and sound that is longer goes on at the clip's
                start, as in the official code. Otherwise each modality's window is drawn by itself (paper, Sec. 4.3.2).
        """
        rgb, spec = (
            int(draw * (max(clip_frames - length, 0) + 1))
            for draw, length in zip(draws, (self.rgb_length, self.length), strict=True)
        )
        return Start(rgb, rgb if synchronised else spec)

    def crop_starts(self, crops: int, clip_frames: int) -> list[Start]:
        """Starts of `crops` evaluation views: in each modality evenly spaced from 0 to D - t; one view is the middle one."""
        rgb, spec = (_spaced(crops, max(clip_frames - length, 0)) for length in (self.rgb_length, self.length))
        return [Start(*starts) for starts in zip(rgb, spec, strict=True)]


def _check_length(seconds: float) -> None:
    if abs(seconds * FPS - round(seconds * FPS)) > 1e-6 or seconds <= 0:
        raise ValueError(f"seconds {seconds} is no positive multiple of 1/{FPS}")


def _spaced(crops: int, last: int) -> list[int]:
    return [last // 2] if crops == 1 else [int(start) for start in np.linspace(0, last, crops)]
