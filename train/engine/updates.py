"""The update count and the loss scale: which steps update the weights, and what a checkpoint stores about it."""

from dataclasses import dataclass

from torch import Tensor

from mbt.train.engine.precision import LossScale
from mbt.train.recipes.schema import TrainRecipe


@dataclass
class Updates:
    """Decides which steps update the weights, and counts them.

    Attributes:
        skips_non_finite: a step with a non-finite loss or gradient updates nothing.
        scale: dynamic loss scale; None unless the precision is float16.
        count: updates made so far.
    """

    skips_non_finite: bool
    scale: LossScale | None
    count: int = 0

    @classmethod
    def for_recipe(cls, recipe: TrainRecipe) -> "Updates":
        """The state before the first update."""
        scale = LossScale.for_precision(recipe.precision)
        return cls(scale is not None or recipe.non_finite == "skip", scale)

    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on."""
        return loss if self.scale is None else loss * self.scale.value

    def accept(self, values: Tensor) -> bool:
        """Whether a step with this loss and gradient norm may update the weights; reads `values` only if it could refuse."""
        return not self.skips_non_finite or bool(values.isfinite().all())

    def record(self, accepted: bool) -> None:
        """Count an update, or a skipped step, and adjust the loss scale."""
        self.count += accepted
        if self.scale is not None:
            self.scale.update(accepted)

    def scalars(self) -> dict[str, float]:
        """What a checkpoint stores: `updates`, and with float16 `loss_scale` and `finite_steps`."""
        scalars: dict[str, float] = {"updates": self.count}
        if self.scale is not None:
            scalars |= {"loss_scale": self.scale.value, "finite_steps": self.scale.finite_steps}
        return scalars

    def load(self, scalars: dict[str, float]) -> None:
        """Restore the scalars of a checkpoint."""
        self.count = int(scalars["updates"])
        scaled = "loss_scale" in scalars
        self.scale = LossScale(scalars["loss_scale"], int(scalars["finite_steps"])) if scaled else None
