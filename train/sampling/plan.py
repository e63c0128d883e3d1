"""The training plan: what each step sees, as a pure function of (seed, step). Each rank takes its slice of the global batch."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from mbt.train.sampling.order import Order, Shuffled

UNSCALED = (1.0, 1.0)
UNCOLORED = (0.0, 1.0, 1.0, 0.0)
COLOR_RANGES = ((-32 / 255, 32 / 255), (0.6, 1.4), (0.6, 1.4), (-0.2, 0.2))
"""Offset of brightness in [0, 1], factors of saturation and contrast, offset of hue in turns: those of DMVR's
`color_default_augm`, which the official code uses."""


@dataclass(frozen=True)
class StepPlan:
    """Samples and random draws of one batch, B in all; the first axis of every array is B.

    Attributes:
        rows: int64, row of each sample in the index.
        start: float64 (B, 2) in [0, 1), start of the view in rgb, and in spec if the two are drawn independently.
        crop_x: float64 in [0, 1), position of the crop box from left (0) to right.
        crop_y: float64 in [0, 1), position of the crop box from top (0) to bottom.
        flip: bool, whether to mirror left and right.
        scale: float64 (B, 2), factors of height and width before the crop.
        color: float64 (B, 4), offset of brightness, factors of saturation and contrast, offset of hue; see
            `mbt.train.data.color`.
        gray: bool, whether to remove all color.
        mask: float64 (B, 4) in [0, 1), SpecAugment: length and position of the time mask, then of the frequency mask.
        mix: float64 (B, 2) in [0, 1], mixup: weight of the sample itself in its rgb and in its spec.
    """

    rows: np.ndarray
    start: np.ndarray
    crop_x: np.ndarray
    crop_y: np.ndarray
    flip: np.ndarray
    scale: np.ndarray
    color: np.ndarray
    gray: np.ndarray
    mask: np.ndarray
    mix: np.ndarray

    def for_rank(self, rank: int, world_size: int) -> "StepPlan":
        """The slice of the batch that belongs to `rank`."""
        size = len(self.rows) // world_size
        return self.part(slice(rank * size, (rank + 1) * size))

    def part(self, span: slice) -> "StepPlan":
        """A slice of the batch."""
        return StepPlan(*(array[span] for array in vars(self).values()))


@dataclass(frozen=True)
class Jitter:
    """Augmentation of the frames of training views, drawn once per view.

    Attributes:
        flip: mirror half of the views.
        scale: range of the factors of height and width, drawn independently; None: no scaling.
        color: probability of changing the colors of a view.
        gray: probability of removing all color from a view.
    """

    flip: bool = True
    scale: tuple[float, float] | None = None
    color: float = 0.0
    gray: float = 0.0


@dataclass(frozen=True)
class Mixing:
    """How mixup weights are drawn.

    Attributes:
        alpha: weights are drawn from Beta(alpha, alpha).
        by_modality: draw the weights of rgb and spec independently.
        group_size: number of consecutive samples that share their weights.
    """

    alpha: float
    by_modality: bool
    group_size: int


@dataclass(frozen=True)
class TrainPlan:
    """Order and random draws of a whole training run.

    Samples that do not fill a batch at the end of an epoch are skipped; each epoch skips different ones. If the split is
    smaller than a batch, its samples are repeated.

    Attributes:
        seed: seed of all draws.
        num_samples: number of samples in the split.
        batch_size: number of samples in the global batch.
        mixing: how mixup weights are drawn; None: no mixup.
        jitter: augmentation of the frames.
        order: draws the order of each epoch; None: all samples, shuffled.
    """

    seed: int
    num_samples: int
    batch_size: int
    mixing: Mixing | None = None
    jitter: Jitter = Jitter()
    order: Order | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return max(self.num_samples // self.batch_size, 1)

    def step(self, step: int) -> StepPlan:
        """The global batch of a step; steps are counted from 0 over all epochs."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order = self.rows(epoch)[number * self.batch_size : (number + 1) * self.batch_size]
        rgb_start, crop_x, crop_y, flip = self._rng(epoch, number, 1).random((4, self.batch_size))
        spec_start, colored, gray = self._rng(epoch, number, 4).random((3, self.batch_size))
        return StepPlan(
            rows=order,
            start=np.stack([rgb_start, spec_start], axis=1),
            crop_x=crop_x,
            crop_y=crop_y,
            flip=(flip < 0.5) & self.jitter.flip,
            scale=self._rng(epoch, number, 5).uniform(*(self.jitter.scale or UNSCALED), (self.batch_size, 2)),
            color=np.where(colored[:, None] < self.jitter.color, self._color(self._rng(epoch, number, 6)), UNCOLORED),
            gray=gray < self.jitter.gray,
            mask=self._rng(epoch, number, 2).random((self.batch_size, 4)),
            mix=self._mix(self._rng(epoch, number, 3)),
        )

    def _rng(self, epoch: int, number: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, number, purpose])

    def _color(self, rng: np.random.Generator) -> np.ndarray:
        return np.stack([rng.uniform(low, high, self.batch_size) for low, high in COLOR_RANGES], axis=1)

    def _mix(self, rng: np.random.Generator) -> np.ndarray:
        if self.mixing is None:
            return np.ones((self.batch_size, 2))
        alpha, size = self.mixing.alpha, self.mixing.group_size
        weights = rng.beta(alpha, alpha, (-(-self.batch_size // size), 2))
        if not self.mixing.by_modality:
            weights[:, 1] = weights[:, 0]
        return np.repeat(weights, size, axis=0)[: self.batch_size]

    def rows(self, epoch: int) -> np.ndarray:
        """Rows of the samples of an epoch, int64, in their order; at least one batch."""
        with self._lock:
            return self._rows(epoch)

    def order_rng(self, epoch: int) -> np.random.Generator:
        """Random generator from which the order of an epoch is drawn."""
        return np.random.default_rng([self.seed, epoch, 0])

    @cached_property
    def _rows(self) -> Callable[[int], np.ndarray]:
        order = self.order or Shuffled(self.num_samples)

        @lru_cache(maxsize=2)
        def rows(epoch: int) -> np.ndarray:
            drawn = order(self.order_rng(epoch))
            return drawn if len(drawn) >= self.batch_size else np.resize(drawn, self.batch_size)

        return rows

    @cached_property
    def _lock(self) -> threading.Lock:
        return threading.Lock()
