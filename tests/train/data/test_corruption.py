"""Damaged samples: in training replaced by the next and counted, in evaluation an error."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mbt.manifests.errors import ShardError
from mbt.manifests.reading.reader import ShardReader
from mbt.train.data.batch import Batch
from mbt.train.data.corruption import Damage
from mbt.train.data.random_access import batches, centred, eval_views, train_views
from mbt.train.sampling.plan import StepPlan
from mbt.train.trainer import train
from tests.tiny import tiny

INPUTS = 'model.modalities=["rgb"]'
Spoil = Callable[[Path, int], None]


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def overwrite(folder: Path, split: str, row: int, member: str, at: int, data: bytes) -> None:
    with ShardReader(folder, split) as reader:
        offset = reader.index[f"{member}_offset"][row].as_py()
        with (folder / reader.shard(row)).open("r+b") as tar:
            tar.seek(offset + at)
            tar.write(data)


def no_jpeg(folder: Path, row: int, split: str = "train") -> None:
    """The first frame loses its first bytes."""
    overwrite(folder, split, row, "mjpg", 0, b"\0\0")


def undecodable(folder: Path, row: int, split: str = "train") -> None:
    """The first frame keeps its first and last bytes; its tables and header are zeros."""
    overwrite(folder, split, row, "mjpg", 2, bytes(600))


def no_json(folder: Path, row: int, split: str = "train") -> None:
    overwrite(folder, split, row, "json", 0, b"\0\0")


def other_sizes(folder: Path, row: int, split: str = "train") -> None:
    """A digit of a frame's size changes."""
    with ShardReader(folder, split) as reader:
        stored = reader[row]._read("json")
    place = stored.index(b"[", stored.index(b"frame_bytes")) + 1
    overwrite(folder, split, row, "json", place, b"9" if stored[place : place + 1] != b"9" else b"8")


def first_frames(rows: list[int]) -> StepPlan:
    """Views that begin with the samples' first frames."""
    return replace(centred(np.array(rows)), start=np.zeros((len(rows), 2)))


def run(reader: ShardReader, plans: list[StepPlan], damage: Damage) -> Iterator[Batch]:
    how = tiny(INPUTS).inputs(reader.info)
    raw = train_views(reader, how, plans, True, damage)
    return batches(raw, how, 4, torch.device("cpu"), reader.targets, 1)


@pytest.mark.parametrize("spoil", [no_jpeg, undecodable, no_json, other_sizes])
def test_a_damaged_sample_is_replaced_by_the_next_and_named_once(
    spoil: Spoil, copy: Path, shards: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Row 3 by row 4 wherever it comes; row 19, the last, by row 0; the other views are what they are without damage."""
    for row in (3, 19):
        spoil(copy, row)
    plans = [[0, 3, 7, 8], [9, 10, 11, 12], [3, 19, 1, 2], [5, 6, 13, 14], [15, 16, 17, 18]]
    with ShardReader(copy, "train") as reader, ShardReader(shards, "train") as whole:
        damage = Damage(reader, 0.1)
        found = list(run(reader, [first_frames(rows) for rows in plans], damage))
        wanted = [[0, 4, 7, 8], [9, 10, 11, 12], [4, 0, 1, 2], [5, 6, 13, 14], [15, 16, 17, 18]]
        assert [batch.plan.rows.tolist() for batch in found] == wanted
        for ours, theirs in zip(found, run(whole, [first_frames(rows) for rows in wanted], Damage(whole, 0.0)), strict=True):
            assert ours.rgb is not None
            assert theirs.rgb is not None
            assert ours.targets is not None
            assert torch.equal(ours.rgb, theirs.rgb)
            np.testing.assert_array_equal(ours.targets["all"], reader.targets(ours.plan.rows))
        assert len(damage) == 2
        keys = [reader.key(3), reader.key(19)]
    lines = [line for line in capfd.readouterr().err.splitlines() if "is damaged" in line]
    assert len(lines) == 2
    for key in keys:
        assert sum(line.startswith(f"train: {key} is damaged") and "train-000000.tar: " in line for line in lines) == 1


def test_neighbours_that_are_damaged_too_are_passed_over(copy: Path) -> None:
    for row, spoil in ((3, undecodable), (4, no_jpeg), (5, undecodable)):
        spoil(copy, row)
    with ShardReader(copy, "train") as reader:
        damage = Damage(reader, 0.5)
        (batch,) = run(reader, [first_frames([3, 5, 0, 4])], damage)
        assert batch.plan.rows.tolist() == [6, 6, 0, 6]
        assert len(damage) == 3


@pytest.mark.parametrize("spoil", [no_jpeg, undecodable])
def test_too_many_stop_the_run_and_name_the_shards(spoil: Spoil, copy: Path) -> None:
    """Two of 20 are allowed by a tenth, three are not."""
    for row in (1, 2, 3):
        spoil(copy, row)
    with ShardReader(copy, "train") as reader:
        steps = run(reader, [first_frames([row, 10, 11, 12]) for row in (1, 2, 3)], Damage(reader, 0.1))
        with pytest.raises(
            ShardError, match=r"3 of the 20 samples in .* input.max_corrupt 0.1 allows: train-000000.tar \(3\)\."
        ):
            list(steps)


def test_a_rank_sees_its_part_of_what_one_process_sees(copy: Path) -> None:
    undecodable(copy, 3)
    with ShardReader(copy, "train") as reader:
        plan = first_frames([3, 9, 3, 5])
        (whole,) = run(reader, [plan], Damage(reader, 0.1))
        parts = [next(run(reader, [plan.for_rank(rank, 2)], Damage(reader, 0.1))) for rank in range(2)]
        assert whole.rgb is not None
        assert torch.equal(torch.cat([part.rgb for part in parts if part.rgb is not None]), whole.rgb)


@pytest.mark.parametrize("spoil", [no_jpeg, undecodable, no_json])
def test_evaluation_refuses_damage(spoil: Callable[[Path, int, str], None], copy: Path) -> None:
    spoil(copy, 2, "eval")
    with ShardReader(copy, "eval") as reader:
        how = tiny(INPUTS).inputs(reader.info)
        seen = batches(eval_views(reader, how, np.arange(len(reader)), 4, 4), how, 4, torch.device("cpu"), None, 1)
        with pytest.raises(ShardError, match=rf"eval-000000.tar: .*{reader.key(2)}"):
            list(seen)


def test_training_goes_on_over_a_damaged_sample(copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    undecodable(copy, 3)
    recipe = ("train.max_steps=5", "eval.split=none", "train.batch_size=20", "input.seconds=2.4")
    train(copy, tmp_path / "run", tiny(*recipe, "input.max_corrupt=0.05"))
    assert capfd.readouterr().err.count("is damaged") == 1
    with pytest.raises(ShardError, match="1 of the 20 samples"):
        train(copy, tmp_path / "strict", tiny(*recipe, "input.max_corrupt=0.04"))
