"""Mean and standard deviation of log-mel values, accumulated sample by sample."""

import math

import numpy as np

from mbt.manifests.shards import Frozen


class MelSums(Frozen):
    """Sums over log-mel values, in float64. Add two of them to combine their samples.

    Attributes:
        total: sum of the values.
        squares: sum of their squares.
        count: number of values.
    """

    total: float = 0.0
    squares: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, log_mel: np.ndarray) -> "MelSums":
        """The sums over an array."""
        values = log_mel.astype(np.float64)
        return cls(total=float(values.sum()), squares=float(np.square(values).sum()), count=values.size)

    def __add__(self, other: "MelSums") -> "MelSums":
        return MelSums(total=self.total + other.total, squares=self.squares + other.squares, count=self.count + other.count)

    @property
    def mean(self) -> float:
        """Mean of the values; `count` must not be 0."""
        return self.total / self.count

    @property
    def std(self) -> float:
        """Population standard deviation of the values; `count` must not be 0."""
        return math.sqrt(max(self.squares / self.count - self.mean**2, 0.0))
