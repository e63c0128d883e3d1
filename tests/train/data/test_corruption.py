"""Corrupt samples: replaced by the next and counted in training, an error in evaluation."""

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
from mbt.train.data.corruption import CorruptSamples
from mbt.train.data.pipeline import decode_batches
from mbt.train.data.random_access import eval_batches, train_batches
from mbt.train.data.views import eval_plan
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
    """Overwrite the first bytes of the first frame."""
    overwrite(folder, split, row, "mjpg", 0, b"\0\0")


def undecodable(folder: Path, row: int, split: str = "train") -> None:
    """Zero the tables and header of the first frame, but keep its first and last bytes."""
    overwrite(folder, split, row, "mjpg", 2, bytes(600))


def no_json(folder: Path, row: int, split: str = "train") -> None:
    overwrite(folder, split, row, "json", 0, b"\0\0")


def wrong_size(folder: Path, row: int, split: str = "train") -> None:
    """Change a digit of a frame's size."""
    with ShardReader(folder, split) as reader:
        stored = reader[row]._read("json")
    place = stored.index(b"[", stored.index(b"frame_bytes")) + 1
    overwrite(folder, split, row, "json", place, b"9" if stored[place : place + 1] != b"9" else b"8")


def first_frames(rows: list[int]) -> StepPlan:
    """Views that start at the first frame of their samples."""
    return replace(eval_plan(np.array(rows)), start=np.zeros((len(rows), 2)))


def run(reader: ShardReader, plans: list[StepPlan], corrupt: CorruptSamples) -> Iterator[Batch]:
    how = tiny(INPUTS).inputs(reader.info)
    raw = train_batches(reader, how, plans, True, corrupt)
    return decode_batches(raw, how, 4, torch.device("cpu"), reader.targets, 1)


@pytest.mark.parametrize("spoil", [no_jpeg, undecodable, no_json, wrong_size])
def test_a_corrupt_sample_is_replaced_by_the_next_and_named_once(
    spoil: Spoil, copy: Path, shards: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Row 3 by row 4 wherever it occurs, and row 19, the last, by row 0; all other views are unchanged."""
    for row in (3, 19):
        spoil(copy, row)
    plans = [[0, 3, 7, 8], [9, 10, 11, 12], [3, 19, 1, 2], [5, 6, 13, 14], [15, 16, 17, 18]]
    with ShardReader(copy, "train") as reader, ShardReader(shards, "train") as whole:
        corrupt = CorruptSamples(reader, 0.1)
        found = list(run(reader, [first_frames(rows) for rows in plans], corrupt))
        wanted = [[0, 4, 7, 8], [9, 10, 11, 12], [4, 0, 1, 2], [5, 6, 13, 14], [15, 16, 17, 18]]
        assert [batch.plan.rows.tolist() for batch in found] == wanted
        for ours, theirs in zip(
            found, run(whole, [first_frames(rows) for rows in wanted], CorruptSamples(whole, 0.0)), strict=True
        ):
            assert ours.rgb is not None
            assert theirs.rgb is not None
            assert ours.targets is not None
            assert torch.equal(ours.rgb, theirs.rgb)
            np.testing.assert_array_equal(ours.targets["all"], reader.targets(ours.plan.rows))
        assert len(corrupt) == 2
        keys = [reader.key(3), reader.key(19)]
    lines = [line for line in capfd.readouterr().err.splitlines() if "is corrupt" in line]
    assert len(lines) == 2
    for key in keys:
        assert sum(line.startswith(f"train: sample {key} is corrupt") and "train-000000.tar: " in line for line in lines) == 1


def test_corrupt_replacements_are_skipped(copy: Path) -> None:
    for row, spoil in ((3, undecodable), (4, no_jpeg), (5, undecodable)):
        spoil(copy, row)
    with ShardReader(copy, "train") as reader:
        corrupt = CorruptSamples(reader, 0.5)
        (batch,) = run(reader, [first_frames([3, 5, 0, 4])], corrupt)
        assert batch.plan.rows.tolist() == [6, 6, 0, 6]
        assert len(corrupt) == 3


@pytest.mark.parametrize("spoil", [no_jpeg, undecodable])
def test_too_many_corrupt_samples_stop_the_run_and_name_the_shards(spoil: Spoil, copy: Path) -> None:
    """A tenth of 20 allows two, but not three."""
    for row in (1, 2, 3):
        spoil(copy, row)
    with ShardReader(copy, "train") as reader:
        steps = run(reader, [first_frames([row, 10, 11, 12]) for row in (1, 2, 3)], CorruptSamples(reader, 0.1))
        with pytest.raises(
            ShardError, match=r"3 of the 20 samples in .* input.max_corrupt 0.1 allows: train-000000.tar \(3\)\."
        ):
            list(steps)


def test_a_rank_sees_its_part_of_the_batch(copy: Path) -> None:
    undecodable(copy, 3)
    with ShardReader(copy, "train") as reader:
        plan = first_frames([3, 9, 3, 5])
        (whole,) = run(reader, [plan], CorruptSamples(reader, 0.1))
        parts = [next(run(reader, [plan.for_rank(rank, 2)], CorruptSamples(reader, 0.1))) for rank in range(2)]
        assert whole.rgb is not None
        assert torch.equal(torch.cat([part.rgb for part in parts if part.rgb is not None]), whole.rgb)


@pytest.mark.parametrize("spoil", [no_jpeg, undecodable, no_json])
def test_evaluation_rejects_corrupt_samples(spoil: Callable[[Path, int, str], None], copy: Path) -> None:
    spoil(copy, 2, "eval")
    with ShardReader(copy, "eval") as reader:
        how = tiny(INPUTS).inputs(reader.info)
        seen = decode_batches(eval_batches(reader, how, np.arange(len(reader)), 4, 4), how, 4, torch.device("cpu"), None, 1)
        with pytest.raises(ShardError, match=rf"eval-000000.tar: .*{reader.key(2)}"):
            list(seen)


def test_training_continues_after_a_corrupt_sample(copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    undecodable(copy, 3)
    recipe = ("train.max_steps=5", "eval.split=none", "train.batch_size=20", "input.seconds=2.4")
    train(copy, tmp_path / "run", tiny(*recipe, "input.max_corrupt=0.05"))
    assert capfd.readouterr().err.count("is corrupt") == 1
    with pytest.raises(ShardError, match="1 of the 20 samples"):
        train(copy, tmp_path / "strict", tiny(*recipe, "input.max_corrupt=0.04"))
