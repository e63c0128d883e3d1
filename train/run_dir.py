"""A run directory: its recipe, and its logs. Checkpoints and models are written beside them."""

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


FREE = frozenset(
    {
        "input.max_corrupt",
        "train.activation_checkpointing",
        "train.checkpoint_every",
        "train.compile",
        "train.keep_checkpoints",
        "train.log_every",
        "train.micro_batch",
        "train.non_finite",
        "train.threads",
        "train.wandb",
    }
)
"""Fields that may change when a run resumes: they affect cost and output, but not what is trained."""


def claim_run_dir(folder: Path, recipe: Recipe, data: str, resume: bool) -> None:
    """Create a run directory with its recipe, or check that `folder` is a run that can resume with this recipe.

    Args:
        folder: the run directory; created if missing.
        recipe: recipe of the run.
        data: path or URL of the dataset folder, noted in the recipe's header.
        resume: continue the run in `folder`, if there is one.

    Raises:
        ConfigError: `folder` holds a run, and `resume` is false or the run has another recipe.
    """
    path = folder / RECIPE
    if not path.exists():
        write_text(path, f"# mbt train --data {data}\n\n{recipe.to_toml()}")
        return
    if not resume:
        raise ConfigError(f"{folder} already holds a run", "Resume it with --resume, or choose another --out")
    earlier = load_recipe(str(path))
    for name, section in recipe:
        for field in type(section).model_fields:
            before, now = getattr(getattr(earlier, name), field), getattr(section, field)
            if before != now and f"{name}.{field}" not in FREE:
                raise ConfigError(
                    f"{folder} holds a run with another recipe: {name}.{field} was {before} and is now {now}",
                    "Resume with the same --recipe and --set, or choose another --out",
                )


class RunLog:
    """The logs of a run: metrics.jsonl, TensorBoard events and, if the recipe asks for it, Weights & Biases.

    Args:
        folder: the run directory.
        recipe: recipe of the run.
        step: number of steps done; later entries, left by a run that was interrupted after its last checkpoint, are dropped.

    Raises:
        ConfigError: wandb is not installed.
    """

    def __init__(self, folder: Path, recipe: Recipe, step: int) -> None:
        self._metrics = folder / METRICS
        self._wandb = None if recipe.train.wandb is None else _wandb_run(folder, recipe, recipe.train.wandb)
        lines = self._metrics.read_text().splitlines() if self._metrics.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        write_text(self._metrics, "".join(line + "\n" for line in kept))
        self._board = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append values at `step` to all logs; nested dicts become `outer/inner` tags in TensorBoard and W&B."""
        with storage_errors(self._metrics), self._metrics.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for tag, value in _flat(values):
            self._board.add_scalar(tag, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(_flat(values)), step=step)

    def close(self) -> None:
        """Close the logs."""
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _wandb_run(folder: Path, recipe: Recipe, project: str) -> Any:
    """The Weights & Biases run of this run directory; resumed if it exists."""
    try:
        import wandb
    except ImportError:
        raise ConfigError("train.wandb is set, but wandb is not installed", "Run pip install 'mbt[wandb]'") from None
    name = folder.resolve().name
    run_id = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return wandb.init(project=project, name=name, id=run_id, resume="allow", dir=folder, config=recipe.model_dump(mode="json"))


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    flat: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            flat.append((prefix + name, value))
    return flat


def newest_run(folder: Path) -> Path:
    """The run below `folder` that logged last.

    Raises:
        ConfigError: there is none.
    """
    runs = [path.parent for path in folder.glob(f"*/{METRICS}")]
    if not runs:
        raise ConfigError(f"there is no run in {folder}", "Give --checkpoint, or train a model first (mbt train)")
    return max(runs, key=lambda run: (run / METRICS).stat().st_mtime)
