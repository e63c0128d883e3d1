"""Options of the pack stage."""

from dataclasses import dataclass

from mbt.manifests.shards import MediaFormat, VideoFormat
from mbt.prep.media.ffmpeg import Limits
from mbt.prep.state.settings import PackSettings


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """What is stored, where, and how it is decoded.

    Attributes:
        short_side: shorter side of the frames, pixels.
        jpeg_qscale: JPEG quality of the frames, 2 (best) to 31 (smallest).
        flac: store the sound as FLAC too.
        shard_samples: maximum samples per shard.
        shard_bytes: maximum bytes per tar file; None: no maximum.
        to: URL of the folder to which finished files are uploaded; None: they stay in the dataset folder.
        seed: seed of the order of the samples.
        workers: clips of a shard decoded at the same time; None: one per core, or one on Ray.
        clip_timeout: seconds that decoding a clip may take.
        clip_memory: address space that decoding a clip may take, GiB.
        keep_raw: keep the fetched media of packed clips; files of a source folder are always kept.
        removed: keys and video ids that are not packed; a shard that has one is rewritten without it.
        recheck: codes of failures, or their beginnings such as `decode`: clips that failed with one in an earlier call are
            decoded again if their media are at hand.
        ray: address of a Ray cluster whose nodes share the dataset folder; None: pack on this machine.
    """

    short_side: int = 256
    jpeg_qscale: int = 3
    flac: bool = False
    shard_samples: int = 512
    shard_bytes: int | None = None
    to: str | None = None
    seed: int = 0
    workers: int | None = None
    clip_timeout: float = 60.0
    clip_memory: float = 3.0
    keep_raw: bool = True
    removed: frozenset[str] = frozenset()
    recheck: frozenset[str] = frozenset()
    ray: str | None = None

    @property
    def media(self) -> MediaFormat:
        """Format of the samples."""
        return MediaFormat(video=VideoFormat(short_side=self.short_side, jpeg_qscale=self.jpeg_qscale), flac=self.flac)

    @property
    def settings(self) -> PackSettings:
        """The options that must be the same in every call that packs a folder."""
        return PackSettings(
            media=self.media, shard_samples=self.shard_samples, shard_bytes=self.shard_bytes, seed=self.seed, to=self.to
        )

    @property
    def limits(self) -> Limits:
        """Time and memory limits of decoding one clip."""
        return Limits(wall_s=self.clip_timeout, memory_bytes=round(self.clip_memory * 2**30))
