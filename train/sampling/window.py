"""Views: windows of a clip, and the frames and log-mel rows that they consist of.

Time is counted in frames of 1/25 s; a frame is as long as four log-mel rows. A clip that is shorter than the window is repeated
from its start, as in the official code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mbt.manifests.shards import FPS, MEL_RATE

ROWS_PER_FRAME = MEL_RATE // FPS


class Start(NamedTuple):
    """Start of a view in each modality, in frames of 1/25 s."""

    rgb: int
    spec: int


@dataclass(frozen=True)
class Window:
    """The span of a clip that a model sees at once.

    Attributes:
        seconds: t, a multiple of 1/25 s.
        frames: F; frame k is the one at `start + k * t / F`.
        rgb_seconds: t of the frames, if it differs from that of the sound.

    Raises:
        ValueError: t is not a multiple of 1/25 s, or shorter than F frames.
    """

    seconds: float
    frames: int
    rgb_seconds: float | None = None

    def __post_init__(self) -> None:
        _check_length(self.seconds)
        if self.rgb_seconds is not None:
            _check_length(self.rgb_seconds)
        if not 1 <= self.frames <= self.rgb_length:
            raise ValueError(f"frames {self.frames} is outside 1..{self.rgb_length}, the number of frames in the window")

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
        """Numbers of the F frames of the view that starts at frame `start`, in a clip of `clip_frames`."""
        return [(start + k * self.rgb_length // self.frames) % clip_frames for k in range(self.frames)]

    def mel_spans(self, start: int, clip_frames: int) -> list[tuple[int, int]]:
        """Spans [first, end) of log-mel rows of the view that starts at frame `start`, in order."""
        rows, clip_rows = self.mel_rows, clip_frames * ROWS_PER_FRAME
        spans = []
        row = start * ROWS_PER_FRAME
        while rows > 0:
            stop = min(row + rows, clip_rows)
            spans.append((row, stop))
            rows -= stop - row
            row = 0
        return spans

    def random_start(self, draws: Sequence[float] | np.ndarray, clip_frames: int, synchronized: bool = True) -> Start:
        """Start of a training view, uniform over all starts at which the window fits in the clip.

        Args:
            draws: two numbers, uniform in [0, 1), for rgb and spec.
            clip_frames: number of frames in the clip.
            synchronized: frames and sound start together, at the first draw; if the sound's window is the longer one and passes
                the end of the clip, it continues at the clip's start, as in the official code. Otherwise the window of each
                modality is drawn independently (paper, Sec. 4.3.2).
        """
        rgb, spec = (
            int(draw * (max(clip_frames - length, 0) + 1))
            for draw, length in zip(draws, (self.rgb_length, self.length), strict=True)
        )
        return Start(rgb, rgb if synchronized else spec)

    def crop_starts(self, crops: int, clip_frames: int) -> list[Start]:
        """Starts of `crops` evaluation views, evenly spaced from 0 to D - t in each modality; a single view is centered."""
        rgb, spec = (_spaced(crops, max(clip_frames - length, 0)) for length in (self.rgb_length, self.length))
        return [Start(*starts) for starts in zip(rgb, spec, strict=True)]


def _check_length(seconds: float) -> None:
    if abs(seconds * FPS - round(seconds * FPS)) > 1e-6 or seconds <= 0:
        raise ValueError(f"seconds {seconds} is not a positive multiple of 1/{FPS}")


def _spaced(crops: int, last: int) -> list[int]:
    return [last // 2] if crops == 1 else [int(start) for start in np.linspace(0, last, crops)]
