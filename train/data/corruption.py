"""Corrupt samples in training: counted, logged, and replaced by a fixed rule; too many stop the run."""

import threading
from collections import Counter
from collections.abc import Iterator

import click

from mbt.manifests.errors import ShardError
from mbt.manifests.reading.split import Split

SHOWN_SHARDS = 5


class CorruptSamples:
    """The corrupt samples that a training run has found; thread-safe.

    Args:
        split: the split of the dataset.
        max_fraction: fraction of its samples above which the run stops.
    """

    def __init__(self, split: Split, max_fraction: float) -> None:
        self.split, self.max_fraction = split, max_fraction
        self._reasons: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._reasons)

    def replacements(self, row: int) -> Iterator[int]:
        """Rows to try in place of `row`: those that follow it in the index, as shards are already shuffled.

        What a step sees depends on the step and the shards alone, so ranks and resumed runs agree.
        """
        return ((row + after) % len(self.split) for after in range(1, len(self.split)))

    def record(self, row: int, reason: str) -> None:
        """Count and log a corrupt sample.

        Raises:
            ShardError: there are now too many.
        """
        with self._lock:
            if row in self._reasons:
                return
            self._reasons[row] = reason
            click.echo(f"train: sample {self.split.key(row)} is corrupt, using the next one instead: {reason}", err=True)
            if len(self) > self.max_fraction * len(self.split):
                raise self._too_many()

    def _too_many(self) -> ShardError:
        shards = Counter(self.split.shard(row) for row in self._reasons).most_common()
        names = [f"{name} ({count})" for name, count in shards[:SHOWN_SHARDS]]
        if len(shards) > SHOWN_SHARDS:
            names.append(f"{len(shards) - SHOWN_SHARDS} more")
        return ShardError(
            f"{len(self)} of the {len(self.split):,} samples in {self.split.place} are corrupt, more than input.max_corrupt "
            f"{self.max_fraction:g} allows: {', '.join(names)}",
            "Find all of them with `mbt shards verify --decode`, delete these shards and pack them again, or raise "
            "input.max_corrupt",
        )
