"""The plain torch engine: one device, or one in each of several processes (DDP)."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mbt.manifests.tasks import Task
from mbt.model import MBT
from mbt.train.data.batch import Batch
from mbt.train.distributed.process_group import rank_and_world_size
from mbt.train.engine.engine import StepResult, TrainingModel, TrainState, micro_batches, pick_device, swapped
from mbt.train.engine.group_gradients import mean_of_groups
from mbt.train.engine.optimizer import STATES, begin_state, follow, make_optimizer, set_rates, set_updates
from mbt.train.engine.precision import LossScale, gradients_of, unscale_and_clip
from mbt.train.recipes.schema import TrainRecipe


class TorchEngine:
    """Plain torch: weights and optimiser state whole on every rank, gradients averaged over the ranks.

    Raises:
        ConfigError: the ranks cannot share the batch.
    """

    def __init__(self, model: MBT, task: Task, recipe: TrainRecipe) -> None:
        self.device = pick_device()
        self.rank, self.world_size = rank_and_world_size()
        self._recipe = recipe
        self._module = TrainingModel(model.to(self.device), task, recipe, self.world_size)
        self._names = [name for name, _ in model.named_parameters()]
        self._parameters = list(model.parameters())
        self._optimizer = make_optimizer(model, recipe)
        begin_state(self._optimizer, self._parameters, STATES[recipe.optimizer])
        self._updates = 0
        self._scale = LossScale.of(recipe.precision)
        self._averages = [p.detach().clone() for p in self._parameters] if recipe.ema_decay is not None else []
        self._parallel: DistributedDataParallel | None = None
        if self.world_size > 1 and recipe.group_size is None:
            idle = model.config.has_bottleneck and model.config.fusion_layer == model.config.num_layers
            self._parallel = DistributedDataParallel(self._module, find_unused_parameters=idle)

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """One update, from the clipped gradient of the batch, or from the mean of the clipped gradients of its groups."""
        self._module.train()
        set_rates(self._optimizer, learning_rate)
        if self._recipe.group_size is None:
            loss = self._backward(batch)
            norm = unscale_and_clip(gradients_of(self._parameters), self._scale, self._recipe.max_grad_norm)
            result = torch.stack([self._mean(loss), norm])
        else:
            gradients, result = mean_of_groups(self._module, self._parameters, batch, self._recipe, self._scale)
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = self._mean(gradient)
            self._mean(result)
        checked = self._scale is not None or self._recipe.non_finite == "skip"
        finite = not checked or bool(result.isfinite().all())
        if finite:
            self._optimizer.step()
            self._updates += 1
        if self._scale is not None:
            self._scale.update(finite)
        self._optimizer.zero_grad(set_to_none=True)
        if self._recipe.ema_decay is not None:
            follow(self._averages, self._weights, self._recipe.ema_decay)
        return StepResult(*result)

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor:
        """Logits (B, C), float32."""
        self._module.eval()
        return self._module(batch.rgb, batch.spec, None).float()

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, logits are those of the averaged weights, where the recipe has such."""
        return swapped(self._swap)

    def state(self) -> TrainState:
        """Copy on the host of rank 0; nothing on the others."""
        if self.rank:
            return TrainState({}, {}, {}, {})
        optimizer = {
            state: self._on_host([self._optimizer.state[p][state] for p in self._parameters])
            for state in STATES[self._recipe.optimizer]
        }
        return TrainState.at(self._updates, self._scale, self._on_host(self._weights), optimizer, self._on_host(self._averages))

    def load(self, state: TrainState) -> None:
        """Take over a state."""
        for number, (name, parameter) in enumerate(zip(self._names, self._parameters, strict=True)):
            parameter.data.copy_(state.weights[name])
            for kind, tensors in state.optimizer.items():
                self._optimizer.state[parameter][kind].copy_(tensors[name])
            if self._averages:
                self._averages[number].copy_(state.averages[name])
        self._updates, self._scale = state.updates, state.scale
        set_updates(self._optimizer, self._updates)

    @property
    def _weights(self) -> list[Tensor]:
        return [parameter.data for parameter in self._parameters]

    def _on_host(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        return {name: tensor.cpu().clone() for name, tensor in zip(self._names, tensors, strict=False)}

    def _swap(self) -> None:
        for parameter, average in zip(self._parameters, self._averages, strict=False):
            parameter.data, average.data = average.data, parameter.data

    def _backward(self, batch: Batch) -> Tensor:
        """The loss of this rank's batch; its gradients are added up, and averaged over the ranks by DDP."""
        module = self._parallel or self._module
        parts = micro_batches(batch, self._recipe)
        loss = torch.zeros((), device=self.device)
        for number, (part, share) in enumerate(parts, 1):
            with self._parallel.no_sync() if self._parallel and number < len(parts) else nullcontext():
                part_loss = module(part.rgb, part.spec, part.targets) * share
                (part_loss if self._scale is None else part_loss * self._scale.value).backward()
            loss += part_loss.detach()
        return loss

    def _mean(self, tensor: Tensor) -> Tensor:
        """Mean over the ranks, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
            tensor /= self.world_size
        return tensor
