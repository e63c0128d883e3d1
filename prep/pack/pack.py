"""Pack the fetched media of a plan into shards, on all cores or on a Ray cluster; it can be interrupted and resumed."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from mbt.manifests.clips import iter_clips
from mbt.manifests.progress import progress
from mbt.manifests.shards import DatasetInfo
from mbt.prep.pack.assign import Assignment, packing_sequence
from mbt.prep.pack.options import PackOptions
from mbt.prep.pack.pack_shard import PackedShard, Packing, ShardTask, pack_shard
from mbt.prep.pack.publish import publish
from mbt.prep.pack.raw_files import RawFiles
from mbt.prep.pack.shard_pool import ShardPool
from mbt.prep.plan.plan import read_plan
from mbt.prep.plan.removed import is_removed
from mbt.prep.state.ledger import Attempt, LedgerReader, late_keys, states
from mbt.prep.state.selection import Selection, frozen_clips, select_clips
from mbt.prep.state.settings import freeze_settings
from mbt.prep.state.store import Store
from mbt.prep.workers.interrupt import graceful_interrupts
from mbt.prep.workers.processes import cores
from mbt.prep.workers.ray_cluster import on_ray


def pack(folder: Path, options: PackOptions) -> DatasetInfo:
    """Pack every fetched clip of the plan; finished shards are left unchanged.

    The first call fixes which clip goes into which shard; clips fetched later go into further shards. A clip that cannot be
    decoded becomes a row of failures.parquet. It is decoded again, for a further shard, if the limit of time or memory that it
    reached is raised, if the machine was at fault, or if `options.recheck` has its code.

    Args:
        folder: the dataset folder, planned and fetched.
        options: what is stored, where, and how it is decoded; `options.settings` must be those of earlier calls.

    Raises:
        InputError: the settings differ from earlier calls, no clip could be packed, or the cluster does not answer.
        StorageError: no space left.
        KeyboardInterrupt: after an interrupt from the keyboard, once the clips in progress are finished.
    """
    plan, labels, table = read_plan(folder)
    settings = options.settings
    store = Store(folder, options.to)
    freeze_settings(folder, settings)
    attempts = list(LedgerReader(folder).new())
    ledger = {key: attempt.checked(folder) for key, attempt in states(attempts).items()}
    late = late_keys(attempts)
    selection = Selection(plan.caps, len(labels), frozen_clips(folder, iter_clips(table)))
    selected = select_clips(iter_clips(table), ledger, late, selection, partial(is_removed, removed=options.removed))
    raw_files = RawFiles(folder, options)
    raw_files.add(iter_clips(table), ledger)
    table = table.take(pa.array([row for row, _ in selected], pa.int64()))
    splits = {clip.key: clip.split for _, clip in selected}
    fetched = [clip.key for _, clip in selected if clip.key in ledger and ledger[clip.key].path is not None]
    sequence = {key: splits[key] for key in packing_sequence(fetched, late)}
    assignment = Assignment(folder, settings)
    assignment.check(splits)
    assignment.extend(sequence)
    assignment.save()
    packing = Packing(folder, labels, store, options.workers or (cores() if options.ray is None else 1), options)
    with graceful_interrupts() as stop_requested, progress(sum(map(len, assignment.shards.values())), "pack", "clip") as bar:
        pack_shards = _pack_here if options.ray is None else _pack_on_ray
        shards = assignment.shards
        while shards:
            failed: list[str] = []
            for shard in pack_shards(packing, shard_tasks(table, shards, ledger), lambda: not stop_requested.is_set(), bar):
                raw_files.release(shard.done)
                failed += shard.again
            shards = assignment.pack_again(failed, sequence)
            bar.total = (bar.total or 0) + sum(map(len, shards.values()))
    return publish(folder, plan, labels, table, ledger, list(assignment.shards), settings, store, options.removed)


def shard_tasks(table: pa.Table, shards: Mapping[str, list[str]], ledger: Mapping[str, Attempt]) -> Iterator[ShardTask]:
    """The tasks of packing these shards.

    Args:
        table: clip table with the clips of the shards.
        shards: keys of the clips, by name of the shard.
        ledger: state of each clip, by key.
    """
    all_keys = np.array(table["key"].to_pylist())
    order = np.argsort(all_keys)
    for name, keys in shards.items():
        rows = order[np.searchsorted(all_keys, keys, sorter=order)]
        yield ShardTask(name, table.take(pa.array(rows, pa.int64())), {key: ledger[key] for key in keys if key in ledger})


def _pack_here(
    packing: Packing, tasks: Iterator[ShardTask], should_continue: Callable[[], bool], bar: "tqdm[None]"
) -> Iterator[PackedShard]:
    with ShardPool(packing, bar.update, should_continue) as pool:
        yield from pool.map(tasks)


def _pack_on_ray(
    packing: Packing, tasks: Iterator[ShardTask], should_continue: Callable[[], bool], bar: "tqdm[None]"
) -> Iterator[PackedShard]:
    assert packing.options.ray is not None
    for shard in on_ray(packing.options.ray, pack_shard, packing, tasks, packing.workers, should_continue):
        bar.update(shard.clips)
        yield shard
