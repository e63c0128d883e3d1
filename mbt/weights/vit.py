"""Reads Vision Transformers from files and from timm, under our parameter names."""

import math
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbt.config import MBTConfig
from mbt.model import MBT
from mbt.state import check_state
from mbt.weights.flax_checkpoint import read_flax_checkpoint
from mbt.weights.scenic import from_scenic

BIG_VISION_PREFIXES = ("opt/target/", "params/")
HEADS = ("head/", "output_projection/", "pre_logits/")
POSITION = "Transformer/posembed_input/pos_embedding"
LAYER_SCALE = re.compile(r"blocks\.(\d+)\.ls([12])\.gamma")


@dataclass(frozen=True)
class ViT:
    """A Vision Transformer, represented as an MBT with one modality and one frame.

    Attributes:
        config: configuration of that MBT.
        state: state_dict of that MBT; the head is zero.
        mean: mean per channel with which pixels in [0, 1] were normalized in training.
        std: standard deviation per channel, likewise.
    """

    config: MBTConfig
    state: dict[str, Tensor]
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


def read_vit(path: Path) -> ViT:
    """Read a ViT from a file: the original .npz (`ViT-B_16.npz`, also those of Big Vision) or a Scenic checkpoint.

    Raises:
        ValueError: the file is damaged, or not a ViT; the message names the tensor.
        OSError: the file cannot be read.
    """
    params = _read_npz(path) if path.suffix == ".npz" else read_flax_checkpoint(path)
    prefix = next((p for p in BIG_VISION_PREFIXES if any(name.startswith(p) for name in params)), "")
    params = {name.removeprefix(prefix): array for name, array in params.items() if name.startswith(prefix)}
    params = {name: array for name, array in params.items() if not name.startswith(HEADS)}
    if POSITION not in params or "embedding/kernel" not in params:
        raise ValueError(f"{path}: {POSITION} or embedding/kernel is missing: this file is not a ViT checkpoint")
    hidden, patch = params[POSITION].shape[-1], params["embedding/kernel"].shape[0]
    side = _side(params[POSITION].shape[1] - ("cls" in params))
    params |= {"output_projection/kernel": np.zeros((hidden, 1)), "output_projection/bias": np.zeros(1)}
    return ViT(*from_scenic(params, image_size=side * patch, num_frames=1))


def timm_vit(name: str, **options: Any) -> ViT:
    """Load a pretrained ViT from timm, such as `vit_base_patch16_224.orig_in21k`; it is downloaded unless cached.

    Any model with plain pre-norm blocks will do; layer scale is folded into the weights. timm computes GELU exactly; MBT uses
    the tanh approximation, with which the original weights were trained.

    Args:
        name: name of the model in timm.
        options: arguments of `timm.create_model`.

    Raises:
        ValueError: there is no such model, or it has parameters that an MBT lacks; the message names one.
        OSError: the download fails.
    """
    import timm
    from timm.models import VisionTransformer

    try:
        model = timm.create_model(name, pretrained=True, num_classes=0, **options)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"timm has no pretrained model {name!r}: {error}") from None
    except OSError as error:
        raise OSError(f"timm cannot download {name!r}: {str(error).splitlines()[0]}") from None
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"timm's {name!r} is not a plain Vision Transformer")
    patch, _ = model.patch_embed.patch_size
    block: Any = model.blocks[0]
    pixels: Any = model.pretrained_cfg
    config = MBTConfig(
        num_classes=1,
        modalities=("rgb",),
        hidden_size=model.embed_dim,
        num_layers=len(model.blocks),
        num_heads=block.attn.num_heads,
        mlp_dim=block.mlp.fc1.out_features,
        fusion_layer=0,
        num_frames=1,
        image_size=_side(model.patch_embed.num_patches) * patch,
        tubelet=(1, patch, patch),
        classifier="gap" if model.cls_token is None else "token",
    )
    state = _from_timm({key: tensor.float() for key, tensor in model.state_dict().items()})
    check_state(MBT.state_shapes(config), state, f"timm's {name}")
    return ViT(config, state, tuple(pixels["mean"]), tuple(pixels["std"]))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a complete .npz file: {error}") from None


def _side(patches: int) -> int:
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"{POSITION} has {patches} patches, which do not form a square image")
    return side


def _from_timm(timm_state: dict[str, Tensor]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, tensor in timm_state.items():
        block, _, part = name.rpartition(".attn.qkv.")
        if block:
            pieces = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            state |= {_our_name(f"{block}.attention.{role}.{part}"): piece for role, piece in pieces}
        elif not LAYER_SCALE.fullmatch(name):
            state[_our_name(name)] = tensor
    for name, tensor in timm_state.items():
        if match := LAYER_SCALE.fullmatch(name):
            last = _our_name(f"blocks.{match[1]}.{'attn.proj' if match[2] == '1' else 'mlp.fc2'}")
            state[f"{last}.weight"] = state[f"{last}.weight"] * tensor.unsqueeze(1)
            state[f"{last}.bias"] = state[f"{last}.bias"] * tensor
    kernel, position = state["tokens.rgb.patches.weight"], state["tokens.rgb.position"]
    state["tokens.rgb.patches.weight"] = kernel.unsqueeze(2)
    hidden = len(kernel)
    if "tokens.rgb.cls" in state and position.shape[1] == math.isqrt(position.shape[1]) ** 2:
        state["tokens.rgb.position"] = torch.cat([torch.zeros(1, 1, hidden), position], dim=1)
    return state | {"head.weight": torch.zeros(1, hidden), "head.bias": torch.zeros(1)}


def _our_name(name: str) -> str:
    for old, new in (
        ("patch_embed.proj.", "tokens.rgb.patches."),
        ("cls_token", "tokens.rgb.cls"),
        ("pos_embed", "tokens.rgb.position"),
        ("attn.proj", "attention.out"),
        ("blocks.", "encoder.blocks.rgb."),
    ):
        name = name.replace(old, new)
    return f"encoder.{name}" if name.startswith("norm.") else name
