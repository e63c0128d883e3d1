"""Optimisers of a recipe: groups of parameters, rates, and state by name."""

from collections.abc import Iterable

import torch
from torch import Tensor

from mbt.config import MBTConfig
from mbt.model import MBT
from mbt.train.recipes.schema import TrainRecipe

RATE = "rate"
"""Key of a group's share of the learning rate."""
UPDATES = "step"
"""Key under which torch's AdamW counts its updates."""
STATES: dict[str, tuple[str, ...]] = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}
"""What each optimiser keeps of a parameter, in its shape, as torch names it; zero before the first update."""


def make_optimizer(model: MBT, recipe: TrainRecipe) -> torch.optim.Optimizer:
    """The optimiser of a recipe over a model's parameters; `set_rates` sets its rates."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)


def parameter_groups(model: MBT, recipe: TrainRecipe) -> list[dict[str, object]]:
    """Parameters that share weight decay and rate.

    Only the kernels of layers and patch embeddings decay: no bias, norm, position, CLS or fusion token. With layer decay d
    the rate of block i of L is d^(L - i) of the head's, that of the embeddings d^(L + 1) (Clark et al., arXiv 2003.10555).
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        decay = recipe.weight_decay if name.endswith("weight") and parameter.ndim > 1 else 0.0
        rate = 1.0 if recipe.layer_decay is None else recipe.layer_decay ** _layers_above(name, model.config)
        groups.setdefault((decay, rate), []).append(parameter)
    return [{"params": params, "weight_decay": decay, RATE: rate} for (decay, rate), params in groups.items()]


def set_rates(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set each group's learning rate to its share of this one."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group[RATE]


def begin_state(optimizer: torch.optim.Optimizer, tensors: Iterable[Tensor], names: tuple[str, ...]) -> None:
    """Make the state of these tensors before their first update, which then gives what it gives without."""
    for tensor in tensors:
        optimizer.state[tensor] = {name: torch.zeros_like(tensor) for name in names} | {UPDATES: torch.zeros(())}


def set_updates(optimizer: torch.optim.Optimizer, updates: int) -> None:
    """Set how many updates were made, by which AdamW corrects its means."""
    for state in optimizer.state.values():
        state[UPDATES].fill_(updates)


def follow(averages: list[Tensor], weights: list[Tensor], decay: float) -> None:
    """Move averages, in place, towards the weights: a <- decay * a + (1 - decay) * w."""
    torch._foreach_lerp_(averages, weights, 1 - decay)


def _layers_above(name: str, config: MBTConfig) -> int:
    """Layers between a parameter and the head; fusion tokens count as part of the first layer that reads them."""
    first, *rest = name.split(".")
    if first == "tokens":
        return config.num_layers + 1
    if first == "encoder" and rest[0] == "blocks":
        return config.num_layers - int(rest[2])
    if first == "encoder" and rest[0] == "bottleneck":
        return config.num_layers - min(config.fusion_layer, config.num_layers - 1)
    return 0
