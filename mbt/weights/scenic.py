"""Converts parameters of the official implementation (Scenic, Flax): names, layouts, and the configuration they imply."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbt.config import MBTConfig, Modality, as_image_size, image_shape
from mbt.model import MBT

SUFFIX: dict[Modality, str] = {"rgb": "", "spec": "_spectrogram"}
BLOCK = "Transformer/encoderblock_"
NAMES = {
    "norm1": "LayerNorm_0",
    "norm2": "LayerNorm_1",
    "attention": "MultiHeadDotProductAttention_0",
    "mlp": "MlpBlock_0",
    "fc1": "Dense_0",
    "fc2": "Dense_1",
}
PRE_LINEN = {
    "LayerNorm_2/": "LayerNorm_1/",
    "MultiHeadDotProductAttention_1/": "MultiHeadDotProductAttention_0/",
    "MlpBlock_3/": "MlpBlock_0/",
}
DEFAULT_IMAGE_SIZE, DEFAULT_BANDS = 224, 128
PAPER_FUSION_LAYER = 8


def from_scenic(
    params: Mapping[str, np.ndarray], config: MBTConfig | None = None, **fields: Any
) -> tuple[MBTConfig, dict[str, Tensor]]:
    """Convert parameters of the official implementation to a configuration and a state_dict.

    Without `config`, the configuration is inferred from names and shapes. Two things cannot be inferred: the fusion layer (the
    paper's 8 is assumed, or the last layer of shallower models) and the grids of the patches. Frames of 224 x 224 pixels and
    128 mel bands are assumed if they fit; otherwise the largest square grid for rgb, and for spec the power of two of bands
    nearest to a square. Set them with `fields` if they differ.

    Args:
        params: arrays by their flat Flax name, such as `Transformer/encoderblock_0/LayerNorm_0/scale`.
        config: configuration of the model that the parameters belong to.
        fields: fields that override the inferred configuration; not together with `config`.

    Returns:
        The configuration, and float32 tensors under the names of `MBT.state_dict()`.

    Raises:
        ValueError: a tensor is missing, unknown or has another shape; the message names it.
    """
    params = {linen_name(name): np.asarray(array) for name, array in params.items()}
    if config is None:
        config = infer_config(params, **fields)
    elif fields:
        raise ValueError("give either config or fields, not both")
    shapes = MBT.state_shapes(config)
    scenic_names = {name: scenic_name(name, config) for name in shapes}
    for name in params.keys() - set(scenic_names.values()):
        raise ValueError(f"{name} {params[name].shape} does not belong to {_summary(config)}")
    state = {}
    for name, shape in shapes.items():
        source = scenic_names[name]
        if source not in params:
            raise ValueError(f"{source} is missing, but {_summary(config)} needs it")
        array, expected = params[source], scenic_shape(name, shape, config)
        if array.shape != expected:
            raise ValueError(f"{source} has shape {array.shape}, but {_summary(config)} has {expected}")
        state[name] = to_torch(array, shape)
    return config, state


def interior_frames(num_frames: int, sampled: int) -> list[int]:
    """Numbers of the frames that the official `temporal_sampling` selects: evenly spaced interior points.

    The official code computes them with a float range, which for some lengths gives one frame too many. This function always
    returns `sampled` frames, or all of them if there are fewer.
    """
    if sampled >= num_frames:
        return list(range(num_frames))
    return [round(k * num_frames / (sampled + 1)) for k in range(1, sampled + 1)]


def linen_name(name: str) -> str:
    """Name of a parameter in Flax's linen API, for checkpoints that are older."""
    for old, new in PRE_LINEN.items():
        name = name.replace(old, new)
    return name


def scenic_name(name: str, config: MBTConfig) -> str:
    """Flax name of one of our parameters."""
    parts = name.split(".")
    leaf = {"weight": "scale" if "norm" in parts[-2] else "kernel"}.get(parts[-1], parts[-1]) if len(parts) > 1 else name
    match parts:
        case ["tokens", modality, "patches", _]:
            return f"embedding{_suffix(modality)}/{leaf}"
        case ["tokens", modality, "position"]:
            return f"Transformer/posembed_input{_suffix(modality)}/pos_embedding"
        case ["tokens", modality, "cls"]:
            return "clsspectrogram" if modality == "spec" and len(config.modalities) > 1 else "cls"
        case ["encoder", "blocks", stream, layer, *path, _]:
            return "/".join([f"{BLOCK}{layer}{_suffix(stream)}", *(NAMES.get(part, part) for part in path), leaf])
        case ["encoder", "norm", _]:
            return f"Transformer/encoder_norm/{leaf}"
        case ["encoder", "bottleneck"]:
            return "bottleneck"
        case ["representation", _, _]:
            return f"pre_logits/{leaf}"
        case _:
            return f"output_projection/{leaf}"


def scenic_shape(name: str, shape: tuple[int, ...], config: MBTConfig) -> tuple[int, ...]:
    """Flax shape of one of our parameters, given its shape in torch."""
    heads = (config.num_heads, config.hidden_size // config.num_heads)
    if re.search(r"attention\.(query|key|value)\.weight", name):
        return (config.hidden_size, *heads)
    if re.search(r"attention\.(query|key|value)\.bias", name):
        return heads
    if name.endswith("attention.out.weight"):
        return (*heads, config.hidden_size)
    if len(shape) == 5 and shape[2] == 1:
        return (*shape[3:], shape[1], shape[0])
    if len(shape) >= 4:
        return (*shape[2:], shape[1], shape[0])
    return shape[::-1] if len(shape) == 2 else shape


def to_torch(array: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """Convert a Flax array to torch's layout: inputs last in matrices, channels first in convolution kernels."""
    tensor = torch.from_numpy(np.array(array, np.float32))
    if len(shape) >= 4:
        tensor = tensor.movedim((-1, -2), (0, 1))
    elif len(shape) == 2:
        tensor = tensor.reshape(shape[::-1]).T
    return tensor.reshape(shape).contiguous()


def infer_config(params: Mapping[str, np.ndarray], **fields: Any) -> MBTConfig:
    """Infer the configuration from names and shapes of Flax parameters; see `from_scenic` for the limits.

    Raises:
        ValueError: the parameters are not those of an MBT, or a field is unknown.
    """
    for name in fields.keys() - {field.name for field in dataclasses.fields(MBTConfig)}:
        raise ValueError(f"the configuration has no field {name!r}")
    modalities: tuple[Modality, ...] = tuple(m for m in SUFFIX if f"embedding{SUFFIX[m]}/kernel" in params)
    blocks = [name for name in params if name.startswith(BLOCK)]
    if not modalities or not blocks:
        raise ValueError("embedding/kernel or Transformer/encoderblock_0 is missing: these are not the parameters of an MBT")
    first = f"{BLOCK}0" if f"{BLOCK}0/LayerNorm_0/scale" in params else f"{BLOCK}0_spectrogram"
    query = _shape(params, f"{first}/MultiHeadDotProductAttention_0/query/kernel", 3)
    num_layers = 1 + max(int(name[len(BLOCK) :].partition("/")[0].partition("_")[0]) for name in blocks)
    found: dict[str, Any] = {
        "num_classes": _shape(params, "output_projection/kernel", 2)[1],
        "modalities": modalities,
        "share_encoder": "spec" in modalities and not any("_spectrogram/" in name for name in blocks),
        "fusion": "attention" if len(modalities) > 1 and "bottleneck" not in params else "bottleneck",
        "fusion_layer": min(PAPER_FUSION_LAYER, num_layers - 1),
        "hidden_size": query[0],
        "num_layers": num_layers,
        "num_heads": query[1],
        "mlp_dim": _shape(params, f"{first}/MlpBlock_0/Dense_0/kernel", 2)[1],
        "classifier": "token" if "cls" in params or "clsspectrogram" in params else "gap",
    }
    if "bottleneck" in params:
        found["num_bottlenecks"] = _shape(params, "bottleneck", 3)[1]
    if "pre_logits/kernel" in params:
        found["representation_size"] = _shape(params, "pre_logits/kernel", 2)[1]
    cls = int(found["classifier"] == "token")
    if "rgb" in modalities:
        found |= _rgb_shape(params, cls, fields)
    if "spec" in modalities:
        found |= _spec_shape(params, cls, fields)
    return MBTConfig(**{**found, **fields})


def _rgb_shape(params: Mapping[str, np.ndarray], cls: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    kernel = params["embedding/kernel"].shape
    frames, height, width = tubelet = (1, *kernel[:2]) if len(kernel) == 4 else kernel[:3]
    patches = _shape(params, "Transformer/posembed_input/pos_embedding", 3)[1] - cls
    image = image_shape(as_image_size(fields.get("image_size", DEFAULT_IMAGE_SIZE)))
    squares = [(side, side) for side in range(math.isqrt(patches), 0, -1)]
    grids = [(image[0] // height, image[1] // width), *squares, (1, 1)]
    rows, columns = next((r, c) for r, c in grids if r and c and patches % (r * c) == 0)
    image_size = as_image_size((rows * height, columns * width))
    return {"tubelet": tubelet, "image_size": image_size, "num_frames": patches // (rows * columns) * frames}


def _spec_shape(params: Mapping[str, np.ndarray], cls: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    rows, bands = patch = _shape(params, "embedding_spectrogram/kernel", 4)[:2]
    patches = _shape(params, "Transformer/posembed_input_spectrogram/pos_embedding", 3)[1] - cls
    powers = [1 << n for n in range(math.isqrt(patches).bit_length(), -1, -1) if 1 << 2 * n <= patches]
    columns = next(c for c in (DEFAULT_BANDS // bands, *powers) if c and patches % c == 0)
    return {"spec_patch": patch, "spec_shape": (patches // columns * rows, columns * bands)}


def _shape(params: Mapping[str, np.ndarray], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in params:
        raise ValueError(f"{name} is missing")
    if params[name].ndim != dimensions:
        raise ValueError(f"{name} has shape {params[name].shape}, not {dimensions} dimensions")
    return params[name].shape


def _suffix(stream: str) -> str:
    return SUFFIX["spec"] if stream == "spec" else ""


def _summary(config: MBTConfig) -> str:
    return f"an MBT with {config.num_layers} layers of width {config.hidden_size} for {' + '.join(config.modalities)}"
