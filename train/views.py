"""Views: windows of a clip, and which frames and log-mel rows they are made of.

Inside, time is counted in frames of 1/25 s; a frame is four log-mel rows. A clip that is shorter than the window is repeated
from its start, as in the official code.
"""

from dataclasses import dataclass

import numpy as np

from manifests.shards import FPS, MEL_RATE

ROWS_PER_FRAME = MEL_RATE // FPS


@dataclass(frozen=True)
class Window:
    """What a model sees at once.

    Attributes:
        seconds: t, a multiple of 1/25 s.
        frames: F; frame k is shown at `start + k * t / F`.

    Raises:
        ValueError: t is no multiple of 1/25 s, or holds fewer than F frames.
    """

    seconds: float
    frames: int

    def __post_init__(self) -> None:
        if abs(self.seconds * FPS - self.length) > 1e-6 or self.length < 1:
            raise ValueError(f"seconds {self.seconds} is no positive multiple of 1/{FPS}")
        if not 1 <= self.frames <= self.length:
            raise ValueError(f"frames {self.frames} is outside 1..{self.length}, the frames in {self.seconds} s")

    @property
    def length(self) -> int:
        """t in frames of 1/25 s."""
        return round(self.seconds * FPS)

    @property
    def mel_rows(self) -> int:
        """t in log-mel rows."""
        return self.length * ROWS_PER_FRAME

    def frame_numbers(self, start: int, clip_frames: int) -> list[int]:
        """Numbers of the F frames of the view from frame `start` on, in a clip of `clip_frames`."""
        return [(start + k * self.length // self.frames) % clip_frames for k in range(self.frames)]

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

    def last_start(self, clip_frames: int) -> int:
        """The last frame at which a view can start."""
        return max(clip_frames - self.length, 0)

    def random_start(self, draw: float, clip_frames: int) -> int:
        """Start of a training view: uniform over all frames it can start at, for `draw` uniform in [0, 1)."""
        return int(draw * (self.last_start(clip_frames) + 1))

    def crop_starts(self, crops: int, clip_frames: int) -> list[int]:
        """Starts of `crops` evaluation views, evenly spaced from 0 to D - t; one view is the middle one."""
        last = self.last_start(clip_frames)
        if crops == 1:
            return [last // 2]
        return [int(start) for start in np.linspace(0, last, crops)]
