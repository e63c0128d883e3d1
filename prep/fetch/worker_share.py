"""One worker's share of the videos, where several workers fetch the same plan."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from mbt.manifests import slurm
from mbt.manifests.errors import InputError


@dataclass(frozen=True)
class WorkerShare:
    """The share of worker `rank` of `world`. The shares are disjoint, and together hold every video.

    Raises:
        InputError: `rank` is not below `world`.
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            what = f"--rank {self.rank} does not exist with --world {self.world}"
            raise InputError(what, f"Choose a rank from 0 to {self.world - 1}")

    @property
    def worker(self) -> str:
        """The worker's name in the ledger."""
        return f"fetch-{self.rank}"

    def owner(self, video_id: str) -> int:
        """Rank of the worker that fetches a video."""
        return int.from_bytes(hashlib.sha256(video_id.encode()).digest()[:8], "big") % self.world

    def owns(self, video_id: str) -> bool:
        """Whether this worker fetches a video."""
        return self.world == 1 or self.owner(video_id) == self.rank


def find_share(rank: int | None, world: int | None, environment: Mapping[str, str] = os.environ) -> WorkerShare:
    """The share given by `rank` and `world`; without them, Slurm's (by task of a step and of a job array), or every video.

    Raises:
        InputError: only one of `rank` and `world` is given, or `rank` is not below `world`.
    """
    if (rank is None) != (world is None):
        raise InputError("--rank and --world must be given together", "Give both, or neither")
    if rank is None or world is None:
        rank, world = slurm.rank_and_world(environment)
    return WorkerShare(rank, world)
