"""The plan of training: what each step sees, as a pure function of (seed, step); ranks take slices of the global batch."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from mbt.train.sampling.order import Order, Shuffled

UNSCALED = (1.0, 1.0)
UNCOLOURED = (0.0, 1.0, 1.0, 0.0)
COLOUR_RANGES = ((-32 / 255, 32 / 255), (0.6, 1.4), (0.6, 1.4), (-0.2, 0.2))
"""Brightness of [0, 1], saturation, contrast, and hue in turns: DMVR's `color_default_augm`, as in the official code."""


@dataclass(frozen=True)
class StepPlan:
    """Draws for the samples of one batch; all arrays have its length.

    Attributes:
        rows: int64, rows of the index.
        start: float64 (B, 2) in [0, 1), where the view begins in rgb and, where that is drawn apart, in spec.
        crop_x: float64 in [0, 1), where the crop box stands between left (0) and right.
        crop_y: the same, between top (0) and bottom.
        flip: bool, mirror left and right.
        scale: float64 (B, 2), by what height and width grow before the crop.
        colour: float64 (B, 4), what is added to brightness, what saturation and contrast are multiplied by, and the turn of
            the hue: see `train.colour`.
        grey: bool, without colour.
        mask: float64 (B, 4) in [0, 1), SpecAugment: length and place of the mask over time, and of that over mel bands.
        mix: float64 (B, 2) in [0, 1], mixup: a sample's own share in its rgb and in its spec.
    """

    rows: np.ndarray
    start: np.ndarray
    crop_x: np.ndarray
    crop_y: np.ndarray
    flip: np.ndarray
    scale: np.ndarray
    colour: np.ndarray
    grey: np.ndarray
    mask: np.ndarray
    mix: np.ndarray

    def for_rank(self, rank: int, world_size: int) -> "StepPlan":
        """The part of the batch that `rank` sees."""
        size = len(self.rows) // world_size
        return self.part(slice(rank * size, (rank + 1) * size))

    def part(self, span: slice) -> "StepPlan":
        """A part of the batch."""
        return StepPlan(*(array[span] for array in vars(self).values()))


@dataclass(frozen=True)
class Jitter:
    """How the frames of training views vary, one draw a view.

    Attributes:
        flip: half of the views are mirrored.
        scale: bounds of the factors by which height and width grow, each by itself; None: they do not.
        colour: share of the views whose colours are changed.
        grey: share of the views without colour.
    """

    flip: bool = True
    scale: tuple[float, float] | None = None
    colour: float = 0.0
    grey: float = 0.0


@dataclass(frozen=True)
class Mixing:
    """How mixup draws its weights.

    Attributes:
        alpha: weights are drawn from Beta(alpha, alpha).
        by_modality: rgb and spec have weights of their own.
        group_size: so many samples, one after the other, share their weights.
    """

    alpha: float
    by_modality: bool
    group_size: int


@dataclass(frozen=True)
class TrainPlan:
    """Order and draws of a whole training.

    What does not fill a batch is left out of its epoch (another part in each). Samples that are fewer than a batch are repeated
    to fill it.

    Attributes:
        seed: of everything.
        num_samples: of the split.
        batch_size: global.
        mixing: how mixup draws, or None.
        jitter: how the frames of training views vary.
        order: gives each epoch its order; None: all samples, shuffled.
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
        """The global batch of this step, counted from 0 over all epochs."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order = self.rows(epoch)[number * self.batch_size : (number + 1) * self.batch_size]
        rgb_start, crop_x, crop_y, flip = self._rng(epoch, number, 1).random((4, self.batch_size))
        spec_start, coloured, grey = self._rng(epoch, number, 4).random((3, self.batch_size))
        return StepPlan(
            rows=order,
            start=np.stack([rgb_start, spec_start], axis=1),
            crop_x=crop_x,
            crop_y=crop_y,
            flip=(flip < 0.5) & self.jitter.flip,
            scale=self._rng(epoch, number, 5).uniform(*(self.jitter.scale or UNSCALED), (self.batch_size, 2)),
            colour=np.where(coloured[:, None] < self.jitter.colour, self._colour(self._rng(epoch, number, 6)), UNCOLOURED),
            grey=grey < self.jitter.grey,
            mask=self._rng(epoch, number, 2).random((self.batch_size, 4)),
            mix=self._mix(self._rng(epoch, number, 3)),
        )

    def _rng(self, epoch: int, number: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, number, purpose])

    def _colour(self, rng: np.random.Generator) -> np.ndarray:
        return np.stack([rng.uniform(low, high, self.batch_size) for low, high in COLOUR_RANGES], axis=1)

    def _mix(self, rng: np.random.Generator) -> np.ndarray:
        if self.mixing is None:
            return np.ones((self.batch_size, 2))
        alpha, size = self.mixing.alpha, self.mixing.group_size
        weights = rng.beta(alpha, alpha, (-(-self.batch_size // size), 2))
        if not self.mixing.by_modality:
            weights[:, 1] = weights[:, 0]
        return np.repeat(weights, size, axis=0)[: self.batch_size]

    def rows(self, epoch: int) -> np.ndarray:
        """Rows of the samples in the order in which an epoch sees them, int64, at least one batch."""
        with self._lock:
            return self._rows(epoch)

    def order_rng(self, epoch: int) -> np.random.Generator:
        """The generator that the epoch's order is drawn from."""
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
