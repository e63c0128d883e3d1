"""Gradients that are clipped group by group before their mean is taken, as each device of the official training does."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mbt.train.data.batch import Batch
from mbt.train.engine.engine import micro_batches
from mbt.train.engine.precision import LossScale, unscale_and_clip
from mbt.train.recipes.schema import TrainRecipe


def mean_of_groups(
    module: nn.Module, parameters: Sequence[nn.Parameter], batch: Batch, recipe: TrainRecipe, scale: LossScale | None
) -> tuple[list[Tensor], Tensor]:
    """Mean of the clipped gradients of a rank's groups.

    Args:
        module: gives the loss.
        parameters: its, all whole on this rank.
        batch: this rank's.
        recipe: says how many examples are a group, how they are clipped, and how many are taken at a time.
        scale: of the loss, or None.

    Returns:
        The gradient of each parameter, and the means over the groups of loss and norm before clipping, (2,).
    """
    assert recipe.group_size is not None
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    results = []
    for group in batch.split(recipe.group_size):
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        loss = torch.zeros((), device=totals[0].device)
        for part, share in micro_batches(group, recipe):
            part_loss = module(part.rgb, part.spec, part.targets) * share
            scaled = part_loss if scale is None else part_loss * scale.value
            found = torch.autograd.grad(scaled, parameters, allow_unused=True)
            for gradient, each in zip(gradients, found, strict=True):
                if each is not None:
                    gradient += each
            loss += part_loss.detach()
        results.append(torch.stack([loss, unscale_and_clip(gradients, scale, recipe.max_grad_norm)]))
        torch._foreach_add_(totals, gradients)
    torch._foreach_div_(totals, len(results))
    return totals, torch.stack(results).mean(0)
