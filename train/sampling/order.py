"""Orders in which an epoch sees the samples; each is a function of a random generator."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from webdataset.filters import shuffle

Order = Callable[[np.random.Generator], np.ndarray]
"""Gives the rows of an epoch, int64, in the order in which they are seen."""


@dataclass(frozen=True)
class Shuffled:
    """All samples in a random order."""

    num_samples: int

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Rows of an epoch."""
        return rng.permutation(self.num_samples)


@dataclass(frozen=True)
class Drawn:
    """As many draws with replacement as there are samples.

    Attributes:
        shares: float64 (N,), chance of each sample at each draw.
    """

    shares: np.ndarray

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Rows of an epoch."""
        return rng.choice(len(self.shares), len(self.shares), p=self.shares)


@dataclass(frozen=True)
class Streamed:
    """An order in which tars can be read from end to end.

    The tars are shuffled, laid end to end and cut into `streams` equal pieces. Each piece passes through a shuffle buffer of
    its own and gives an equal part of every batch, so that the order does not depend on how ranks share the streams.

    Attributes:
        shard_of: int (N,), the tar of each sample; those of a tar follow each other.
        streams: pieces.
        buffer: samples in all shuffle buffers together.
        batch_size: global.
    """

    shard_of: np.ndarray
    streams: int
    buffer: int
    batch_size: int

    def pieces(self, rng: np.random.Generator) -> np.ndarray:
        """Rows (streams, N // streams) as they come out of the tars."""
        ends = np.flatnonzero(np.diff(self.shard_of)) + 1
        tars = np.split(np.arange(len(self.shard_of)), ends)
        rows = np.concatenate([tars[number] for number in rng.permutation(len(tars))])
        length = len(rows) // self.streams
        return rows[: length * self.streams].reshape(self.streams, length)

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Rows of an epoch, those that fill batches."""
        pieces = self.pieces(rng)
        share = self.batch_size // self.streams
        steps = len(self.shard_of) // self.batch_size
        mixed = [
            list(shuffle(max(self.buffer // self.streams, 1), rng=random.Random(int(seed)))(iter(piece)))
            for piece, seed in zip(pieces.tolist(), rng.integers(2**63, size=self.streams), strict=True)
        ]
        return np.array(mixed)[:, : steps * share].reshape(self.streams, steps, share).swapaxes(0, 1).ravel()


def balanced_shares(labels: pa.ChunkedArray) -> np.ndarray:
    """Chance of each clip at each draw, float64 (N,), with sum 1: the sum over its labels of 1 / clips with that label.

    As AST (Gong et al., arXiv 2104.01778) and its kin train on AudioSet. A clip without a label is drawn like the least likely.

    Args:
        labels: indices of each clip's labels, the index's column.
    """
    lists = labels.combine_chunks()
    values, parents = lists.flatten().to_numpy(), lists.value_parent_indices().to_numpy()
    counts = np.bincount(values, minlength=1)
    shares = np.bincount(parents, 1 / counts[values], minlength=len(lists))
    labelled = shares[shares > 0]
    shares[shares == 0] = labelled.min() if len(labelled) else 1.0
    return shares / shares.sum()
