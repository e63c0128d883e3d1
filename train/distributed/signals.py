"""Signals that ask a training to stop: Slurm's before a time limit, a cloud's before it takes a spot machine back."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
RESUME_ME = 75
"""Exit code of a training that stopped after a checkpoint (EX_TEMPFAIL of sysexits.h): start it again with --resume."""


@contextmanager
def asked_to_stop(device: torch.device) -> Iterator[Callable[[], bool]]:
    """Yield what says whether any rank has got SIGTERM or SIGUSR1; all ranks ask together, after the same step.

    Outside of the main thread, which alone gets signals, none is heard.

    Args:
        device: where this rank's tensors are.
    """
    got: list[int] = []
    heard = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, lambda number, frame: got.append(number)) for number in heard}

    def asked() -> bool:
        if not torch.distributed.is_initialized():
            return bool(got)
        flag = torch.tensor(len(got), device=device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)

    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
