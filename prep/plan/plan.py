"""The plan: which clips a dataset folder is to hold, written before anything is fetched."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, ValidationError

from mbt.manifests.atomic import write_table, write_text
from mbt.manifests.clips import read_clips
from mbt.manifests.errors import InputError
from mbt.manifests.labels import LabelSet, read_labels
from mbt.manifests.shards import LABELS_FILE, Frozen
from mbt.manifests.tasks import Task

CLIPS_FILE = "clips.parquet"
PLAN_FILE = "work/plan.json"


class Plan(Frozen):
    """What the clip table of a folder is of.

    Attributes:
        dataset: its name.
        task: what its labels are.
        caps: by split, clips that a class may have at the most; the clips of such a split stand in the order in which they
            are offered to it.
    """

    dataset: str
    task: Task
    caps: dict[str, int] = Field(default_factory=dict)


def write_plan(folder: Path, plan: Plan, labels: LabelSet, clips: pa.Table) -> pa.Table:
    """Write `folder`/clips.parquet, labels.csv and the plan; return the clip table.

    The clips take the place of those of the same splits in an earlier plan; other splits stay, so that a folder is filled
    split by split.

    Args:
        folder: the dataset folder; made if missing.
        plan: dataset, task, and the caps of these splits.
        labels: label set.
        clips: clip table.

    Raises:
        InputError: the folder holds another dataset or label set.
    """
    if (folder / PLAN_FILE).exists():
        plan = _joined(folder, plan, labels, set(pc.unique(clips["split"]).to_pylist()))
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


def _joined(folder: Path, plan: Plan, labels: LabelSet, splits: set[str]) -> Plan:
    """The plan with the caps of the other splits of the folder's earlier one."""
    earlier, earlier_labels, _ = read_plan(folder)
    if (earlier.dataset, earlier.task, earlier_labels) != (plan.dataset, plan.task, labels):
        raise InputError(f"{folder} was planned for {earlier.dataset} with another label set", "Choose another --out")
    others = {split: cap for split, cap in earlier.caps.items() if split not in splits}
    return plan.model_copy(update={"caps": {**others, **plan.caps}})
