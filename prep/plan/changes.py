"""What a new plan changes in a dataset folder. Clips that were fetched or packed are never dropped."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mbt.manifests.errors import InputError, StorageError
from mbt.manifests.labels import LabelSet
from mbt.prep.plan.plan import PLAN_FILE, Plan, read_plan, write_plan
from mbt.prep.state.ledger import read_ledger
from mbt.prep.state.selection import read_assignment

SCALARS = ("video_id", "start_ms", "end_ms", "split")


@dataclass(frozen=True)
class PlanChange:
    """The plan that a folder will have.

    Attributes:
        plan: dataset, task, seed, and caps of all splits.
        labels: label set.
        clips: clip table of all splits.
        is_new: whether it differs from the plan that the folder has.
        replaced: time at which the folder's plan was written, nanoseconds; None: it has none.
    """

    plan: Plan
    labels: LabelSet
    clips: pa.Table
    is_new: bool
    replaced: int | None = None

    def save(self, folder: Path) -> None:
        """Write the plan, if it is new.

        Raises:
            StorageError: another process has written a plan in the meantime.
        """
        if _written(folder) != self.replaced:
            raise StorageError(f"another process has changed the plan in {folder}", "Run the same command again")
        if self.is_new:
            write_plan(folder, self.plan, self.labels, self.clips)


def change_plan(folder: Path, plan: Plan, labels: LabelSet, clips: pa.Table, replan: bool = False) -> PlanChange:
    """Add these clips to the plan of a folder, split by split; write nothing.

    Splits that `clips` does not have are kept. A split may grow; its clips stay, unless `replan` is set.

    Args:
        folder: the dataset folder.
        plan: dataset, task, seed, and caps of the splits of `clips`.
        labels: label set.
        clips: clip table.
        replan: let clips that were neither fetched nor packed leave the plan, and let its caps change.

    Raises:
        InputError: the folder holds another dataset, or its plan would lose clips or change otherwise.
    """
    if not (folder / PLAN_FILE).exists():
        return PlanChange(plan, labels, clips, is_new=True)
    written = _written(folder)
    earlier, earlier_labels, earlier_clips = read_plan(folder)
    _check_dataset(folder, earlier, earlier_labels, plan, labels)
    splits = pc.unique(clips["split"])
    is_replaced = pc.is_in(earlier_clips["split"], value_set=splits)
    replaced, kept = earlier_clips.filter(is_replaced), earlier_clips.filter(pc.invert(is_replaced))
    _check_splits(folder, kept, clips)
    leaving = replaced.filter(pa.array(_changed(replaced, clips)))
    options = _changed_options(earlier, plan, sorted(set(splits.to_pylist()) & set(pc.unique(replaced["split"]).to_pylist())))
    _check_losses(folder, replaced, leaving, options, replan)
    names = set(splits.to_pylist())
    merged = plan.model_copy(
        update={
            "caps": _merged(earlier.caps, plan.caps, names),
            "orders": _merged(earlier.orders, plan.orders, names),
        }
    )
    if replaced.num_rows == clips.num_rows and not leaving.num_rows and merged.caps == earlier.caps and not options:
        return PlanChange(earlier, labels, earlier_clips, is_new=False, replaced=written)
    return PlanChange(merged, labels, pa.concat_tables([kept, clips]), is_new=True, replaced=written)


def _written(folder: Path) -> int | None:
    path = folder / PLAN_FILE
    return path.stat().st_mtime_ns if path.exists() else None


def check_seed(folder: Path, plan: Plan, seed: int) -> None:
    """Check that a folder was planned with this seed.

    Raises:
        InputError: it was planned with another one.
    """
    if plan.seed is not None and plan.seed != seed:
        raise InputError(
            f"{folder} was planned with --seed {plan.seed}, not {seed}", f"Use --seed {plan.seed}, or another --out"
        )


def _check_dataset(folder: Path, earlier: Plan, earlier_labels: LabelSet, plan: Plan, labels: LabelSet) -> None:
    fix = "Choose another --out"
    if earlier.dataset != plan.dataset:
        raise InputError(f"{folder} already holds the dataset {earlier.dataset!r}, not {plan.dataset!r}", fix)
    if earlier.task != plan.task:
        raise InputError(f"{folder} was planned with the task {earlier.task}, not {plan.task}", fix)
    if earlier_labels != labels:
        raise InputError(f"{folder} was planned with another label set: {_label_difference(earlier_labels, labels)}", fix)
    assert plan.seed is not None or earlier.seed is None
    if plan.seed is not None:
        check_seed(folder, earlier, plan.seed)


def _label_difference(earlier: LabelSet, labels: LabelSet) -> str:
    if len(earlier) != len(labels):
        return f"it had {len(earlier)} classes, not {len(labels)}"
    for index, (first, now) in enumerate(zip(earlier.labels, labels.labels, strict=True)):
        if first != now:
            was, is_now = (
                (first.id, now.id) if first.id != now.id else (f"named {first.display_name}", f"named {now.display_name}")
            )
            return f"class {index} was {was!r}, not {is_now!r}"
    raise AssertionError


def _check_splits(folder: Path, kept: pa.Table, clips: pa.Table) -> None:
    """Check that no clip is in another split of the folder."""
    twice = clips.filter(pc.is_in(clips["key"], value_set=kept["key"]))
    if twice.num_rows:
        key, split = twice["key"][0].as_py(), twice["split"][0].as_py()
        other = kept.filter(pc.equal(kept["key"], key))["split"][0].as_py()
        raise InputError(
            f"{folder}: {_clips(twice.num_rows)} of the split {split} already in another split, such as {key} in {other}",
            "Give each clip one split, or choose another --out",
        )


def _check_losses(folder: Path, replaced: pa.Table, leaving: pa.Table, options: list[str], replan: bool) -> None:
    """Check that what would change was neither fetched nor packed, and that the user wants it."""
    if not leaving.num_rows and not options:
        return
    changes = [*options, *([f"{_clips(leaving.num_rows)} would leave it or change"] if leaving.num_rows else [])]
    done = _done_keys(folder)
    affected = replaced if options else leaving
    lost = [key for key in affected["key"].to_pylist() if key in done]
    what = f"{folder} has another plan: {'; '.join(changes)}"
    if lost:
        raise InputError(
            f"{what}; {_clips(len(lost))} already fetched or packed, such as {lost[0]}",
            "Use the same list and options, or another --out; to remove clips, use --removed",
        )
    if not replan:
        raise InputError(what, "Use the same list and options, another --out, or --replan to replace the plan")


def _done_keys(folder: Path) -> set[str]:
    """The clips that were fetched or packed."""
    packed = {key for keys in read_assignment(folder).values() for key in keys}
    return packed | {key for key, attempt in read_ledger(folder).items() if attempt.path is not None}


def _changed_options(earlier: Plan, plan: Plan, splits: Iterable[str]) -> list[str]:
    """Options that would select fewer or other clips of splits that both plans have."""
    changes = []
    for split in splits:
        first, now = earlier.caps.get(split), plan.caps.get(split)
        if now is not None and (first is None or now < first):
            made = "without --cap" if first is None else f"with --cap {first}"
            changes.append(f"the split {split} was planned {made}, not with --cap {now}")
        was, order = earlier.orders.get(split), plan.orders.get(split)
        if was is not None and order is not None and was != order:
            changes.append(f"the split {split} was planned with --order {was}, not with --order {order}")
    return changes


def _merged(earlier: Mapping[str, Any], now: Mapping[str, Any], splits: set[str]) -> dict[str, Any]:
    """The values by split: those of `now`, and of other splits those of `earlier`."""
    return {split: value for split, value in earlier.items() if split not in splits} | dict(now)


def _changed(earlier: pa.Table, clips: pa.Table) -> np.ndarray:
    """For each row of `earlier`, whether `clips` lacks it or has it with other values, bool."""
    found = pc.index_in(earlier["key"], value_set=clips["key"]).combine_chunks()
    changed = found.is_null().to_numpy(zero_copy_only=False).copy()
    rows = np.flatnonzero(~changed)
    first, now = earlier.take(pa.array(rows)), clips.take(found.drop_null())
    for name in SCALARS:
        changed[rows] |= pc.not_equal(first[name], now[name]).to_numpy()
    lengths = [pc.list_value_length(table["labels"]).to_numpy() for table in (first, now)]
    same = lengths[0] == lengths[1]
    changed[rows[~same]] = True
    flat = [table["labels"].filter(pa.array(same)).combine_chunks().flatten().to_numpy() for table in (first, now)]
    owners = np.repeat(rows[same], lengths[0][same])
    changed[owners[flat[0] != flat[1]]] = True
    return changed


def _clips(count: int) -> str:
    return f"{count:,} clip{'s' * (count != 1)}"
