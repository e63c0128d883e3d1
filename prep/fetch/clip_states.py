"""The state of each clip while a plan is fetched: its last attempt, whether to request it, and room under the caps."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mbt.manifests.clips import Clip, iter_clips
from mbt.prep.plan.plan import read_plan
from mbt.prep.plan.removed import is_removed
from mbt.prep.state.ledger import LOST, NEVER_FETCHED, STOPPING_ACTIONS, Attempt, LedgerReader, states
from mbt.prep.state.selection import Selection, frozen_clips, packed_keys


@dataclass(frozen=True)
class Fetched:
    """Number of clips in the dataset that have their media file, and number that do not."""

    found: int
    missing: int


class ClipStates:
    """The clips of a plan and their states.

    A clip is settled when its outcome in this run is known. Where a split has a cap, clips are settled in plan order: whether
    a clip still fits under the cap depends on those before it.

    Args:
        folder: the dataset folder.
        source: name of the source that clips are fetched from.
        removed: keys and video ids that are not fetched.

    Attributes:
        table: the clip table of the plan.
        has_caps: whether any split has a cap.
        found: number of settled clips that have their media file.
        missing: number of settled clips that do not.
    """

    def __init__(self, folder: Path, source: str, removed: frozenset[str]) -> None:
        plan, labels, self.table = read_plan(folder)
        self.has_caps = bool(plan.caps)
        self.found = self.missing = 0
        self._source = source
        self._removed = removed
        self._reader = LedgerReader(folder)
        self._states = {key: state.checked(folder) for key, state in states(self._reader.new()).items()}
        self._selection = Selection(plan.caps, len(labels), frozen_clips(folder, iter_clips(self.table)))
        self._packed = packed_keys(folder, {key for key, state in self._states.items() if state.code == LOST})

    def state(self, clip: Clip) -> Attempt | None:
        """The state of a clip, or None if it was never requested."""
        return self._states.get(clip.key)

    def is_open(self, clip: Clip) -> bool:
        """Whether the clip can still become part of the dataset, given the clips that are settled."""
        return self._selection.has_room(clip) and not is_removed(clip, self._removed)

    def is_wanted(self, clip: Clip, now: float) -> bool:
        """Whether the clip should be requested at this Unix time, in seconds."""
        if clip.key in self._packed or not self.is_open(clip):
            return False
        state = self.state(clip)
        if state is None:
            return True
        if state.path is not None:
            return False
        may_retry = not state.final and state.not_before <= now
        return may_retry or state.source != self._source

    def update(self, attempts: Iterable[Attempt]) -> None:
        """Apply the results of attempts, except those that stopped a lane or the run, which say nothing about a clip."""
        self._states |= {attempt.key: attempt for attempt in attempts if attempt.action not in STOPPING_ACTIONS}

    def update_from_ledger(self) -> None:
        """Apply what other workers have written to their ledger files since the last call."""
        self.update(self._reader.new())

    def settle(self, clip: Clip, own: bool = True) -> None:
        """Count the clip against its caps if it has its media file; call it once the clip's outcome is known.

        Args:
            clip: a clip; all clips before it are settled.
            own: whether this worker fetches the clip, and so counts it in `found` or `missing`.
        """
        if not self.is_open(clip):
            return
        has_media = clip.key in self._packed or self._states.get(clip.key, NEVER_FETCHED).path is not None
        if has_media:
            self._selection.take(clip)
        self.found += own and has_media
        self.missing += own and not has_media

    @property
    def counts(self) -> Fetched:
        """The settled clips that this worker fetches, counted."""
        return Fetched(self.found, self.missing)
