"""Ordered maps that share threads."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from mbt.prep.workers.ordered_pool import OrderedPool


def always() -> bool:
    return True


def test_results_are_in_the_order_of_the_items() -> None:
    """The first item ends last."""
    last = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert last.wait(10)
        if number == 3:
            last.set()
        return number * number

    with OrderedPool(2) as pool, closing(pool.map(work, range(6), always)) as results:
        assert list(results) == [0, 1, 4, 9, 16, 25]


def test_the_next_map_begins_while_the_results_of_the_first_are_still_read() -> None:
    with OrderedPool(1) as pool:
        started = threading.Event()
        first = pool.map(str, range(2), always)
        assert next(first) == "0"
        second = pool.map(lambda _: started.set(), range(1), always)
        assert next(second) is None
        assert started.wait(10), "although the first map has a result that nobody took"
        assert list(first) == ["1"]
        assert list(second) == []


def test_few_results_are_in_memory_however_many_maps_there_are() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with OrderedPool(3) as pool, closing(pool.map(int, items(), always)) as first:
        assert next(first) == 0
        second = threading.Thread(target=list, args=(pool.map(int, items(), always),))
        second.start()
        assert len(taken) == 2 * 3 + 1
        assert list(first) == list(range(1, 100))
        second.join(10)
        assert len(taken) == 200


def test_a_map_that_is_closed_gives_its_room_to_the_others() -> None:
    with OrderedPool(1) as pool:
        first = pool.map(int, range(100), always)
        assert next(first) == 0
        first.close()
        assert list(pool.map(int, range(100), always)) == list(range(100))


def test_an_error_ends_its_own_map_only() -> None:
    def fails(number: int) -> int:
        if number == 1:
            raise ValueError("one")
        return number

    with OrderedPool(2) as pool:
        results = pool.map(fails, range(100), always)
        assert next(results) == 0
        with pytest.raises(ValueError, match="one"):
            next(results)
        assert list(pool.map(int, range(10), always)) == list(range(10))


def test_a_stopped_map_yields_what_is_in_progress() -> None:
    ran: list[int] = []
    read: list[None] = []
    with OrderedPool(1) as pool:
        with pytest.raises(KeyboardInterrupt):
            read.extend(pool.map(ran.append, range(100), lambda: len(ran) < 5))
        assert 5 <= len(read) == len(ran) <= 8
