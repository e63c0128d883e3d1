"""Pack one shard: decode its clips on threads and write the samples; on this machine or on a cluster node."""

import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import torch

from mbt.manifests.atomic import locked
from mbt.manifests.clips import Clip, table_clips
from mbt.manifests.errors import InputError, StorageError
from mbt.manifests.labels import LabelSet
from mbt.prep.media.decode import decode_clip
from mbt.prep.media.ffmpeg import ClipError
from mbt.prep.pack.options import PackOptions
from mbt.prep.pack.sample import Sample, make_sample
from mbt.prep.pack.write_shard import write_shard
from mbt.prep.plan.plan import PLAN_FILE
from mbt.prep.plan.removed import REMOVED, is_removed
from mbt.prep.state.ledger import LOST, NEVER_FETCHED, Attempt
from mbt.prep.state.shard_record import Failure, ShardRecord, finished_shard, idx_file, read_record
from mbt.prep.state.store import Store

LOCKS_FOLDER = "work/locks"
"""A worker that the cluster considers lost may still be writing its shard."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Packing:
    """What all shards of a call share.

    Attributes:
        folder: the dataset folder; the same path on every node.
        labels: the label set.
        store: where finished files go.
        workers: clips of a shard to decode at a time.
        options: options of the pack stage.
    """

    folder: Path
    labels: LabelSet
    store: Store
    workers: int
    options: PackOptions


@dataclass(frozen=True)
class ShardTask:
    """A shard to pack.

    Attributes:
        name: file name of its first tar.
        clips: its clips in order, as a slice of the clip table.
        attempts: the ledger's state of each clip, by key.
    """

    name: str
    clips: pa.Table
    attempts: Mapping[str, Attempt]


def pack_shard(
    packing: Packing,
    task: ShardTask,
    count: Callable[[int], object] = int,
    should_continue: Callable[[], bool] = lambda: True,
) -> int:
    """Pack a shard and put it into the store, unless it is already there; return its number of clips.

    Args:
        packing: what all shards share.
        task: the shard.
        count: called with the number of clips finished since the last call.
        should_continue: whether to decode further clips.

    Raises:
        InputError: a raw clip is missing.
        StorageError: no space left, or the dataset folder does not exist here.
        KeyboardInterrupt: `should_continue` was False; decoded clips are kept.
    """
    folder = packing.folder
    if not (folder / PLAN_FILE).exists():
        raise StorageError(f"{folder} does not exist on {socket.gethostname()}", "Give a folder that all nodes share")
    clips = table_clips(task.clips)
    with locked(folder / LOCKS_FOLDER / f"{task.name}.lock"):
        record = finished_shard(packing.store, task.name)
        if record is not None and _is_without(record, clips, packing.options.removed):
            count(len(clips))
        else:
            record = _make(packing, task, clips, count, should_continue)
        for name in _file_names(record):
            packing.store.release(name)
    _delete_raw(packing, clips, task.attempts)
    return len(clips)


def _is_without(record: ShardRecord, clips: Iterable[Clip], removed: frozenset[str]) -> bool:
    """Whether no clip of the shard is on the removal list."""
    unwanted = {clip.key for clip in clips if is_removed(clip, removed)}
    return not any(row["key"] in unwanted for row in record.rows)


def _file_names(record: ShardRecord) -> list[str]:
    """The shard's files: each tar after its index."""
    return [name for file in record.files for name in (idx_file(file.name), file.name)]


def _make(
    packing: Packing,
    task: ShardTask,
    clips: list[Clip],
    count: Callable[[int], object],
    should_continue: Callable[[], bool],
) -> ShardRecord:
    """Write the shard, unless an earlier call has, and put it into the store."""
    folder, store, options = packing.folder, packing.store, packing.options
    earlier = read_record(folder, task.name)
    record = finished_shard(Store(folder), task.name)
    if record is not None and _is_without(record, clips, packing.options.removed):
        count(len(clips))
    else:
        results = _counted(_results(packing, clips, task.attempts, should_continue), count)
        keys = [clip.key for clip in clips]
        record = write_shard(folder, task.name, keys, options.media, options.shard_bytes, results)
    names = _file_names(record)
    for obsolete in set(_file_names(earlier)) - set(names) if earlier else ():
        store.remove(obsolete)
    for name in names:
        store.put(name)
    return record


def _delete_raw(packing: Packing, clips: Iterable[Clip], attempts: Mapping[str, Attempt]) -> None:
    for clip in clips:
        path = attempts.get(clip.key, NEVER_FETCHED).path
        unwanted = not packing.options.keep_raw or is_removed(clip, packing.options.removed)
        if unwanted and path is not None and not Path(path).is_absolute():
            (packing.folder / path).unlink(missing_ok=True)


def _results(
    packing: Packing, clips: list[Clip], attempts: Mapping[str, Attempt], should_continue: Callable[[], bool]
) -> Callable[[int], Iterator[Sample | Failure]]:
    """A function that takes n and yields the results of `clips[n:]`."""
    media = packing.options.media

    def pack_clip(clip: Clip) -> Sample | Failure:
        torch.set_num_threads(1)
        if is_removed(clip, packing.options.removed):
            return Failure(key=clip.key, stage="pack", code=REMOVED, message="on the removal list")
        attempt = attempts.get(clip.key, NEVER_FETCHED)
        if attempt.code == LOST:
            raise InputError(attempt.message, "Run the fetch stage again")
        if attempt.path is None:
            return Failure(key=clip.key, stage="fetch", code=attempt.code, message=attempt.message)
        start_s = (clip.start_ms - attempt.offset_ms) / 1000
        path, seconds = packing.folder / attempt.path, clip.duration_ms / 1000
        try:
            decoded = decode_clip(path, start_s, seconds, media.video, packing.options.limits)
            return make_sample(clip, decoded, packing.labels, media, attempt.source, packing.options.limits)
        except ClipError as error:
            return Failure(key=clip.key, stage="pack", code=error.code, message=error.message)

    return lambda done: ordered_map(pack_clip, clips[done:], packing.workers, should_continue)


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], workers: int, should_continue: Callable[[], bool]
) -> Iterator[R]:
    """Like `map`, on threads, with at most `2 * workers` results in memory.

    Raises:
        KeyboardInterrupt: `should_continue` was False; the results of items in progress are yielded first.
    """
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        stopped = False
        try:
            for item in items:
                if stopped := not should_continue():
                    break
                waiting.append(pool.submit(function, item))
                if len(waiting) == 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if stopped:
        raise KeyboardInterrupt


def _counted(results: Callable[[int], Iterator[T]], count: Callable[[int], object]) -> Callable[[int], Iterator[T]]:
    """Wrap `results` to count the clips of earlier calls and each result."""

    def counted(done: int) -> Iterator[T]:
        count(done)
        for result in results(done):
            yield result
            count(1)

    return counted
