"""Work spread over a Ray cluster; what was lost with a worker or a node is done again."""

import logging
import socket
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mbt.manifests.errors import InputError, MbtError

CLIENT_PORT = 10001
KNOCK_S = 5.0

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")


def on_ray(
    address: str, function: Callable[[S, T], R], shared: S, items: Iterable[T], cpus: int, go_on: Callable[[], bool]
) -> Iterator[R]:
    """Results of `function(shared, item)` in the order in which they come.

    Args:
        address: of the cluster, as `ray.init` takes it: `auto`, `HOST:PORT` or `ray://HOST:PORT`.
        function: importable by name on every node, and may be called again for an item that was lost half done.
        shared: what all items need; goes to each node once.
        items: each goes to the node that works on it.
        cpus: cores that one item takes.
        go_on: whether more items may be handed out.

    Raises:
        InputError: Ray is not installed, or there is no cluster.
        MbtError: what the function raises.
    """
    try:
        import ray
    except ImportError:
        raise InputError("Ray is not installed", "Run pip install 'mbt[ray]'") from None
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"no Ray cluster answers at {address}: {error}", "Give the address that `ray start` printed") from None
    try:
        remote = ray.remote(num_cpus=cpus, max_retries=-1)(function)
        common = ray.put(shared)
        left = iter(items)
        waiting: list[Any] = []
        while True:
            ahead = 2 * max(int(ray.cluster_resources().get("CPU", 1)) // cpus, 1)
            if go_on():
                waiting += [remote.remote(common, item) for item in islice(left, max(ahead - len(waiting), 0))]
            if not waiting:
                return
            done, waiting = ray.wait(waiting, timeout=1.0)
            for result in done:
                yield _result(ray.get, result, ray.exceptions.RayTaskError)
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Make sure that somebody listens there: Ray would try for minutes."""
    if address != "auto":
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        socket.create_connection((parts.hostname, parts.port or CLIENT_PORT), KNOCK_S).close()


def _result(get: Callable[[Any], R], reference: Any, task_error: type[Exception]) -> R:
    try:
        return get(reference)
    except task_error as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, MbtError):
            raise cause from None
        raise
