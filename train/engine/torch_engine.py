"""The plain torch engine: one device, or one per process with DDP."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mbt.manifests.tasks import Task
from mbt.model import MBT
from mbt.train.data.batch import Batch
from mbt.train.distributed.process_group import rank_and_world_size
from mbt.train.engine.engine import StepResult, TrainingModel, TrainState, micro_batches, pick_device, swapped
from mbt.train.engine.group_gradients import mean_clipped_gradients
from mbt.train.engine.optimizer import (
    STATE_NAMES,
    ema_update,
    init_optimizer_state,
    make_optimizer,
    set_learning_rates,
    set_update_count,
)
from mbt.train.engine.precision import gradients_of, unscale_and_clip
from mbt.train.engine.updates import Updates
from mbt.train.recipes.schema import TrainRecipe


class TorchEngine:
    """Plain torch: every rank holds all weights and optimizer state; gradients are averaged over the ranks.

    Raises:
        ConfigError: the ranks cannot share a batch equally.
    """

    def __init__(self, model: MBT, task: Task, recipe: TrainRecipe) -> None:
        self.device = pick_device()
        self.rank, self.world_size = rank_and_world_size()
        self._recipe, self._state_names = recipe, STATE_NAMES[recipe.optimizer]
        self._module = TrainingModel(model.to(self.device), task, recipe, self.world_size)
        self._names = [name for name, _ in model.named_parameters()]
        self._parameters = list(model.parameters())
        self._optimizer = make_optimizer(model, recipe)
        init_optimizer_state(self._optimizer, self._parameters, self._state_names)
        self._updates = Updates.for_recipe(recipe)
        self._ema = [p.detach().clone() for p in self._parameters] if recipe.ema_decay is not None else []
        self._ddp: DistributedDataParallel | None = None
        if self.world_size > 1 and recipe.group_size is None:
            unused_bottleneck = model.config.has_bottleneck and model.config.fusion_layer == model.config.num_layers
            self._ddp = DistributedDataParallel(self._module, find_unused_parameters=unused_bottleneck)

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """One step with the clipped gradient of the batch, or the mean of the clipped gradients of its groups."""
        self._module.train()
        set_learning_rates(self._optimizer, learning_rate)
        result = self._batch_gradient(batch) if self._recipe.group_size is None else self._group_gradient(batch)
        accepted = self._updates.accept(result)
        if accepted:
            self._optimizer.step()
        self._updates.record(accepted)
        self._optimizer.zero_grad(set_to_none=True)
        if self._recipe.ema_decay is not None:
            ema_update(self._ema, self._weights, self._recipe.ema_decay)
        return StepResult(*result)

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor:
        """Logits (B, C), float32."""
        self._module.eval()
        return self._module(batch.rgb, batch.spec, None).float()

    def ema_weights(self) -> AbstractContextManager[None]:
        """Context in which `logits` uses the averaged weights, if the recipe has them."""
        return swapped(self._swap)

    def state(self) -> TrainState:
        """A copy of the state on the host of rank 0; empty on the other ranks."""
        if self.rank:
            return TrainState({}, {}, {}, {})
        optimizer = {
            state: self._on_host([self._optimizer.state[parameter][state] for parameter in self._parameters])
            for state in self._state_names
        }
        return TrainState(self._on_host(self._weights), optimizer, self._on_host(self._ema), self._updates.scalars())

    def load(self, state: TrainState) -> None:
        """Load a state."""
        for number, (name, parameter) in enumerate(zip(self._names, self._parameters, strict=True)):
            parameter.data.copy_(state.weights[name])
            for state_name, tensors in state.optimizer.items():
                self._optimizer.state[parameter][state_name].copy_(tensors[name])
            if self._ema:
                self._ema[number].copy_(state.ema[name])
        self._updates.load(state.scalars)
        set_update_count(self._optimizer, self._updates.count)

    @property
    def _weights(self) -> list[Tensor]:
        return [parameter.data for parameter in self._parameters]

    def _on_host(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        return {name: tensor.cpu().clone() for name, tensor in zip(self._names, tensors, strict=False)}

    def _swap(self) -> None:
        for parameter, average in zip(self._parameters, self._ema, strict=False):
            parameter.data, average.data = average.data, parameter.data

    def _batch_gradient(self, batch: Batch) -> Tensor:
        """Set the gradients to the clipped gradient of the batch; returns loss and gradient norm, (2,)."""
        loss = self._mean(self._backward(batch))
        norm = unscale_and_clip(gradients_of(self._parameters), self._updates.scale, self._recipe.max_grad_norm)
        return torch.stack([loss, norm])

    def _group_gradient(self, batch: Batch) -> Tensor:
        """Set the gradients to the mean of the groups' clipped gradients; returns means of loss and norm, (2,)."""
        gradients, result = mean_clipped_gradients(self._module, self._parameters, batch, self._recipe, self._updates)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = self._mean(gradient)
        return self._mean(result)

    def _backward(self, batch: Batch) -> Tensor:
        """Accumulate the gradients of this rank's batch, which DDP averages over the ranks; returns the loss."""
        module = self._ddp or self._module
        parts = micro_batches(batch, self._recipe)
        loss = torch.zeros((), device=self.device)
        for number, (part, fraction) in enumerate(parts, 1):
            with self._ddp.no_sync() if self._ddp and number < len(parts) else nullcontext():
                part_loss = module(part.rgb, part.spec, part.targets) * fraction
                self._updates.scale_loss(part_loss).backward()
            loss += part_loss.detach()
        return loss

    def _mean(self, tensor: Tensor) -> Tensor:
        """Average over the ranks, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
            tensor /= self.world_size
        return tensor
