"""Tasks on a Ray cluster; those lost with a worker or a node run again."""

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mbt.manifests.errors import InputError, MbtError

CLIENT_PORT = 10001
CONNECT_S = 5.0

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")


def on_ray(
    address: str, function: Callable[[S, T], R], shared: S, items: Iterable[T], cpus: int, should_continue: Callable[[], bool]
) -> Iterator[R]:
    """Results of `function(shared, item)`, in the order in which they finish.

    Args:
        address: the cluster's address, as `ray.init` takes it: `auto`, `HOST:PORT` or `ray://HOST:PORT`.
        function: importable by name on every node; called again for an item that was lost while in progress.
        shared: first argument of every call, sent to each node once.
        items: second argument, one call each.
        cpus: cores per item.
        should_continue: whether further items may start.

    Raises:
        InputError: Ray is not installed, or no cluster answers.
        MbtError: whatever the function raises.
    """
    try:
        import ray
    except ImportError:
        raise InputError("Ray is not installed", "Install it with pip install 'mbt[ray]'") from None
    try:
        _check_reachable(address)
        on_sigterm = signal.getsignal(signal.SIGTERM)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler ends the process at once.
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"no Ray cluster answers at {address}: {error}", "Give the address that `ray start` printed") from None
    try:
        remote = ray.remote(num_cpus=cpus, max_retries=-1)(function)
        shared_on_nodes = ray.put(shared)
        remaining = iter(items)
        pending: list[Any] = []
        while True:
            max_pending = 2 * max(int(ray.cluster_resources().get("CPU", 1)) // cpus, 1)
            if should_continue():
                pending += [
                    remote.remote(shared_on_nodes, item) for item in islice(remaining, max(max_pending - len(pending), 0))
                ]
            if not pending:
                return
            done, pending = ray.wait(pending, timeout=1.0)
            for result in done:
                yield _result(ray.get, result, ray.exceptions.RayTaskError)
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Check that something listens at the address: Ray itself would try for minutes."""
    if address != "auto":
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        socket.create_connection((parts.hostname, parts.port or CLIENT_PORT), CONNECT_S).close()


def _result(get: Callable[[Any], R], reference: Any, task_error: type[Exception]) -> R:
    try:
        return get(reference)
    except task_error as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, MbtError):
            raise cause from None
        raise
