"""Threads shared by several ordered maps, so that no core waits while one map ends and the next begins."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS_PER_CORE = 2
"""While one thread waits for a child process, the other one works on the output of its own."""


class OrderedPool:
    """Runs `map`s on threads; the items of a map follow those of the maps that were started before it.

    Args:
        cores: number of cores to keep busy; at most twice as many items are in progress or have results that nobody has taken.

    Attributes:
        free_cores: hold one of these while a child process does the work of an item.
    """

    def __init__(self, cores: int) -> None:
        self.free_cores = threading.Semaphore(cores)
        self._threads = ThreadPoolExecutor(THREADS_PER_CORE * cores)
        self._free = THREADS_PER_CORE * cores
        self._open: deque[_Map] = deque()
        self._changed = threading.Condition()

    def __enter__(self) -> "OrderedPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def map(
        self, function: Callable[[T], R], items: Iterable[T], should_continue: Callable[[], bool]
    ) -> Generator[R, None, None]:
        """Like `map`; close the generator if it is not read to its end, because its results take room.

        Raises:
            KeyboardInterrupt: `should_continue` was False; the results of items in progress are yielded first.
        """
        own = _Map(function, iter(items), should_continue)
        try:
            with self._changed:
                self._open.append(own)
                self._submit()
            while (future := self._next(own)) is not None:
                yield future.result()
        finally:
            self._end(own)
        if own.is_stopped:
            raise KeyboardInterrupt

    def _next(self, own: "_Map") -> Future[Any] | None:
        """The next result of a map, once the item is submitted; None after the last one."""
        with self._changed:
            self._changed.wait_for(lambda: own.futures or own not in self._open)
            if not own.futures:
                return None
            future = own.futures.popleft()
        future.exception()
        with self._changed:
            self._free += 1
            self._submit()
        return future

    def _end(self, own: "_Map") -> None:
        with self._changed:
            if own in self._open:
                self._open.remove(own)
            self._free += len(own.futures)
            for future in own.futures:
                future.cancel()
            self._submit()

    def _submit(self) -> None:
        """Start as many items as there is room for; the caller holds the lock."""
        while self._free and self._open:
            first = self._open[0]
            item = next(first.items, _NO_ITEM)
            if item is _NO_ITEM or not first.should_continue():
                first.is_stopped = item is not _NO_ITEM
                self._open.popleft()
            else:
                first.futures.append(self._threads.submit(first.function, item))
                self._free -= 1
        self._changed.notify_all()


_NO_ITEM = object()


@dataclass(eq=False)
class _Map:
    """A map that is in progress: the items that are not submitted yet, and the results that are not taken yet."""

    function: Callable[[Any], Any]
    items: Iterator[Any]
    should_continue: Callable[[], bool]
    futures: deque[Future[Any]] = field(default_factory=deque)
    is_stopped: bool = False
