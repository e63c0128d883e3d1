"""The model that a training begins with."""

from pathlib import Path

import torch

from mbt.config import MBTConfig
from mbt.manifests.errors import as_config_error
from mbt.model import MBT
from mbt.pretrained import local_folder, read_folder
from mbt.state import adapt_state, check_state
from mbt.train.recipes.recipe import InitRecipe
from mbt.weights.surgery import init_from_vit
from mbt.weights.vit import read_vit, timm_vit

TIMM = "timm:"


def initial_model(config: MBTConfig, init: InitRecipe, seed: int) -> MBT:
    """A model at random, from a ViT, or from another MBT, whose positions are resized and whose head is kept if it fits.

    Raises:
        ConfigError: the weights cannot be had, are damaged, or do not fit.
    """
    torch.manual_seed(seed)
    model = MBT(config)
    if init.weights is None:
        return model
    fix = "Set init.weights to a ViT's .npz, timm:NAME, or an MBT's folder or hub id; init.weights=none starts at random"
    path = Path(init.weights)
    with as_config_error(fix):
        if init.weights.startswith(TIMM):
            init_from_vit(model, timm_vit(init.weights.removeprefix(TIMM)), init.surgery, init.inflation)
        elif path.is_file():
            init_from_vit(model, read_vit(path), init.surgery, init.inflation)
        else:
            folder = local_folder(init.weights)
            old, state = read_folder(folder)
            adapted = adapt_state(state, old, config)
            check_state(config, adapted, init.weights)
            model.load_state_dict(adapted)
    return model
