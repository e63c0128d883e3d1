"""Options of the plan stage."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mbt.manifests.balance import Balance, Order
from mbt.manifests.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Which clips of a list to take; all by default.

    Attributes:
        keys: Parquet file with a column `key`: take only these clips.
        cap: maximum clips per class; None: no cap.
        balance: whether the cap counts only clips that could be fetched (`survivors`) or every clip of the list (`list`);
            None: `survivors`.
        order: order in which clips are considered for the cap; None: `common-first`.
        seed: seed of the order `random`.
        limit: take only the first N clips of each split.
        replan: let clips that were neither fetched nor packed leave an earlier plan.

    Raises:
        InputError: `balance` or `order` is given without `cap`.
    """

    keys: Path | None = None
    cap: int | None = None
    balance: Literal["survivors", "list"] | None = None
    order: Order | None = None
    seed: int = 0
    limit: int | None = None
    replan: bool = False

    def __post_init__(self) -> None:
        if self.cap is None and (self.order or self.balance):
            option = f"--order {self.order}" if self.order else f"--balance {self.balance}"
            raise InputError(f"{option} requires --cap", "Add --cap N, or drop the option")

    @property
    def balancing(self) -> Balance | None:
        """Cap and order, or None without a cap."""
        return None if self.cap is None else Balance(self.cap, self.order or "common-first", self.seed)

    @property
    def caps_survivors(self) -> bool:
        """Whether the cap is enforced while clips are fetched."""
        return self.cap is not None and self.balance != "list"
