"""Pack the fetched media of a plan into shards, on all cores or on a Ray cluster; it can be interrupted and resumed."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from mbt.manifests.atomic import write_text
from mbt.manifests.clips import iter_clips
from mbt.manifests.errors import InputError
from mbt.manifests.progress import progress
from mbt.manifests.shards import DatasetInfo, shard_file
from mbt.prep.pack.options import PackOptions
from mbt.prep.pack.pack_shard import Packing, ShardTask, pack_shard
from mbt.prep.pack.publish import publish
from mbt.prep.plan.plan import read_plan
from mbt.prep.state.ledger import Attempt, read_ledger
from mbt.prep.state.selection import ASSIGNMENT_FILE, Selection, frozen_clips, read_assignment, select_clips
from mbt.prep.state.settings import PackSettings, freeze_settings
from mbt.prep.state.store import Store
from mbt.prep.workers.interrupt import graceful_interrupts
from mbt.prep.workers.processes import cores
from mbt.prep.workers.ray_cluster import on_ray


def pack(folder: Path, options: PackOptions) -> DatasetInfo:
    """Pack every fetched clip of the plan; finished shards are left unchanged.

    The first call fixes which clip goes into which shard; clips fetched later go into further shards. A clip that cannot be
    decoded becomes a row of failures.parquet.

    Args:
        folder: the dataset folder, planned and fetched.
        options: what is stored, where, and how it is decoded; `options.settings` must be those of earlier calls.

    Raises:
        InputError: the settings differ from earlier calls, no clip could be packed, or the cluster does not answer.
        StorageError: no space left.
        KeyboardInterrupt: after an interrupt from the keyboard, once the clips in progress are finished.
    """
    plan, labels, table = read_plan(folder)
    settings, ray = options.settings, options.ray
    store = Store(folder, options.to)
    freeze_settings(folder, settings)
    ledger = {key: attempt.checked(folder) for key, attempt in read_ledger(folder).items()}
    selection = Selection(plan.caps, len(labels), frozen_clips(folder, iter_clips(table)))
    table = table.take(pa.array([row for row, _ in select_clips(iter_clips(table), ledger, selection)], pa.int64()))
    splits = dict(zip(table["key"].to_pylist(), table["split"].to_pylist(), strict=True))
    fetched = [key for key in splits if key in ledger and ledger[key].path is not None]
    assignment = _assign(folder, splits, fetched, settings)
    workers = options.workers or (cores() if ray is None else 1)
    packing = Packing(folder, labels, store, workers, options)
    tasks = _tasks(table, assignment, ledger)
    with graceful_interrupts() as stop_requested, progress(sum(map(len, assignment.values())), "pack", "clip") as bar:
        if ray is None:
            for task in tasks:
                pack_shard(packing, task, bar.update, lambda: not stop_requested.is_set())
        else:
            for clips in on_ray(ray, pack_shard, packing, tasks, packing.workers, lambda: not stop_requested.is_set()):
                bar.update(clips)
    return publish(folder, plan, labels, table, ledger, list(assignment), settings, store)


def _tasks(table: pa.Table, assignment: Mapping[str, list[str]], ledger: Mapping[str, Attempt]) -> Iterator[ShardTask]:
    all_keys = np.array(table["key"].to_pylist())
    order = np.argsort(all_keys)
    for name, keys in assignment.items():
        rows = order[np.searchsorted(all_keys, keys, sorter=order)]
        yield ShardTask(name, table.take(pa.array(rows)), {key: ledger[key] for key in keys if key in ledger})


def _assign(folder: Path, splits: Mapping[str, str], fetched: Collection[str], settings: PackSettings) -> dict[str, list[str]]:
    """Keys by shard name: the shards of earlier calls, then new ones for clips fetched since, in a seeded order."""
    assignment = read_assignment(folder)
    assigned = {key for keys in assignment.values() for key in keys}
    dropped = assigned - splits.keys()
    if dropped:
        raise InputError(
            f"{folder}: {len(dropped)} packed clips are not in the new plan, such as {min(dropped)}",
            "Choose another --out",
        )
    new = sorted((key for key in fetched if key not in assigned), key=lambda key: _order(settings.seed, key))
    for split in sorted({splits[key] for key in new}):
        keys = [key for key in new if splits[key] == split]
        first = sum(splits[shard_keys[0]] == split for shard_keys in assignment.values())
        for number, start in enumerate(range(0, len(keys), settings.shard_samples), first):
            assignment[shard_file(split, number)] = keys[start : start + settings.shard_samples]
    if new:
        write_text(folder / ASSIGNMENT_FILE, json.dumps(assignment, indent=0) + "\n")
    return assignment


def _order(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()
