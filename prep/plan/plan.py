"""The plan: the clips that a dataset folder will hold, written before anything is fetched."""

import json
from pathlib import Path

import pyarrow as pa
from pydantic import Field, ValidationError

from mbt.manifests.atomic import storage_errors, write_table, write_text
from mbt.manifests.balance import Order
from mbt.manifests.clips import read_clips
from mbt.manifests.errors import InputError
from mbt.manifests.labels import LabelSet, read_labels
from mbt.manifests.shards import LABELS_FILE, Frozen
from mbt.manifests.tasks import Task
from mbt.prep.state.settings import CONFIG_FILE, SETTINGS_FILE

CLIPS_FILE = "clips.parquet"
PLAN_FILE = "work/plan.json"


class Plan(Frozen):
    """What a folder's clip table was made from.

    Attributes:
        dataset: name of the dataset.
        task: what kind of labels it has.
        caps: maximum clips per class, by split; the clip table of such a split is in an order in which clips can be considered
            for the cap.
        orders: order in which clips are considered, by split with a cap.
        seed: seed of the order of the clip table; None: it is in the order of an earlier version of mbt.
    """

    dataset: str
    task: Task
    caps: dict[str, int] = Field(default_factory=dict)
    orders: dict[str, Order] = Field(default_factory=dict)
    seed: int | None = None


def check_is_ours(folder: Path) -> None:
    """Check that a folder is missing, empty, or a dataset folder of ours.

    Raises:
        InputError: it holds other files.
        StorageError: it is not a folder, or cannot be read.
    """
    if not any((folder / name).exists() for name in (PLAN_FILE, SETTINGS_FILE, CONFIG_FILE)):
        check_is_empty(folder, "mbt prep", f"--out {folder / 'shards'}")


def check_is_empty(folder: Path, command: str, other: str) -> None:
    """Check that a folder that `command` did not write is missing or empty.

    Args:
        folder: folder that `command` is to write.
        command: name of the command, for the message.
        other: example of another folder, as on the command line.

    Raises:
        InputError: it holds files.
        StorageError: it is not a folder, or cannot be read.
    """
    with storage_errors(folder):
        try:
            names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        except FileNotFoundError:
            return
    if foreign := names - {"lost+found"}:
        raise InputError(
            f"{folder} is not empty and was not written by {command}: it holds {min(foreign)!r}",
            f"Choose a new folder, for example {other}",
        )


def write_plan(folder: Path, plan: Plan, labels: LabelSet, clips: pa.Table) -> None:
    """Write `folder`/clips.parquet, labels.csv and the plan; the folder is created if missing."""
    write_table(folder / CLIPS_FILE, clips)
    labels.write(folder / LABELS_FILE)
    write_text(folder / PLAN_FILE, plan.model_dump_json(indent=2) + "\n")


def read_header(folder: Path) -> Plan:
    """The plan of a folder, without its clips.

    Raises:
        InputError: the folder has no plan, or the plan is damaged.
    """
    try:
        return Plan.model_validate(json.loads((folder / PLAN_FILE).read_bytes()))
    except OSError:
        raise InputError(f"{folder} holds no plan", "Run the plan stage first (--stage plan)") from None
    except (ValueError, ValidationError):
        raise InputError(f"{folder / PLAN_FILE} is damaged", "Delete it, and run the plan stage again (--stage plan)") from None


def read_plan(folder: Path) -> tuple[Plan, LabelSet, pa.Table]:
    """The plan of a folder, its label set and its clip table.

    Raises:
        InputError: the folder has no plan, or the plan is damaged.
    """
    return read_header(folder), read_labels(folder / LABELS_FILE), read_clips(folder / CLIPS_FILE)
