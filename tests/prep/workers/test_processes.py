"""`in_processes` is a `map` that consumes items only as needed and raises the function's errors."""

import itertools

import pytest

from mbt.manifests.errors import ShardError
from mbt.prep.workers.processes import in_processes


def half(number: int) -> int:
    if number % 2:
        raise ShardError(f"{number} is odd", "Give an even one")
    return number // 2


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_order_and_items_are_consumed_as_needed(workers: int) -> None:
    consumed = []
    results = in_processes(half, (consumed.append(n) or n for n in itertools.count(step=2)), workers)
    assert list(itertools.islice(results, 10)) == list(range(10))
    assert 10 <= len(consumed) <= 10 + 2 * workers
    results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_the_function_are_raised(workers: int) -> None:
    results = in_processes(half, [0, 2, 5, 8], workers)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ShardError, match=r"^5 is odd\. Give an even one\.$") as caught:
        next(results)
    assert (caught.value.what, caught.value.fix) == ("5 is odd", "Give an even one")
