"""Fetching: every clip of the plan gets its media file, or a reason in the ledger."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from manifests.clips import Clip, table_clips
from manifests.progress import progress
from prep.ledger import NEVER_FETCHED, Attempt, LedgerWriter, read_ledger
from prep.local import LocalFolder
from prep.plan import read_plan
from prep.ytdlp import Refusal, YtDlp

WORKER = "fetch-0"
LOCAL_BATCH = 1000


@dataclass(frozen=True)
class Fetched:
    """How many clips of the plan have their media file, and how many have not."""

    there: int
    missing: int


def fetch(folder: Path, source: LocalFolder | YtDlp) -> Fetched:
    """Ask `source` for every clip of the plan that is not there yet and not known to be gone.

    Clips of one video share one download. What was fetched stays: stop and run again at any time.

    Raises:
        SourceError: the source serves nobody here.
        StorageError: no space left.
    """
    _, _, table = read_plan(folder)
    ledger = {key: attempt.checked(folder) for key, attempt in read_ledger(folder).items()}
    clips = table_clips(table)
    wanted = [clip for clip in clips if _wanted(ledger.get(clip.key), source)]
    there = sum(ledger.get(clip.key, NEVER_FETCHED).path is not None for clip in clips)
    with LedgerWriter(folder, WORKER) as writer, progress(len(clips), "fetch", "clip", len(clips) - len(wanted)) as bar:
        for batch in _batches(wanted, source):
            attempts = _find(batch, source) if isinstance(source, LocalFolder) else _download(folder, batch, source)
            writer.append(attempts)
            there += sum(attempt.path is not None for attempt in attempts)
            bar.update(len(batch))
    return Fetched(there, len(clips) - there)


def _batches(clips: list[Clip], source: LocalFolder | YtDlp) -> Iterator[list[Clip]]:
    """Clips that go to the ledger together: those of one video, or of a folder any."""
    if isinstance(source, LocalFolder):
        yield from (clips[i : i + LOCAL_BATCH] for i in range(0, len(clips), LOCAL_BATCH))
    else:
        yield from (list(group) for _, group in groupby(sorted(clips, key=lambda c: c.video_id), lambda c: c.video_id))


def _wanted(attempt: Attempt | None, source: LocalFolder | YtDlp) -> bool:
    """Whether to ask `source`, after an attempt whose media were checked."""
    if attempt is None:
        return True
    return attempt.path is None and (attempt.source != source.name or not attempt.final)


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


def _download(folder: Path, clips: list[Clip], source: YtDlp) -> list[Attempt]:
    result = source.fetch(clips[0].video_id)
    now = time.time()
    if isinstance(result, Refusal):
        return [
            Attempt(key=c.key, source=source.name, code=result.code, message=result.message, final=result.final, time=now)
            for c in clips
        ]
    size = result.stat().st_size
    path = str(result.relative_to(folder))
    return [Attempt(key=clip.key, source=source.name, path=path, size=size, time=now) for clip in clips]
