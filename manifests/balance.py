"""Greedy balanced subsets: as many clips as a cap on the clips of each class lets in, taken in a stated order.

AS-500K of the paper is "created greedily by restricting the maximum number of samples per class to be 200K" (arXiv 2107.00135,
Sec. 4.1); the order is not published. `common-first` is the reading whose count agrees with the published one: Speech and
Music, the only classes above the cap, fill with the clips that have both, and 557,794 of AudioSet's 2,041,789 clips are taken.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Order = Literal["common-first", "rare-first", "list", "random"]
ORDERS: tuple[Order, ...] = get_args(Order)
AS500K_CAP = 200_000


@dataclass(frozen=True)
class Balance:
    """How a subset is drawn.

    Attributes:
        cap: clips that a class may have at the most.
        order: in which clips are offered: by the summed frequency of their labels, descending (`common-first`) or ascending
            (`rare-first`), with ties by key; as they are listed; or at random.
        seed: of `random`.
    """

    cap: int = AS500K_CAP
    order: Order = "common-first"
    seed: int = 0


class Room:
    """What the cap leaves of each class, while clips are taken.

    Args:
        cap: clips that a class may have at the most.
        num_classes: number of classes.
    """

    def __init__(self, cap: int, num_classes: int) -> None:
        self._left = [cap] * num_classes

    def has(self, labels: Sequence[int]) -> bool:
        """Whether every one of these labels is still below the cap."""
        return all(self._left[label] > 0 for label in labels)

    def take(self, labels: Sequence[int]) -> None:
        """Count a clip with these labels."""
        for label in labels:
            self._left[label] -= 1


def offered(clips: pa.Table, balance: Balance, num_classes: int) -> np.ndarray:
    """Rows of a clip table in the order in which they are offered, int64."""
    if balance.order == "list":
        return np.arange(clips.num_rows)
    if balance.order == "random":
        return np.random.default_rng(balance.seed).permutation(clips.num_rows)
    frequency = _label_sums(clips["labels"].combine_chunks(), num_classes)
    by_key = pc.sort_indices(clips["key"]).to_numpy()
    sign = -1 if balance.order == "common-first" else 1
    return by_key[np.argsort(sign * frequency[by_key], kind="stable")]


def balanced_rows(clips: pa.Table, balance: Balance, num_classes: int, alive: np.ndarray | None = None) -> np.ndarray:
    """Rows that are taken, int64, ascending: in the order of the offer, each if every one of its labels is below the cap.

    Args:
        clips: clip table.
        balance: cap and order.
        num_classes: number of classes.
        alive: bool, of each row: whether it is there. Others are among the rows too if there is room for them, since they
            must be asked for, but take none.
    """
    order = offered(clips, balance, num_classes)
    labels = clips["labels"].combine_chunks()
    counts = np.bincount(labels.flatten().to_numpy(), minlength=num_classes)
    scarce = counts > balance.cap
    taken = np.ones(clips.num_rows, bool)
    room = Room(balance.cap, num_classes)
    for row, of_row in _with_scarce_labels(labels, scarce, order):
        taken[row] = room.has(of_row)
        if taken[row] and (alive is None or alive[row]):
            room.take(of_row)
    return np.flatnonzero(taken)


def _with_scarce_labels(labels: pa.ListArray, scarce: np.ndarray, order: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """In this order, rows with a label that more rows have than the cap lets in, and those labels: no other can bind."""
    offsets, flat = labels.offsets.to_numpy(), labels.values.to_numpy()
    rows = np.repeat(np.arange(len(labels)), np.diff(offsets))
    flat = flat[offsets[0] : offsets[-1]]
    binding = scarce[flat]
    rows, flat = rows[binding], flat[binding]
    starts = np.searchsorted(rows, np.arange(len(labels) + 1))
    offered_rows = order[starts[order + 1] > starts[order]].tolist()
    values, begin = flat.tolist(), starts.tolist()
    for row in offered_rows:
        yield row, values[begin[row] : begin[row + 1]]


def _label_sums(labels: pa.ListArray, num_classes: int) -> np.ndarray:
    """Sum over each row's labels of how many rows have them, int64."""
    flat = labels.flatten().to_numpy()
    counts = np.bincount(flat, minlength=num_classes)
    rows = np.repeat(np.arange(len(labels)), np.diff(labels.offsets.to_numpy()))
    return np.bincount(rows, weights=counts[flat], minlength=len(labels)).astype(np.int64)
