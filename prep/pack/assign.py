"""Which clip goes into which shard: fixed when a shard is added, by the order of the plan, never by timing."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from mbt.manifests.atomic import write_text
from mbt.manifests.errors import InputError
from mbt.manifests.shards import shard_file
from mbt.prep.state.selection import ASSIGNMENT_FILE, read_assignment
from mbt.prep.state.settings import PackSettings


def packing_sequence(keys: Iterable[str], late: Collection[str]) -> Iterator[str]:
    """Clips that have media, in the order in which they are packed: first those that came on time, then the late ones.

    Args:
        keys: keys of the clips, in plan order.
        late: keys of the clips that failed before they came.
    """
    waiting = []
    for key in keys:
        if key in late:
            waiting.append(key)
        else:
            yield key
    yield from waiting


class Assignment:
    """The clips of each shard. A clip is in one shard only; a failed one may move to a later shard.

    Args:
        folder: the dataset folder.
        settings: number of samples per shard, and the seed of their order.

    Attributes:
        shards: keys by name of the shard's first tar, in the order of the samples.
    """

    def __init__(self, folder: Path, settings: PackSettings) -> None:
        self.shards = read_assignment(folder)
        self._path = folder / ASSIGNMENT_FILE
        self._settings = settings
        self._shard_of = {key: name for name, keys in self.shards.items() for key in keys}
        self._counts = Counter(name.rpartition("-")[0] for name in self.shards)

    def __contains__(self, key: str) -> bool:
        return key in self._shard_of

    def check(self, planned: Collection[str]) -> None:
        """Check that every assigned clip is still planned.

        Raises:
            InputError: a clip is not.
        """
        if dropped := [key for key in self._shard_of if key not in planned]:
            raise InputError(
                f"{self._path.parent.parent}: {len(dropped)} packed clips are not in the new plan, such as {min(dropped)}",
                "Choose another --out",
            )

    def pack_again(self, failed: Collection[str], splits: Mapping[str, str]) -> dict[str, list[str]]:
        """Move failed clips to further shards, and save; return those shards.

        Args:
            failed: keys of clips of which no sample is in a shard.
            splits: split by key, in the packing sequence.
        """
        earlier = set(self.shards)
        if not failed:
            return {}
        for key in failed:
            self.shards[self._shard_of.pop(key)].remove(key)
        self.extend(splits)
        self.save()
        return {name: keys for name, keys in self.shards.items() if name not in earlier}

    def add(self, split: str, keys: Collection[str]) -> str:
        """Add a further shard of a split, with its samples in an order that depends on seed and keys only; return its name."""
        name = shard_file(split, self._counts[split])
        self._counts[split] += 1
        self.shards[name] = sorted(keys, key=self._rank)
        self._shard_of |= dict.fromkeys(keys, name)
        return name

    def extend(self, splits: Mapping[str, str]) -> None:
        """Add shards for the clips that are in none, `shard_samples` at a time.

        Args:
            splits: split by key, in the packing sequence.
        """
        size = self._settings.shard_samples
        new: dict[str, list[str]] = {}
        for key, split in splits.items():
            if key not in self._shard_of:
                new.setdefault(split, []).append(key)
        for split, keys in sorted(new.items()):
            for start in range(0, len(keys), size):
                self.add(split, keys[start : start + size])

    def save(self) -> None:
        """Write the assignment, unless it is on disk already."""
        if self.shards != read_assignment(self._path.parent.parent):
            write_text(self._path, json.dumps(self.shards, indent=0) + "\n")

    def _rank(self, key: str) -> bytes:
        return hashlib.sha256(f"{self._settings.seed}:{key}".encode()).digest()
