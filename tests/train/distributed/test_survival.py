"""Signals, non-finite losses, and evaluation shared by ranks."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mbt.manifests.errors import ConfigError
from mbt.manifests.reading.reader import ShardReader
from mbt.train.data.augment import augment
from mbt.train.data.batch import Batch
from mbt.train.engine.engine import StepResult
from mbt.train.engine.torch_engine import TorchEngine
from mbt.train.engine.zero_config import Zero
from mbt.train.evaluation.evaluate import evaluate_split
from mbt.train.recipes.schema import TrainRecipe
from mbt.train.trainer import train
from tests.conftest import Door
from tests.tiny import tiny

pytestmark = pytest.mark.slow

STEPS = tiny("train.max_steps=6", "train.checkpoint_every=100", "model.drop_path=0.3", "train.eval_every_epochs=1.5")


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, what: str) -> None:
    """Return a NaN loss, or send this process a signal, at the engine's n-th step."""
    step, steps = TorchEngine.step, 0

    def changed(self: TorchEngine, batch: Batch, learning_rate: float) -> StepResult:
        nonlocal steps
        steps += 1
        result = step(self, batch, learning_rate)
        if steps == number and what == "NaN":
            return StepResult(torch.full_like(result.loss, torch.nan), result.grad_norm)
        if steps == number:
            os.kill(os.getpid(), getattr(signal, what))
        return result

    monkeypatch.setattr(TorchEngine, "step", changed)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_stops_a_run_after_a_checkpoint(
    name: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(shards, tmp_path / "whole", STEPS)
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        at_step(patch, 3, name)
        with pytest.raises(SystemExit) as stopped:
            train(shards, tmp_path / "run", STEPS)
    assert stopped.value.code == 75
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-3"]
    assert signal.getsignal(signal.SIGTERM) is before
    train(shards, tmp_path / "run", STEPS, resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_resume_requires_a_run_but_auto_does_not(shards: Path, tmp_path: Path, mbt: Door) -> None:
    run = ["train", "--data", shards, "--recipe", "demo", "--out", tmp_path / "run", "--set", "train.max_steps=1"]
    refused = mbt(*run, "--resume")
    assert (refused.code, "--resume: no run in" in refused.err) == (2, True)
    for _ in range(2):
        done = mbt(*run, "--resume", "auto")
        assert done.code == 0, done.err


def test_a_nan_loss_is_reported_with_its_clips(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny("train.max_steps=6", "train.checkpoint_every=4", "train.log_every=100")
    at_step(monkeypatch, 3, "NaN")
    with pytest.raises(ConfigError, match=r"non-finite loss at step 3 \(clips (train-\S+, ){3}"):
        train(shards, tmp_path / "run", recipe)
    assert not (tmp_path / "run/checkpoints").exists(), "no checkpoint may hold the state after the NaN"


@pytest.mark.parametrize("engine", ["torch", "zero0", "zero1"])
def test_a_non_finite_step_can_be_skipped(
    engine: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The spectrogram of the third step contains a NaN: the run continues without that step."""
    recipe = tiny(
        "train.max_steps=5", "train.non_finite=skip", "eval.split=none", "train.momentum=0", "train.precision=float32"
    )
    zero = None if engine == "torch" else Zero(int(engine[-1]))
    steps = 0

    def spoiled(batch: Batch, recipe: TrainRecipe) -> Batch:
        nonlocal steps
        steps += 1
        assert batch.spec is not None
        if steps == 3:
            batch.spec[0, 0, 0] = torch.nan
        return augment(batch, recipe)

    monkeypatch.setattr("mbt.train.trainer.augment", spoiled)
    train(shards, tmp_path / "run", recipe, zero=zero)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] is None for line in lines] == [False, False, True, False, False]
    assert lines[-1]["skipped"] == 1
    assert "train: skipped step 3 (clips train-" in capsys.readouterr().err
    weights = load_file(tmp_path / "run/last/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_wandb_gets_the_values_of_the_log(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for wandb, which is an optional dependency."""
    started: list[dict[str, Any]] = []
    got: list[tuple[int, dict[str, float]]] = []
    run = SimpleNamespace(log=lambda values, step: got.append((step, values)), finish=lambda: got.append((-1, {})))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: started.append(options) or run))
    train(shards, tmp_path / "run", tiny("train.max_steps=2", "train.wandb=project", "eval.split=none"))
    assert (started[0]["project"], started[0]["name"], started[0]["resume"]) == ("project", "run", "allow")
    assert [step for step, _ in got] == [1, 2, -1]
    assert got[1][1]["loss"] == losses(tmp_path / "run")[1]


def test_a_missing_wandb_is_an_error(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"mbt\[wandb\]"):
        train(shards, tmp_path / "run", tiny("train.max_steps=2", "train.wandb=project"))


def test_a_run_resumes_with_other_costs(shards: Path, tmp_path: Path) -> None:
    steps = ("train.max_steps=4", "train.checkpoint_every=2", "eval.split=none", "train.precision=float32")
    train(shards, tmp_path / "run", tiny(*steps))
    whole = losses(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-4")
    train(shards, tmp_path / "run", tiny(*steps, "train.micro_batch=3", "train.threads=2"), resume=True)
    assert losses(tmp_path / "run") == pytest.approx(whole, rel=1e-5)
    with pytest.raises(ConfigError, match=r"train\.learning_rate was"):
        train(shards, tmp_path / "run", tiny(*steps, "train.learning_rate=0.01"), resume=True)


@pytest.mark.parametrize("batch_size", [4, 5, 100])
@pytest.mark.parametrize("world_size", [2, 4, 9])
def test_evaluation_shared_by_ranks_equals_that_of_one(
    world_size: int, batch_size: int, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The all-reduce is replaced: each rank's arrays are collected and added here. All ranks call `logits` equally often."""
    asked: list[int] = []

    def logits(batch: Batch) -> torch.Tensor:
        asked.append(len(batch.plan.rows))
        assert batch.spec is not None
        return batch.spec.mean(dim=(1, 2))[:, None] * torch.arange(1.0, 1 + classes)

    with ShardReader(shards, "eval") as reader:
        classes = len(reader.labels)
        inputs = STEPS.inputs(reader.info)
        whole = evaluate_split(reader, inputs, 4, batch_size, torch.device("cpu"), logits)
        assert sum(asked) == 4 * len(reader)
        caught: list[np.ndarray] = []
        monkeypatch.setattr("mbt.train.evaluation.evaluate._all_reduce", lambda array, _: (caught.append(array), array)[1])
        times = []
        for rank in range(world_size):
            asked.clear()
            with pytest.raises(RuntimeError, match="was not evaluated in exactly 4 views"):
                evaluate_split(reader, inputs, 4, batch_size, torch.device("cpu"), logits, rank, world_size)
            times.append(len(asked))
    assert set(times) == {-(-4 * -(-7 // world_size) // batch_size)}
    sums, views = sum(caught[::2]), sum(caught[1::2])
    assert (views == 4).all()
    np.testing.assert_allclose(sums / 4, whole.logits, rtol=1e-5)


def test_a_kill_during_a_checkpoint_leaves_the_previous_one(shards: Path, tmp_path: Path) -> None:
    recipe = tiny("train.max_steps=4", "train.checkpoint_every=2")
    train(shards, tmp_path / "whole", recipe)
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", run)
    newest = run / "checkpoints/step-4"
    partial = run / "checkpoints/.step-4.partial"
    newest.rename(partial)
    next(partial.glob("model.safetensors")).write_bytes(b"cut")
    train(shards, run, recipe, resume=True)
    assert losses(run) == losses(tmp_path / "whole")
    assert not partial.exists()
