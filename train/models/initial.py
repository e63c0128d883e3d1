"""The model at the start of training."""

import dataclasses
from pathlib import Path

import torch

from mbt.config import MBTConfig
from mbt.manifests.errors import as_config_error
from mbt.model import MBT
from mbt.train.recipes.schema import InitRecipe
from mbt.weights.surgery import init_from_vit
from mbt.weights.vit import read_vit, timm_vit

TIMM = "timm:"


def initial_model(config: MBTConfig, init: InitRecipe, seed: int) -> MBT:
    """A model with random weights, those of a ViT, or those of another MBT.

    Position embeddings of another MBT are resized; its head is kept if the number of classes is the same.

    Raises:
        ConfigError: the weights are missing or damaged, cannot be downloaded, or do not fit the model.
    """
    torch.manual_seed(seed)
    model = MBT(config)
    if init.weights is None:
        return model
    fix = "Set init.weights to a ViT's .npz, timm:NAME, or an MBT's folder or hub id; init.weights=none is random"
    path = Path(init.weights)
    with as_config_error(fix):
        if init.weights.startswith(TIMM):
            init_from_vit(model, timm_vit(init.weights.removeprefix(TIMM)), init.surgery, init.inflation)
        elif path.is_file():
            init_from_vit(model, read_vit(path), init.surgery, init.inflation)
        else:
            pretrained = MBT.from_pretrained(init.weights, **dataclasses.asdict(config))
            model.load_state_dict(pretrained.state_dict())
    return model
