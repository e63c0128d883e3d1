"""How a plan may change: splits join, splits grow, and no clip leaves silently."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from mbt.manifests.clips import Clip, clip_table
from mbt.manifests.errors import InputError, StorageError
from mbt.manifests.labels import Label, LabelSet
from mbt.prep.plan.changes import PlanChange, change_plan
from mbt.prep.plan.plan import PLAN_FILE, Plan, read_plan, write_plan
from mbt.prep.state.ledger import Attempt, LedgerWriter
from mbt.prep.state.selection import ASSIGNMENT_FILE

LABELS = LabelSet((Label("a", "Alpha"), Label("b", "Beta")))


def clips(names: str, split: str = "train", labels: tuple[int, ...] = (0,), end_ms: int = 1000) -> pa.Table:
    return clip_table(Clip(name, name, 0, end_ms, split, labels) for name in names)


def plan(cap: int | None = None, order: str = "list", seed: int = 0, split: str = "train") -> Plan:
    if cap is None:
        return Plan(dataset="d", task="multilabel", seed=seed)
    return Plan(dataset="d", task="multilabel", seed=seed, caps={split: cap}, orders={split: order})


def change(folder: Path, table: pa.Table, new: Plan | None = None, replan: bool = False) -> PlanChange:
    changed = change_plan(folder, new or plan(), LABELS, table, replan)
    changed.save(folder)
    return changed


def keys(folder: Path) -> str:
    return "".join(read_plan(folder)[2]["key"].to_pylist())


def fetched(folder: Path, names: Sequence[str]) -> None:
    with LedgerWriter(folder, "fetch-0") as ledger:
        ledger.append([Attempt(key=name, source="s", path="x", size=1, time=time.time()) for name in names])


def test_splits_join_and_grow(tmp_path: Path) -> None:
    assert change(tmp_path, clips("ab")).is_new
    assert change(tmp_path, clips("xy", "eval"), plan(cap=3, split="eval")).is_new
    fetched(tmp_path, "ax")
    assert change(tmp_path, clips("acb")).is_new
    assert keys(tmp_path) == "xyacb"
    assert read_plan(tmp_path)[0] == plan(cap=3, split="eval")


def test_equal_clips_are_no_new_plan_in_whatever_order(tmp_path: Path) -> None:
    change(tmp_path, clips("abc"))
    again = change(tmp_path, clips("cab"))
    assert not again.is_new
    assert keys(tmp_path) == "abc"


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(lambda: clips("ab"), id="left"),
        pytest.param(lambda: pa.concat_tables([clips("ab"), clips("c", labels=(1,))]), id="label"),
        pytest.param(lambda: pa.concat_tables([clips("ab"), clips("c", labels=(0, 1))]), id="labels"),
        pytest.param(lambda: pa.concat_tables([clips("ab"), clips("c", labels=())]), id="no label"),
        pytest.param(lambda: pa.concat_tables([clips("ab"), clips("c", end_ms=999)]), id="time"),
    ],
)
@pytest.mark.parametrize("done", ["nothing", "fetched", "packed"])
def test_a_clip_that_leaves_or_changes(tmp_path: Path, changed, done: str) -> None:  # type: ignore[no-untyped-def]
    change(tmp_path, clips("abc"))
    before = (tmp_path / "clips.parquet").read_bytes()
    if done == "fetched":
        fetched(tmp_path, "c")
    if done == "packed":
        (tmp_path / ASSIGNMENT_FILE).write_text(json.dumps({"train-000000.tar": ["c"]}))
    with pytest.raises(InputError, match="1 clip would leave it or change"):
        change(tmp_path, changed())
    assert (tmp_path / "clips.parquet").read_bytes() == before
    if done == "nothing":
        assert change(tmp_path, changed(), replan=True).is_new
    else:
        with pytest.raises(InputError, match="1 clip would leave it or change; 1 clip already fetched or packed, such as c"):
            change(tmp_path, changed(), replan=True)


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        (plan(cap=5), plan(cap=9), None),
        (plan(cap=5), plan(), None),
        (plan(cap=5), plan(cap=4), "the split train was planned with --cap 5, not with --cap 4"),
        (plan(), plan(cap=4), "the split train was planned without --cap, not with --cap 4"),
        (plan(cap=5), plan(cap=5, order="random"), "the split train was planned with --order list, not with --order random"),
    ],
)
def test_a_cap_may_rise(tmp_path: Path, first: Plan, then: Plan, message: str | None) -> None:
    change(tmp_path, clips("abc"), first)
    if message is None:
        fetched(tmp_path, "b")
        assert change(tmp_path, clips("abc"), then).is_new
        assert read_plan(tmp_path)[0] == then
        return
    with pytest.raises(InputError, match=message):
        change(tmp_path, clips("abc"), then)
    change(tmp_path, clips("abc"), then, replan=True)
    assert read_plan(tmp_path)[0] == then
    fetched(tmp_path, "b")
    with pytest.raises(InputError, match="; 1 clip already fetched or packed, such as b"):
        change(
            tmp_path,
            clips("abc"),
            first if first.caps.get("train") == 5 and message.startswith("--order") else plan(cap=1),
            True,
        )


def test_another_seed_is_refused(tmp_path: Path) -> None:
    change(tmp_path, clips("abc"))
    for table in (clips("abc"), clips("x", "eval")):
        with pytest.raises(InputError, match="was planned with --seed 0, not 1"):
            change(tmp_path, table, plan(seed=1), replan=True)


@pytest.mark.parametrize("first", ["", "ab"])
def test_a_plan_written_in_the_meantime_is_not_overwritten(tmp_path: Path, first: str) -> None:
    if first:
        change(tmp_path, clips(first))
    slow = change_plan(tmp_path, plan(), LABELS, clips("abc"))
    change(tmp_path, clips("abx"))
    with pytest.raises(StorageError, match="another process has changed the plan"):
        slow.save(tmp_path)
    assert keys(tmp_path) == "abx"


def test_a_clip_has_one_split(tmp_path: Path) -> None:
    change(tmp_path, clips("abc"))
    with pytest.raises(InputError, match="1 clip of the split eval already in another split, such as c in train"):
        change(tmp_path, clips("cd", "eval"), replan=True)


def test_a_plan_of_an_earlier_version_has_no_seed(tmp_path: Path) -> None:
    write_plan(tmp_path, plan(), LABELS, clips("abc"))
    (tmp_path / PLAN_FILE).write_text('{"dataset": "d", "task": "multilabel", "caps": {"train": 2}}')
    assert read_plan(tmp_path)[0].seed is None
    assert not change(tmp_path, clips("cab"), plan(cap=2, seed=7)).is_new
    assert keys(tmp_path) == "abc"
