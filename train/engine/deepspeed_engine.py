"""The DeepSpeed engine: the same step through ZeRO. The only file that imports deepspeed."""

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.runtime.config import DeepSpeedConfigError
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_get_local_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from mbt.manifests.errors import ConfigError
from mbt.manifests.tasks import Task
from mbt.model import MBT
from mbt.train.data.batch import Batch
from mbt.train.distributed.process_group import join_alone, rank_and_world_size
from mbt.train.engine.engine import StepResult, TrainingModel, TrainState, micro_batches, pick_device, swapped
from mbt.train.engine.group_gradients import mean_of_groups
from mbt.train.engine.optimizer import STATES, begin_state, follow, make_optimizer, set_rates, set_updates
from mbt.train.engine.precision import LossScale, gradients_of, unscale_and_clip
from mbt.train.engine.zero_config import Zero
from mbt.train.recipes.schema import TrainRecipe

# An op that only makes all-reduce between processes on CPUs faster, and that asks for a C++ compiler at run time.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
# It warns of optimisers that it has not tested; that they do here what they do without it is tested.
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)

SPLIT_STAGE = 3


class DeepSpeedEngine:
    """ZeRO's stages: 0 keeps everything whole, 1 shares the optimiser state over the ranks, 2 the gradients, 3 the weights.

    Weights, gradients and optimiser state are float32; precision is autocast inside the model, and the scale of the loss is
    ours, so that every stage does what the plain engine does.

    Raises:
        ConfigError: the ranks cannot share the batch, or a contradiction in DeepSpeed's configuration.
    """

    def __init__(self, model: MBT, task: Task, recipe: TrainRecipe, zero: Zero) -> None:
        join_alone()
        os.environ.setdefault("LOCAL_RANK", "0")
        deepspeed.init_distributed(auto_mpi_discovery=False)
        self.rank, self.world_size = rank_and_world_size()
        self.device = pick_device()
        self._recipe, self._kinds = recipe, STATES[recipe.optimizer]
        module = TrainingModel(model, task, recipe, self.world_size)
        config = zero.config(recipe, self.world_size)
        self._stage: int = config["zero_optimization"]["stage"]
        if self._stage == SPLIT_STAGE:
            _check_split(recipe)
        try:
            self._engine, *_ = deepspeed.initialize(model=module, optimizer=make_optimizer(model, recipe), config=config)
        except (ValueError, TypeError, KeyError, AssertionError, DeepSpeedConfigError) as error:
            if zero.file is None:
                raise
            raise ConfigError(f"DeepSpeed refuses {zero.file}: {error}", "Mend the file") from None
        self._layout = (_Whole, _Shared, _Shared, _Split)[self._stage](self._engine, self._kinds)
        self._parameters: dict[str, nn.Parameter] = dict(self._engine.module.model.named_parameters())
        self._updates, self._scale = 0, LossScale.of(recipe.precision)
        self._averages = [held.detach().clone() for held in self._held] if recipe.ema_decay is not None else []

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """One update from this rank's part of the global batch."""
        self._engine.train()
        set_rates(self._layout.optimizer, learning_rate)
        loss, norm = self._whole_batch(batch) if self._recipe.group_size is None else self._groups(batch)
        self._count(norm)
        if self._recipe.ema_decay is not None:
            follow(self._averages, [held.data for held in self._held], self._recipe.ema_decay)
        return StepResult(loss, norm)

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Logits (B, C), float32; at stage 3 all ranks must ask for as many batches."""
        self._engine.eval()
        return self._engine(batch.rgb, batch.spec, None).float()

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, logits are those of the averaged weights, where the recipe has such."""
        return swapped(self._swap)

    def state(self) -> TrainState:
        """Copy on the host of rank 0, gathered parameter by parameter; nothing on the others."""
        layout = self._layout
        weights: dict[str, Tensor] = {}
        averages: dict[str, Tensor] = {}
        optimizer: dict[str, dict[str, Tensor]] = {kind: {} for kind in self._kinds}
        for number, (name, parameter) in enumerate(self._parameters.items()):
            self._keep(weights, name, layout.whole(parameter, layout.held(parameter).data))
            for kind in self._kinds:
                self._keep(optimizer[kind], name, layout.state(parameter, kind))
            if self._averages:
                self._keep(averages, name, layout.whole(parameter, self._averages[number]))
        return TrainState.at(self._updates, self._scale, weights, optimizer, averages)

    def load(self, state: TrainState) -> None:
        """Take over a state."""
        with self._layout.changing():
            for number, (name, parameter) in enumerate(self._parameters.items()):
                self._layout.set_weight(parameter, state.weights[name].to(self.device))
                for kind in self._kinds:
                    self._layout.set_state(parameter, kind, state.optimizer[kind][name].to(self.device))
                if self._averages:
                    self._averages[number].copy_(self._layout.part(parameter, state.averages[name]))
        self._updates, self._scale = state.updates, state.scale
        set_updates(self._layout.optimizer, self._updates)

    @property
    def _checked(self) -> bool:
        """Whether a step is left out where its gradient is not finite."""
        return self._scale is not None or self._recipe.non_finite == "skip"

    @property
    def _held(self) -> list[Tensor]:
        return [self._layout.held(parameter) for parameter in self._parameters.values()]

    def _whole_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Update from the clipped gradient of the batch; returns the means of loss and norm."""
        loss, norm = torch.zeros((), device=self.device), None
        for part, share in micro_batches(batch, self._recipe):
            part_loss = self._engine(part.rgb, part.spec, part.targets) * share
            norm = self._backward(part_loss)
            self._engine.step()
            loss += part_loss.detach()
        if norm is None:
            norm = torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32, device=self.device)
        torch.distributed.all_reduce(loss)
        return loss / self.world_size, norm

    def _groups(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Update from the mean of the clipped gradients of the groups; returns the means of loss and norm.

        ZeRO learns of the gradients by the backward pass of a sum that has them.
        """
        parameters = list(self._parameters.values())
        gradients, result = mean_of_groups(self._engine.module, parameters, batch, self._recipe, self._scale)
        torch.distributed.all_reduce(result)
        result /= self.world_size
        if self._stage:
            self._engine.optimizer.override_loss_scale(1.0)
        products = zip(parameters, gradients, strict=True)
        self._engine.backward(sum((parameter * gradient).sum() for parameter, gradient in products), scale_wrt_gas=False)
        if self._stage == 0 and self._checked and not result.isfinite().all():
            self._layout.optimizer.zero_grad(set_to_none=True)
        self._engine.step()
        return result[0], result[1]

    def _backward(self, loss: Tensor) -> Tensor | None:
        """Gradients of a micro-batch; at stage 0, where ZeRO does not, unscales and clips the whole and returns its norm."""
        scale = 1.0 if self._scale is None else self._scale.value
        if self._stage:
            self._engine.optimizer.override_loss_scale(scale)
            self._engine.backward(loss, scale_wrt_gas=False)
            return None
        self._engine.backward(loss * scale, scale_wrt_gas=False)
        if not self._engine.is_gradient_accumulation_boundary():
            return None
        norm = unscale_and_clip(gradients_of(self._parameters.values()), self._scale, self._recipe.max_grad_norm)
        if self._checked and not norm.isfinite():
            self._layout.optimizer.zero_grad(set_to_none=True)
        return norm

    def _count(self, norm: Tensor) -> None:
        finite = not self._checked or bool(norm.isfinite())
        self._updates += finite
        if self._scale is not None:
            self._scale.update(finite)

    def _keep(self, tensors: dict[str, Tensor], name: str, tensor: Tensor) -> None:
        if self.rank == 0:
            tensors[name] = tensor.detach().to("cpu", copy=True)

    def _swap(self) -> None:
        if self._averages:
            with self._layout.changing():
                for held, average in zip(self._held, self._averages, strict=True):
                    held.data, average.data = average.data, held.data


def _check_split(recipe: TrainRecipe) -> None:
    if recipe.compile:
        fix = "Set train.compile=false, or choose another stage"
        raise ConfigError("compile: at stage 3 weights are gathered where compiled layers cannot see it", fix)
    if recipe.group_size is not None:
        fix = "Choose stage 0, 1 or 2, or clip the whole batch by train.group_size=none"
        raise ConfigError("group_size: at stage 3 no rank has the whole gradient of a group", fix)


class _Whole:
    """Stage 0: weights and optimiser state are whole on every rank. Also what the stages above have in common."""

    def __init__(self, engine: Any, kinds: tuple[str, ...]) -> None:
        self.zero = engine.optimizer
        begin_state(self.optimizer, self.tensors(), kinds)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """torch's optimiser."""
        return self.zero

    def tensors(self) -> list[Tensor]:
        """What torch's optimiser updates."""
        return [parameter for group in self.zero.param_groups for parameter in group["params"]]

    def held(self, parameter: Any) -> Tensor:
        """What this rank holds of a weight."""
        return parameter

    def whole(self, parameter: Any, held: Tensor) -> Tensor:
        """The whole of what the ranks hold."""
        return held

    def part(self, parameter: Any, whole: Tensor) -> Tensor:
        """What this rank holds of the whole."""
        return whole

    def state(self, parameter: Any, kind: str) -> Tensor:
        """The whole state of a parameter."""
        return self.zero.state[parameter][kind]

    def set_weight(self, parameter: Any, whole: Tensor) -> None:
        """Set a weight."""
        parameter.data.copy_(whole)

    def set_state(self, parameter: Any, kind: str, whole: Tensor) -> None:
        """Set the state of a parameter."""
        self.zero.state[parameter][kind].copy_(whole)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Inside, what ranks hold of the weights may be changed."""
        yield


class _Shared(_Whole):
    """Stages 1 and 2: weights are whole; flat tensors of each group of parameters are divided among the ranks.

    ZeRO learns of the optimiser's state after the first update of the first group, and misses that of the others; here the
    state is made, and shown to it, at once.
    """

    def __init__(self, engine: Any, kinds: tuple[str, ...]) -> None:
        super().__init__(engine, kinds)
        self.zero._hp_optimizer_states_linked = False
        self.zero._lazy_init_hp_params_optimizer_state()

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.zero.optimizer

    def tensors(self) -> list[Tensor]:
        return self.zero.single_partition_of_fp32_groups

    def state(self, parameter: Any, kind: str) -> Tensor:
        return safe_get_full_optimizer_state(parameter, kind)

    def set_weight(self, parameter: Any, whole: Tensor) -> None:
        parameter.data.copy_(whole)
        safe_set_full_fp32_param(parameter, whole)

    def set_state(self, parameter: Any, kind: str, whole: Tensor) -> None:
        safe_set_full_optimizer_state(parameter, whole, kind)


class _Split(_Whole):
    """Stage 3: each weight is divided among the ranks, and gathered where it is used."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.zero.optimizer

    def tensors(self) -> list[Tensor]:
        return self.zero.fp32_partitioned_groups_flat

    def held(self, parameter: Any) -> Tensor:
        return parameter.ds_tensor

    def whole(self, parameter: Any, held: Tensor) -> Tensor:
        device = pick_device()
        gathered = torch.empty(held.numel() * torch.distributed.get_world_size(), device=device)
        torch.distributed.all_gather_into_tensor(gathered, held.detach().to(device))
        return gathered[: parameter.ds_numel].view(parameter.ds_shape)

    def part(self, parameter: Any, whole: Tensor) -> Tensor:
        size = parameter.ds_tensor.numel()
        padded = nn.functional.pad(whole.flatten(), (0, size * torch.distributed.get_world_size() - whole.numel()))
        return padded[torch.distributed.get_rank() * size :][:size]

    def state(self, parameter: Any, kind: str) -> Tensor:
        return self.whole(parameter, safe_get_local_optimizer_state(parameter, kind))

    def set_weight(self, parameter: Any, whole: Tensor) -> None:
        part = self.part(parameter, whole)
        parameter.ds_tensor.data.copy_(part)
        safe_set_local_fp32_param(parameter, part)

    def set_state(self, parameter: Any, kind: str, whole: Tensor) -> None:
        safe_set_local_optimizer_state(parameter, self.part(parameter, whole), kind)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Small weights are kept gathered; they are gathered anew afterwards."""
        self.zero._partition_all_parameters()
        yield
        if self.zero.persistent_parameters:
            self.zero.persistent_parameters[0].all_gather(self.zero.persistent_parameters)
