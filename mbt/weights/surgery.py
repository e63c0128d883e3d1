"""Initializes an MBT from an ImageNet Vision Transformer: every stream starts as the same ViT (paper, Sec. 4.2)."""

import math
import re
from typing import Literal

import torch
from torch import Tensor

from mbt.config import MBTConfig, Modality
from mbt.model import MBT
from mbt.positions import resize_grid
from mbt.weights.vit import ViT

SHAPE_FIELDS = ("hidden_size", "num_layers", "num_heads", "mlp_dim")

Surgery = Literal["paper", "official"]
Inflation = Literal["central", "average", "rank_pooling"]


@torch.no_grad()
def init_from_vit(model: MBT, vit: ViT, surgery: Surgery = "paper", inflation: Inflation = "central") -> None:
    """Initialize a model from a ViT, in place: patches, positions, CLS tokens and blocks of every stream, and the last norm.

    Position embeddings are resized to the grid of each stream, square or not, and repeated over the frames. The head keeps its
    values.

    Args:
        model: the model.
        vit: a ViT of the same width, depth and patch size.
        surgery: `paper`: the CLS tokens of both streams are the ViT's, and bottleneck tokens stay Gaussian (Sec. 4.2).
            `official`, as the published code does: the CLS token of the spectrogram is unchanged, bottleneck tokens are made of
            the ViT's position embeddings, and position embeddings are copied without resizing if their number is the same.
        inflation: how the image kernel is extended to tubelets of several frames: `central` puts it on the central frame, with
            zeros on the others; `average` spreads it evenly; `rank_pooling` weights it by approximate rank pooling.

    Raises:
        ValueError: the ViT does not fit the model.
    """
    config = model.config
    _check_fit(vit.config, config)
    start = {
        name: vit.state[re.sub(r"blocks\.(spec|shared)\.", "blocks.rgb.", name)]
        for name in model.state_dict()
        if name.startswith(("encoder.blocks.", "encoder.norm."))
    }
    for modality in config.modalities:
        tokens = {"position": _positions(vit, config, modality, surgery), **_patches(vit, config, modality, inflation)}
        restored = surgery == "paper" or modality == "rgb" or len(config.modalities) == 1
        if restored and config.classifier == vit.config.classifier == "token":
            tokens["cls"] = vit.state["tokens.rgb.cls"]
        start |= {f"tokens.{modality}.{name}": tensor for name, tensor in tokens.items()}
    if surgery == "official" and config.has_bottleneck:
        start["encoder.bottleneck"] = _bottleneck(vit, config)
    model.load_state_dict({**model.state_dict(), **start})


def _check_fit(vit: MBTConfig, config: MBTConfig) -> None:
    for field in SHAPE_FIELDS:
        if getattr(vit, field) != getattr(config, field):
            raise ValueError(f"the ViT has {field} {getattr(vit, field)}, but the model has {getattr(config, field)}")
    patches = {"rgb": config.tubelet[1:], "spec": config.spec_patch}
    for modality in config.modalities:
        if patches[modality] != vit.tubelet[1:]:
            raise ValueError(f"the ViT has patches {vit.tubelet[1:]}, but the {modality} stream has {patches[modality]}")


def _patches(vit: ViT, config: MBTConfig, modality: Modality, inflation: Inflation) -> dict[str, Tensor]:
    """Kernel and bias; those of rgb are converted to pixels in [-1, 1] from the range that the ViT was trained on."""
    kernel, bias = vit.state["tokens.rgb.patches.weight"], vit.state["tokens.rgb.patches.bias"]
    if modality == "spec":
        return {"patches.weight": kernel.squeeze(2), "patches.bias": bias}
    mean, std = torch.tensor(vit.mean), torch.tensor(vit.std)
    bias = bias + (kernel.sum((2, 3, 4)) * (0.5 - mean) / std).sum(1)
    frames = torch.tensor(_frame_weights(config.tubelet[0], inflation)).view(-1, 1, 1)
    return {"patches.weight": kernel * (0.5 / std).view(3, 1, 1, 1) * frames, "patches.bias": bias}


def _frame_weights(frames: int, inflation: Inflation) -> list[float]:
    """Factor of the image kernel on each frame of a tubelet; rank pooling: Bilen et al., CVPR 2016, Eq. 3."""
    if frames == 1:
        return [1.0]
    if inflation == "central":
        return [float(t == frames // 2) for t in range(frames)]
    if inflation == "average":
        return [1 / frames] * frames
    tails = [sum(1 / i for i in range(t, frames + 1)) for t in range(1, frames + 1)]
    return [(2 * (frames - t) - (frames + 1) * tail) / frames for t, tail in enumerate(tails)]


def _positions(vit: ViT, config: MBTConfig, modality: Modality, surgery: Surgery) -> Tensor:
    position = vit.state["tokens.rgb.position"]
    cls, patches = _cls_and_patches(vit)
    new = config.rgb_grid if modality == "rgb" else (1, *config.spec_grid)
    if surgery == "official" and position.shape[1] == math.prod(new) + (config.classifier == "token"):
        return position
    patches = resize_grid(patches, vit.config.rgb_grid, new)
    return torch.cat([cls, patches], dim=1) if config.classifier == "token" else patches


def _cls_and_patches(vit: ViT) -> tuple[Tensor, Tensor]:
    """Position embeddings (1, 1, D) of the CLS token, zero if there is none, and (1, N, D) of the patches."""
    position = vit.state["tokens.rgb.position"]
    patches = position[:, -math.prod(vit.config.rgb_grid) :]
    cls = position[:, :1] if position.shape[1] > patches.shape[1] else torch.zeros_like(position[:, :1])
    return cls, patches


def _bottleneck(vit: ViT, config: MBTConfig) -> Tensor:
    """Position embeddings of the CLS token and of a grid of points in the image, as many as there are bottleneck tokens."""
    cls, patches = _cls_and_patches(vit)
    has_cls = config.classifier == "token"
    count = config.num_bottlenecks - has_cls
    height = math.isqrt(count)
    if not height or count % height:
        raise ValueError(f"num_bottlenecks {config.num_bottlenecks}: official surgery cannot arrange {count} of them in a grid")
    points = resize_grid(patches, vit.config.rgb_grid, (1, height, count // height))
    return torch.cat([cls, points], dim=1) if has_cls else points
