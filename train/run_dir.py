"""A run directory: recipe, metrics, TensorBoard events, checkpoints, and the best and the last model."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from mbt.manifests.atomic import storage_errors, write_text
from mbt.manifests.errors import ConfigError
from mbt.train.recipes.loading import load_recipe
from mbt.train.recipes.schema import Recipe

RECIPE, METRICS, CHECKPOINTS = "config.toml", "metrics.jsonl", "checkpoints"


class Run:
    """The folder of a training.

    Args:
        folder: the run directory; made if missing.
        recipe: what is run.
        data: path or URL of the dataset folder, noted in the recipe's header.
        resume: go on with what is in the folder.

    Raises:
        ConfigError: the folder holds a run and `resume` is not asked for, or it is of another recipe.
    """

    def __init__(self, folder: Path, recipe: Recipe, data: str, resume: bool) -> None:
        self.folder = folder
        path = folder / RECIPE
        if path.exists():
            _check(path, recipe, resume)
        else:
            write_text(path, f"# mbt train --data {data}\n\n{recipe.to_toml()}")
        self._metrics = folder / METRICS
        self._board: SummaryWriter | None = None
        self._wandb = None if recipe.train.wandb is None else _wandb_run(folder, recipe, recipe.train.wandb)

    def start(self, step: int) -> None:
        """Open the logs to go on after `step` updates; what was logged beyond is dropped."""
        lines = self._metrics.read_text().splitlines() if self._metrics.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        write_text(self._metrics, "".join(line + "\n" for line in kept))
        self._board = SummaryWriter(str(self.folder), purge_step=step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append values at `step` to metrics.jsonl and TensorBoard; nested dicts become `outer/inner` tags there."""
        with storage_errors(self._metrics), self._metrics.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for tag, value in _flat(values):
                self._board.add_scalar(tag, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(_flat(values)), step=step)

    def close(self) -> None:
        """Close the logs."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _wandb_run(folder: Path, recipe: Recipe, project: str) -> Any:
    """A run of Weights & Biases that is gone on with where this run directory is."""
    try:
        import wandb
    except ImportError:
        raise ConfigError("train.wandb is set, and wandb is not installed", "Run pip install 'mbt[wandb]'") from None
    name = folder.resolve().name
    run_id = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return wandb.init(project=project, name=name, id=run_id, resume="allow", dir=folder, config=recipe.model_dump(mode="json"))


FREE = frozenset(
    {
        *("train.micro_batch", "train.compile", "train.activation_checkpointing", "train.threads"),
        *(
            "train.log_every",
            "train.checkpoint_every",
            "train.keep_checkpoints",
            "train.non_finite",
            "train.wandb",
            "input.max_corrupt",
        ),
    }
)
"""Fields that may differ when a run goes on: they change what it costs and what is kept, not what is trained."""


def _check(path: Path, recipe: Recipe, resume: bool) -> None:
    if not resume:
        raise ConfigError(f"{path.parent} holds a run already", "Go on with it by --resume, or choose another --out")
    earlier = load_recipe(str(path))
    for name, section in recipe:
        for field in type(section).model_fields:
            before, now = getattr(getattr(earlier, name), field), getattr(section, field)
            if before != now and f"{name}.{field}" not in FREE:
                raise ConfigError(
                    f"{path.parent} is a run of another recipe: {name}.{field} was {before} and is now {now}",
                    "Resume with the same --recipe and --set, or choose another --out",
                )


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    flat: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            flat.append((prefix + name, value))
    return flat


def newest_run(folder: Path) -> Path:
    """The run below `folder` that was begun or gone on with last.

    Raises:
        ConfigError: there is none.
    """
    runs = [path.parent for path in folder.glob(f"*/{METRICS}")]
    if not runs:
        raise ConfigError(f"there is no run below {folder}", "Name one by --checkpoint, or train one first")
    return max(runs, key=lambda run: (run / METRICS).stat().st_mtime)
