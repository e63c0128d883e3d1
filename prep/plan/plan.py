"""The plan: the clips that a dataset folder will hold, written before anything is fetched."""

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
    """What a folder's clip table was made from.

    Attributes:
        dataset: name of the dataset.
        task: what kind of labels it has.
        caps: maximum clips per class, by split; the clip table of such a split is in an order in which clips can be considered
            for the cap.
        seed: seed of the order of the clip table; None: it is in the order of an earlier version of mbt.
    """

    dataset: str
    task: Task
    caps: dict[str, int] = Field(default_factory=dict)
    seed: int | None = None


def write_plan(folder: Path, plan: Plan, labels: LabelSet, clips: pa.Table) -> pa.Table:
    """Write `folder`/clips.parquet, labels.csv and the plan; return the clip table.

    The clips replace those of the same splits in an earlier plan. Other splits are kept, so a folder can be filled split by
    split.

    Args:
        folder: the dataset folder; created if missing.
        plan: dataset, task, and caps of the splits of `clips`.
        labels: label set.
        clips: clip table.

    Raises:
        InputError: the folder holds another dataset or label set.
    """
    if (folder / PLAN_FILE).exists():
        plan = _with_kept_caps(folder, plan, labels, set(pc.unique(clips["split"]).to_pylist()))
        earlier = read_clips(folder / CLIPS_FILE)
        kept = earlier.filter(pc.invert(pc.is_in(earlier["split"], value_set=pc.unique(clips["split"]))))
        clips = pa.concat_tables([kept, clips])
    write_table(folder / CLIPS_FILE, clips)
    labels.write(folder / LABELS_FILE)
    write_text(folder / PLAN_FILE, plan.model_dump_json(indent=2) + "\n")
    return clips


def read_plan(folder: Path) -> tuple[Plan, LabelSet, pa.Table]:
    """The plan of a folder, its label set and its clip table.

    Raises:
        InputError: the folder has no plan, or the plan is damaged.
    """
    try:
        plan = Plan.model_validate(json.loads((folder / PLAN_FILE).read_bytes()))
    except OSError:
        raise InputError(f"{folder} holds no plan", "Run the plan stage first (--stage plan)") from None
    except (ValueError, ValidationError):
        raise InputError(f"{folder / PLAN_FILE} is damaged", "Run the plan stage again (--stage plan)") from None
    return plan, read_labels(folder / LABELS_FILE), read_clips(folder / CLIPS_FILE)


def _with_kept_caps(folder: Path, plan: Plan, labels: LabelSet, splits: set[str]) -> Plan:
    """The plan, plus the caps that the folder's earlier plan has for other splits than these."""
    earlier, earlier_labels, _ = read_plan(folder)
    if (earlier.dataset, earlier.task, earlier_labels) != (plan.dataset, plan.task, labels):
        what = (
            f"{folder} already holds a plan for {earlier.dataset} ({earlier.task}); its dataset, task or label set is different"
        )
        raise InputError(what, "Choose another --out")
    kept = {split: cap for split, cap in earlier.caps.items() if split not in splits}
    return plan.model_copy(update={"caps": {**kept, **plan.caps}})
