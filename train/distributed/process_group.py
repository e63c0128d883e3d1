"""The process group: this process's rank, under any launcher, and how the ranks find each other.

torchrun, the DeepSpeed launcher and `mbt train --gpus` set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; srun sets
its own variables, which are translated.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch.distributed import DistError, HashStore  # type: ignore[attr-defined]

from mbt.manifests.errors import MbtError
from mbt.manifests.slurm import torchrun_variables

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before it fails."""


class PeerError(MbtError):
    """Another rank died or stopped responding."""


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank, and the number of ranks; (0, 1) without a process group."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group of the launched ranks; does nothing in a process that was started alone.

    Raises:
        PeerError: another rank died or stopped responding.
    """
    os.environ.update(torchrun_variables(os.environ))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or torch.distributed.is_initialized():
        yield
        return
    try:
        torch.distributed.init_process_group(_backend(), timeout=TIMEOUT)
        yield
        torch.distributed.destroy_process_group()
    except RuntimeError as error:
        if isinstance(error, DistError) or "gloo" in str(error).lower():
            what = f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} lost contact with the other ranks: {error}"
            raise PeerError(what, "Look for the error of the rank that failed first, then resume with --resume") from None
        raise


def ensure_process_group() -> None:
    """Create a process group of one rank if there is none, for libraries that require one."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(_backend(), store=HashStore(), rank=0, world_size=1)


def _backend() -> str:
    return "nccl" if torch.cuda.is_available() else "gloo"
