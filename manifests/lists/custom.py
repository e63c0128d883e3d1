"""Your own data: a CSV of clips and a CSV of labels, for `mbt prep custom`."""

import csv
from pathlib import Path

import pyarrow as pa

from mbt.manifests.clips import Clip, check_clips, clip_key, clip_table
from mbt.manifests.errors import InputError
from mbt.manifests.labels import LabelSet
from mbt.manifests.tasks import Task

FORMAT = "Give a CSV with the header video_id,start,end,split,labels; times in seconds, label ids separated by ;"
LATEST_MS = 1 << 53
"""Above this, floats no longer represent every millisecond."""
REQUIRED = ("video_id", "start", "end", "split", "labels")


def custom_clips(path: Path, labels: LabelSet, task: Task) -> pa.Table:
    """Clip table of a CSV with the columns video_id, start, end (seconds), split and labels (ids separated by `;`).

    Raises:
        InputError: the file is unreadable, lacks a column, or has an invalid row, an unknown label, or with the task
            `multiclass` not exactly one label (the message has the line number); or it lists a clip twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in REQUIRED if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"the list {path} lacks the column {missing[0]!r}", FORMAT)
            clips = [_clip(row, labels, task, f"{path}, line {reader.line_num}") for row in reader]
    except FileNotFoundError:
        raise InputError(f"the list {path} does not exist", FORMAT) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the list {path}: {error}", FORMAT) from None
    return check_clips(clip_table(clips), str(path))


def _clip(row: dict[str, str], labels: LabelSet, task: Task, where: str) -> Clip:
    if None in row:
        raise InputError(f"{where}: invalid row: it has more than the {len(row) - 1} fields of the header", FORMAT)
    if missing := [name for name, value in row.items() if value is None]:
        raise InputError(f"{where}: invalid row: the field {missing[0]} is missing", FORMAT)
    start_ms, end_ms = (_milliseconds(row, name, where) for name in ("start", "end"))
    if end_ms <= start_ms:
        raise InputError(f"{where}: invalid row: the end {row['end']} is not after the start {row['start']}", FORMAT)
    ids = [label for label in row["labels"].split(";") if label]
    unknown = [label for label in ids if label not in labels.index]
    if unknown:
        raise InputError(f"{where}: unknown label id {unknown[0]!r}", "Add it to the label list, or fix the row")
    indices = tuple(sorted({labels.index[label] for label in ids}))
    if task == "multiclass" and len(indices) != 1:
        raise InputError(
            f"{where}: {len(indices)} labels, but a multiclass clip has one", "Fix the row, or use --task multilabel"
        )
    return Clip(clip_key(row["video_id"], start_ms), row["video_id"], start_ms, end_ms, row["split"], indices)


def _milliseconds(row: dict[str, str], name: str, where: str) -> int:
    try:
        time_ms = round(float(row[name]) * 1000)
    except (ValueError, OverflowError):
        raise InputError(f"{where}: invalid row: the {name} {row[name]!r} is not a number of seconds", FORMAT) from None
    if not 0 <= time_ms < LATEST_MS:
        raise InputError(f"{where}: invalid row: the {name} {row[name]} is {'negative' if time_ms < 0 else 'too late'}", FORMAT)
    return time_ms
