"""AudioSet's official lists: the segment CSV files and the class list (https://research.google.com/audioset/download.html)."""

from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mbt.manifests.clips import SCHEMA, check_clips
from mbt.manifests.errors import InputError
from mbt.manifests.labels import Label, LabelSet

TIME = r"\d{1,12}(?:\.\d+)?"
ROW = rf'^(?P<video_id>[A-Za-z0-9_-]{{11}}), (?P<start>{TIME}), (?P<end>{TIME}), "(?P<mids>[^"]+)"$'
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
    lines = pc.split_pattern(pa.array([text]), "\n").flatten()
    is_row = pc.invert(pc.or_(pc.equal(lines, ""), pc.starts_with(lines, "#")))
    numbers = np.flatnonzero(is_row.to_numpy(zero_copy_only=False)) + 1
    rows = lines.filter(is_row)
    if not len(rows):
        raise InputError(f"the list {path} is empty", ROW_FORMAT)

    def refuse(wrong: pa.Array | np.ndarray, what: str, fix: str = ROW_FORMAT) -> None:
        if (at := np.flatnonzero(np.asarray(wrong))).size:
            raise InputError(f"{path}, line {numbers[at[0]]}: {what.format(row=rows[at[0]].as_py()[:80])}", fix)

    fields = pc.extract_regex(rows, ROW)
    refuse(fields.is_null(), "malformed row {row!r}")
    video_ids, starts, ends, mids = fields.flatten()
    start_ms, end_ms = (pc.round(pc.multiply(pc.cast(times, pa.float64()), 1000)).cast(pa.int64()) for times in (starts, ends))
    refuse(pc.less_equal(end_ms, start_ms), "the clip ends before it starts")
    columns = {
        "key": pc.binary_join_element_wise(video_ids, start_ms.cast(pa.string()), "_"),
        "video_id": video_ids,
        "start_ms": start_ms,
        "end_ms": end_ms,
        "split": pa.repeat(split, len(rows)),
        "labels": _label_lists(mids, refuse),
    }
    return check_clips(pa.table(columns), str(path))


def _label_lists(mids: pa.Array, refuse: Callable[..., None]) -> pa.Array:
    """Indices of comma-separated label ids, ascending and unique, of each row; the few distinct lists are parsed once."""
    index = audioset_labels().index
    encoded = mids.dictionary_encode()
    lists = [text.split(",") for text in encoded.dictionary.to_pylist()]
    for label in {label for labels in lists for label in labels} - index.keys():
        places = pa.array([label in labels for labels in lists]).take(encoded.indices)
        refuse(
            places, f"unknown label id {label!r}".replace("{", "{{"), "AudioSet has 527 label ids; see labels.csv of any output"
        )
    distinct = pa.array([sorted({index[label] for label in labels}) for labels in lists], pa.list_(pa.int32()))
    return distinct.take(encoded.indices)


@cache
def audioset_labels() -> LabelSet:
    """The 527 classes in the order of class_labels_indices.csv; ids are the ontology's machine ids."""
    table = _shipped("audioset_labels")
    return LabelSet(tuple(Label(**row) for row in table.to_pylist()))


def shipped_segments(subset: str) -> pa.Table:
    """Clip table of the `balanced` (22,160 clips, split train) or `eval` (20,371 clips, split eval) list."""
    return _shipped(f"audioset_{subset}").cast(SCHEMA)


def _shipped(name: str) -> pa.Table:
    with resources.as_file(resources.files("mbt.manifests.lists") / "data" / f"{name}.parquet") as path:
        return pq.read_table(path)
