"""Fetching: every clip of the plan gets its media file, or a reason in the ledger."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from manifests.clips import Clip, table_clips
from manifests.progress import progress
from prep.ledger import Attempt, LedgerWriter, read_ledger
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
    ledger = read_ledger(folder)
    wanted = [clip for clip in table_clips(table) if _wanted(folder, ledger.get(clip.key), source)]
    with (
        LedgerWriter(folder, WORKER) as writer,
        progress(table.num_rows, "fetch", "clip", table.num_rows - len(wanted)) as bar,
    ):
        for clips in _batches(wanted, source):
            writer.append(_find(clips, source) if isinstance(source, LocalFolder) else _download(folder, clips, source))
            bar.update(len(clips))
    ledger = read_ledger(folder)
    there = sum(key in ledger and ledger[key].media(folder) is not None for key in table["key"].to_pylist())
    return Fetched(there, table.num_rows - there)


def _batches(clips: list[Clip], source: LocalFolder | YtDlp) -> Iterator[list[Clip]]:
    """Clips that go to the ledger together: those of one video, or of a folder any."""
    if isinstance(source, LocalFolder):
        yield from (clips[i : i + LOCAL_BATCH] for i in range(0, len(clips), LOCAL_BATCH))
    else:
        yield from (list(group) for _, group in groupby(sorted(clips, key=lambda c: c.video_id), lambda c: c.video_id))


def _wanted(folder: Path, attempt: Attempt | None, source: LocalFolder | YtDlp) -> bool:
    if attempt is None or attempt.code == "ok":
        return attempt is None or attempt.media(folder) is None
    return attempt.source != source.name or not attempt.final


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
