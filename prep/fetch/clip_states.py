"""What is known of a plan's clips while they are fetched: their states, their room, and how many are there."""

from collections.abc import Iterable
from pathlib import Path

from mbt.manifests.clips import Clip, iter_clips
from mbt.prep.plan.plan import read_plan
from mbt.prep.plan.removed import is_removed
from mbt.prep.state.ledger import LOST, NEVER_FETCHED, NOT_THE_CLIPS, Attempt, LedgerReader, states
from mbt.prep.state.selection import Selection, frozen_clips, packed_keys


class Books:
    """The clips of a plan and their states; clips are settled in the order of the plan where a split has a cap.

    Args:
        folder: the dataset folder.
        source: name of the source that is asked.
        removed: keys and video ids that are not asked for.

    Attributes:
        table: the clip table of the plan.
        capped: a split has a cap.
        there: settled clips that have their media.
        missing: settled clips that have not.
    """

    def __init__(self, folder: Path, source: str, removed: frozenset[str]) -> None:
        plan, labels, self.table = read_plan(folder)
        self.capped = bool(plan.caps)
        self.there = self.missing = 0
        self._source = source
        self._removed = removed
        self._reader = LedgerReader(folder)
        self._states = {key: state.checked(folder) for key, state in states(self._reader.new()).items()}
        self._selection = Selection(plan.caps, len(labels), frozen_clips(folder, iter_clips(self.table)))
        self._packed = packed_keys(folder, {key for key, state in self._states.items() if state.code == LOST})

    def state(self, clip: Clip) -> Attempt | None:
        """What is known of a clip, if it was asked for."""
        return self._states.get(clip.key)

    def is_open(self, clip: Clip) -> bool:
        """Whether the clip can still be taken, as far as clips are settled."""
        return self._selection.has_room(clip) and not is_removed(clip, self._removed)

    def is_wanted(self, clip: Clip, now: float) -> bool:
        """Whether asking for the clip now, Unix time in seconds, can be of use."""
        state = self._states.get(clip.key)
        if clip.key in self._packed or not self.is_open(clip):
            return False
        if state is None:
            return True
        due = not state.final and state.not_before <= now
        return state.path is None and (state.source != self._source or due)

    def note(self, attempts: Iterable[Attempt]) -> None:
        """Take in what came of attempts."""
        self._states |= {attempt.key: attempt for attempt in attempts if attempt.action not in NOT_THE_CLIPS}

    def note_others(self) -> None:
        """Take in what the ledgers of other workers have got since."""
        self.note(self._reader.new())

    def settle(self, clip: Clip, own: bool = True) -> None:
        """Give the clip its room if it is there; no more is to come of it in this run.

        Args:
            clip: all before it are settled.
            own: count it.
        """
        if not self.is_open(clip):
            return
        here = clip.key in self._packed or self._states.get(clip.key, NEVER_FETCHED).path is not None
        if here:
            self._selection.take(clip)
        self.there += own and here
        self.missing += own and not here
