"""Balanced subsets: clips are selected greedily, in a given order, with a cap on the number of clips per class.

AS-500K of the paper is "created greedily by restricting the maximum number of samples per class to be 200K" (arXiv 2107.00135,
Sec. 4.1); the order is not published. `common-first` is the order whose count agrees with the published one: Speech and Music,
the only classes above the cap, fill up with clips that have both, and 557,794 of AudioSet's 2,041,789 clips are selected.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
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
    """How a subset is selected.

    Attributes:
        cap: maximum number of clips per class.
        order: order in which clips are considered: by the summed frequency of their labels, descending (`common-first`) or
            ascending (`rare-first`), ties broken by key; in list order (`list`); or shuffled (`random`).
        seed: seed of the `random` order.
    """

    cap: int = AS500K_CAP
    order: Order = "common-first"
    seed: int = 0


class ClassQuotas:
    """How many more clips of each class the cap allows.

    Args:
        cap: maximum number of clips per class.
        num_classes: number of classes.
    """

    def __init__(self, cap: int, num_classes: int) -> None:
        self._remaining = [cap] * num_classes
        self._reserved = [0] * num_classes

    def allow(self, labels: Sequence[int]) -> bool:
        """Whether every one of these classes is still below the cap."""
        return all(self._remaining[label] > 0 for label in labels)

    def allow_beside_reserved(self, labels: Sequence[int]) -> bool:
        """Whether every one of these classes stays below the cap even if all clips with reserved room take it."""
        return all(self._remaining[label] > self._reserved[label] for label in labels)

    def add(self, labels: Sequence[int]) -> None:
        """Count a clip with these labels."""
        for label in labels:
            self._remaining[label] -= 1

    def reserve(self, labels: Sequence[int], clips: int = 1) -> None:
        """Reserve room for a clip with these labels, or for fewer if `clips` is negative."""
        for label in labels:
            self._reserved[label] += clips


def ordered_rows(clips: pa.Table, balance: Balance, num_classes: int) -> np.ndarray:
    """All rows of a clip table in the order in which they are considered, int64."""
    if balance.order == "list":
        return np.arange(clips.num_rows)
    if balance.order == "random":
        return np.random.default_rng(balance.seed).permutation(clips.num_rows)
    frequency = _label_sums(clips["labels"].combine_chunks(), num_classes)
    by_key = pc.sort_indices(clips["key"]).to_numpy()
    sign = -1 if balance.order == "common-first" else 1
    return by_key[np.argsort(sign * frequency[by_key], kind="stable")]


def balanced_rows(clips: pa.Table, balance: Balance, num_classes: int, available: np.ndarray | None = None) -> np.ndarray:
    """Rows of the subset, int64, ascending: a clip is selected if all of its classes are below the cap when it is considered.

    Args:
        clips: clip table.
        balance: cap and order.
        num_classes: number of classes.
        available: for each row, whether the clip is available, bool; None means all are. Unavailable clips are selected by the
            same rule, because they must be requested to find out, but do not count toward the cap.
    """
    order = ordered_rows(clips, balance, num_classes)
    labels = clips["labels"].combine_chunks()
    counts = np.bincount(labels.flatten().to_numpy(), minlength=num_classes)
    capped = counts > balance.cap
    selected = np.ones(clips.num_rows, bool)
    quotas = ClassQuotas(balance.cap, num_classes)
    for row, classes in _rows_of_capped_classes(labels, capped, order):
        selected[row] = quotas.allow(classes)
        if selected[row] and (available is None or available[row]):
            quotas.add(classes)
    return np.flatnonzero(selected)


def seeded_positions(seed: int, names: Iterable[str]) -> np.ndarray:
    """A pseudo-random number from 0 to 1 for each name, float64; equal names have equal numbers."""
    digests = b"".join(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8] for name in names)
    return np.frombuffer(digests, ">u8") / 2.0**64


def spread_rows(clips: pa.Table, cap: int, num_classes: int, positions: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """All rows in an order that selects the same clips as the order of the table, but mixes the classes; int64.

    Clips are selected as in `balanced_rows`, with the cap applied to each split. Only the order of clips that compete matters.
    A clip that the cap cannot exclude, even if all clips before it are available, may be selected at any time before its
    competitors; a clip without a capped class may be selected at any time at all.

    Args:
        clips: clip table, in the order in which clips are considered.
        cap: maximum number of clips per class and split.
        num_classes: number of classes.
        positions: for each row, its place among clips that do not compete, 0 to 1.
        alive: for each row, a guess whether the clip is available, bool. Competitors that would then be selected are spread
            among the other clips; those behind the last of them come last.
    """
    positions = positions.copy()
    splits = clips["split"].combine_chunks().dictionary_encode().indices.to_numpy()
    for split in range(splits.max(initial=-1) + 1):
        rows = np.flatnonzero(splits == split)
        positions[rows] = _spread(clips.take(pa.array(rows)), cap, num_classes, positions[rows], alive[rows])
    return np.argsort(positions, kind="stable")


def _spread(clips: pa.Table, cap: int, num_classes: int, positions: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """New positions for the clips of one split: those of competitors increase from row to row."""
    labels = clips["labels"].combine_chunks()
    flat = labels.flatten().to_numpy()
    owners = np.repeat(np.arange(len(labels)), np.diff(labels.offsets.to_numpy()))
    counts = np.bincount(flat, minlength=num_classes)
    is_capped, competes = np.zeros((2, len(labels)), bool)
    is_capped[owners[counts[flat] > cap]] = True
    competes[owners[_ranks(flat, counts) >= cap]] = True
    selected = np.zeros(len(labels), bool)
    selected[balanced_rows(clips, Balance(cap, "list"), num_classes, alive)] = True

    sure, rivals = np.flatnonzero(is_capped & ~competes), np.flatnonzero(competes)
    likely = np.flatnonzero(selected[rivals])
    share = len(sure) / max(len(sure) + len(likely), 1)
    last = likely[-1] if len(likely) else -1.0
    steps = share + (1 - share) * (np.arange(len(likely)) + 0.5) / max(len(likely), 1)
    positions = positions.copy()
    positions[sure] *= share
    positions[rivals] = np.interp(np.arange(len(rivals)), [-1.0, *likely, last + 0.5, len(rivals)], [share, *steps, 1.0, 2.0])
    return positions


def _ranks(flat: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """For each label in a list of labels, how often it appears before; `counts` is the number of times that each appears."""
    by_label = np.argsort(flat, kind="stable")
    ranks = np.empty(len(flat), np.int64)
    ranks[by_label] = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks


def _rows_of_capped_classes(labels: pa.ListArray, capped: np.ndarray, order: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """In this order, each row with labels of capped classes (those with more clips than the cap), and these labels."""
    offsets, flat = labels.offsets.to_numpy(), labels.values.to_numpy()
    rows = np.repeat(np.arange(len(labels)), np.diff(offsets))
    flat = flat[offsets[0] : offsets[-1]]
    kept = capped[flat]
    rows, flat = rows[kept], flat[kept]
    starts = np.searchsorted(rows, np.arange(len(labels) + 1))
    rows_in_order = order[starts[order + 1] > starts[order]].tolist()
    values, begin = flat.tolist(), starts.tolist()
    for row in rows_in_order:
        yield row, values[begin[row] : begin[row + 1]]


def _label_sums(labels: pa.ListArray, num_classes: int) -> np.ndarray:
    """For each row, the summed frequency (number of rows) of its labels, int64."""
    flat = labels.flatten().to_numpy()
    counts = np.bincount(flat, minlength=num_classes)
    rows = np.repeat(np.arange(len(labels)), np.diff(labels.offsets.to_numpy()))
    return np.bincount(rows, weights=counts[flat], minlength=len(labels)).astype(np.int64)
