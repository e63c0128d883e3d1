"""Orders of the samples in an epoch; each is a function of a random generator."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from webdataset.filters import shuffle

Order = Callable[[np.random.Generator], np.ndarray]
"""Draws the rows of an epoch, int64, in their order."""


@dataclass(frozen=True)
class Shuffled:
    """All samples in a random order."""

    num_samples: int

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Rows of an epoch."""
        return rng.permutation(self.num_samples)


@dataclass(frozen=True)
class Drawn:
    """Weighted sampling with replacement, with as many draws as there are samples.

    Attributes:
        shares: float64 (N,), probability of each sample at each draw; they sum to 1.
    """

    shares: np.ndarray

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Rows of an epoch."""
        return rng.choice(len(self.shares), len(self.shares), p=self.shares)


@dataclass(frozen=True)
class Streamed:
    """An order in which each tar is read sequentially, from its start to its end.

    The tars are shuffled, concatenated and cut into `streams` equal pieces. Each piece passes through its own shuffle buffer
    and supplies an equal part of every batch, so the order does not depend on how the streams are divided among ranks.

    Attributes:
        shard_of: int (N,), number of the tar of each sample; the samples of a tar are consecutive.
        streams: number of pieces.
        buffer: total number of samples in the shuffle buffers.
        batch_size: number of samples in the global batch.
    """

    shard_of: np.ndarray
    streams: int
    buffer: int
    batch_size: int

    def pieces(self, rng: np.random.Generator) -> np.ndarray:
        """Rows (streams, N // streams) in the order of the tars, before the shuffle buffers."""
        ends = np.flatnonzero(np.diff(self.shard_of)) + 1
        tars = np.split(np.arange(len(self.shard_of)), ends)
        rows = np.concatenate([tars[number] for number in rng.permutation(len(tars))])
        length = len(rows) // self.streams
        return rows[: length * self.streams].reshape(self.streams, length)

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Rows of an epoch; samples that do not fill a batch are dropped."""
        pieces = self.pieces(rng)
        share = self.batch_size // self.streams
        steps = len(self.shard_of) // self.batch_size
        mixed = [
            list(shuffle(max(self.buffer // self.streams, 1), rng=random.Random(int(seed)))(iter(piece)))
            for piece, seed in zip(pieces.tolist(), rng.integers(2**63, size=self.streams), strict=True)
        ]
        return np.array(mixed)[:, : steps * share].reshape(self.streams, steps, share).swapaxes(0, 1).ravel()


def balanced_shares(labels: pa.ChunkedArray) -> np.ndarray:
    """Probability of each clip at each draw, float64 (N,): proportional to the sum of 1 / count over its labels.

    `count` is the number of clips with the label. This is how AST (Gong et al., arXiv 2104.01778) and its successors train on
    AudioSet. A clip without labels gets the smallest probability of the others.

    Args:
        labels: column of the index with the label indices of each clip.
    """
    lists = labels.combine_chunks()
    values, parents = lists.flatten().to_numpy(), lists.value_parent_indices().to_numpy()
    counts = np.bincount(values, minlength=1)
    shares = np.bincount(parents, 1 / counts[values], minlength=len(lists))
    labeled = shares[shares > 0]
    shares[shares == 0] = labeled.min() if len(labeled) else 1.0
    return shares / shares.sum()
