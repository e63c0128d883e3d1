"""State dictionaries: what they must hold, and how they are fitted to another configuration."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mbt.config import MBTConfig
from mbt.model import MBT
from mbt.positions import resize_positions


def empty_model(config: MBTConfig) -> MBT:
    """A model on the meta device: shapes without memory."""
    with torch.device("meta"):
        return MBT(config)


def model_of(config: MBTConfig, state: Mapping[str, Tensor]) -> MBT:
    """A model in evaluation mode with these weights, which are as `check_state` wants them; it takes them over uncopied."""
    model = empty_model(config)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_().eval()


def check_state(config: MBTConfig, state: Mapping[str, Tensor], where: str) -> None:
    """Make sure that every tensor of a model is there in its shape, and no other.

    Raises:
        ValueError: naming the first tensor that is missing, unknown, of another shape, not of floats, or not finite in float32.
    """
    own = {name: tuple(tensor.shape) for name, tensor in empty_model(config).state_dict().items()}
    for name in sorted(state.keys() - own.keys()):
        raise ValueError(f"{where}: the model has no tensor {name} {tuple(state[name].shape)}")
    for name, shape in own.items():
        if name not in state:
            raise ValueError(f"{where}: tensor {name} {shape} is missing")
        tensor = state[name]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{where}: tensor {name} is {tuple(tensor.shape)} where the model has {shape}")
        if not tensor.is_floating_point():
            raise ValueError(f"{where}: tensor {name} is of {tensor.dtype}")
        if not tensor.float().isfinite().all():
            raise ValueError(f"{where}: tensor {name} has values that are not finite")


def adapt_state(state: Mapping[str, Tensor], old: MBTConfig, new: MBTConfig) -> dict[str, Tensor]:
    """The state for another configuration: positions are resized to its grids; another number of classes starts at zero."""
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
