"""Damaged samples in training: counted, logged, replaced by a fixed rule; too many stop the run."""

import threading
from collections import Counter
from collections.abc import Iterator

import click

from mbt.manifests.errors import ShardError
from mbt.manifests.reading.split import Split

SHOWN_SHARDS = 5


class Damage:
    """The damaged samples that a training has met; safe to use from many threads.

    Args:
        split: of the dataset.
        max_share: share of its samples above which the run stops.
    """

    def __init__(self, split: Split, max_share: float) -> None:
        self.split, self.max_share = split, max_share
        self._reasons: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._reasons)

    def substitutes(self, row: int) -> Iterator[int]:
        """Rows to take in place of `row`, in this order: those that follow it in the index, as shards are shuffled.

        What a step sees depends on the step and the shards alone, so that ranks and resumed runs agree.
        """
        return ((row + after) % len(self.split) for after in range(1, len(self.split)))

    def note(self, row: int, reason: str) -> None:
        """Count and log a damaged sample.

        Raises:
            ShardError: there are too many now.
        """
        with self._lock:
            if row in self._reasons:
                return
            self._reasons[row] = reason
            click.echo(f"train: {self.split.key(row)} is damaged, the next sample is taken instead: {reason}", err=True)
            if len(self) > self.max_share * len(self.split):
                raise self._too_many()

    def _too_many(self) -> ShardError:
        shards = Counter(self.split.shard(row) for row in self._reasons).most_common()
        names = [f"{name} ({count})" for name, count in shards[:SHOWN_SHARDS]]
        if len(shards) > SHOWN_SHARDS:
            names.append(f"{len(shards) - SHOWN_SHARDS} more")
        return ShardError(
            f"{len(self)} of the {len(self.split):,} samples in {self.split.place} are damaged, more than input.max_corrupt "
            f"{self.max_share:g} allows: {', '.join(names)}",
            "Find all with `mbt prep verify --decode`, delete these shards and pack them again, or raise input.max_corrupt",
        )
