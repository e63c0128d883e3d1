"""Pack one shard: decode its clips on threads and write the samples; on this machine or on a cluster node."""

import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from mbt.manifests.atomic import locked
from mbt.manifests.clips import Clip, table_clips
from mbt.manifests.errors import InputError, StorageError
from mbt.manifests.labels import LabelSet
from mbt.manifests.shards import MediaFormat
from mbt.prep.media.decode import decode_clip
from mbt.prep.media.ffmpeg import INTERRUPTED, ClipError
from mbt.prep.pack.copy_samples import removed_failure, surviving_samples
from mbt.prep.pack.growing_tar import Entry
from mbt.prep.pack.options import PackOptions
from mbt.prep.pack.sample import Sample, load_libraries, make_sample
from mbt.prep.pack.write_shard import Results, write_shard
from mbt.prep.plan.plan import PLAN_FILE
from mbt.prep.plan.removed import REMOVED, is_removed
from mbt.prep.state.ledger import LOST, NEVER_FETCHED, Attempt
from mbt.prep.state.shard_record import Failure, ShardRecord, finished_shard, idx_file, tar_file
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
        done: keys of the clips that no longer need their media: those in the shard, and those that can never be packed.
        again: keys of the clips that failed in an earlier call, and should be decoded again under today's options.
    """

    name: str
    clips: int
    done: tuple[str, ...]
    again: tuple[str, ...]


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
        removed = {clip.key for clip in clips if is_removed(clip, packing.options.removed)}
        record, is_new = finished_shard(packing.store, task.name), False
        if (
            record is not None
            and removed.isdisjoint(record.keys)
            and not packing.store.is_pending(file.name for file in record.files)
        ):
            count(len(clips))
        else:
            decoded = _decoded(threads, packing, clips, task.attempts, count, should_continue)
            record, is_new = _make(packing, task.name, [clip.key for clip in clips], removed, decoded, count)
        for name in reversed(_file_names(record)):
            packing.store.release(name)
        _remove_further_tars(packing.store, task.name, record)
    again = set() if is_new else {key for key in _failed_before(record, task, packing.options) if key not in removed}
    failures = {failure.key for failure in record.failures if not failure.is_final}
    done = tuple(clip.key for clip in clips if clip.key not in failures and clip.key not in again)
    return PackedShard(task.name, len(clips), done, tuple(again))


def _failed_before(record: ShardRecord, task: ShardTask, options: PackOptions) -> Iterator[str]:
    """The failed clips of a finished shard whose media are at hand and that might be packed now."""
    for failure in record.failures:
        attempt = task.attempts.get(failure.key, NEVER_FETCHED)
        depends_on_machine = failure.stage == "fetch" or failure.code in (INTERRUPTED, REMOVED)
        if attempt.path is not None and (depends_on_machine or failure.is_outdated(options.limits, options.recheck)):
            yield failure.key


def _file_names(record: ShardRecord) -> list[str]:
    """The shard's files: each tar after its index."""
    return [name for file in record.files for name in (idx_file(file.name), file.name)]


def _make(
    packing: Packing,
    name: str,
    keys: list[str],
    removed: set[str],
    decoded: Results,
    count: Callable[[int], object],
) -> tuple[ShardRecord, bool]:
    """Write the shard, unless an earlier call has, and put it into the store; return whether clips were decoded.

    A shard that only has to lose clips is copied: its media may be gone.
    """
    folder, store, options = packing.folder, packing.store, packing.options
    local = Store(folder)
    record = finished_shard(local, name)
    is_new = False
    if record is None or not removed.isdisjoint(record.keys):
        source = store if record is None else local
        earlier = finished_shard(source, name)
        results = decoded if earlier is None else _copied(source, earlier, keys, removed, options.media, count)
        is_new = earlier is None

        def is_valid(entry: Entry) -> bool:
            if entry.failure is None:
                return entry.key not in removed
            return not entry.failure.is_outdated(options.limits, options.recheck)

        record = write_shard(folder, name, keys, options.media, options.shard_bytes, results, is_valid)
    else:
        count(len(keys))
    for file in _file_names(record):
        store.put(file)
    return record, is_new


def _copied(
    source: Store,
    record: ShardRecord,
    keys: list[str],
    removed: set[str],
    media: MediaFormat,
    count: Callable[[int], object],
) -> Results:
    """A function that takes n and yields the results of `keys[n:]` from a finished shard."""

    def results(done: int) -> Generator[Sample | Failure, None, None]:
        yield from _counted(done, surviving_samples(source, record, keys[done:], removed, media), count)

    return results


def _remove_further_tars(store: Store, shard: str, record: ShardRecord) -> None:
    """Delete the tars of a shard that had more of them before it lost clips; the last one first, for a kill in between."""
    further: list[str] = []
    while True:
        tar = tar_file(shard, len(record.files) + len(further))
        if store.size(tar) is None and store.size(idx_file(tar)) is None:
            break
        further.append(tar)
    for tar in reversed(further):
        store.remove(tar)
        store.remove(idx_file(tar))


def _decoded(
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
        if is_removed(clip, packing.options.removed):
            return removed_failure(clip.key)
        attempt = attempts.get(clip.key, NEVER_FETCHED)
        if attempt.code == LOST:
            raise InputError(attempt.message, "Run the fetch stage again")
        if attempt.path is None:
            return Failure(key=clip.key, stage="fetch", code=attempt.code, message=attempt.message)
        start_s = (clip.start_ms - attempt.offset_ms) / 1000
        path, seconds = packing.folder / attempt.path, clip.duration_ms / 1000
        try:
            with threads.free_cores:
                decoded = decode_clip(path, start_s, seconds, media.video, packing.options.limits)
            return make_sample(clip, decoded, packing.labels, media, attempt.source, packing.options.limits)
        except ClipError as error:
            checked = attempt.checked(packing.folder)
            if checked.path is None:
                return Failure(key=clip.key, stage="fetch", code=checked.code, message=checked.message)
            return Failure.in_packing(clip.key, error.code, error.message, packing.options.limits)

    def results(done: int) -> Generator[Sample | Failure, None, None]:
        load_libraries()
        with closing(threads.map(pack_clip, clips[done:], should_continue)) as samples:
            yield from _counted(done, samples, count)

    return results


def _counted(
    done: int, results: Iterable[Sample | Failure], count: Callable[[int], object]
) -> Generator[Sample | Failure, None, None]:
    """The results, each counted once it is taken; the clips of earlier calls are counted first."""
    count(done)
    for result in results:
        yield result
        count(1)
