"""Attention rollout: how much each patch contributes to the output (Abnar & Zuidema, arXiv 2005.00928; paper, Figure 6)."""

import copy
import math
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from mbt.config import Modality
from mbt.encoder import Block
from mbt.model import MBT


def attention_rollout(
    model: MBT, rgb: Tensor | None = None, spec: Tensor | None = None, of: Modality | None = None
) -> dict[Modality, Tensor]:
    """Share of each patch in the output, through the attention and the skip connections of all layers.

    A layer is approximated by (A + I) / 2, with A the attention weights averaged over the heads. This is linear in the tokens,
    and so is the fusion of the streams. One number per token is sent through the layers, and the gradient of the output with
    respect to it is the token's share. The output is the mean of the streams' CLS tokens, or, with `gap`, of all tokens. The
    shares of all tokens sum to 1; the shares of CLS and fusion tokens are not returned.

    The model runs once, in evaluation mode; the attention is then recomputed in float32 from the input of each layer. For MBT-B
    with the paper's input, the inputs and the weights A (B, N, M), which replace them, take 0.1 GB per clip; all heads of the
    current layer take another 0.4 GB per clip.

    Args:
        model: a model in any mode, which is restored afterwards.
        rgb: (B, F, 3, H, W), as in `MBT.forward`.
        spec: (B, T, M), as in `MBT.forward`.
        of: stream whose output is explained; None: all streams.

    Returns:
        float32 shares for each modality of the model: rgb (B, frames, height, width) of `MBTConfig.rgb_grid`, spec (B, rows,
        bands) of `MBTConfig.spec_grid`.

    Raises:
        ValueError: an input is missing, or the model has no stream `of`.
    """
    config = model.config
    if of is not None and of not in config.modalities:
        raise ValueError(f"the model has no {of} stream")
    grids: dict[Modality, tuple[int, ...]] = {"rgb": config.rgb_grid, "spec": config.spec_grid}
    cls = config.classifier == "token"
    with _evaluation(model), torch.inference_mode(False):
        inputs = _layer_inputs(model, rgb, spec)
        batch, device = len(inputs[0][0]), inputs[0][0].device

        def rolled(block: Block, x: Tensor, others: Tensor | None) -> Tensor:
            context = x if others is None else torch.cat([others, x], dim=1)
            return (x + _attention(block, *inputs.popleft()) @ context) / 2

        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            tokens: dict[Modality, Tensor] = {
                m: torch.zeros(batch, math.prod(grids[m]) + cls, 1, device=device, requires_grad=True)
                for m in config.modalities
            }
            z_fsn = torch.zeros(batch, config.num_bottlenecks, 1, device=device) if config.has_bottleneck else None
            encoded = model.encoder.through_layers(tokens, z_fsn, rolled)
            streams = [z for m, z in encoded.items() if of in (None, m)]
            output = torch.cat([z[:, :1] for z in streams] if cls else streams, dim=1).mean(1)
            shares = torch.autograd.grad(output.sum(), list(tokens.values()), materialize_grads=True)
    return {m: share[:, cls:, 0].unflatten(1, grids[m]) for m, share in zip(tokens, shares, strict=True)}


@contextmanager
def _evaluation(model: MBT) -> Iterator[None]:
    """Switch to evaluation mode, and restore the mode of each module afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def _layer_inputs(model: MBT, rgb: Tensor | None, spec: Tensor | None) -> deque[tuple[Tensor, Tensor | None]]:
    """Run the model and return the arguments x and others of each call of a layer, in order."""
    inputs: deque[tuple[Tensor, Tensor | None]] = deque()
    with ExitStack() as hooks:
        for block in model.encoder.modules():
            if isinstance(block, Block):
                hooks.enter_context(block.register_forward_pre_hook(lambda _, given: inputs.append(given)))
        model.logits_by_modality(rgb, spec)
    return inputs


@torch.no_grad()
def _attention(block: Block, x: Tensor, others: Tensor | None) -> Tensor:
    """Attention weights in float32, for a model of any dtype."""
    return copy.deepcopy(block).float().attention_weights(x.float(), None if others is None else others.float())
