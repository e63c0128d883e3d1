"""The plan of training: what each step sees, as a pure function of (seed, step); ranks take slices of the global batch."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class StepPlan:
    """Draws for the samples of one batch; all arrays have its length.

    Attributes:
        rows: int64, rows of the index.
        start: float64 in [0, 1), where the view begins.
        crop_x: float64 in [0, 1), where the crop box stands between left (0) and right.
        crop_y: the same, between top (0) and bottom.
        flip: bool, mirror left and right.
        mask: float64 (B, 4) in [0, 1), SpecAugment: length and place of the mask over time, and of that over mel bands.
        mix: float64 (B, 2) in [0, 1], mixup: a sample's own share in its rgb and in its spec.
    """

    rows: np.ndarray
    start: np.ndarray
    crop_x: np.ndarray
    crop_y: np.ndarray
    flip: np.ndarray
    mask: np.ndarray
    mix: np.ndarray

    def for_rank(self, rank: int, world_size: int) -> "StepPlan":
        """The part of the batch that `rank` sees."""
        size = len(self.rows) // world_size
        return self.part(slice(rank * size, (rank + 1) * size))

    def part(self, span: slice) -> "StepPlan":
        """A part of the batch."""
        return StepPlan(*(array[span] for array in vars(self).values()))

    def unflipped(self) -> "StepPlan":
        """The same without mirroring."""
        return replace(self, flip=np.zeros_like(self.flip))


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

    Every epoch is a permutation of the samples; what does not fill a batch is left out of that epoch (another part in each).
    Fewer samples than a batch are repeated to fill it.
    """

    seed: int
    num_samples: int
    batch_size: int
    mixing: Mixing | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return max(self.num_samples // self.batch_size, 1)

    def step(self, step: int) -> StepPlan:
        """The global batch of this step, counted from 0 over all epochs."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order = self._orders(epoch)[number * self.batch_size : (number + 1) * self.batch_size]
        draws = np.random.default_rng([self.seed, epoch, number, 1]).random((4, self.batch_size))
        mask = np.random.default_rng([self.seed, epoch, number, 2]).random((self.batch_size, 4))
        mix = self._mix(np.random.default_rng([self.seed, epoch, number, 3]))
        return StepPlan(order, draws[0], draws[1], draws[2], draws[3] < 0.5, mask, mix)

    def _mix(self, rng: np.random.Generator) -> np.ndarray:
        if self.mixing is None:
            return np.ones((self.batch_size, 2))
        alpha, size = self.mixing.alpha, self.mixing.group_size
        weights = rng.beta(alpha, alpha, (-(-self.batch_size // size), 2))
        if not self.mixing.by_modality:
            weights[:, 1] = weights[:, 0]
        return np.repeat(weights, size, axis=0)[: self.batch_size]

    def _orders(self, epoch: int) -> np.ndarray:
        if epoch not in self._cache:
            self._cache.clear()
            order = np.random.default_rng([self.seed, epoch, 0]).permutation(self.num_samples)
            self._cache[epoch] = np.resize(order, max(self.num_samples, self.batch_size))
        return self._cache[epoch]

    @cached_property
    def _cache(self) -> dict[int, np.ndarray]:
        return {}
