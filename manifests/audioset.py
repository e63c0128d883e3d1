"""AudioSet's official lists: the segment CSV files and the class list (https://research.google.com/audioset/download.html)."""

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.clips import SCHEMA, Clip, clip_key, clip_table
from manifests.errors import InputError
from manifests.labels import Label, LabelSet

ROW = re.compile(r'([A-Za-z0-9_-]{11}), (\d+(?:\.\d+)?), (\d+(?:\.\d+)?), "([^"]+)"')
ROW_FORMAT = 'A row is: YTID, start_seconds, end_seconds, "mid,mid,...", as in the official CSV files'


def read_segments(path: Path, split: str) -> Iterator[Clip]:
    """Yield the clips of an official segment list, in its order.

    The format: lines that begin with `#` are comments; each other line is `YTID, start, end, "mid,mid"` with comma and
    space between fields, times in seconds with decimals, and the label list quoted. Ids may begin with `-` or `_`.

    Args:
        path: the CSV file.
        split: the split that the clips belong to.

    Raises:
        InputError: the file cannot be read, is empty, or has a malformed row or an unknown label (with its line number).
    """
    index = audioset_labels().index
    empty = True
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                line = line.rstrip("\r\n")
                if line and not line.startswith("#"):
                    empty = False
                    yield _clip(line, split, index, f"{path}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the list {path}: {error}", "Give the path of a segment CSV file") from None
    if empty:
        raise InputError(f"the list {path} is empty", ROW_FORMAT)


def _clip(line: str, split: str, index: dict[str, int], where: str) -> Clip:
    match = ROW.fullmatch(line)
    if match is None:
        raise InputError(f"{where}: malformed row {line[:80]!r}", ROW_FORMAT)
    video_id, start, end, mids = match.groups()
    unknown = [mid for mid in mids.split(",") if mid not in index]
    if unknown:
        raise InputError(
            f"{where}: unknown label id {unknown[0]!r}", "AudioSet has 527 label ids; see labels.csv of any output"
        )
    start_ms, end_ms = round(float(start) * 1000), round(float(end) * 1000)
    if end_ms <= start_ms:
        raise InputError(f"{where}: the clip ends at {end} s, before it starts at {start} s", ROW_FORMAT)
    labels = tuple(sorted({index[mid] for mid in mids.split(",")}))
    return Clip(clip_key(video_id, start_ms), video_id, start_ms, end_ms, split, labels)


def audioset_labels() -> LabelSet:
    """The 527 classes in the order of class_labels_indices.csv; ids are the ontology's machine ids."""
    table = _shipped("audioset_labels")
    return LabelSet(tuple(Label(**row) for row in table.to_pylist()))


def shipped_segments(subset: str) -> pa.Table:
    """Clip table of the `balanced` (22,160 clips, split train) or `eval` (20,371 clips, split eval) list."""
    return _shipped(f"audioset_{subset}").cast(SCHEMA)


def segments_table(path: Path, split: str) -> pa.Table:
    """Clip table of an official segment list; raises as `read_segments`."""
    return clip_table(read_segments(path, split))


def _shipped(name: str) -> pa.Table:
    with resources.as_file(resources.files("manifests") / "data" / f"{name}.parquet") as path:
        return pq.read_table(path)
