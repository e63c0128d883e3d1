"""Packing: the fetched media of a plan become shards, on all cores, resumably."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from manifests.atomic import write_text
from manifests.clips import Clip, table_clips
from manifests.errors import InputError
from manifests.labels import LabelSet
from manifests.progress import progress
from manifests.shards import DatasetInfo, Frozen, MediaFormat, shard_file
from prep.decode import DEFAULT_LIMITS, ClipError, Limits, decode_clip
from prep.growing import Failure
from prep.ledger import LOST, NEVER_FETCHED, Attempt, read_ledger
from prep.plan import read_plan
from prep.publish import publish
from prep.removed import REMOVED, is_removed
from prep.sample import Sample, make_sample
from prep.select import ASSIGNMENT_FILE, Selection, frozen_clips, members, read_assignment
from prep.shard import ShardRecord, finished_shard, record_file, write_shard

SETTINGS_FILE = "work/pack.json"

T = TypeVar("T")
R = TypeVar("R")


class PackSettings(Frozen):
    """What decides the bytes of the shards, given the clips."""

    media: MediaFormat = MediaFormat()
    shard_samples: int = 512
    seed: int = 0


def pack(
    folder: Path,
    settings: PackSettings,
    workers: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    keep_raw: bool = True,
    removed: frozenset[str] = frozenset(),
) -> DatasetInfo:
    """Pack every fetched clip of the plan; shards that are done stay as they are.

    Which clip goes into which shard is frozen at the first call; clips fetched later go into further shards. A clip that
    cannot be decoded is a row of failures.parquet.

    Args:
        folder: the dataset folder, planned and fetched.
        settings: what decides the bytes; must be those of earlier calls on this folder.
        workers: clips decoded at a time; default: one a core.
        limits: wall-clock and memory limit of each clip.
        removed: keys and video ids that are not packed; a shard that has one is packed anew without it.
        keep_raw: keep the fetched media of packed clips; those of a source folder are kept in any case.

    Raises:
        InputError: other settings than before, or no clip could be packed.
        StorageError: no space left.
    """
    plan, labels, table = read_plan(folder)
    _freeze_settings(folder, settings)
    ledger = {key: attempt.checked(folder) for key, attempt in read_ledger(folder).items()}
    listed = table_clips(table)
    selection = Selection(plan.caps, len(labels), frozen_clips(folder, listed))
    clips = {clip.key: clip for clip in members(listed, ledger, selection)}
    there = [key for key in clips if key in ledger and ledger[key].path is not None]
    assignment = _assign(folder, clips, there, settings)
    records: dict[str, ShardRecord] = {}
    with progress(sum(map(len, assignment.values())), "pack", "clip") as bar:
        for name, keys in assignment.items():
            tar, record = folder / name, record_file(folder, name)
            done = finished_shard(tar, record)
            if done is not None and any(is_removed(clips[row["key"]], removed) for row in done.rows):
                done = None
            if done is None:
                own = [clips[key] for key in keys]
                outcomes = _outcomes(folder, own, ledger, labels, settings.media, workers, limits, removed)
                done = write_shard(tar, record, keys, _counted(outcomes, bar.update))
            else:
                bar.update(len(keys))
            records[name] = done
            raw = (key for key in keys if key in ledger and (not keep_raw or is_removed(clips[key], removed)))
            _delete_raw(folder, [ledger[key] for key in raw])
    return publish(folder, plan, labels, clips, ledger, records, settings.media)


def _delete_raw(folder: Path, attempts: Iterable[Attempt]) -> None:
    for attempt in attempts:
        if attempt.path is not None and not Path(attempt.path).is_absolute():
            (folder / attempt.path).unlink(missing_ok=True)


def _freeze_settings(folder: Path, settings: PackSettings) -> None:
    path = folder / SETTINGS_FILE
    if path.exists():
        if PackSettings.model_validate_json(path.read_bytes()) != settings:
            raise InputError(f"{folder} was packed with other settings (see {path})", "Use the same settings, or another --out")
    else:
        write_text(path, settings.model_dump_json(indent=2) + "\n")


def _assign(folder: Path, clips: dict[str, Clip], fetched: Collection[str], settings: PackSettings) -> dict[str, list[str]]:
    """Keys by shard name: those frozen before, then new shards of the clips that have come since, in a seeded order."""
    assignment = read_assignment(folder)
    assigned = {key for keys in assignment.values() for key in keys}
    dropped = assigned - clips.keys()
    if dropped:
        raise InputError(
            f"{len(dropped)} packed clips of {folder} are not in its new plan, such as {min(dropped)}",
            "Choose another --out",
        )
    new = sorted((key for key in fetched if key not in assigned), key=lambda key: _order(settings.seed, key))
    for split in sorted({clips[key].split for key in new}):
        keys = [key for key in new if clips[key].split == split]
        first = sum(clips[shard_keys[0]].split == split for shard_keys in assignment.values())
        for number, start in enumerate(range(0, len(keys), settings.shard_samples), first):
            assignment[shard_file(split, number)] = keys[start : start + settings.shard_samples]
    if new:
        write_text(folder / ASSIGNMENT_FILE, json.dumps(assignment, indent=0) + "\n")
    return assignment


def _order(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def _outcomes(
    folder: Path,
    clips: list[Clip],
    ledger: dict[str, Attempt],
    labels: LabelSet,
    media_format: MediaFormat,
    workers: int | None,
    limits: Limits,
    removed: frozenset[str],
) -> Callable[[int], Iterator[Sample | Failure]]:
    """What becomes of the clips from a given place on."""

    def sample(clip: Clip) -> Sample | Failure:
        torch.set_num_threads(1)
        if is_removed(clip, removed):
            return Failure(key=clip.key, stage="pack", code=REMOVED, message="on the removal list")
        attempt = ledger.get(clip.key, NEVER_FETCHED)
        if attempt.code == LOST:
            raise InputError(attempt.message, "Run the fetch stage again")
        if attempt.path is None:
            return Failure(key=clip.key, stage="fetch", code=attempt.code, message=attempt.message)
        start_s = (clip.start_ms - attempt.offset_ms) / 1000
        try:
            decoded = decode_clip(folder / attempt.path, start_s, clip.duration_ms / 1000, media_format.video, limits)
        except ClipError as error:
            return Failure(key=clip.key, stage="pack", code=error.code, message=error.message)
        return make_sample(clip, decoded, labels, media_format, attempt.source)

    return lambda done: ordered_map(sample, clips[done:], workers or len(os.sched_getaffinity(0)))


def ordered_map(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Like `map`, on threads, with at most `2 * workers` results in memory."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) == 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _counted(outcomes: Callable[[int], Iterator[T]], count: Callable[[int], object]) -> Callable[[int], Iterator[T]]:
    """`outcomes` that counts what was done before and what is done now."""

    def counted(done: int) -> Iterator[T]:
        count(done)
        for outcome in outcomes(done):
            yield outcome
            count(1)

    return counted
