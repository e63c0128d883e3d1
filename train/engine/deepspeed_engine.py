"""The DeepSpeed engine: the same step with ZeRO. The only file that imports deepspeed."""

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
from mbt.train.distributed.process_group import ensure_process_group, rank_and_world_size
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
from mbt.train.engine.zero_config import Zero
from mbt.train.recipes.schema import TrainRecipe

# This op only speeds up all-reduce between processes on CPUs, and needs a C++ compiler at run time.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
# It warns about optimizers that DeepSpeed has not tested; our tests compare ours with plain torch.
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)

SHARDED_WEIGHTS = 3
"""The stage that shards the weights."""


class DeepSpeedEngine:
    """ZeRO: stage 0 shards nothing, stage 1 the optimizer state, stage 2 also the gradients, stage 3 also the weights.

    Weights, gradients and optimizer state are float32. Autocast inside the model and our own loss scale set the precision, so
    that every stage computes what the plain engine computes.

    Raises:
        ConfigError: the ranks cannot share a batch equally, or DeepSpeed rejects its configuration.
    """

    def __init__(self, model: MBT, task: Task, recipe: TrainRecipe, zero: Zero) -> None:
        ensure_process_group()
        os.environ.setdefault("LOCAL_RANK", "0")
        deepspeed.init_distributed(auto_mpi_discovery=False)
        self.rank, self.world_size = rank_and_world_size()
        self.device = pick_device()
        self._recipe, self._state_names = recipe, STATE_NAMES[recipe.optimizer]
        module = TrainingModel(model, task, recipe, self.world_size)
        config = zero.config(recipe, self.world_size)
        self._stage: int = config["zero_optimization"]["stage"]
        if self._stage == SHARDED_WEIGHTS:
            _check_stage3(recipe)
        try:
            self._engine, *_ = deepspeed.initialize(model=module, optimizer=make_optimizer(model, recipe), config=config)
        except (ValueError, TypeError, KeyError, AssertionError, DeepSpeedConfigError) as error:
            if zero.file is None:
                raise
            raise ConfigError(f"DeepSpeed rejects {zero.file}: {error}", "Fix this file") from None
        self._zero = (_Stage0, _Stage12, _Stage12, _Stage3)[self._stage](self._engine, self._state_names)
        self._parameters: dict[str, nn.Parameter] = dict(self._engine.module.model.named_parameters())
        self._updates = Updates.for_recipe(recipe)
        self._ema = [local.detach().clone() for local in self._local_weights] if recipe.ema_decay is not None else []

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """One step on this rank's part of a batch."""
        self._engine.train()
        set_learning_rates(self._zero.optimizer, learning_rate)
        loss, norm = self._step_on_batch(batch) if self._recipe.group_size is None else self._step_on_groups(batch)
        self._updates.record(self._updates.accept(norm))
        if self._recipe.ema_decay is not None:
            ema_update(self._ema, [local.data for local in self._local_weights], self._recipe.ema_decay)
        return StepResult(loss, norm)

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Logits (B, C), float32; at stage 3 all ranks must call this equally often."""
        self._engine.eval()
        return self._engine(batch.rgb, batch.spec, None).float()

    def ema_weights(self) -> AbstractContextManager[None]:
        """Context in which `logits` uses the averaged weights, if the recipe has them."""
        return swapped(self._swap)

    def state(self) -> TrainState:
        """A copy of the state on the host of rank 0, gathered one parameter at a time; empty on the other ranks."""
        zero = self._zero
        weights: dict[str, Tensor] = {}
        ema: dict[str, Tensor] = {}
        optimizer: dict[str, dict[str, Tensor]] = {state_name: {} for state_name in self._state_names}
        for number, (name, parameter) in enumerate(self._parameters.items()):
            self._keep(weights, name, zero.gather(parameter, zero.local(parameter).data))
            for state_name in self._state_names:
                self._keep(optimizer[state_name], name, zero.gather_state(parameter, state_name))
            if self._ema:
                self._keep(ema, name, zero.gather(parameter, self._ema[number]))
        return TrainState(weights, optimizer, ema, self._updates.scalars())

    def load(self, state: TrainState) -> None:
        """Load a state."""
        with self._zero.changing_weights():
            for number, (name, parameter) in enumerate(self._parameters.items()):
                self._zero.set_weight(parameter, state.weights[name].to(self.device))
                for state_name in self._state_names:
                    self._zero.set_state(parameter, state_name, state.optimizer[state_name][name].to(self.device))
                if self._ema:
                    self._ema[number].copy_(self._zero.shard(parameter, state.ema[name]))
        self._updates.load(state.scalars)
        set_update_count(self._zero.optimizer, self._updates.count)

    @property
    def _local_weights(self) -> list[Tensor]:
        return [self._zero.local(parameter) for parameter in self._parameters.values()]

    def _step_on_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Update with the clipped gradient of the batch; returns its mean loss and its gradient norm."""
        loss, norm = torch.zeros((), device=self.device), None
        for part, fraction in micro_batches(batch, self._recipe):
            part_loss = self._engine(part.rgb, part.spec, part.targets) * fraction
            norm = self._backward(part_loss)
            self._engine.step()
            loss += part_loss.detach()
        if norm is None:
            norm = torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32, device=self.device)
        torch.distributed.all_reduce(loss)
        return loss / self.world_size, norm

    def _step_on_groups(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Update with the mean of the groups' clipped gradients; returns the means of loss and norm.

        ZeRO takes gradients only from its own backward pass, so this runs one over a sum with these gradients.
        """
        parameters = list(self._parameters.values())
        gradients, result = mean_clipped_gradients(self._engine.module, parameters, batch, self._recipe, self._updates)
        torch.distributed.all_reduce(result)
        result /= self.world_size
        if self._stage:
            self._engine.optimizer.override_loss_scale(1.0)
        products = zip(parameters, gradients, strict=True)
        self._engine.backward(sum((parameter * gradient).sum() for parameter, gradient in products), scale_wrt_gas=False)
        if self._stage == 0 and not self._updates.accept(result):
            self._zero.optimizer.zero_grad(set_to_none=True)
        self._engine.step()
        return result[0], result[1]

    def _backward(self, loss: Tensor) -> Tensor | None:
        """Gradients of a micro-batch. At stage 0, which ZeRO does not unscale or clip, does so and returns the norm."""
        if self._stage:
            self._engine.optimizer.override_loss_scale(1.0 if self._updates.scale is None else self._updates.scale.value)
            self._engine.backward(loss, scale_wrt_gas=False)
            return None
        self._engine.backward(self._updates.scale_loss(loss), scale_wrt_gas=False)
        if not self._engine.is_gradient_accumulation_boundary():
            return None
        norm = unscale_and_clip(gradients_of(self._parameters.values()), self._updates.scale, self._recipe.max_grad_norm)
        if not self._updates.accept(norm):
            self._zero.optimizer.zero_grad(set_to_none=True)
        return norm

    def _keep(self, tensors: dict[str, Tensor], name: str, tensor: Tensor) -> None:
        if self.rank == 0:
            tensors[name] = tensor.detach().to("cpu", copy=True)

    def _swap(self) -> None:
        if self._ema:
            with self._zero.changing_weights():
                for local, average in zip(self._local_weights, self._ema, strict=True):
                    local.data, average.data = average.data, local.data


def _check_stage3(recipe: TrainRecipe) -> None:
    if recipe.compile:
        fix = "Set train.compile=false, or choose stage 0, 1 or 2"
        raise ConfigError("train.compile does not work with ZeRO stage 3, which gathers weights inside the layers", fix)
    if recipe.group_size is not None:
        fix = "Choose stage 0, 1 or 2, or set train.group_size=none to clip the whole batch"
        raise ConfigError("train.group_size does not work with ZeRO stage 3, where no rank has a group's whole gradient", fix)


class _Stage0:
    """Stage 0: every rank holds all weights and optimizer state. Base class of the other stages."""

    def __init__(self, engine: Any, state_names: tuple[str, ...]) -> None:
        self.zero = engine.optimizer
        init_optimizer_state(self.optimizer, self.updated_tensors(), state_names)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """torch's optimizer."""
        return self.zero

    def updated_tensors(self) -> list[Tensor]:
        """The tensors that torch's optimizer updates."""
        return [parameter for group in self.zero.param_groups for parameter in group["params"]]

    def local(self, parameter: Any) -> Tensor:
        """This rank's part of a weight."""
        return parameter

    def gather(self, parameter: Any, local: Tensor) -> Tensor:
        """The full tensor, given each rank's part of it."""
        return local

    def shard(self, parameter: Any, full: Tensor) -> Tensor:
        """This rank's part of a full tensor."""
        return full

    def gather_state(self, parameter: Any, name: str) -> Tensor:
        """The full optimizer state of a parameter."""
        return self.zero.state[parameter][name]

    def set_weight(self, parameter: Any, full: Tensor) -> None:
        """Set a weight."""
        parameter.data.copy_(full)

    def set_state(self, parameter: Any, name: str, full: Tensor) -> None:
        """Set the optimizer state of a parameter."""
        self.zero.state[parameter][name].copy_(full)

    @contextmanager
    def changing_weights(self) -> Iterator[None]:
        """Context in which the local weights may be changed."""
        yield


class _Stage12(_Stage0):
    """Stages 1 and 2: every rank holds all weights; a flat tensor per parameter group is divided among the ranks.

    ZeRO links the optimizer state after the first update of the first group, and misses that of the other groups. Here the
    state already exists, and is linked at once.
    """

    def __init__(self, engine: Any, state_names: tuple[str, ...]) -> None:
        super().__init__(engine, state_names)
        self.zero._hp_optimizer_states_linked = False
        self.zero._lazy_init_hp_params_optimizer_state()

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.zero.optimizer

    def updated_tensors(self) -> list[Tensor]:
        return self.zero.single_partition_of_fp32_groups

    def gather_state(self, parameter: Any, name: str) -> Tensor:
        return safe_get_full_optimizer_state(parameter, name)

    def set_weight(self, parameter: Any, full: Tensor) -> None:
        parameter.data.copy_(full)
        safe_set_full_fp32_param(parameter, full)

    def set_state(self, parameter: Any, name: str, full: Tensor) -> None:
        safe_set_full_optimizer_state(parameter, full, name)


class _Stage3(_Stage0):
    """Stage 3: each weight is divided among the ranks, and gathered where it is used."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.zero.optimizer

    def updated_tensors(self) -> list[Tensor]:
        return self.zero.fp32_partitioned_groups_flat

    def local(self, parameter: Any) -> Tensor:
        return parameter.ds_tensor

    def gather(self, parameter: Any, local: Tensor) -> Tensor:
        device = pick_device()
        gathered = torch.empty(local.numel() * torch.distributed.get_world_size(), device=device)
        torch.distributed.all_gather_into_tensor(gathered, local.detach().to(device))
        return gathered[: parameter.ds_numel].view(parameter.ds_shape)

    def shard(self, parameter: Any, full: Tensor) -> Tensor:
        size = parameter.ds_tensor.numel()
        padded = nn.functional.pad(full.flatten(), (0, size * torch.distributed.get_world_size() - full.numel()))
        return padded[torch.distributed.get_rank() * size :][:size]

    def gather_state(self, parameter: Any, name: str) -> Tensor:
        return self.gather(parameter, safe_get_local_optimizer_state(parameter, name))

    def set_weight(self, parameter: Any, full: Tensor) -> None:
        local = self.shard(parameter, full)
        parameter.ds_tensor.data.copy_(local)
        safe_set_local_fp32_param(parameter, local)

    def set_state(self, parameter: Any, name: str, full: Tensor) -> None:
        safe_set_local_optimizer_state(parameter, self.shard(parameter, full), name)

    @contextmanager
    def changing_weights(self) -> Iterator[None]:
        """ZeRO keeps small weights gathered, so they are gathered again afterwards."""
        self.zero._partition_all_parameters()
        yield
        if self.zero.persistent_parameters:
            self.zero.persistent_parameters[0].all_gather(self.zero.persistent_parameters)
