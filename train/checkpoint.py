"""Checkpoints: complete or absent, in one format for every engine."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import safetensors
from safetensors.torch import load_file, save
from torch import Tensor

from mbt.manifests.atomic import storage_errors, sync_folder, write_bytes, write_text
from mbt.manifests.errors import ConfigError
from mbt.train.engine.engine import TrainState

WEIGHTS, OPTIMIZER, EMA, PROGRESS = "model.safetensors", "optimizer.safetensors", "ema.safetensors", "progress.json"


@dataclass(frozen=True)
class Checkpoint:
    """A run after a number of steps.

    Attributes:
        step: number of steps done.
        best: the best evaluation so far, or None.
        state: state of the engine.
    """

    step: int
    best: "Best | None"
    state: TrainState


@dataclass(frozen=True)
class Best:
    """The best evaluation of a run.

    Attributes:
        score: its main metric.
        step: number of steps done before it.
    """

    score: float
    step: int


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write `folder`/step-N completely or not at all, then delete all but the newest `keep` and the best.

    Raises:
        StorageError: no space left.
    """
    target = _path(folder, checkpoint.step)
    partial = folder / f".step-{checkpoint.step}.partial"
    with storage_errors(target):
        for unfinished in folder.glob(".step-*.partial"):
            shutil.rmtree(unfinished)
        state = checkpoint.state
        optimizer = {f"{kind}/{name}": tensor for kind, tensors in state.optimizer.items() for name, tensor in tensors.items()}
        write_bytes(partial / WEIGHTS, save(state.weights))
        write_bytes(partial / OPTIMIZER, save(optimizer))
        if state.ema:
            write_bytes(partial / EMA, save(state.ema))
        best = checkpoint.best
        scored = {"best": None} if best is None else {"best": best.score, "best_step": best.step}
        progress = {"step": checkpoint.step, **scored, **state.scalars}
        write_text(partial / PROGRESS, json.dumps(progress) + "\n")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        sync_folder(folder)
    for step in _steps(folder)[:-keep]:
        if checkpoint.best is None or step != checkpoint.best.step:
            shutil.rmtree(_path(folder, step))


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint below `folder`, or None.

    Raises:
        ConfigError: its files are damaged.
    """
    steps = _steps(folder)
    if not steps:
        return None
    path = _path(folder, steps[-1])
    try:
        scalars = json.loads((path / PROGRESS).read_bytes())
        step, score, best_step = scalars.pop("step"), scalars.pop("best"), scalars.pop("best_step", 0)
        ema = load_file(path / EMA) if (path / EMA).exists() else {}
        state = TrainState(load_file(path / WEIGHTS), _by_state_name(load_file(path / OPTIMIZER)), ema, scalars)
        return Checkpoint(step, None if score is None else Best(score, best_step), state)
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise ConfigError(f"checkpoint {path} is damaged: {error}", "Delete it to resume from the previous one") from None


def _by_state_name(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group tensors named STATE/PARAMETER by state, then parameter."""
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        state, _, parameter = name.partition("/")
        states.setdefault(state, {})[parameter] = tensor
    return states


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step}"
