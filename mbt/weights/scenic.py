"""Parameters of the official implementation (Scenic, Flax) as ours: names, layouts, and the configuration they imply."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbt.config import MBTConfig, Modality
from mbt.state import empty_model

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
USUAL_IMAGE_SIZE, USUAL_BANDS = 224, 128
PAPER_FUSION_LAYER = 8


def from_scenic(
    params: Mapping[str, np.ndarray], config: MBTConfig | None = None, **fields: Any
) -> tuple[MBTConfig, dict[str, Tensor]]:
    """Configuration and state_dict of parameters of the official implementation.

    Without `config` it is inferred from names and shapes. These do not tell where fusion begins (the paper's 8 is assumed, or
    the last layer of shorter models) nor how patches lie in their grid (frames of 224 x 224 pixels and 128 mel bands are
    assumed where they fit, else the largest square and the squarest power of two): say it by `fields` where it is otherwise.

    Args:
        params: arrays by their flat Flax name, such as `Transformer/encoderblock_0/LayerNorm_0/scale`.
        config: what the parameters are of.
        fields: fields of the configuration that win over what is inferred; not with `config`.

    Returns:
        The configuration, and float32 tensors by the names of `MBT.state_dict()`.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape; the message names it.
    """
    params = {linen_name(name): np.asarray(array) for name, array in params.items()}
    if config is None:
        config = infer_config(params, **fields)
    elif fields:
        raise ValueError("give either config or its fields")
    own = {name: tuple(tensor.shape) for name, tensor in empty_model(config).state_dict().items()}
    theirs = {name: scenic_name(name, config) for name in own}
    for name in params.keys() - set(theirs.values()):
        raise ValueError(f"{name} {params[name].shape} has no place in {_in_short(config)}")
    state = {}
    for name, shape in own.items():
        if theirs[name] not in params:
            raise ValueError(f"{theirs[name]} is missing; {_in_short(config)} needs it")
        array, wanted = params[theirs[name]], scenic_shape(name, shape, config)
        if array.shape != wanted:
            raise ValueError(f"{theirs[name]} is {array.shape} where {_in_short(config)} has {wanted}")
        state[name] = to_torch(array, shape)
    return config, state


def interior_frames(num_frames: int, sampled: int) -> list[int]:
    """Numbers of the frames that the official `temporal_sampling` takes: interior points, evenly spaced.

    The official code finds them with a float range, which for some lengths gives one frame too many; here it is always
    `sampled` of them, or all where there are no more.
    """
    if sampled >= num_frames:
        return list(range(num_frames))
    return [round(k * num_frames / (sampled + 1)) for k in range(1, sampled + 1)]


def linen_name(name: str) -> str:
    """The name that a parameter has had since Flax's linen API."""
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
    """Flax shape of one of our parameters of this shape."""
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
    """A Flax array in torch's layout: inputs last in matrices, channels first in kernels."""
    tensor = torch.from_numpy(np.array(array, np.float32))
    if len(shape) >= 4:
        tensor = tensor.movedim((-1, -2), (0, 1))
    elif len(shape) == 2:
        tensor = tensor.reshape(shape[::-1]).T
    return tensor.reshape(shape).contiguous()


def infer_config(params: Mapping[str, np.ndarray], **fields: Any) -> MBTConfig:
    """Configuration that names and shapes of Flax parameters imply; see `from_scenic` for what they do not tell.

    Raises:
        ValueError: they are no MBT's, or there is no such field.
    """
    for name in fields.keys() - {field.name for field in dataclasses.fields(MBTConfig)}:
        raise ValueError(f"a configuration has no field {name!r}")
    modalities: tuple[Modality, ...] = tuple(m for m in SUFFIX if f"embedding{SUFFIX[m]}/kernel" in params)
    blocks = [name for name in params if name.startswith(BLOCK)]
    if not modalities or not blocks:
        raise ValueError("there is no embedding/kernel or no Transformer/encoderblock_0: these are no parameters of an MBT")
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
    frames, height, _ = tubelet = (1, *kernel[:2]) if len(kernel) == 4 else kernel[:3]
    patches = _shape(params, "Transformer/posembed_input/pos_embedding", 3)[1] - cls
    sides = range(math.isqrt(patches), 0, -1)
    wanted = fields.get("image_size", USUAL_IMAGE_SIZE) // height
    side = next((s for s in (wanted, *sides) if s and patches % (s * s) == 0), 1)
    return {"tubelet": tubelet, "image_size": side * height, "num_frames": patches // (side * side) * frames}


def _spec_shape(params: Mapping[str, np.ndarray], cls: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    rows, bands = patch = _shape(params, "embedding_spectrogram/kernel", 4)[:2]
    patches = _shape(params, "Transformer/posembed_input_spectrogram/pos_embedding", 3)[1] - cls
    powers = [1 << n for n in range(math.isqrt(patches).bit_length(), -1, -1) if 1 << 2 * n <= patches]
    columns = next(c for c in (USUAL_BANDS // bands, *powers) if c and patches % c == 0)
    return {"spec_patch": patch, "spec_shape": (patches // columns * rows, columns * bands)}


def _shape(params: Mapping[str, np.ndarray], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in params:
        raise ValueError(f"{name} is missing")
    if params[name].ndim != dimensions:
        raise ValueError(f"{name} has the shape {params[name].shape}, and {dimensions} dimensions are wanted")
    return params[name].shape


def _suffix(stream: str) -> str:
    return SUFFIX["spec"] if stream == "spec" else ""


def _in_short(config: MBTConfig) -> str:
    return f"an MBT of {config.num_layers} layers of {config.hidden_size} for {' + '.join(config.modalities)}"
