"""Attention rollout: which patches the output was drawn from (Abnar & Zuidema, arXiv 2005.00928; paper, Figure 6)."""

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

    A layer hands on the mean of a token and of what it attends to, (A + I) / 2, with A the mean over the heads. That is linear
    in the tokens, and so is the way in which the encoder fuses streams: one number a token is sent along that way, and the
    gradient of the output with respect to it is the token's share. The output is the mean of the streams' CLS tokens, or with
    `gap` of all tokens. The shares of all tokens sum to 1; the patches lack what CLS and fusion tokens held before any layer.

    The model runs once, in evaluation mode; the attention is then computed again from the input of each layer, in float32. What
    is kept is those inputs, each of which gives way to its layer's A (B, N, M): for MBT-B with the paper's input 0.1 GB a clip,
    and besides 0.4 GB a clip for all heads of the layer at hand.

    Args:
        model: in any mode; it is left as it was.
        rgb: (B, F, 3, H, W), as in `MBT.forward`.
        spec: (B, T, M), likewise.
        of: the output of this stream alone.

    Returns:
        float32 for each modality of the model: rgb (B, frames, height, width) of `MBTConfig.rgb_grid`, spec (B, rows, bands) of
        `MBTConfig.spec_grid`.

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
    """Evaluation mode for a while, whichever parts of the model are in training."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def _layer_inputs(model: MBT, rgb: Tensor | None, spec: Tensor | None) -> deque[tuple[Tensor, Tensor | None]]:
    """Run the model; x and others of each call of a layer, in order."""
    inputs: deque[tuple[Tensor, Tensor | None]] = deque()
    with ExitStack() as hooks:
        for block in model.encoder.modules():
            if isinstance(block, Block):
                hooks.enter_context(block.register_forward_pre_hook(lambda _, given: inputs.append(given)))
        model.logits_by_modality(rgb, spec)
    return inputs


@torch.no_grad()
def _attention(block: Block, x: Tensor, others: Tensor | None) -> Tensor:
    """Its weights in float32, whatever the model runs in."""
    return copy.deepcopy(block).float().attention_weights(x.float(), None if others is None else others.float())
