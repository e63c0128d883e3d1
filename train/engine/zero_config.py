"""DeepSpeed configuration: ours, with the user's file merged over it; values that contradict the recipe are rejected."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbt.manifests.errors import ConfigError
from mbt.train.engine.engine import micro_batch_size
from mbt.train.recipes.schema import TrainRecipe

STAGES = (0, 1, 2, 3)
DEFAULT_STAGE = 1
AUTO = "auto"
"""Value that leaves a key to the trainer, common in configurations written for other trainers."""
RECIPE_FIELDS = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.micro_batch",
    "gradient_clipping": "train.max_grad_norm",
    "optimizer": "train.optimizer",
    "scheduler": "train.warmup_epochs and train.epochs",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
    "data_types": "train.precision",
}
"""DeepSpeed keys that a recipe field decides."""
FIXED = {"zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"}
"""Keys without which DeepSpeed rejects torch's optimizers."""


@dataclass(frozen=True)
class Zero:
    """Command-line options for DeepSpeed.

    Attributes:
        stage: ZeRO stage; None: the file's stage, else 1.
        file: DeepSpeed configuration as JSON, or None.
    """

    stage: int | None = None
    file: Path | None = None

    def config(self, recipe: TrainRecipe, world_size: int) -> dict[str, Any]:
        """The merged configuration. At stage 0, and with `group_size`, our engine clips instead of DeepSpeed.

        Raises:
            ConfigError: the file is not a JSON object, or a key contradicts the recipe, the stage or this trainer.
        """
        per_rank = recipe.batch_size // world_size
        size = micro_batch_size(per_rank, recipe) if recipe.group_size is None else per_rank
        ours = {
            "train_micro_batch_size_per_gpu": size,
            "gradient_accumulation_steps": -(-per_rank // size),
            "gradient_clipping": recipe.max_grad_norm or 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {"stage": DEFAULT_STAGE if self.stage is None else self.stage},
            "steps_per_print": 1 << 30,
        }
        theirs = {} if self.file is None else self._theirs(self.file, {"train_batch_size": recipe.batch_size, **ours})
        merged = _merged(ours, theirs)
        if merged["zero_optimization"]["stage"] == 0 or recipe.group_size is not None:
            merged["gradient_clipping"] = 0.0
        return merged

    def _theirs(self, file: Path, ours: dict[str, Any]) -> dict[str, Any]:
        """The keys of the file that the recipe does not decide."""
        theirs = _read(file)
        for key, field in RECIPE_FIELDS.items():
            if key in theirs and not _agrees(theirs.pop(key), ours.get(key)):
                raise ConfigError(f"{file}: {key} contradicts the recipe", f"Remove it and set {field} instead")
        for key in theirs.keys() & FIXED:
            if theirs[key] != ours[key]:
                raise ConfigError(
                    f"{file}: {key} is {json.dumps(theirs[key])}; this trainer needs {json.dumps(ours[key])}", "Remove it"
                )
        self._check_zero(file, theirs.get("zero_optimization", {}))
        return theirs

    def _check_zero(self, file: Path, section: Any) -> None:
        if not isinstance(section, dict):
            raise ConfigError(f"{file}: zero_optimization is not an object", 'For example, {"stage": 2}')
        stage = section.get("stage", self.stage)
        if self.stage is not None and stage not in (self.stage, AUTO):
            fix = "Remove one of them"
            raise ConfigError(f"{file}: zero_optimization.stage is {stage}, but --zero-stage is {self.stage}", fix)
        if stage == AUTO:
            section.pop("stage")
        elif stage not in (None, *STAGES):
            raise ConfigError(f"{file}: zero_optimization.stage is {stage!r}", f"Choose one of {', '.join(map(str, STAGES))}")
        for key in ("offload_optimizer", "offload_param"):
            if isinstance(section.get(key), dict) and section[key].get("device") == "nvme":
                fix = 'Set "device": "cpu"'
                raise ConfigError(f"{file}: zero_optimization.{key}.device is nvme, which checkpoints do not support", fix)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is not a readable JSON file: {error}", "Pass a DeepSpeed configuration") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} is not a JSON object", "Pass a DeepSpeed configuration")
    return content


def _agrees(theirs: Any, ours: Any) -> bool:
    """Whether a value of the file leaves the decision to the recipe, or equals the recipe's."""
    if isinstance(theirs, dict) and "enabled" in theirs:
        return theirs["enabled"] in (False, AUTO)
    return theirs == AUTO or (ours is not None and theirs == ours)


def _merged(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    both = {**ours, **theirs}
    for key, value in ours.items():
        if isinstance(value, dict) and key in theirs:
            both[key] = _merged(value, theirs[key])
    return both
