"""Fetching from local files: every clip of the plan gets its media file, or a reason in the ledger."""

import time
from dataclasses import replace
from pathlib import Path

from mbt.manifests.clips import Clip, table_clips
from mbt.manifests.progress import progress
from mbt.prep.fetch.clip_states import ClipStates, Fetched
from mbt.prep.fetch.options import FetchOptions
from mbt.prep.fetch.worker_share import WorkerShare
from mbt.prep.sources.local_folder import LocalFolder
from mbt.prep.state.ledger import Attempt, LedgerWriter

LOCAL_BATCH = 1000
DEFAULTS = FetchOptions()


def find_local_clips(folder: Path, source: LocalFolder, options: FetchOptions = DEFAULTS) -> Fetched:
    """Find the media file of every clip in the plan that has none yet, in a folder of media files.

    Args:
        folder: the dataset folder.
        source: the folder of media files.
        options: options of the fetch stage.

    Raises:
        StorageError: no space left.
    """
    everything = WorkerShare()
    states = ClipStates(folder, source.name, options.removed, everything)
    with LedgerWriter(folder, everything.worker) as ledger, progress(states.num_own, "fetch", "clip") as bar:
        for start in range(0, states.num_own, LOCAL_BATCH):
            clips = table_clips(states.table.slice(start, LOCAL_BATCH))
            attempts = [_local_attempt(clip, source) for clip in clips if states.is_open(clip) and not states.has_media(clip)]
            ledger.append(attempts)
            states.update(attempts)
            for clip in clips:
                states.settle(clip)
            bar.update(len(clips))
    states.settle_late()
    return states.counts


def _local_attempt(clip: Clip, source: LocalFolder) -> Attempt:
    attempt = Attempt(key=clip.key, source=source.name, time=time.time())
    if file := source.find(clip):
        return replace(attempt, path=str(file.path), size=file.size, offset_ms=file.offset_ms)
    message = f"no file named {clip.key} or {clip.video_id} in {source.folder}"
    return replace(attempt, code="local.missing", message=message)
