"""Engines: one training step on a device. The training loop depends on this interface only."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mbt.encoder import Block
from mbt.manifests.errors import ConfigError
from mbt.manifests.tasks import Task
from mbt.model import MBT
from mbt.train.data.batch import Batch
from mbt.train.engine.losses import training_loss
from mbt.train.engine.precision import autocast
from mbt.train.recipes.schema import TrainRecipe


@dataclass(frozen=True)
class StepResult:
    """Result of one step.

    Attributes:
        loss: mean over the global batch, scalar on the device.
        grad_norm: global L2 norm of the gradients before clipping (with `group_size`, the mean of the groups' norms), scalar
            on the device; non-finite if float16 overflowed and the step was skipped.
    """

    loss: Tensor
    grad_norm: Tensor


@dataclass(frozen=True)
class TrainState:
    """State of a run, by parameter name, float32 on the host; every engine can load it.

    Attributes:
        weights: the parameters.
        optimizer: optimizer state, by torch's name for it, then by parameter.
        ema: moving averages of the parameters; empty if the recipe has none.
        scalars: see `Updates.scalars`.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]
    ema: dict[str, Tensor]
    scalars: dict[str, float]

    @property
    def eval_weights(self) -> dict[str, Tensor]:
        """The weights that are evaluated and saved as best and last model: the averages, if any, else the parameters."""
        return self.ema or self.weights


class Engine(Protocol):
    """Runs the model; owns weights, optimizer and device. All ranks call each method together."""

    device: torch.device
    rank: int
    world_size: int

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """One step on this rank's part of a batch."""

    def logits(self, batch: Batch) -> Tensor:
        """Logits (B, C), float32, in evaluation mode."""

    def ema_weights(self) -> AbstractContextManager[None]:
        """Context in which `logits` uses the averaged weights, if the recipe has them."""

    def state(self) -> TrainState:
        """A copy of the state on rank 0; empty on the other ranks."""

    def load(self, state: TrainState) -> None:
        """Load a state; every rank passes a full copy of it."""


@contextmanager
def swapped(swap: Callable[[], None]) -> Iterator[None]:
    """Call `swap` on entry, and again on exit to undo it."""
    swap()
    try:
        yield
    finally:
        swap()


class TrainingModel(nn.Module):
    """The model with its loss and precision, so that wrappers see a forward pass that returns a scalar.

    Args:
        model: the model.
        task: kind of labels.
        recipe: training options.
        world_size: number of ranks that share a batch.

    Raises:
        ConfigError: the ranks cannot share a batch equally.
    """

    def __init__(self, model: MBT, task: Task, recipe: TrainRecipe, world_size: int) -> None:
        super().__init__()
        _check_divisible(recipe, world_size)
        model.encoder.activation_checkpointing = recipe.activation_checkpointing
        if recipe.compile:
            for module in model.encoder.modules():
                if isinstance(module, Block):
                    module.compile()
        self.model = model
        self.task = task
        self.recipe = recipe

    def forward(self, rgb: Tensor | None, spec: Tensor | None, targets: dict[str, Tensor] | None) -> Tensor:
        """The loss if targets are given, else logits (B, C)."""
        with autocast(self.recipe.precision, self.model.head.weight.device):
            if targets is None:
                return self.model(rgb=rgb, spec=spec)
            logits = self.model.logits_by_modality(rgb, spec)
            return training_loss(logits, targets, self.task, self.recipe.label_smoothing)


def pick_device() -> torch.device:
    """This process's GPU, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def micro_batches(batch: Batch, recipe: TrainRecipe) -> list[tuple[Batch, float]]:
    """Split a rank's batch into parts of at most `train.micro_batch` examples, each with its fraction of the batch."""
    total = len(batch.plan.rows)
    return [(part, len(part.plan.rows) / total) for part in batch.split(micro_batch_size(total, recipe))]


def micro_batch_size(total: int, recipe: TrainRecipe) -> int:
    """Size of the fewest parts of `total` that fit `train.micro_batch`; only the last part may be smaller."""
    parts = -(-total // (recipe.micro_batch or total))
    return -(-total // parts)


def inference_fn(model: MBT, device: torch.device) -> Callable[[Batch], Tensor]:
    """Move a trained model to `device`; returns a function from a batch on `device` to logits (B, C), float32."""
    model.to(device).eval()

    @torch.inference_mode()
    def logits(batch: Batch) -> Tensor:
        with autocast("auto", device):
            return model(rgb=batch.rgb, spec=batch.spec).float()

    return logits


def _check_divisible(recipe: TrainRecipe, world_size: int) -> None:
    per_rank, left = divmod(recipe.batch_size, world_size)
    if left:
        fix = "Set train.batch_size to a multiple of the number of ranks"
        raise ConfigError(f"train.batch_size {recipe.batch_size} is not divisible by the number of ranks, {world_size}", fix)
    if recipe.group_size is not None and per_rank % recipe.group_size:
        fix = f"Set train.batch_size to a multiple of {recipe.group_size} x {world_size}"
        raise ConfigError(f"{per_rank} examples per rank are not divisible by train.group_size {recipe.group_size}", fix)
    if recipe.mixup_alpha is not None and per_rank % 2:
        fix = f"Set train.batch_size to a multiple of 2 x {world_size}"
        raise ConfigError(f"mixup needs pairs, and {per_rank} examples per rank is an odd number", fix)
