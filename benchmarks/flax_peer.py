"""An independent implementation of MBT in JAX and Flax, with the weights of a given torch model.

It covers the architecture of MBT-B: separate blocks for two streams, bottleneck fusion by the mean, a CLS token per stream, no
dropout.
"""

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from mbt import MBT, MBTConfig
from mbt.config import Modality
from mbt.encoder import LAYER_NORM_EPS

os.environ.setdefault(
    "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
)  # Set before importing jax, which would reserve most of the GPU's memory.

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

OWNER = re.compile(r"(tokens\.\w+|encoder\.blocks\.\w+\.\d+|encoder\.\w+|head)\.?(.*)")


@jax.checkpoint
def attend_in_head(query: Array, key: Array, value: Array) -> Array:
    """Attention of one head of one clip, (N, d), with softmax in float32; the backward pass recomputes the (N, N) scores."""
    scores = (query * query.shape[-1] ** -0.5) @ key.T
    return jax.nn.softmax(scores.astype(jnp.float32)).astype(value.dtype) @ value


def attend(query: Array, key: Array, value: Array) -> Array:
    """Attention over (B, N, H, d), in the fastest way that plain JAX offers.

    On GPUs that is `jax.nn.dot_product_attention`, with cuDNN in bfloat16. On CPUs the scores of all heads exceed the cache, so
    computing one head at a time takes a fraction of the time.
    """
    if jax.default_backend() == "gpu":
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn" if query.dtype == jnp.bfloat16 else "xla")
    b, n, h, d = query.shape
    heads = [x.swapaxes(1, 2).reshape(b * h, n, d) for x in (query, key, value)]
    return jax.lax.map(lambda head: attend_in_head(*head), heads).reshape(b, h, n, d).swapaxes(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, N, D) to (B, N, D)."""
        heads = (*x.shape[:2], self.num_heads, -1)
        projected = [nn.Dense(x.shape[-1], dtype=self.dtype, name=n)(x).reshape(heads) for n in ("query", "key", "value")]
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="out")(attend(*projected).reshape(x.shape))


class MLP(nn.Module):
    """Two layers with GELU."""

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, N, D) to (B, N, D)."""
        hidden = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype, name="fc1")(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(hidden)


class Block(nn.Module):
    """Pre-norm transformer layer."""

    config: MBTConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, N, D) to (B, N, D)."""
        norm1, norm2 = (nn.LayerNorm(LAYER_NORM_EPS, dtype=self.dtype, name=name) for name in ("norm1", "norm2"))
        x = x + Attention(self.config.num_heads, self.dtype, name="attention")(norm1(x))
        return x + MLP(self.config.mlp_dim, self.dtype, name="mlp")(norm2(x))


class Tokens(nn.Module):
    """Patch tokens with CLS and position embedding."""

    patch: tuple[int, ...]
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, ..., channels) to (B, N, D)."""
        patches = nn.Conv(self.width, self.patch, self.patch, "VALID", dtype=self.dtype, name="patches")(x)
        patches = patches.reshape(len(x), -1, self.width)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
        tokens = jnp.concatenate([jnp.broadcast_to(cls, (len(x), 1, self.width)), patches], axis=1)
        return tokens + self.param("position", nn.initializers.zeros, (1, *tokens.shape[1:]))


class FlaxMBT(nn.Module):
    """MBT of any size, otherwise configured as MBT-B; computes in `dtype`."""

    config: MBTConfig
    dtype: Any

    @nn.compact
    def __call__(self, rgb: Array, spec: Array) -> dict[Modality, Array]:
        """Map rgb (B, F, H, W, 3) and spec (B, T, M) to the logits (B, num_classes) of each modality."""
        config, inputs = self.config, {"rgb": rgb, "spec": jnp.repeat(spec[..., None], 3, axis=-1)}
        width, patches = config.hidden_size, {"rgb": config.tubelet, "spec": config.spec_patch}
        streams = {m: Tokens(patches[m], width, self.dtype, name=f"tokens.{m}")(inputs[m]) for m in config.modalities}
        z_fsn = self.param("encoder.bottleneck", nn.initializers.zeros, (1, config.num_bottlenecks, width))
        z_fsn = jnp.broadcast_to(z_fsn, (len(rgb), *z_fsn.shape[1:]))
        for layer in range(config.num_layers):
            blocks = {m: Block(config, self.dtype, name=f"encoder.blocks.{m}.{layer}") for m in streams}
            if layer < config.fusion_layer:
                streams = {m: blocks[m](z) for m, z in streams.items()}
            else:
                fused = {m: blocks[m](jnp.concatenate([z, z_fsn], axis=1)) for m, z in streams.items()}
                z_fsn = sum(out[:, -config.num_bottlenecks :] for out in fused.values()) / len(fused)
                streams = {m: out[:, : -config.num_bottlenecks] for m, out in fused.items()}
        norm = nn.LayerNorm(LAYER_NORM_EPS, dtype=self.dtype, name="encoder.norm")
        head = nn.Dense(config.num_classes, dtype=self.dtype, name="head")
        return {m: head(norm(z)[:, 0]) for m, z in streams.items()}


def flax_weights(model: MBT) -> dict[str, Any]:
    """Weights of `model` under the names of `FlaxMBT`, float32."""
    weights: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        match = OWNER.fullmatch(name)
        assert match
        *modules, leaf = [part for part in (match[1], *match[2].split(".")) if part]
        owner = weights
        for module in modules:
            owner = owner.setdefault(module, {})
        value = tensor.numpy(force=True)
        if leaf == "weight" and value.ndim == 1:
            owner["scale"] = value
        elif leaf == "weight":
            owner["kernel"] = np.moveaxis(value, (1, 0), (-2, -1))
        else:
            owner[leaf] = value
    return weights


class FlaxPeer:
    """The compiled Flax model and its inputs.

    Args:
        model: source of configuration and weights.
        rgb: (B, F, 3, H, W).
        spec: (B, T, M).
        targets: (B, num_classes), multi-hot.
        dtype: `float32`, or `bfloat16` with float32 weights, as in torch's autocast.

    Attributes:
        logits_by_modality: function that returns the logits (B, num_classes) of each modality.
        gradients: function that returns the gradients of the training loss, in the structure of `flax_weights`.
    """

    def __init__(self, model: MBT, rgb: Tensor, spec: Tensor, targets: Tensor, dtype: str) -> None:
        peer = FlaxMBT(model.config, jnp.dtype(dtype))
        inputs = (flax_weights(model), *(x.numpy(force=True) for x in (rgb.movedim(2, -1), spec, targets)))
        weights, rgb_in, spec_in, targets_in = jax.device_put(inputs)

        def logits(weights: Any, rgb: Array, spec: Array) -> dict[Modality, Array]:
            return peer.apply({"params": weights}, rgb, spec)

        def loss(weights: Any, rgb: Array, spec: Array, targets: Array) -> Array:
            each = jnp.stack(list(logits(weights, rgb, spec).values())).astype(jnp.float32)
            return (nn.softplus(each) - targets * each).sum() / (len(each) * len(targets))

        self.logits_by_modality = compiled(logits, dtype, weights, rgb_in, spec_in)
        self.gradients = compiled(jax.grad(loss), dtype, weights, rgb_in, spec_in, targets_in)


def product(size: int, dtype: str) -> Callable[[], Array]:
    """A function that multiplies two random matrices of `size` rows and columns."""
    return compiled(jnp.matmul, dtype, *(jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2)))


def compiled(function: Callable[..., Any], dtype: str, *arguments: Any) -> Callable[[], Any]:
    """A compiled call of `function(*arguments)` that blocks until the result is ready; float32 does not use TF32, as in torch.

    Raises:
        MemoryError: when called, if the device runs out of memory.
    """
    jitted, precision = jax.jit(function), "highest" if dtype == "float32" else "default"

    def run() -> Any:
        try:
            with jax.default_matmul_precision(precision):
                return jax.block_until_ready(jitted(*arguments))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise MemoryError from None
            raise

    return run


def runs_on(device: str) -> bool:
    """Select JAX's platform, `cpu` or `cuda`, and return whether it has a device; must precede any other use of JAX."""
    jax.config.update("jax_platforms", device)
    try:
        return bool(jax.devices())
    except RuntimeError:
        return False
