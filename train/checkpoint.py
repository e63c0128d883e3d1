"""Checkpoints: complete or absent, one portable format for every engine."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import safetensors
from safetensors.torch import load_file, save

from manifests.atomic import storage_errors, sync_folder, write_bytes, write_text
from manifests.errors import ConfigError
from train.engine import TrainState

WEIGHTS, MOMENTUM, PROGRESS = "model.safetensors", "momentum.safetensors", "progress.json"


@dataclass(frozen=True)
class Checkpoint:
    """A training after `step` updates.

    Attributes:
        step: updates made.
        best: the best evaluation metric so far, or None.
        state: weights and optimiser state.
    """

    step: int
    best: float | None
    state: TrainState


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write `folder`/step-N whole or not at all, then delete all but the newest `keep`.

    Raises:
        StorageError: no space left.
    """
    target = _path(folder, checkpoint.step)
    partial = folder / f".step-{checkpoint.step}.partial"
    with storage_errors(target):
        for unfinished in folder.glob(".step-*.partial"):
            shutil.rmtree(unfinished)
        write_bytes(partial / WEIGHTS, save(checkpoint.state.weights))
        write_bytes(partial / MOMENTUM, save(checkpoint.state.momentum))
        write_text(partial / PROGRESS, json.dumps({"step": checkpoint.step, "best": checkpoint.best}) + "\n")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        sync_folder(folder)
    for step in _steps(folder)[:-keep]:
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
        progress = json.loads((path / PROGRESS).read_bytes())
        state = TrainState(load_file(path / WEIGHTS), load_file(path / MOMENTUM))
        return Checkpoint(progress["step"], progress["best"], state)
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise ConfigError(f"the checkpoint {path} is damaged: {error}", "Delete it: the one before it is taken then") from None


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step}"
