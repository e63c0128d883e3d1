"""Processes that train together: who this one is, by whatever started it, and how they find each other.

torchrun, the DeepSpeed launcher and `mbt train --gpus` set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; srun sets
variables of its own, which are translated.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch.distributed import DistError, HashStore  # type: ignore[attr-defined]

from mbt.manifests.errors import MbtError

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before it gives up."""
FIRST_PORT, PORTS = 20_000, 40_000


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
    os.environ.update(slurm_step(os.environ))
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


def slurm_step(environment: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables for a task of an `srun` of several tasks; nothing elsewhere.

    A batch script and an allocation know of tasks too, but only srun's steps start them. The first host of the step is where
    the ranks meet, at a port of the job's own.
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if "RANK" in environment or tasks == 1:
        return {}
    hosts = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_NODELIST"]
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or first_host(hosts),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(FIRST_PORT + int(environment["SLURM_JOB_ID"]) % PORTS),
    }


def first_host(hosts: str) -> str:
    """The first of Slurm's list of hosts: `a-[03-05,9]-x,b` gives `a-03-x`."""
    name, bracket, rest = hosts.partition("[")
    if not bracket or "," in name:
        return name.partition(",")[0]
    ranges, _, after = rest.partition("]")
    first = ranges.partition(",")[0].partition("-")[0]
    return name + first + first_host(after)


def _backend() -> str:
    return "nccl" if torch.cuda.is_available() else "gloo"
