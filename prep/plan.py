"""The plan: which clips a dataset folder is to hold, written before anything is fetched."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from manifests.atomic import write_table, write_text
from manifests.clips import read_clips
from manifests.datasets import Task
from manifests.errors import InputError
from manifests.labels import LabelSet, read_labels
from manifests.shards import LABELS_FILE, Frozen

CLIPS_FILE = "clips.parquet"
PLAN_FILE = "work/plan.json"


class Plan(Frozen):
    """What the clip table of a folder is of."""

    dataset: str
    task: Task


def write_plan(folder: Path, plan: Plan, labels: LabelSet, clips: pa.Table, limit: int | None) -> pa.Table:
    """Write `folder`/clips.parquet, labels.csv and the plan; return the clip table.

    The clips take the place of those of the same splits in an earlier plan; other splits stay, so that a folder is filled
    split by split.

    Args:
        folder: the dataset folder; made if missing.
        plan: dataset and task.
        labels: label set.
        clips: clip table.
        limit: keep the first so many clips of each split.

    Raises:
        InputError: the folder holds another dataset or label set, or there is no clip.
    """
    if limit is not None:
        clips = pa.concat_tables(
            clips.filter(pc.equal(clips["split"], split)).slice(0, limit) for split in sorted(set(clips["split"].to_pylist()))
        )
    if not clips.num_rows:
        raise InputError("the plan holds no clip", "Raise --limit, or give a list with clips")
    if (folder / PLAN_FILE).exists():
        _check_same(folder, plan, labels)
        earlier = read_clips(folder / CLIPS_FILE)
        others = earlier.filter(pc.invert(pc.is_in(earlier["split"], value_set=pc.unique(clips["split"]))))
        clips = pa.concat_tables([others, clips])
    write_table(folder / CLIPS_FILE, clips)
    labels.write(folder / LABELS_FILE)
    write_text(folder / PLAN_FILE, plan.model_dump_json(indent=2) + "\n")
    return clips


def read_plan(folder: Path) -> tuple[Plan, LabelSet, pa.Table]:
    """The plan of a folder, its label set and its clip table.

    Raises:
        InputError: there is no plan in the folder, or it is damaged.
    """
    try:
        plan = Plan.model_validate(json.loads((folder / PLAN_FILE).read_bytes()))
    except OSError:
        raise InputError(f"{folder} holds no plan", "Run the plan stage first (--stage plan)") from None
    except (ValueError, ValidationError):
        raise InputError(f"{folder / PLAN_FILE} is damaged", "Run the plan stage again (--stage plan)") from None
    return plan, read_labels(folder / LABELS_FILE), read_clips(folder / CLIPS_FILE)


def _check_same(folder: Path, plan: Plan, labels: LabelSet) -> None:
    earlier, earlier_labels, _ = read_plan(folder)
    if earlier != plan or earlier_labels != labels:
        raise InputError(f"{folder} was planned for {earlier.dataset} with another label set", "Choose another --out")
