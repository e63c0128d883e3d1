"""Optimizers of a recipe: parameter groups, learning rates, weight decay, and state by name."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mbt.config import MBTConfig
from mbt.model import MBT
from mbt.train.recipes.schema import TrainRecipe

LR_SCALE = "lr_scale"
"""Key of a group's factor of the learning rate."""
DECOUPLED_DECAY = "decoupled_weight_decay"
"""Key of a group's weight decay in `DecoupledSGD`."""
UPDATES = "step"
"""Key under which torch's AdamW counts its updates."""
STATE_NAMES: dict[str, tuple[str, ...]] = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}
"""torch's names for the state of a parameter: tensors of its shape, which are zero before the first update."""


class DecoupledSGD(torch.optim.SGD):
    """SGD with momentum, and weight decay that bypasses gradient and momentum: p <- (1 - lr * decay) * (p - lr * m).

    This is `explicit_weight_decay` of the official trainer (Scenic: projects/mbt/trainer.py, `train_step`;
    train_lib_deprecated/optimizers.py, `decay_weight_fn`): it follows the update and uses its learning rate. torch's own
    `weight_decay` adds to the gradient instead. Parameters without a gradient do not decay: a skipped step changes nothing.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the parameters, then let them decay."""
        loss = super().step(closure)
        for group in self.param_groups:
            updated = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group[DECOUPLED_DECAY] and updated:
                torch._foreach_mul_(updated, 1 - group["lr"] * group[DECOUPLED_DECAY])
        return loss


def make_optimizer(model: MBT, recipe: TrainRecipe) -> torch.optim.Optimizer:
    """The recipe's optimizer for a model's parameters; `set_learning_rates` sets the rates."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas)
    for group in groups:
        group[DECOUPLED_DECAY] = group.pop("weight_decay")
    return DecoupledSGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)


def parameter_groups(model: MBT, recipe: TrainRecipe) -> list[dict[str, Any]]:
    """Group parameters by weight decay and learning-rate factor.

    Only the kernels of linear layers and patch embeddings decay, as in the official code: no biases, norms, positions, CLS or
    bottleneck tokens. With layer decay d, the rate of block i of L is d^(L - i) times that of the head, and the rate of the
    embeddings d^(L + 1) (Clark et al., arXiv 2003.10555).
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        decay = recipe.weight_decay if name.endswith("weight") and parameter.ndim > 1 else 0.0
        scale = 1.0 if recipe.layer_decay is None else recipe.layer_decay ** _layers_above(name, model.config)
        groups.setdefault((decay, scale), []).append(parameter)
    return [{"params": params, "weight_decay": decay, LR_SCALE: scale} for (decay, scale), params in groups.items()]


def set_learning_rates(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set each group's learning rate to its factor times `learning_rate`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group[LR_SCALE]


def init_optimizer_state(optimizer: torch.optim.Optimizer, tensors: Iterable[Tensor], names: tuple[str, ...]) -> None:
    """Create the state of these tensors before the first update, with the values that the first update would start from."""
    for tensor in tensors:
        optimizer.state[tensor] = {name: torch.zeros_like(tensor) for name in names} | {UPDATES: torch.zeros(())}


def set_update_count(optimizer: torch.optim.Optimizer, updates: int) -> None:
    """Set the number of updates made, which AdamW uses for bias correction."""
    for state in optimizer.state.values():
        state[UPDATES].fill_(updates)


def ema_update(averages: list[Tensor], weights: list[Tensor], decay: float) -> None:
    """Update moving averages in place: a <- decay * a + (1 - decay) * w."""
    torch._foreach_lerp_(averages, weights, 1 - decay)


def _layers_above(name: str, config: MBTConfig) -> int:
    """Layers between a parameter and the head; bottleneck tokens count as part of the first layer that reads them."""
    first, *rest = name.split(".")
    if first == "tokens":
        return config.num_layers + 1
    if first == "encoder" and rest[0] == "blocks":
        return config.num_layers - int(rest[2])
    if first == "encoder" and rest[0] == "bottleneck":
        return config.num_layers - min(config.fusion_layer, config.num_layers - 1)
    return 0
