"""Which clips of a plan are fetched and packed: all, or as many as the cap per class of a split allows."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from mbt.manifests.balance import ClassQuotas
from mbt.manifests.clips import Clip
from mbt.prep.state.failure_codes import is_rechecked
from mbt.prep.state.ledger import Attempt
from mbt.prep.state.settings import stores_remotely
from mbt.prep.state.shard_record import ShardRecord, finished_shard, read_record
from mbt.prep.state.store import Store

ASSIGNMENT_FILE = "work/assignment.json"


def read_assignment(folder: Path) -> dict[str, list[str]]:
    """The keys assigned to each shard of a dataset folder, by shard name; empty before the first packing."""
    path = folder / ASSIGNMENT_FILE
    return json.loads(path.read_bytes()) if path.exists() else {}


def frozen_clips(folder: Path, clips: Iterable[Clip]) -> Iterator[Clip]:
    """The clips that packing has assigned to a shard."""
    frozen = {key for keys in read_assignment(folder).values() for key in keys}
    return (clip for clip in clips if clip.key in frozen) if frozen else iter(())


def finished_here(folder: Path, shard: str) -> ShardRecord | None:
    """The record of a finished shard; at a URL, which only the pack stage has the credentials for, a record is enough."""
    return read_record(folder, shard) if stores_remotely(folder) else finished_shard(Store(folder), shard)


def packed_keys(folder: Path, lost: Collection[str], recheck: Collection[str] = ()) -> set[str]:
    """The clips that finished shards hold or can never hold, out of those whose media are missing.

    Args:
        folder: the dataset folder.
        lost: keys of the clips whose media are missing.
        recheck: codes of failures that are decoded once more, and so need their media.
    """
    packed: set[str] = set()
    for name, keys in read_assignment(folder).items():
        if not lost or not any(key in lost for key in keys) or (record := finished_here(folder, name)) is None:
            continue
        packed.update(record.keys)
        packed.update(each.key for each in record.failures if each.is_final and not is_rechecked(each.code, recheck))
    return {key for key in packed if key in lost}


class Selection:
    """Selects clips of a plan, considered in the packing sequence, under the caps of their splits.

    The packing sequence holds the clips that came on time (their first outcome was their media) in plan order, then all others
    in plan order.

    A split without a cap has room for every clip. With a cap, only clips that have media take room, so the selection equals
    balancing the clips that survive.

    Args:
        caps: maximum clips per class, by split.
        num_classes: number of classes.
        frozen: clips that are assigned to a shard: they keep their room.
    """

    def __init__(self, caps: Mapping[str, int], num_classes: int, frozen: Iterable[Clip] = ()) -> None:
        self._rooms = {split: ClassQuotas(cap, num_classes) for split, cap in caps.items()}
        self._frozen: set[str] = set()
        for clip in frozen if caps else ():
            if self.is_capped(clip):
                self.take(clip)
                self._frozen.add(clip.key)

    def is_capped(self, clip: Clip) -> bool:
        """Whether the clip's split has a cap."""
        return clip.split in self._rooms

    def has_room(self, clip: Clip) -> bool:
        """Whether the clip may be fetched and packed."""
        room = self._rooms.get(clip.split)
        return room is None or clip.key in self._frozen or room.allow(clip.labels)

    def reserve(self, clip: Clip) -> bool:
        """Reserve room for a clip; returns whether it will fit even if all others that reserved room take it."""
        room = self._rooms.get(clip.split)
        if room is None:
            return True
        is_certain = clip.key in self._frozen or room.allow_beside_reserved(clip.labels)
        room.reserve(clip.labels)
        return is_certain

    def release(self, clip: Clip) -> None:
        """Release what a clip reserved."""
        if clip.split in self._rooms:
            self._rooms[clip.split].reserve(clip.labels, -1)

    def take(self, clip: Clip) -> None:
        """Count a clip that has media."""
        if clip.split in self._rooms and clip.key not in self._frozen:
            self._rooms[clip.split].add(clip.labels)


def select_clips(
    clips: Iterable[Clip],
    ledger: Mapping[str, Attempt],
    late: Collection[str],
    selection: Selection,
    is_removed: Callable[[Clip], bool] = lambda clip: False,
) -> list[tuple[int, Clip]]:
    """The clips to pack and those that could not be fetched, each with its row, in plan order.

    All clips of splits without a cap are selected. With a cap, clips take room in the packing sequence, and those that could
    not be fetched are selected if there was room when they were considered. Removed clips take no room.

    Args:
        clips: the clips in plan order.
        ledger: state of each clip, by key.
        late: keys of the clips whose first outcome was a failure.
        selection: an unused selection.
        is_removed: whether a clip is on the removal list.
    """
    selected, came_late = [], []
    for row, clip in enumerate(clips):
        attempt = ledger.get(clip.key)
        if not selection.has_room(clip) or (attempt is None and selection.is_capped(clip)):
            continue
        if attempt is not None and attempt.path is not None and not is_removed(clip):
            if clip.key in late:
                came_late.append((row, clip))
                continue
            selection.take(clip)
        selected.append((row, clip))
    for row, clip in came_late:
        if selection.has_room(clip):
            selection.take(clip)
            selected.append((row, clip))
    return sorted(selected, key=lambda each: each[0])
