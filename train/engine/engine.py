"""Engines: one training step on a device. The loop knows only this interface, whatever stands behind it."""

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
from mbt.train.engine.precision import LossScale, autocast
from mbt.train.recipes.schema import TrainRecipe


@dataclass(frozen=True)
class StepResult:
    """What came of a step.

    Attributes:
        loss: mean over the global batch, scalar on the device.
        grad_norm: global L2 norm of the gradients before clipping (mean over the groups that are clipped apart), scalar on
            the device; not finite where float16 overflowed and nothing was updated.
    """

    loss: Tensor
    grad_norm: Tensor


@dataclass(frozen=True)
class TrainState:
    """A training by parameter name, float32 on the host: readable and resumable by every engine.

    Attributes:
        weights: each parameter.
        optimizer: what the optimiser keeps of each parameter, by the optimiser's name for it.
        averages: moving average of each parameter; empty where the recipe has none.
        scalars: `updates` made, and with float16 `loss_scale` and `finite_steps`.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]
    averages: dict[str, Tensor]
    scalars: dict[str, float]

    @classmethod
    def at(
        cls,
        updates: int,
        scale: LossScale | None,
        weights: dict[str, Tensor],
        optimizer: dict[str, dict[str, Tensor]],
        averages: dict[str, Tensor],
    ) -> "TrainState":
        """The state after so many updates."""
        scalars: dict[str, float] = {"updates": updates}
        if scale is not None:
            scalars |= {"loss_scale": scale.value, "finite_steps": scale.finite_steps}
        return cls(weights, optimizer, averages, scalars)

    @property
    def updates(self) -> int:
        """Updates made."""
        return int(self.scalars["updates"])

    @property
    def scale(self) -> LossScale | None:
        """The scale of the loss."""
        if "loss_scale" not in self.scalars:
            return None
        return LossScale(self.scalars["loss_scale"], int(self.scalars["finite_steps"]))

    @property
    def model(self) -> dict[str, Tensor]:
        """What is evaluated and kept as best and last: the averages where there are such, else the weights."""
        return self.averages or self.weights


class Engine(Protocol):
    """Runs the model; owns weights, optimiser and device. All ranks call each method together."""

    device: torch.device
    rank: int
    world_size: int

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """One update from this rank's part of a batch."""

    def logits(self, batch: Batch) -> Tensor:
        """Logits (B, C), float32, in evaluation mode."""

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, logits are those of the averaged weights, where the recipe has such."""

    def state(self) -> TrainState:
        """Copy of everything on rank 0; nothing on the others."""

    def load(self, state: TrainState) -> None:
        """Take over a state, which every rank has whole."""


@contextmanager
def swapped(swap: Callable[[], None]) -> Iterator[None]:
    """Inside, what `swap` exchanges has changed places."""
    swap()
    try:
        yield
    finally:
        swap()


class TrainingModel(nn.Module):
    """The model with its loss and its precision, so that wrappers see a forward pass that ends in a scalar.

    Args:
        model: the model.
        task: what its labels are.
        recipe: how it is trained.
        world_size: ranks that share the batch.

    Raises:
        ConfigError: they cannot share it.
    """

    def __init__(self, model: MBT, task: Task, recipe: TrainRecipe, world_size: int) -> None:
        super().__init__()
        _check_shares(recipe, world_size)
        model.encoder.activation_checkpointing = recipe.activation_checkpointing
        if recipe.compile:
            for module in model.encoder.modules():
                if isinstance(module, Block):
                    module.compile()
        self.model = model
        self.task = task
        self.recipe = recipe

    def forward(self, rgb: Tensor | None, spec: Tensor | None, targets: dict[str, Tensor] | None) -> Tensor:
        """Loss where targets are given, else logits (B, C)."""
        with autocast(self.recipe.precision, self.model.head.weight.device):
            if targets is None:
                return self.model(rgb=rgb, spec=spec)
            logits = self.model.logits_by_modality(rgb, spec)
            return training_loss(logits, targets, self.task, self.recipe.label_smoothing)


def pick_device() -> torch.device:
    """This process's GPU, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def micro_batches(batch: Batch, recipe: TrainRecipe) -> list[tuple[Batch, float]]:
    """A rank's batch in parts of at most `train.micro_batch` examples, each with its share of the whole."""
    total = len(batch.plan.rows)
    return [(part, len(part.plan.rows) / total) for part in batch.split(micro_batch_size(total, recipe))]


def micro_batch_size(total: int, recipe: TrainRecipe) -> int:
    """Examples that are taken at a time of `total`: as few parts as go, all of this size but for the last."""
    parts = -(-total // (recipe.micro_batch or total))
    return -(-total // parts)


def inference(model: MBT, device: torch.device) -> Callable[[Batch], Tensor]:
    """Move a trained model to `device`; returns what gives its logits (B, C), float32, for a batch there."""
    model.to(device).eval()

    @torch.inference_mode()
    def logits(batch: Batch) -> Tensor:
        with autocast("auto", device):
            return model(rgb=batch.rgb, spec=batch.spec).float()

    return logits


def _check_shares(recipe: TrainRecipe, world_size: int) -> None:
    share, left = divmod(recipe.batch_size, world_size)
    if left:
        fix = "Set train.batch_size to a multiple of the ranks"
        raise ConfigError(f"batch_size {recipe.batch_size} cannot be shared by {world_size} ranks", fix)
    if recipe.group_size is not None and share % recipe.group_size:
        fix = f"Set train.batch_size to a multiple of {recipe.group_size} x {world_size}"
        raise ConfigError(f"groups of {recipe.group_size} examples do not fill the {share} of a rank", fix)
    if recipe.mixup_alpha is not None and share % 2:
        fix = "Set train.batch_size to an even multiple of the ranks"
        raise ConfigError(f"mixup takes pairs, and {share} clips a rank are odd", fix)
