"""Read-ahead: batches read on several threads, and streams with a thread each."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from mbt.train.data.batch import RawBatch

PREFETCH_BATCHES = 3
READ_THREADS = 4

T = TypeVar("T")
ReadBatch = Callable[[ThreadPoolExecutor], RawBatch]
"""Reads one batch, its views on the threads of a pool."""


def prefetch_batches(reads: Iterable[ReadBatch]) -> Generator[RawBatch]:
    """Yield the batch of each read, in order, reading `PREFETCH_BATCHES` at a time."""
    with ThreadPoolExecutor(PREFETCH_BATCHES) as batches, ThreadPoolExecutor(READ_THREADS) as views:
        waiting: deque[Future[RawBatch]] = deque()
        for read in reads:
            waiting.append(batches.submit(read, views))
            if len(waiting) == PREFETCH_BATCHES:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Prefetcher(Iterator[T]):
    """Iterates over `items`, with the next `count` computed ahead by a thread that starts at once.

    Args:
        items: none of them may be None.
        count: items to compute ahead.
    """

    def __init__(self, items: Iterator[T], count: int) -> None:
        self._items = items
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[T | None]] = deque(self._submit() for _ in range(count))

    def __next__(self) -> T:
        item = self._waiting.popleft().result() if self._waiting else None
        if item is None:
            self.close()
            raise StopIteration
        self._waiting.append(self._submit())
        return item

    def close(self) -> None:
        """Compute no further items."""
        self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _submit(self) -> "Future[T | None]":
        return self._thread.submit(next, self._items, None)


def round_robin(streams: Iterable[Iterator[T]], count: int) -> Iterator[T]:
    """Yield `count` items of each stream in turn until all streams are exhausted."""
    left = deque(streams)
    while left:
        items = list(islice(left[0], count))
        if items:
            yield from items
            left.rotate(-1)
        else:
            left.popleft()
