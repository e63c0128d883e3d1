"""A worker's share of the videos, where several fetch one plan."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from mbt.manifests.errors import InputError


@dataclass(frozen=True)
class Share:
    """Worker `rank` of `world`; the shares of all workers are disjoint and hold every video."""

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise InputError(f"there is no worker {self.rank} of {self.world}", "Ranks go from 0 to --world less one")

    def owner(self, video_id: str) -> int:
        """Rank of the worker whose the video is."""
        return int.from_bytes(hashlib.sha256(video_id.encode()).digest()[:8], "big") % self.world

    def has(self, video_id: str) -> bool:
        """Whether the video is this worker's."""
        return self.world == 1 or self.owner(video_id) == self.rank


def find_share(rank: int | None, world: int | None, environment: Mapping[str, str] = os.environ) -> Share:
    """The share that is given, or that of a Slurm job array and of the tasks of a Slurm step, or everything.

    Raises:
        InputError: only one of the two is given, or there is no such worker.
    """
    if (rank is None) != (world is None):
        raise InputError("--rank and --world belong together", "Give both, or neither")
    if rank is not None and world is not None:
        return Share(rank, world)
    of = {name: int(environment.get(f"SLURM_{name}", default)) for name, default in SLURM.items()}
    job = (of["ARRAY_TASK_ID"] - of["ARRAY_TASK_MIN"]) // max(of["ARRAY_TASK_STEP"], 1)
    tasks = of["STEP_NUM_TASKS"]
    return Share(job * tasks + of["PROCID"] % tasks, of["ARRAY_TASK_COUNT"] * tasks)


SLURM = {
    **{"ARRAY_TASK_ID": "0", "ARRAY_TASK_MIN": "0", "ARRAY_TASK_STEP": "1", "ARRAY_TASK_COUNT": "1"},
    **{"PROCID": "0", "STEP_NUM_TASKS": "1"},
}
"""Slurm's variables without their prefix, and what holds where one is not set: outside of `srun` a job is one task."""
