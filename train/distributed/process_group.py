"""Processes that train together: who this one is, by whatever started it, and how they find each other.

torchrun, the DeepSpeed launcher and `mbt train --gpus` set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; srun sets
variables of its own, which are translated.
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
"""How long a rank waits for the others before it gives up."""


class PeerError(MbtError):
    """Another process of the training is gone."""


def rank_and_world_size() -> tuple[int, int]:
    """This process's place among those that train together."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


@contextmanager
def joined() -> Iterator[None]:
    """Inside, this process trains together with those that were started with it; alone if it was started alone.

    Raises:
        PeerError: another process died, or does not answer.
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
            what = f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} lost the others: {error}"
            raise PeerError(what, "Look for the rank that failed first; go on by --resume") from None
        raise


def join_alone() -> None:
    """A group of one, for what cannot do without, where this process is in none."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(_backend(), store=HashStore(), rank=0, world_size=1)


def _backend() -> str:
    return "nccl" if torch.cuda.is_available() else "gloo"
