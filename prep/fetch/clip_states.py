"""The state of each clip while a plan is fetched: its outcomes, whether to request it, and room under the caps."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mbt.manifests.clips import Clip, iter_clips
from mbt.prep.fetch.breaker import UNAVAILABLE
from mbt.prep.fetch.worker_share import WorkerShare
from mbt.prep.plan.choose import likely_clips
from mbt.prep.plan.plan import read_plan
from mbt.prep.plan.removed import is_removed
from mbt.prep.state.failure_codes import is_rechecked
from mbt.prep.state.ledger import NEVER_FETCHED, NO_OUTCOME_ACTIONS, WITHDRAWN, Attempt, LedgerReader, add_outcome, fold
from mbt.prep.state.selection import Selection, frozen_clips, packed_keys

UNREAD = -1
"""Place of an attempt of this run, whose row in the ledger is not needed again."""


@dataclass(frozen=True)
class Fetched:
    """Number of clips in the dataset that have their media file, number that do not, and number of these by reason."""

    found: int
    missing: int
    reasons: Mapping[str, int] = field(default_factory=dict)


class ClipStates:
    """The clips of a plan and their states; about 400 bytes of memory per clip.

    A clip is settled when its outcome of the first pass is known. Clips are settled in plan order: where a split has a cap,
    whether a clip still fits under it depends on those before it. Late clips, whose first outcome was a failure, take the room
    that is left after all clips are settled.

    Args:
        folder: the dataset folder.
        source: name of the source that clips are fetched from.
        removed: keys and video ids that are not fetched.
        share: the videos that this worker fetches.
        recheck: codes of failures that are requested once more.

    Attributes:
        table: the clip table of the plan.
        has_caps: whether any split has a cap.
        share: the videos that this worker fetches.
        num_own: number of clips that this worker fetches.
        found: number of settled clips of this worker that have their media file.
    """

    def __init__(
        self,
        folder: Path,
        source: str,
        removed: frozenset[str],
        share: WorkerShare,
        recheck: frozenset[str] = frozenset(),
    ) -> None:
        plan, labels, self.table = read_plan(folder)
        self.has_caps = bool(plan.caps)
        self._plan = plan
        self._num_classes = len(labels)
        self.num_own = _num_own(self.table, share)
        self.found = 0
        self._folder = folder
        self._removed = removed
        self.share = share
        self._reader = LedgerReader(folder)
        self._media: dict[str, int] = {}
        self._new_media: dict[str, Attempt] = {}
        self._lost: set[str] = set()
        self._retry: dict[str, list[Attempt]] = {}
        self._dead: dict[str, list[Attempt]] = {}
        self._late: set[str] = set()
        self._withdrawn: set[str] = set()
        self._missing: set[str] = set()
        self._due: list[tuple[float, str]] = []
        for attempt, place in self._reader.new_with_place():
            self._add(attempt, place)
        self._packed = packed_keys(folder, self._lost, recheck)
        self._once = {
            key
            for known in (self._retry, self._dead)
            for key, outcomes in known.items()
            if outcomes[-1].source != source or is_rechecked(outcomes[-1].code, recheck)
        }
        self._selection = Selection(plan.caps, len(labels), frozen_clips(folder, iter_clips(self.table)))

    def state(self, clip: Clip) -> Attempt | None:
        """The state of a clip, or None if it was never requested."""
        if outcomes := self._retry.get(clip.key) or self._dead.get(clip.key):
            return fold(outcomes)
        if attempt := self._new_media.get(clip.key):
            return attempt
        place = self._media.get(clip.key, UNREAD)
        return None if place == UNREAD else self._reader.read(place)

    def is_open(self, clip: Clip) -> bool:
        """Whether the clip can still become part of the dataset, given the clips that are settled."""
        return self._selection.has_room(clip) and not is_removed(clip, self._removed)

    def was_withdrawn(self, clip: Clip) -> bool:
        """Whether a failure of the clip was withdrawn: that it fails again says nothing about the others."""
        return clip.key in self._withdrawn

    def reserve(self, clip: Clip) -> bool:
        """Reserve room under the caps; returns whether the clip will fit even if all others that reserved room get media."""
        return self._selection.reserve(clip)

    def release(self, clip: Clip) -> None:
        """Release the room that a clip reserved."""
        self._selection.release(clip)

    def has_media(self, clip: Clip) -> bool:
        """Whether the clip has its media file, or needs none because it is packed."""
        return clip.key in self._media or clip.key in self._packed

    def lacks_media(self, clip: Clip) -> bool:
        """Whether the clip can still become part of the dataset and has no media file."""
        return self.is_open(clip) and not self.has_media(clip)

    def has_outcome(self, clip: Clip) -> bool:
        """Whether the clip was served or refused. A clip whose media file is lost has none."""
        outcomes = self._retry.get(clip.key) or self._dead.get(clip.key)
        return self.has_media(clip) or (outcomes is not None and not outcomes[-1].is_absent)

    def is_new(self, clip: Clip) -> bool:
        """Whether the clip must be requested in the first pass."""
        return not self.has_outcome(clip) and self.is_open(clip)

    def due(self, now: float) -> list[Clip]:
        """The failed clips of this worker whose retry is due at Unix time `now`, in plan order; call it after `settle_late`.

        The first call adds those that failed at another source, and those to be rechecked.
        """
        keys = {key for key, outcomes in self._retry.items() if fold(outcomes).not_before <= now}
        keys |= self._once & (self._retry.keys() | self._dead)
        self._once = set()
        clips = [clip for clip in self._planned(keys) if self.share.owns(clip.video_id) and self.is_open(clip)]
        for key in keys - {clip.key for clip in clips}:
            self._retry.pop(key, None)
        return clips

    def next_due(self) -> float | None:
        """Unix time in seconds from which the next clip is due, or None."""
        while self._due:
            not_before, key = self._due[0]
            if key in self._retry and fold(self._retry[key]).not_before == not_before:
                return not_before
            heappop(self._due)
        return None

    def num_unavailable_and_others(self) -> tuple[int, int]:
        """Number of clips that are unavailable, and number of all others that have an outcome."""
        failed = [outcomes[-1].code for known in (self._retry, self._dead) for outcomes in known.values()]
        unavailable = failed.count(UNAVAILABLE)
        return unavailable, len(self._media) + len(failed) - unavailable

    def update(self, attempts: Iterable[Attempt]) -> None:
        """Apply the results of this worker's attempts."""
        for attempt in attempts:
            self._add(attempt, UNREAD)

    def update_from_ledger(self) -> None:
        """Apply what other workers have written to their ledger files since the last call."""
        for attempt, place in self._reader.new_with_place(but=self.share.worker):
            self._add(attempt, place)

    def settle(self, clip: Clip, read: bool = False) -> Attempt | None:
        """Count a clip whose outcome of the first pass is known: against its caps, if it came on time.

        Args:
            clip: a clip; all clips before it are settled.
            read: whether the state is wanted, which may have to be read from the ledger.

        Returns:
            The clip's state; None if it was never requested, came late or exceeds a cap, or is not wanted.
        """
        came_late = clip.key in self._late and self.has_media(clip)
        has_room = self._selection.has_room(clip)
        if self.is_open(clip):
            if self.has_media(clip) and not came_late:
                self._take(clip)
            elif self.share.owns(clip.video_id):
                self._missing.add(clip.key)
        attempt = self.state(clip) if read and has_room and not came_late else None
        self._new_media.pop(clip.key, None)
        return attempt

    def settle_late(self, clips: Iterable[Clip] | None = None) -> None:
        """Count late clips that have media against what is left of the caps.

        Args:
            clips: the clips to count; None: all, once all clips are settled.
        """
        for clip in self._planned(self._late) if clips is None else clips:
            if self.has_media(clip):
                self._missing.discard(clip.key)
                self._new_media.pop(clip.key, None)
                if self.is_open(clip):
                    self._take(clip)

    @property
    def num_asked(self) -> int:
        """Number of clips that were served or refused."""
        return self.num_available + self.num_to_retry + self.num_dead

    @property
    def num_available(self) -> int:
        """Number of clips that have media, or are packed."""
        return len(self._media) + len(self._packed)

    @property
    def num_to_retry(self) -> int:
        """Number of clips that failed and will be retried."""
        return len(self._retry)

    @property
    def num_dead(self) -> int:
        """Number of clips whose failure is final."""
        return len(self._dead)

    @property
    def counts(self) -> Fetched:
        """The settled clips that this worker fetches, counted."""
        outcomes = (self._retry.get(key) or self._dead.get(key) for key in self._missing)
        reasons = Counter(own[-1].code if own else NEVER_FETCHED.code for own in outcomes)
        return Fetched(self.found, len(self._missing), dict(reasons.most_common()))

    def num_likely(self) -> int:
        """Number of planned clips that will probably be requested: with caps, not all are."""
        return likely_clips(self.table, self._plan.caps, self._num_classes, self._plan.seed or 0).num_rows

    def _take(self, clip: Clip) -> None:
        self._selection.take(clip)
        self.found += self.share.owns(clip.video_id)

    def _planned(self, keys: Collection[str]) -> Iterator[Clip]:
        """The clips with these keys, in plan order."""
        return iter_clips(self.table.filter(pc.is_in(self.table["key"], value_set=pa.array(list(keys), pa.string()))))

    def _add(self, attempt: Attempt, place: int) -> None:
        """Apply the next attempt at a clip; `place` is that of its row in the ledger."""
        if attempt.action in NO_OUTCOME_ACTIONS:
            return
        key = attempt.key
        if attempt.action == WITHDRAWN:
            self._withdrawn.add(key)
        outcomes = self._retry.pop(key, None) or self._dead.pop(key, None) or []
        is_first = all(own.is_absent for own in outcomes) and key not in self._media and key not in self._lost
        if attempt.code == "ok":
            self._add_media(attempt, place)
            return
        if is_first and not attempt.is_absent:
            self._late.add(key)
        add_outcome(outcomes, attempt)
        if not outcomes:
            self._late.discard(key)
            return
        self._media.pop(key, None)
        state = fold(outcomes)
        (self._dead if state.final else self._retry)[key] = outcomes
        if not state.final:
            heappush(self._due, (state.not_before, key))

    def _add_media(self, attempt: Attempt, place: int) -> None:
        if attempt.checked(self._folder).path is None:
            self._media.pop(attempt.key, None)
            self._lost.add(attempt.key)
            return
        self._media[attempt.key] = place
        if place == UNREAD:
            self._new_media[attempt.key] = attempt


def _num_own(table: pa.Table, share: WorkerShare) -> int:
    if share.world == 1:
        return table.num_rows
    chunks = table["video_id"].iterchunks()
    return sum(share.owns(video_id) for chunk in chunks for video_id in chunk.to_pylist())
