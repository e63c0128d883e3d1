"""Fetching and packing at the same time, so that the disk holds few raw clips."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from mbt.manifests.errors import MbtError
from mbt.manifests.sizes import format_gigabytes
from mbt.prep.fetch.clip_states import Fetched
from mbt.prep.fetch.fetch import fetch
from mbt.prep.fetch.lanes import Lane
from mbt.prep.fetch.options import FetchOptions
from mbt.prep.pack.options import PackOptions
from mbt.prep.pack.pack_shard import Packing
from mbt.prep.pack.shard_pool import ShardPool
from mbt.prep.plan.plan import read_plan
from mbt.prep.ready_shards import ReadyShards
from mbt.prep.state.store import Store
from mbt.prep.workers.clock import Clock
from mbt.prep.workers.interrupt import graceful_interrupts
from mbt.prep.workers.processes import cores

REMIND_S = 60.0
CHECK_S = 1.0
REAL_TIME = Clock()


def fetch_and_pack(folder: Path, lanes: Sequence[Lane], fetching: FetchOptions, packing: PackOptions, min_free: int) -> Fetched:
    """Fetch a plan, and meanwhile pack every shard whose clips have come; `pack` then packs the rest.

    Args:
        folder: the dataset folder, planned.
        lanes: the network addresses to fetch from.
        fetching: options of the fetch stage.
        packing: options of the pack stage.
        min_free: free bytes on the folder's disk below which fetching pauses until packing, or a person, frees some.

    Raises:
        SourceError: the source does not serve us at all.
        StorageError: no space left, or a finished shard could not be uploaded.
        KeyboardInterrupt: after an interrupt, once the requests and clips in progress are finished.
    """
    _, labels, table = read_plan(folder)
    shared = Packing(folder, labels, Store(folder, packing.to), packing.workers or cores(), packing)
    packed = 0
    failures: list[MbtError] = []

    def count(clips: int) -> None:
        nonlocal packed
        packed += clips

    with graceful_interrupts() as stop_requested, ShardPool(shared, count, lambda: not stop_requested.is_set()) as pool:
        shards = ReadyShards(shared, table, pool.submit)
        disk = DiskFloor(folder, min_free)

        def may_request() -> bool:
            try:
                shards.collect()
            except MbtError as error:
                failures.append(error)
                stop_requested.set()
            return disk.has_room()

        fetched = fetch(
            folder, lanes, fetching, settled=shards.settle, may_request=may_request, note=lambda: f"packed {packed:,}"
        )
        if failures:
            raise failures[0]
    return fetched


class DiskFloor:
    """Says whether the disk has room for further media, and prints when it has not, once a minute.

    Args:
        folder: a folder on the disk.
        min_free: bytes that must be free.
        clock: the time.
    """

    def __init__(self, folder: Path, min_free: int, clock: Clock = REAL_TIME) -> None:
        self._folder = folder
        self._min_free = min_free
        self._clock = clock
        self._has_room = True
        self._next_check = self._next_reminder = 0.0

    def has_room(self) -> bool:
        """Whether at least `min_free` bytes are free; looked up at most once a second."""
        now = self._clock.monotonic()
        if now >= self._next_check:
            self._next_check = now + CHECK_S
            free = shutil.disk_usage(self._folder).free
            self._has_room = free >= self._min_free
            if not self._has_room and now >= self._next_reminder:
                self._next_reminder = now + REMIND_S
                have, floor = format_gigabytes(free), format_gigabytes(self._min_free)
                tqdm.write(
                    f"fetch: paused: {have} free for {self._folder}, less than --min-free {floor};"
                    " continues when packed shards replace their raw clips, or when you free some space",
                    file=sys.stderr,
                )
        return self._has_room
