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
            `multiclass` not exactly one label (the message has the line number).
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
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
    try:
        start_ms, end_ms = round(float(row["start"]) * 1000), round(float(row["end"]) * 1000)
        ids = [label for label in row["labels"].split(";") if label]
        if None in row.values() or not 0 <= start_ms < end_ms < LATEST_MS:
            raise ValueError
    except (TypeError, ValueError, AttributeError, OverflowError):
        raise InputError(f"{where}: invalid row {','.join(str(v) for v in row.values())!r}", FORMAT) from None
    unknown = [label for label in ids if label not in labels.index]
    if unknown:
        raise InputError(f"{where}: unknown label id {unknown[0]!r}", "Add it to the label list, or fix the row")
    indices = tuple(sorted({labels.index[label] for label in ids}))
    if task == "multiclass" and len(indices) != 1:
        raise InputError(
            f"{where}: {len(indices)} labels, but a multiclass clip has one", "Fix the row, or use --task multilabel"
        )
    return Clip(clip_key(row["video_id"], start_ms), row["video_id"], start_ms, end_ms, row["split"], indices)
