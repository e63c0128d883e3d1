"""Packs shards on one set of decoding threads: while one shard is finished and stored, the clips of the next are decoded."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from mbt.prep.pack.pack_shard import PackedShard, Packing, ShardTask, pack_shard_on
from mbt.prep.workers.ordered_pool import OrderedPool

SHARDS_AT_ONCE = 2


class ShardPool:
    """Packs shards in the order in which they are submitted, two at a time.

    Args:
        packing: what all shards share.
        count: called with the number of clips finished since the last call, by one thread at a time.
        should_continue: whether to decode further clips; no clip is decoded after a shard has failed.
    """

    def __init__(
        self,
        packing: Packing,
        count: Callable[[int], object] = int,
        should_continue: Callable[[], bool] = lambda: True,
    ) -> None:
        self._packing = packing
        self._count = count
        self._should_continue = should_continue
        self._clips = OrderedPool(packing.workers)
        self._shards = ThreadPoolExecutor(SHARDS_AT_ONCE)
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def __enter__(self) -> "ShardPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for the shards that are submitted; if the block failed, only for the clips in progress."""
        if error is not None:
            self._error = self._error or error
        with self._clips:
            self._shards.shutdown(wait=True, cancel_futures=error is not None)

    def submit(self, task: ShardTask) -> Future[PackedShard]:
        """Pack a shard after those submitted before; see `pack_shard_on` for what the result raises."""
        return self._shards.submit(self._pack, task)

    def map(self, tasks: Iterable[ShardTask]) -> Iterator[PackedShard]:
        """Pack shards, and yield the result of each, in order.

        Raises:
            MbtError, KeyboardInterrupt: as `pack_shard_on`; the first error of any shard.
        """
        pending: deque[Future[PackedShard]] = deque()
        for task in tasks:
            pending.append(self.submit(task))
            if len(pending) > SHARDS_AT_ONCE:
                yield self._result(pending.popleft())
        while pending:
            yield self._result(pending.popleft())

    def _result(self, future: Future[PackedShard]) -> PackedShard:
        try:
            return future.result()
        except BaseException as error:
            raise self._error or error from None

    def _pack(self, task: ShardTask) -> PackedShard:
        try:
            return pack_shard_on(
                self._clips,
                self._packing,
                task,
                self._count_one_by_one,
                lambda: self._error is None and self._should_continue(),
            )
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
            raise

    def _count_one_by_one(self, clips: int) -> None:
        with self._lock:
            self._count(clips)
