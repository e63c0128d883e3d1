"""Fetching: every clip of the plan gets its media file, or a reason in the ledger."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from manifests.clips import Clip, table_clips
from manifests.errors import SourceError
from manifests.progress import progress
from prep.breaker import Breaker
from prep.ledger import LOST, NEVER_FETCHED, Attempt, LedgerWriter, read_ledger
from prep.local import LocalFolder
from prep.plan import read_plan
from prep.removed import is_removed
from prep.select import Selection, frozen_clips, packed_keys
from prep.slice import RawClip
from prep.taxonomy import UNKNOWN, Action, Verdict
from prep.ytdlp import YtDlp

WORKER = "fetch-0"
LOCAL_BATCH = 1000


@dataclass(frozen=True)
class Fetched:
    """How many of the clips that are wanted have their media file, and how many have not."""

    there: int
    missing: int


def fetch(folder: Path, source: LocalFolder | YtDlp, removed: frozenset[str] = frozenset()) -> Fetched:
    """Ask `source` for every clip of the plan that is not there yet, not known to be gone, and not asked for just now.

    Of a split with a cap, a clip is asked for only if it could be taken. Clips of one video share one download. What was
    fetched stays: stop and run again at any time.

    Args:
        folder: the dataset folder.
        source: where media come from.
        removed: keys and video ids that are not asked for.

    Raises:
        SourceError: the source serves nobody here (rate limit, block, no network, wrong installation).
        StorageError: no space left.
    """
    plan, labels, table = read_plan(folder)
    ledger = {key: attempt.checked(folder) for key, attempt in read_ledger(folder).items()}
    clips = table_clips(table)
    selection = Selection(plan.caps, len(labels), frozen_clips(folder, clips))
    packed = packed_keys(folder, {key for key, attempt in ledger.items() if attempt.code == LOST})
    watch = _Watch(source.name)
    there = missing = 0
    with LedgerWriter(folder, WORKER) as writer, progress(len(clips), "fetch", "clip") as bar:
        for batch in _batches(clips, source, in_order=bool(plan.caps)):
            open_ = [clip for clip in batch if selection.has_room(clip) and not is_removed(clip, removed)]
            wanted = [c for c in open_ if c.key not in packed and _wanted(ledger.get(c.key), source, time.time())]
            if wanted:
                before = ledger.get(wanted[0].key)
                attempts, results = _ask(folder, wanted, source)
                writer.append(attempts)
                ledger |= {attempt.key: attempt for attempt in attempts}
                if results:
                    watch.see(results[0], before)
            for clip in open_:
                if not selection.has_room(clip):
                    continue
                if clip.key not in packed and ledger.get(clip.key, NEVER_FETCHED).path is None:
                    missing += 1
                else:
                    there += 1
                    selection.take(clip)
            bar.update(len(batch))
    return Fetched(there, missing)


def _batches(clips: list[Clip], source: LocalFolder | YtDlp, in_order: bool) -> Iterator[list[Clip]]:
    """Clips that go to the ledger together: those of one video, or of a folder any."""
    if isinstance(source, LocalFolder):
        yield from (clips[i : i + LOCAL_BATCH] for i in range(0, len(clips), LOCAL_BATCH))
    else:
        of_a_video = groupby(clips if in_order else sorted(clips, key=lambda c: c.video_id), lambda c: c.video_id)
        yield from (list(group) for _, group in of_a_video)


def _ask(folder: Path, clips: list[Clip], source: LocalFolder | YtDlp) -> tuple[list[Attempt], list[RawClip | Verdict]]:
    """Attempts at clips that are asked for together, and what came of each of their downloads."""
    if isinstance(source, LocalFolder):
        return _find(clips, source), []
    results = source.fetch(clips[0].video_id, clips)
    pairs = zip(clips, results, strict=True)
    return [_attempt(folder, clip, source, result) for clip, result in pairs if _is_the_clips_own(result)], results


def _wanted(attempt: Attempt | None, source: LocalFolder | YtDlp, now: float) -> bool:
    """Whether to ask `source`, after an attempt whose media were checked."""
    if attempt is None:
        return True
    due = not attempt.final and attempt.not_before <= now
    return attempt.path is None and (attempt.source != source.name or due)


def _find(clips: list[Clip], source: LocalFolder) -> list[Attempt]:
    attempts = []
    for clip in clips:
        now = time.time()
        if file := source.find(clip):
            size = file.path.stat().st_size
            found = Attempt(
                key=clip.key, source=source.name, path=str(file.path), size=size, offset_ms=file.offset_ms, time=now
            )
        else:
            message = f"no file named {clip.key} or {clip.video_id} in {source.folder}"
            found = Attempt(key=clip.key, source=source.name, code="local.missing", message=message, time=now)
        attempts.append(found)
    return attempts


def _is_the_clips_own(result: RawClip | Verdict) -> bool:
    return isinstance(result, RawClip) or not result.action.ends


def _attempt(folder: Path, clip: Clip, source: YtDlp, result: RawClip | Verdict) -> Attempt:
    now = time.time()
    if isinstance(result, RawClip):
        path = str(result.path.relative_to(folder))
        return Attempt(key=clip.key, source=source.name, path=path, size=result.size, offset_ms=result.offset_ms, time=now)
    return Attempt(
        key=clip.key,
        source=source.name,
        code=result.code,
        action=result.action.label,
        message=result.message,
        final=result.retry_after_s is None,
        not_before=now + (result.retry_after_s or 0.0),
        time=now,
    )


class _Watch:
    """Stops the run when its failures are the source's, and prints each text that the taxonomy does not know once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._breaker = Breaker()
        self._unknown: set[str] = set()

    def see(self, result: RawClip | Verdict, before: Attempt | None) -> None:
        """Take in what came of a video, of which `before` is the state before it was asked for.

        Raises:
            SourceError: the source serves nobody here.
        """
        verdict = result if isinstance(result, Verdict) else None
        if verdict and verdict.code == UNKNOWN and verdict.message not in self._unknown:
            self._unknown.add(verdict.message)
            tqdm.write(f"fetch: a failure that mbt does not know, to be tried again: {verdict.message}", file=sys.stderr)
        if verdict and before and verdict.code == before.code and verdict.action is not Action.NETWORK:
            return
        if stop := self._breaker.add(verdict, time.time()):
            raise SourceError(f"{self._name} {stop.reason}", stop.remedy)
