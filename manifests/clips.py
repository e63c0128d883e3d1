"""The clip table: one row per clip, in Arrow, stored as Parquet."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mbt.manifests.errors import InputError

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
NOT_A_VIDEO_ID = r"^$|\p{Cc}|\\|(^|/)\.{0,2}(/|$)|.{201}"
"""Matches video ids that name no file below a folder: empty or absolute, a part `.` or `..`, a backslash, a line break, too
long."""
RESERVED_SPLITS = ("clips", "failures")
"""Split names whose index would overwrite another table of the dataset folder."""

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("start_ms", pa.int64(), nullable=False),
        pa.field("end_ms", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),
    ]
)

BATCH = 10_000
"""Rows that become Clip objects at a time."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A span of a video, with its labels.

    Attributes:
        key: unique name, `[A-Za-z0-9_-]{1,80}`; by default `<video_id>_<start_ms>`.
        video_id: the video's name at its source: a YouTube id, or a file name, which may begin with folders (`a/b/name`).
        start_ms: start of the clip in the video, milliseconds.
        end_ms: end of the clip in the video, milliseconds.
        split: "train", "eval", ...
        labels: indices into the dataset's label set, ascending, unique.
    """

    key: str
    video_id: str
    start_ms: int
    end_ms: int
    split: str
    labels: tuple[int, ...]

    @property
    def duration_ms(self) -> int:
        """Length in milliseconds."""
        return self.end_ms - self.start_ms


def clip_key(video_id: str, start_ms: int) -> str:
    """The default key of a clip: `<video_id>_<start_ms>`.

    If that is not a valid key, because the video id is a path or a long name: the end of the video id with `_` for each
    character that is not allowed, 8 hexadecimal digits of the SHA-256 of the video id, and the start.
    """
    key = f"{video_id}_{start_ms}"
    if KEY_PATTERN.fullmatch(key):
        return key
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", video_id)[-50:]
    return f"{readable}-{hashlib.sha256(video_id.encode()).hexdigest()[:8]}_{start_ms}"


def clip_table(clips: Iterable[Clip]) -> pa.Table:
    """Clip table of these clips, in the given order."""
    return pa.Table.from_pylist([asdict(clip) for clip in clips], schema=SCHEMA)


def iter_clips(table: pa.Table) -> Iterator[Clip]:
    """The rows of a clip table (or any table with its columns) as clips, with few in memory at a time."""
    for batch in table.select(SCHEMA.names).to_batches(max_chunksize=BATCH):
        for row in batch.to_pylist():
            yield Clip(**{**row, "labels": tuple(row["labels"])})


def table_clips(table: pa.Table) -> list[Clip]:
    """The rows of a clip table (or any table with its columns) as clips."""
    return list(iter_clips(table))


def check_clips(table: pa.Table, where: str) -> pa.Table:
    """Check the rows of `table`, and return it with the columns and types of `SCHEMA`.

    Raises:
        InputError: no rows, a missing column, an invalid key, video id or split, a duplicate key, or an end that is not after
            its start.
    """
    try:
        table = table.select(SCHEMA.names).cast(SCHEMA)
    except (KeyError, pa.ArrowInvalid, ValueError) as error:
        raise InputError(f"{where} is not a clip table: {error}", f"It needs the columns {', '.join(SCHEMA.names)}") from None
    if not table.num_rows:
        raise InputError(f"{where} has no clips", "Give a list with at least one clip")
    bad = table.filter(pc.invert(pc.match_substring_regex(table["key"], f"^{KEY_PATTERN.pattern}$")))
    if bad.num_rows:
        key = bad["key"][0].as_py()
        raise InputError(f"{where}: the key {key!r} is invalid", "Use 1 to 80 characters of A-Z, a-z, 0-9, _ and -")
    bad = table.filter(pc.match_substring_regex(table["video_id"], NOT_A_VIDEO_ID))
    if bad.num_rows:
        video_id = bad["video_id"][0].as_py()
        fix = "Use the name of a file, or its path relative to the source folder, such as guitar/day1/001"
        raise InputError(f"{where}: the video id {video_id!r} is invalid", fix)
    for split in pc.unique(table["split"]).to_pylist():
        if not KEY_PATTERN.fullmatch(split) or split in RESERVED_SPLITS:
            raise InputError(f"{where}: the split name {split!r} is invalid", "Use a name such as train or eval")
    if len(pc.unique(table["key"])) < table.num_rows:
        counts = pc.value_counts(table["key"])
        duplicate = next(c["values"].as_py() for c in counts if c["counts"].as_py() > 1)
        raise InputError(f"{where}: the clip {duplicate!r} is duplicated", "Remove one row: each clip is listed once")
    bad = table.filter(pc.less_equal(table["end_ms"], table["start_ms"]))
    if bad.num_rows:
        raise InputError(f"{where}: the clip {bad['key'][0].as_py()} ends before it starts", "Fix its times")
    return table


def read_clips(path: Path) -> pa.Table:
    """Read and check a clip table.

    Raises:
        InputError: the file is missing, not Parquet, or not a valid clip table (see `check_clips`).
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"cannot read the clip table {path}: {error}", "Run the plan stage first (--stage plan)") from None
    return check_clips(table, str(path))
