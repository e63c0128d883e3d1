"""The DeepSpeed engine: the same step through ZeRO. The only file that imports deepspeed."""

import os
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]

from manifests.datasets import Task
from manifests.errors import ConfigError
from mbt.model import MBT
from train.batch import Batch
from train.engine import StepResult, TrainingModel, TrainState, autocasts, pick_device
from train.recipe import TrainRecipe

# An op that only makes all-reduce between processes on CPUs faster, and that asks for a C++ compiler at run time.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

ZERO_STAGE = 1
MOMENTUM = "momentum_buffer"


class DeepSpeedEngine:
    """SGD with momentum through DeepSpeed's ZeRO; float32 weights, bfloat16 by autocast.

    Started alone or by a launcher that sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
    """

    def __init__(self, model: MBT, task: Task, recipe: TrainRecipe) -> None:
        if recipe.group_size is not None:
            raise ConfigError(
                "group_size: DeepSpeed clips the gradient of the whole batch",
                "Set train.group_size=none, or train without --deepspeed",
            )
        _initialise_distributed()
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        if recipe.batch_size % self.world_size:
            fix = "Set train.batch_size to a multiple of the ranks"
            raise ConfigError(f"batch_size {recipe.batch_size} cannot be shared by {self.world_size} ranks", fix)
        if recipe.mixup_alpha is not None and recipe.batch_size // self.world_size % 2:
            fix = "Set train.batch_size to an even multiple of the ranks"
            raise ConfigError(f"mixup takes pairs, and {recipe.batch_size // self.world_size} clips a rank are odd", fix)
        self.device = pick_device()
        model.encoder.activation_checkpointing = recipe.activation_checkpointing
        module = TrainingModel(model, task, recipe.label_smoothing)
        optimizer = torch.optim.SGD(module.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum)
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=_config(recipe, self.world_size, autocasts(recipe.precision, self.device)),
        )

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """One update from this rank's part of the global batch."""
        self._engine.train()
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        loss = self._engine(batch.rgb, batch.spec, batch.targets)
        self._engine.backward(loss)
        self._engine.step()
        loss = loss.detach().float()
        torch.distributed.all_reduce(loss)
        return StepResult(loss / self.world_size, self._engine.get_global_grad_norm())

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Logits (B, C), float32."""
        self._engine.eval()
        return self._engine(batch.rgb, batch.spec, None).float()

    def state(self) -> TrainState:
        """Full copy of weights and momentum on the host of every rank."""
        weights, momentum = {}, {}
        for name, parameter in self._engine.module.model.named_parameters():
            weights[name] = safe_get_full_fp32_param(parameter).cpu().clone()
            buffer = safe_get_full_optimizer_state(parameter, MOMENTUM) if self._has_momentum() else None
            momentum[name] = torch.zeros_like(weights[name]) if buffer is None else buffer.cpu().clone()
        return TrainState(weights, momentum)

    def load(self, state: TrainState) -> None:
        """Take over weights and momentum.

        ZeRO makes the momentum at the first update; to set it earlier it is made here and linked to the parameters anew.
        """
        zero = self._engine.optimizer
        for partition in zero.single_partition_of_fp32_groups:
            zero.optimizer.state[partition][MOMENTUM] = torch.zeros_like(partition)
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()
        for name, parameter in self._engine.module.model.named_parameters():
            parameter.data.copy_(state.weights[name])
            safe_set_full_fp32_param(parameter, state.weights[name].to(self.device))
            safe_set_full_optimizer_state(parameter, state.momentum[name].to(self.device), MOMENTUM)

    def _has_momentum(self) -> bool:
        return any(MOMENTUM in state for state in self._engine.optimizer.optimizer.state.values())


def _initialise_distributed() -> None:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if "RANK" not in os.environ and not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", "0")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(backend, auto_mpi_discovery=False)


def _config(recipe: TrainRecipe, world_size: int, bfloat16: bool) -> dict[str, Any]:
    return {
        "train_batch_size": recipe.batch_size,
        "train_micro_batch_size_per_gpu": recipe.batch_size // world_size,
        "gradient_clipping": recipe.max_grad_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": ZERO_STAGE},
        "torch_autocast": {"enabled": bfloat16, "dtype": "bfloat16"},
        "steps_per_print": 1 << 30,
    }
