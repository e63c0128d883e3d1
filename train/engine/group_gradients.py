"""Gradients clipped per group before they are averaged, as on each device of the official training."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mbt.train.data.batch import Batch
from mbt.train.engine.engine import micro_batches
from mbt.train.engine.precision import unscale_and_clip
from mbt.train.engine.updates import Updates
from mbt.train.recipes.schema import TrainRecipe


def mean_clipped_gradients(
    module: nn.Module, parameters: Sequence[nn.Parameter], batch: Batch, recipe: TrainRecipe, updates: Updates
) -> tuple[list[Tensor], Tensor]:
    """Mean of the clipped gradients of a rank's groups.

    Args:
        module: returns the loss.
        parameters: its parameters, unsharded.
        batch: this rank's part of the batch.
        recipe: sets group size, clipping and micro-batch size.
        updates: holds the loss scale.

    Returns:
        The gradient of each parameter; and loss and gradient norm before clipping, means over the groups, (2,).
    """
    assert recipe.group_size is not None
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    results = []
    for group in batch.split(recipe.group_size):
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        loss = torch.zeros((), device=totals[0].device)
        for part, fraction in micro_batches(group, recipe):
            part_loss = module(part.rgb, part.spec, part.targets) * fraction
            part_gradients = torch.autograd.grad(updates.scale_loss(part_loss), parameters, allow_unused=True)
            for total, gradient in zip(gradients, part_gradients, strict=True):
                if gradient is not None:
                    total += gradient
            loss += part_loss.detach()
        results.append(torch.stack([loss, unscale_and_clip(gradients, updates.scale, recipe.max_grad_norm)]))
        torch._foreach_add_(totals, gradients)
    torch._foreach_div_(totals, len(results))
    return totals, torch.stack(results).mean(0)
