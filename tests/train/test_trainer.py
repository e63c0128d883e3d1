"""Training from shards to a run directory: logs, exact resume, engines, and errors."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from mbt.manifests.errors import ConfigError, ShardError
from mbt.train.engine.engine import StepResult
from mbt.train.engine.torch_engine import TorchEngine
from mbt.train.recipes.schema import Recipe
from mbt.train.trainer import train
from tests.conftest import Door
from tests.tiny import tiny

STEPS = tiny("train.max_steps=6", "train.checkpoint_every=2", "model.drop_path=0.3", "train.eval_every_epochs=1.5")
SPEED = ("clips_per_s", "data_wait")


def logged(run: Path) -> list[dict[str, object]]:
    """metrics.jsonl without the values that depend on the machine's speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in SPEED} for line in lines]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "last" / "model.safetensors")


@pytest.fixture(scope="module")
def whole_run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of six steps."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(shards, run, STEPS)
    return run


def test_a_run_writes_all_its_files(whole_run: Path) -> None:
    for name in ("config.toml", "metrics.jsonl", "checkpoints/step-4", "checkpoints/step-6"):
        assert (whole_run / name).exists(), name
    assert not (whole_run / "checkpoints/step-2").exists()
    for model in ("best", "last"):
        files = {path.name for path in (whole_run / model).iterdir()}
        assert files == {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"}
    assert list(whole_run.glob("events.out.tfevents.*"))
    lines = logged(whole_run)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "eval" in line] == [3, 6]


def test_tensorboard_matches_the_log(whole_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole_run))
    events.Reload()
    losses = [line["loss"] for line in logged(whole_run) if "loss" in line]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)
    assert [event.step for event in events.Scalars("eval/mAP")] == [3, 6]


def test_the_loss_decreases(shards: Path, tmp_path: Path) -> None:
    train(shards, tmp_path / "run", tiny("train.max_steps=40", "train.learning_rate=0.1", "eval.split=none"))
    losses = [float(str(line["loss"])) for line in logged(tmp_path / "run")]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Interrupt the engine at its n-th step."""
    steps = 0
    step = TorchEngine.step

    def failing(self: TorchEngine, *arguments: object) -> StepResult:
        nonlocal steps
        steps += 1
        if steps == at:
            raise KeyboardInterrupt
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TorchEngine, "step", failing)


@pytest.mark.parametrize("at", [2, 4, 6])
def test_a_resumed_run_equals_an_uninterrupted_one(
    at: int, shards: Path, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, at)
        with pytest.raises(KeyboardInterrupt):
            train(shards, run, STEPS)
    train(shards, run, STEPS, resume=True)
    assert logged(run) == logged(whole_run)
    for name, tensor in weights(whole_run).items():
        assert torch.equal(weights(run)[name], tensor), name


def test_resuming_a_finished_run_changes_nothing(shards: Path, whole_run: Path) -> None:
    before = logged(whole_run)
    train(shards, whole_run, STEPS, resume=True)
    assert logged(whole_run) == before


def test_an_unfinished_checkpoint_is_never_visible(
    whole_run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mbt.train.checkpoint as module

    def no_space(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_text", no_space)
    with pytest.raises(Exception, match="no space left"):
        train(shards, tmp_path / "run", STEPS)
    assert not list((tmp_path / "run/checkpoints").glob("step-*"))


def test_the_best_checkpoint_is_kept_too(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of five evaluations is the best, at a step without a regular checkpoint. A run can resume from it."""
    scores = iter([0.3, 0.9, 0.5, 0.9, 0.6])

    def scored(*arguments: object) -> SimpleNamespace:
        return SimpleNamespace(metrics=SimpleNamespace(main="mAP", scores={"mAP": next(scores)}))

    monkeypatch.setattr("mbt.train.trainer.evaluate_split", scored)
    settings = ("train.max_steps=10", "train.checkpoint_every=3", "train.keep_checkpoints=1", "train.eval_every_epochs=1")
    run = tmp_path / "run"
    train(shards, run, tiny(*settings))
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-4", "step-10"}
    kept = load_file(run / "checkpoints/step-4/model.safetensors")
    assert {name: tensor.tolist() for name, tensor in kept.items()} == {
        name: tensor.tolist() for name, tensor in load_file(run / "best/model.safetensors").items()
    }
    whole = logged(run)
    shutil.rmtree(run / "checkpoints/step-10")
    scores = iter([0.5, 0.9, 0.6])
    train(shards, run, tiny(*settings), resume=True)
    assert logged(run) == whole
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-4", "step-10"}


def test_bfloat16_trains(shards: Path, tmp_path: Path) -> None:
    recipe = tiny("train.max_steps=3", "train.precision=bfloat16", "eval.split=none")
    train(shards, tmp_path / "run", recipe)
    exact = tiny("train.max_steps=3", "train.precision=float32", "eval.split=none")
    train(shards, tmp_path / "exact", exact)
    losses = [[float(str(line["loss"])) for line in logged(tmp_path / name)] for name in ("run", "exact")]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "run").values())


def refused(match: str, shards: Path, run: Path, recipe: Recipe, resume: bool = False) -> None:
    with pytest.raises((ConfigError, ShardError), match=match):
        train(shards, run, recipe, resume=resume)


def test_a_folder_with_a_run_is_not_overwritten(shards: Path, whole_run: Path) -> None:
    refused("already holds a run", shards, whole_run, STEPS)


def test_resuming_with_another_recipe_names_the_field(shards: Path, whole_run: Path) -> None:
    other = STEPS.model_copy(update={"train": STEPS.train.model_copy(update={"learning_rate": 0.3})})
    refused("train.learning_rate was 0.1 and is now 0.3", shards, whole_run, other, resume=True)


def test_an_impossible_model_is_a_configuration_error(shards: Path, tmp_path: Path) -> None:
    refused("fusion_layer 13 is outside 0..2", shards, tmp_path / "run", tiny("model.fusion_layer=13"))


def test_a_folder_without_a_dataset(tmp_path: Path) -> None:
    refused("has no dataset.json", tmp_path, tmp_path / "run", STEPS)


def test_a_damaged_checkpoint_is_named(shards: Path, whole_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    path = run / "checkpoints/step-6/model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    refused("step-6 is damaged", shards, run, STEPS, resume=True)


def test_a_diverging_loss_stops_the_run(shards: Path, tmp_path: Path) -> None:
    recipe = tiny("train.max_steps=10", "train.learning_rate=1e30", "train.max_grad_norm=none", "train.warmup_epochs=0")
    refused("non-finite loss at step", shards, tmp_path / "run", recipe)


def test_errors_on_the_command_line_are_one_line(shards: Path, tmp_path: Path, mbt: Door) -> None:
    for arguments in (
        ["train", "--data", tmp_path / "nowhere"],
        ["train", "--data", shards, "--recipe", "demo", "--set", "train.batchsize=3"],
        ["eval", "--checkpoint", tmp_path, "--data", shards],
        ["predict", tmp_path / "nothing.mp4", "--checkpoint", tmp_path],
    ):
        refused = mbt(*arguments)
        assert refused.code == 2
        (line,) = refused.err.strip().splitlines()
        assert line.startswith("error: ")
