"""AudioSet's official lists: the segment CSV files and the class list (https://research.google.com/audioset/download.html)."""

import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.clips import SCHEMA, check_clips
from manifests.errors import InputError
from manifests.labels import Label, LabelSet

ROW = re.compile(r'^([A-Za-z0-9_-]{11}), (\d+(?:\.\d+)?), (\d+(?:\.\d+)?), "([^"\n]+)"$', re.MULTILINE)
ROW_FORMAT = 'A row is: YTID, start_seconds, end_seconds, "mid,mid,...", as in the official CSV files'


def segments_table(path: Path, split: str) -> pa.Table:
    """Clip table of an official segment list, in its order.

    The format: lines that begin with `#` are comments; each other line is `YTID, start, end, "mid,mid"` with comma and
    space between fields, times in seconds with decimals, and the label list quoted. Ids may begin with `-` or `_`.

    Args:
        path: the CSV file.
        split: the split that the clips belong to.

    Raises:
        InputError: the file cannot be read, is empty, or has a malformed row or an unknown label (with its line number);
            or it names a clip twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the list {path}: {error}", "Give the path of a segment CSV file") from None
    rows = ROW.findall(text)
    if len(rows) != sum(1 for _ in _data_lines(text)):
        number, line = next((n, line) for n, line in _data_lines(text) if not ROW.match(line))
        raise InputError(f"{path}, line {number}: malformed row {line[:80]!r}", ROW_FORMAT)
    if not rows:
        raise InputError(f"the list {path} is empty", ROW_FORMAT)
    video_ids, starts, ends, mids = zip(*rows, strict=True)
    start_ms, end_ms = (np.rint(np.array(times, np.float64) * 1000).astype(np.int64) for times in (starts, ends))
    if (bad := np.flatnonzero(end_ms <= start_ms)).size:
        raise InputError(f"{path}, line {_line_number(text, bad[0])}: the clip ends before it starts", ROW_FORMAT)
    try:
        labels = [_indices(ids) for ids in mids]
    except KeyError as error:
        unknown = error.args[0]
        row = next(row for row, ids in enumerate(mids) if unknown in ids.split(","))
        fix = "AudioSet has 527 label ids; see labels.csv of any output"
        raise InputError(f"{path}, line {_line_number(text, row)}: unknown label id {unknown!r}", fix) from None
    offsets = np.cumsum([0, *(len(indices) for indices in labels)], dtype=np.int32)
    flat = np.fromiter(chain.from_iterable(labels), np.int32, count=offsets[-1])
    columns = {
        "key": pc.binary_join_element_wise(pa.array(video_ids), pa.array(start_ms).cast(pa.string()), "_"),
        "video_id": pa.array(video_ids),
        "start_ms": pa.array(start_ms),
        "end_ms": pa.array(end_ms),
        "split": pa.repeat(split, len(rows)),
        "labels": pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
    }
    return check_clips(pa.table(columns), str(path))


def _data_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that hold a row, with their numbers from 1."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line and not line.startswith("#"):
            yield number, line


def _line_number(text: str, row: int) -> int:
    return list(_data_lines(text))[row][0]


@cache
def _indices(ids: str) -> tuple[int, ...]:
    """Indices of comma-separated label ids, ascending and unique."""
    index = audioset_labels().index
    return tuple(sorted({index[label] for label in ids.split(",")}))


@cache
def audioset_labels() -> LabelSet:
    """The 527 classes in the order of class_labels_indices.csv; ids are the ontology's machine ids."""
    table = _shipped("audioset_labels")
    return LabelSet(tuple(Label(**row) for row in table.to_pylist()))


def shipped_segments(subset: str) -> pa.Table:
    """Clip table of the `balanced` (22,160 clips, split train) or `eval` (20,371 clips, split eval) list."""
    return _shipped(f"audioset_{subset}").cast(SCHEMA)


def _shipped(name: str) -> pa.Table:
    with resources.as_file(resources.files("manifests") / "data" / f"{name}.parquet") as path:
        return pq.read_table(path)
