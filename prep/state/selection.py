"""Which clips of a plan are asked for and packed: all, or as many as the cap on each class of a split lets in."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from mbt.manifests.balance import Room
from mbt.manifests.clips import Clip
from mbt.prep.state.ledger import Attempt
from mbt.prep.state.settings import store_of
from mbt.prep.state.shard_record import finished_shard

ASSIGNMENT_FILE = "work/assignment.json"


def read_assignment(folder: Path) -> dict[str, list[str]]:
    """Keys of each shard of a dataset folder by its name, as far as packing has frozen them."""
    path = folder / ASSIGNMENT_FILE
    return json.loads(path.read_bytes()) if path.exists() else {}


def frozen_clips(folder: Path, clips: Iterable[Clip]) -> Iterator[Clip]:
    """Those of the clips that packing has given a shard."""
    frozen = {key for keys in read_assignment(folder).values() for key in keys}
    return (clip for clip in clips if clip.key in frozen)


def packed_keys(folder: Path, lost: Collection[str]) -> set[str]:
    """Those of the clips whose media are gone that lie in a finished shard: they are not needed any more."""
    packed: set[str] = set()
    store = store_of(folder)
    for name, keys in read_assignment(folder).items():
        gone = {key for key in keys if key in lost}
        if gone and finished_shard(store, name) is not None:
            packed |= gone
    return packed


class Selection:
    """Room for clips, while they are gone through in the order of the plan.

    A clip of a split without a cap has room always. With a cap, a clip that is not there takes none: going through the clips
    that are there gives what filtering first and balancing afterwards would give.

    Args:
        caps: clips that a class may have at the most, by split.
        num_classes: number of classes.
        frozen: clips that have been packed: they have their room already.
    """

    def __init__(self, caps: Mapping[str, int], num_classes: int, frozen: Iterable[Clip] = ()) -> None:
        self._rooms = {split: Room(cap, num_classes) for split, cap in caps.items()}
        self._frozen = set()
        for clip in frozen:
            self.take(clip)
            self._frozen.add(clip.key)

    def is_capped(self, clip: Clip) -> bool:
        """Whether the clip's split has a cap."""
        return clip.split in self._rooms

    def has_room(self, clip: Clip) -> bool:
        """Whether the clip may be asked for and packed."""
        room = self._rooms.get(clip.split)
        return room is None or clip.key in self._frozen or room.has(clip.labels)

    def take(self, clip: Clip) -> None:
        """The clip is there: count it."""
        if clip.split in self._rooms and clip.key not in self._frozen:
            self._rooms[clip.split].take(clip.labels)


def members(clips: Iterable[Clip], ledger: Mapping[str, Attempt], selection: Selection) -> Iterator[tuple[int, Clip]]:
    """Clips to pack and clips that were asked for in vain, with their places; of splits without a cap all, asked for or not.

    Args:
        clips: of the plan, in its order.
        ledger: last attempt of each clip.
        selection: a fresh one.
    """
    for place, clip in enumerate(clips):
        attempt = ledger.get(clip.key)
        if not selection.has_room(clip) or (attempt is None and selection.is_capped(clip)):
            continue
        if attempt is not None and attempt.path is not None:
            selection.take(clip)
        yield place, clip
