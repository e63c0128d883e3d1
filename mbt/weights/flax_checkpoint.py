"""Reads Flax checkpoint files, msgpack with arrays as extension types (flax.serialization), without JAX, Flax or pickle."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

ARRAY, SCALAR = 1, 3
CHUNKED = "__msgpack_chunked_array__"
DTYPES = {
    np.dtype(name).name: np.dtype(name).newbyteorder("<")
    for name in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
}


def read_flax_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """Read the parameters of a checkpoint file that `flax.training.checkpoints` wrote.

    Both layouts of Scenic are supported: `optimizer/target` (flax.optim, the released MBT files) and `params` (optax).

    Returns:
        Arrays by name, such as `Transformer/encoder_norm/scale`.

    Raises:
        ValueError: the file is damaged, or has no parameters.
        OSError: the file cannot be read.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, perhaps an Orbax checkpoint; only single msgpack files can be read")
    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_decode, strict_map_key=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(f"{path} is not a complete Flax checkpoint: {error or type(error).__name__}") from None
    params = _parameters(tree)
    if not params:
        raise ValueError(f"{path} has neither 'params' nor 'optimizer/target'")
    return flatten(params)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays of nested mappings by their path, joined with `/`; chunked arrays are concatenated.

    Raises:
        ValueError: a leaf is not an array.
    """
    flat: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and CHUNKED in value:
            flat[path] = _concatenated(value, path)
        elif isinstance(value, dict):
            flat |= flatten(value, f"{path}/")
        elif isinstance(value, np.ndarray):
            flat[path] = value
        else:
            raise ValueError(f"{path} is {type(value).__name__}, not an array")
    return flat


def _parameters(tree: object) -> dict[str, Any]:
    for path in (("params",), ("optimizer", "target")):
        node = tree
        for name in path:
            node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, dict):
            return node["params"] if isinstance(node.get("params"), dict) else node
    return {}


def _decode(code: int, data: bytes) -> Any:
    if code not in (ARRAY, SCALAR):
        return msgpack.ExtType(code, data)
    shape, dtype, raw = msgpack.unpackb(data)
    if dtype == "bfloat16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    if dtype not in DTYPES:
        raise ValueError(f"unsupported array dtype {dtype!r}")
    return np.frombuffer(raw, DTYPES[dtype]).reshape(shape)


def _concatenated(value: Mapping[str, Any], path: str) -> np.ndarray:
    """The array that flax has split into flat chunks, as it does above 2^30 bytes."""
    shape = tuple(value["shape"].values())
    chunks = [value["chunks"][str(i)] for i in range(len(value["chunks"]))]
    flat = np.concatenate(chunks)
    if len(flat) != math.prod(shape):
        raise ValueError(f"{path} has shape {shape}, but its chunks have {len(flat)} values")
    return flat.reshape(shape)
