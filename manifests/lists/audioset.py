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
ROW_FORMAT = 'Write rows as in the official CSV files: YTID, start_seconds, end_seconds, "mid,mid,..."'


def segments_table(path: Path, split: str) -> pa.Table:
    """Clip table of an official segment list, in list order.

    The format: lines that start with `#` are comments; all others are `YTID, start, end, "mid,mid"`, with a comma and a space
    between fields, times in seconds with decimals, and the label list in quotes. Ids may start with `-` or `_`.

    Args:
        path: the CSV file.
        split: split of all clips.

    Raises:
        InputError: the file is unreadable or empty, has an invalid row or an unknown label (the message has the line number),
            or lists a clip twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
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
            raise InputError(f"{path}, line {numbers[at[0]]}: {what}: {rows[at[0]].as_py()[:80]!r}", fix)

    fields = pc.extract_regex(rows, ROW)
    refuse(fields.is_null(), "invalid row")
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
    """For each row of comma-separated label ids, their indices, ascending and unique; each distinct text is parsed once."""
    index = audioset_labels().index
    encoded = mids.dictionary_encode()
    lists = [text.split(",") for text in encoded.dictionary.to_pylist()]
    for label in {label for labels in lists for label in labels} - index.keys():
        wrong = pa.array([label in labels for labels in lists]).take(encoded.indices)
        refuse(wrong, f"unknown label id {label!r}", "Use AudioSet's label ids; the labels.csv of any output folder lists them")
    distinct = pa.array([sorted({index[label] for label in labels}) for labels in lists], pa.list_(pa.int32()))
    return distinct.take(encoded.indices)


@cache
def audioset_labels() -> LabelSet:
    """The 527 classes in the order of class_labels_indices.csv; ids are machine ids (mids) of the ontology."""
    table = _shipped("audioset_labels")
    return LabelSet(tuple(Label(**row) for row in table.to_pylist()))


def shipped_segments(subset: str) -> pa.Table:
    """Clip table of the `balanced` list (22,160 clips, split train) or the `eval` list (20,371 clips, split eval)."""
    return _shipped(f"audioset_{subset}").cast(SCHEMA)


def _shipped(name: str) -> pa.Table:
    with resources.as_file(resources.files("mbt.manifests.lists") / "data" / f"{name}.parquet") as path:
        return pq.read_table(path)
