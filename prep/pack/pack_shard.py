"""Pack one shard: decode its clips on threads and write the samples; on this machine or on a cluster node."""

import socket
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

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
from mbt.prep.pack.write_shard import Results, write_shard
from mbt.prep.plan.plan import PLAN_FILE
from mbt.prep.plan.removed import REMOVED, is_removed
from mbt.prep.state.ledger import LOST, NEVER_FETCHED, Attempt
from mbt.prep.state.shard_record import Failure, ShardRecord, finished_shard, idx_file, read_record
from mbt.prep.state.store import Store
from mbt.prep.workers.ordered_pool import OrderedPool

LOCKS_FOLDER = "work/locks"
"""A worker that the cluster considers lost may still be writing its shard."""


@dataclass(frozen=True)
class Packing:
    """What all shards of a call share.

    Attributes:
        folder: the dataset folder; the same path on every node.
        labels: the label set.
        store: where finished files go.
        workers: clips to decode at a time.
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


@dataclass(frozen=True)
class PackedShard:
    """The result of packing a shard.

    Attributes:
        name: file name of its first tar.
        clips: number of its clips.
        done: keys of the clips that no longer need their media.
    """

    name: str
    clips: int
    done: tuple[str, ...]


def pack_shard(packing: Packing, task: ShardTask) -> PackedShard:
    """`pack_shard_on` threads of its own, on a node of a cluster."""
    with OrderedPool(packing.workers) as threads:
        return pack_shard_on(threads, packing, task)


def pack_shard_on(
    threads: OrderedPool,
    packing: Packing,
    task: ShardTask,
    count: Callable[[int], object] = int,
    should_continue: Callable[[], bool] = lambda: True,
) -> PackedShard:
    """Pack a shard and put it into the store, unless it is already there.

    Args:
        threads: where its clips are decoded.
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
            results = _results(threads, packing, clips, task.attempts, count, should_continue)
            record = _make(packing, task.name, clips, results)
        for name in _file_names(record):
            packing.store.release(name)
    return PackedShard(task.name, len(clips), tuple(clip.key for clip in clips))


def _is_without(record: ShardRecord, clips: Iterable[Clip], removed: frozenset[str]) -> bool:
    """Whether no clip of the shard is on the removal list."""
    unwanted = {clip.key for clip in clips if is_removed(clip, removed)}
    return not any(row["key"] in unwanted for row in record.rows)


def _file_names(record: ShardRecord) -> list[str]:
    """The shard's files: each tar after its index."""
    return [name for file in record.files for name in (idx_file(file.name), file.name)]


def _make(packing: Packing, name: str, clips: list[Clip], results: Results) -> ShardRecord:
    """Write the shard, unless an earlier call has, and put it into the store."""
    folder, store, options = packing.folder, packing.store, packing.options
    earlier = read_record(folder, name)
    record = finished_shard(Store(folder), name)
    if record is None or not _is_without(record, clips, options.removed):
        keys = [clip.key for clip in clips]
        record = write_shard(folder, name, keys, options.media, options.shard_bytes, results)
    names = _file_names(record)
    for obsolete in set(_file_names(earlier)) - set(names) if earlier else ():
        store.remove(obsolete)
    for file in names:
        store.put(file)
    return record


def _results(
    threads: OrderedPool,
    packing: Packing,
    clips: list[Clip],
    attempts: Mapping[str, Attempt],
    count: Callable[[int], object],
    should_continue: Callable[[], bool],
) -> Results:
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

    def results(done: int) -> Generator[Sample | Failure, None, None]:
        count(done)
        with closing(threads.map(pack_clip, clips[done:], should_continue)) as samples:
            for sample in samples:
                yield sample
                count(1)

    return results
