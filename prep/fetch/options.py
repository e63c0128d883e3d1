"""Options of the fetch stage."""

from dataclasses import dataclass
from pathlib import Path

from mbt.manifests.lists.datasets import AUDIOSET
from mbt.prep.fetch.worker_share import WorkerShare, find_share


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """Where clips are fetched from, and how fast.

    Attributes:
        source: folder or archive of media files, or URL with the placeholder `{video_id}`.
        sleep: seconds between two requests of a lane that sets no other rate.
        lanes: TOML file of lanes; None: one lane, this machine's own network address.
        ytdlp: texts with yt-dlp's command-line flags, for every lane.
        rank: this worker's number among `world`; None: Slurm's.
        world: number of workers that fetch the same plan; None: Slurm's.
        removed: keys and video ids that are not fetched.
        recheck: codes of failures, or their beginnings such as `creds`: clips that failed with one in an earlier run are
            requested once more, even if the failure is final.
        until_done: wait for retries that are due later, until there is none left.
    """

    source: str = AUDIOSET.url_template
    sleep: float = 15.0
    lanes: Path | None = None
    ytdlp: tuple[str, ...] = ()
    rank: int | None = None
    world: int | None = None
    removed: frozenset[str] = frozenset()
    recheck: frozenset[str] = frozenset()
    until_done: bool = False

    @property
    def is_remote(self) -> bool:
        """Whether the source is a URL."""
        return "://" in self.source and not self.source.startswith("file:")

    @property
    def share(self) -> WorkerShare:
        """The videos that this worker fetches.

        Raises:
            InputError: only one of `rank` and `world` is given, or `rank` is not below `world`.
        """
        return find_share(self.rank, self.world)
