"""The shard contract: members, index columns and dataset.json. docs/shards.md is the full specification."""

import hashlib
import json
from pathlib import Path
from typing import Final, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from mbt.manifests.atomic import write_text
from mbt.manifests.errors import ShardError
from mbt.manifests.tasks import Task

FORMAT: Final = "mbt-shards"
FORMAT_VERSION: Final = 1

FPS: Final = 25
MEL_RATE = 100
SAMPLE_RATE: Final = 16_000

DATASET_FILE = "dataset.json"
LABELS_FILE = "labels.csv"
FAILURES_FILE = "failures.parquet"
FAILURES_CSV = "failures.csv"
README_FILE = "README.md"

CLIP_FIELDS = [
    pa.field("video_id", pa.string(), nullable=False),
    pa.field("start_ms", pa.int64(), nullable=False),
    pa.field("end_ms", pa.int64(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("labels", pa.list_(pa.int32()), nullable=False),
]

FAILURE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        *CLIP_FIELDS,
        pa.field("stage", pa.string(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)
"""One row per planned clip that is in no shard."""


class Frozen(BaseModel):
    """Base of strict, immutable records."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class VideoFormat(Frozen):
    """How frames are stored: square pixels, upright, `short_side` pixels on the shorter side, baseline JPEG 4:2:0."""

    fps: Literal[25] = FPS
    short_side: int = 256
    jpeg_qscale: int = 3
    """Quantizer scale of ffmpeg's MJPEG encoder, 2 (best) to 31; 3 gives about 16 kB for a 454x256 frame."""


class LogMelFormat(Frozen):
    """How sound is stored: natural logarithm of mel power, not normalized, float16, (rows, `n_mels`).

    Row k covers the `win_length` samples that start at `k * hop_length`; samples past the end are zeros. Power is computed from
    samples in [-1, 1] and clamped to at least `floor` before the logarithm.
    """

    sample_rate: Literal[16000] = SAMPLE_RATE
    n_fft: Literal[1024] = 1024
    win_length: Literal[400] = 400
    hop_length: Literal[160] = 160
    window: Literal["hamming"] = "hamming"
    n_mels: Literal[128] = 128
    f_min: float = 0.0
    f_max: float = 8000.0
    mel_scale: Literal["htk"] = "htk"
    floor: float = 1e-6


class MediaFormat(Frozen):
    """All settings that determine the bytes of a clip's sample."""

    video: VideoFormat = VideoFormat()
    log_mel: LogMelFormat = LogMelFormat()
    flac: bool = False
    """Whether samples also store their sound as FLAC."""

    @property
    def members(self) -> dict[str, str]:
        """File extension of each member of a sample, in tar order, and the prefix of its index columns."""
        return {"json": "json", "mel.npy": "mel", "mjpg": "mjpg"} | ({"flac": "flac"} if self.flac else {})

    @property
    def index_schema(self) -> pa.Schema:
        """Columns of the index: one row per sample, in shard order.

        `*_offset` and `*_size` give the byte range of a member's data in the tar; `crc32` is the checksum of the data of all
        members, in tar order.
        """
        spans = [f"{member}_{field}" for member in self.members.values() for field in ("offset", "size")]
        numbers = ["num_frames", "num_mel_rows", "width", "height", "padded_frames", "padded_audio_samples"]
        fields = [
            pa.field("key", pa.string(), nullable=False),
            pa.field("shard", pa.string(), nullable=False),
            *[pa.field(name, pa.int64(), nullable=False) for name in spans],
            pa.field("crc32", pa.uint32(), nullable=False),
            *[pa.field(name, pa.int32(), nullable=False) for name in numbers],
            pa.field("flags", pa.list_(pa.string()), nullable=False),
            *CLIP_FIELDS,
        ]
        return pa.schema(fields, metadata={"format": FORMAT, "format_version": str(FORMAT_VERSION)})

    def digest(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of these settings as canonical JSON."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class ShardFile(Frozen):
    """One tar: name, number of samples, size in bytes, SHA-256."""

    name: str
    samples: int
    size: int
    sha256: str


class SplitInfo(Frozen):
    """One split: its counts, total seconds, and shards in order."""

    samples: int
    failures: int
    seconds: float
    shards: tuple[ShardFile, ...]


class MelStatistics(Frozen):
    """Mean and standard deviation over all log-mel values of `split`."""

    split: str
    mean: float
    std: float


class DatasetInfo(Frozen):
    """The content of dataset.json."""

    format: Literal["mbt-shards"] = FORMAT
    format_version: Literal[1] = FORMAT_VERSION
    dataset: str
    task: Task
    num_classes: int
    media: MediaFormat
    log_mel_statistics: MelStatistics
    splits: dict[str, SplitInfo]
    code_version: str
    ffmpeg_version: str
    config_digest: str

    def sizes(self) -> dict[str, int]:
        """Size of each tar in bytes, by name."""
        return {shard.name: shard.size for split in self.splits.values() for shard in split.shards}

    def write(self, folder: Path) -> None:
        """Write dataset.json atomically."""
        write_text(folder / DATASET_FILE, self.model_dump_json(indent=2) + "\n")


def read_dataset(folder: Path) -> DatasetInfo:
    """Read and check `folder`/dataset.json.

    Raises:
        ShardError: it is missing, invalid, or has another format version.
    """
    path = folder / DATASET_FILE
    try:
        content = json.loads(path.read_bytes())
    except OSError:
        raise ShardError(f"{folder} has no {DATASET_FILE}", "Give a folder that `mbt prep` has finished") from None
    except ValueError as error:
        raise ShardError(f"{path} is damaged: {error}", "Run the same `mbt prep` command again to rewrite it") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise ShardError(
            f"{path} has format version {version}; this program reads version {FORMAT_VERSION}",
            "Use the version of mbt that wrote it, or pack the clips again",
        )
    try:
        return DatasetInfo.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ShardError(f"{path} is invalid at {place}: {first['msg']}", "Run the same `mbt prep` command again") from None


def index_file(split: str) -> str:
    """File name of a split's index."""
    return f"{split}.parquet"


def shard_file(split: str, number: int) -> str:
    """File name of a shard."""
    return f"{split}-{number:06d}.tar"
