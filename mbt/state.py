"""State dictionaries: checking them against a model, and adapting them to another configuration."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mbt.config import MBTConfig
from mbt.positions import resize_positions

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a model's tensors by their name in its state_dict."""


def check_state(shapes: Shapes, state: Mapping[str, Tensor], where: str) -> None:
    """Check that a state_dict has exactly the tensors of a model.

    Args:
        shapes: tensors of the model.
        state: the state_dict.
        where: its file or source, for messages.

    Raises:
        ValueError: a tensor is missing, unknown, of another shape, not floating-point, or not finite in float32; the message
            names the first such tensor.
    """
    for name in sorted(state.keys() - shapes.keys()):
        raise ValueError(f"{where}: unknown tensor {name} {tuple(state[name].shape)}")
    for name, shape in shapes.items():
        if name not in state:
            raise ValueError(f"{where}: tensor {name} {shape} is missing")
        tensor = state[name]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{where}: tensor {name} has shape {tuple(tensor.shape)}, but the model has {shape}")
        if not tensor.is_floating_point():
            raise ValueError(f"{where}: tensor {name} has dtype {tensor.dtype}, not a float")
        if not tensor.float().isfinite().all():
            raise ValueError(f"{where}: tensor {name} has NaN or infinite values")


def adapt_state(state: Mapping[str, Tensor], old: MBTConfig, new: MBTConfig) -> dict[str, Tensor]:
    """Adapt a state_dict to another configuration: positions are resized to its grids; for other classes the head is zeroed."""
    adapted = dict(state)
    cls = old.classifier == "token"
    grids = {"rgb": (old.rgb_grid, new.rgb_grid), "spec": (old.spec_grid, new.spec_grid)}
    for modality, (old_grid, new_grid) in grids.items():
        name = f"tokens.{modality}.position"
        if name in adapted:
            adapted[name] = resize_positions(adapted[name], old_grid, new_grid, cls)
    if old.num_classes != new.num_classes:
        adapted["head.weight"] = torch.zeros(new.num_classes, state["head.weight"].shape[1])
        adapted["head.bias"] = torch.zeros(new.num_classes)
    return adapted
