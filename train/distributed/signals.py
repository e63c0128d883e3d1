"""Stop signals: sent by Slurm before a time limit, or by a cloud before it reclaims a spot instance."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
RESUMABLE = 75
"""Exit code of a run that stopped after a checkpoint (EX_TEMPFAIL of sysexits.h): start it again with --resume."""


@contextmanager
def stop_requested(device: torch.device) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether any rank has received SIGTERM or SIGUSR1. All ranks must call it after the same step.

    Only the main thread receives signals; in other threads the function returns what the other ranks received.

    Args:
        device: device of this rank's tensors.
    """
    received: list[int] = []
    handled = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in handled}

    def requested() -> bool:
        if not torch.distributed.is_initialized():
            return bool(received)
        flag = torch.tensor(len(received), device=device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)

    try:
        yield requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
