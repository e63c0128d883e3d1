"""Engines: one training step on a device. The loop knows only this interface; this file holds the plain torch one."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from manifests.datasets import Task
from mbt.model import MBT
from train.batch import Batch
from train.losses import training_loss
from train.recipe import TrainRecipe


@dataclass(frozen=True)
class StepResult:
    """What came of a step.

    Attributes:
        loss: mean over the global batch, scalar on the device.
        grad_norm: global L2 norm of the gradients before clipping (mean over the groups that are clipped apart), scalar on
            the device; None where it is not known.
    """

    loss: Tensor
    grad_norm: Tensor | None


@dataclass(frozen=True)
class TrainState:
    """Weights and optimiser state by parameter name, float32 on the host: readable and resumable by every engine."""

    weights: dict[str, Tensor]
    momentum: dict[str, Tensor]


class Engine(Protocol):
    """Runs the model; owns weights, optimiser and device."""

    device: torch.device
    rank: int
    world_size: int

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """One update from this rank's part of a batch."""

    def logits(self, batch: Batch) -> Tensor:
        """Logits (B, C), float32, in evaluation mode."""

    def state(self) -> TrainState:
        """Copy of weights and optimiser state; called on all ranks."""

    def load(self, state: TrainState) -> None:
        """Take over weights and optimiser state; called on all ranks."""


class TrainingModel(nn.Module):
    """The model with its loss, so that wrappers see a forward pass that ends in a scalar."""

    def __init__(self, model: MBT, task: Task, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.label_smoothing = label_smoothing

    def forward(self, rgb: Tensor | None, spec: Tensor | None, targets: dict[str, Tensor] | None) -> Tensor:
        """Loss where targets are given, else logits (B, C)."""
        if targets is None:
            return self.model(rgb=rgb, spec=spec)
        return training_loss(self.model.logits_by_modality(rgb, spec), targets, self.task, self.label_smoothing)


def pick_device() -> torch.device:
    """This process's GPU, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def autocasts(precision: str, device: torch.device) -> bool:
    """Whether to run in bfloat16 autocast; `auto` is yes on a GPU that has it."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """The autocast context of this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=autocasts(precision, device))


def inference(model: MBT, device: torch.device) -> Callable[[Batch], Tensor]:
    """Move a trained model to `device`; returns what gives its logits (B, C), float32, for a batch there."""
    model.to(device).eval()

    @torch.inference_mode()
    def logits(batch: Batch) -> Tensor:
        with autocast("auto", device):
            return model(rgb=batch.rgb, spec=batch.spec).float()

    return logits


class TorchEngine:
    """Plain torch on one device: SGD with momentum, autocast, global gradient clipping."""

    rank = 0
    world_size = 1

    def __init__(self, model: MBT, task: Task, recipe: TrainRecipe) -> None:
        self.device = pick_device()
        self._recipe = recipe
        self._module = TrainingModel(model.to(self.device), task, recipe.label_smoothing)
        model.encoder.activation_checkpointing = recipe.activation_checkpointing
        self._parameters = list(self._module.parameters())
        self._optimizer = torch.optim.SGD(self._parameters, lr=recipe.learning_rate, momentum=recipe.momentum)

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """One update, from the mean of the clipped gradients of the batch's groups."""
        self._module.train()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        parts = batch.split(self._recipe.group_size or len(batch.plan.rows))
        results = []
        totals: list[Tensor] = []
        for part in parts:
            result, gradients = self._clipped_gradients(part)
            results.append(result)
            if totals:
                torch._foreach_add_(totals, gradients)
            else:
                totals = gradients
        if len(parts) > 1:
            torch._foreach_div_(totals, len(parts))
        for parameter, total in zip(self._parameters, totals, strict=True):
            parameter.grad = total
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return StepResult(*torch.stack(results).mean(0))

    def _clipped_gradients(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """(loss, norm before clipping), and the gradient of every parameter."""
        with autocast(self._recipe.precision, self.device):
            loss = self._module(batch.rgb, batch.spec, batch.targets)
        loss.backward()
        limit = self._recipe.max_grad_norm
        norm = nn.utils.clip_grad_norm_(self._parameters, float("inf") if limit is None else limit)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        self._optimizer.zero_grad(set_to_none=True)
        return torch.stack([loss.detach(), norm]), gradients

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor:
        """Logits (B, C), float32."""
        self._module.eval()
        with autocast(self._recipe.precision, self.device):
            return self._module(batch.rgb, batch.spec, None).float()

    def state(self) -> TrainState:
        """Copy of weights and momentum on the host."""
        weights, momentum = {}, {}
        for name, parameter in self._module.model.named_parameters():
            weights[name] = parameter.detach().cpu().clone()
            buffer = self._optimizer.state.get(parameter, {}).get("momentum_buffer")
            momentum[name] = torch.zeros_like(weights[name]) if buffer is None else buffer.cpu().clone()
        return TrainState(weights, momentum)

    def load(self, state: TrainState) -> None:
        """Take over weights and momentum."""
        self._module.model.load_state_dict(state.weights)
        for name, parameter in self._module.model.named_parameters():
            self._optimizer.state[parameter]["momentum_buffer"] = state.momentum[name].to(self.device)
