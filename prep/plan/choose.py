"""Which clips of a list a plan holds: those of given keys, of a balanced subset, or the first so many."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mbt.manifests.balance import Balance, balanced_rows, offered
from mbt.manifests.errors import InputError

ALIVE = 0.9125
"""Share of AudioSet's clips that the paper found: 18,589 of 20,371 of the evaluation list."""


@dataclass(frozen=True)
class Choice:
    """What to take of a list.

    Attributes:
        keys: Parquet file with a column `key`: take these clips alone.
        balance: cap and order, or None: take all.
        over: whether the cap counts the clips that survive, or those of the list.
        limit: take the first so many clips of each split.
    """

    keys: Path | None = None
    balance: Balance | None = None
    over: Literal["survivors", "list"] = "survivors"
    limit: int | None = None

    def of(self, listed: pa.Table, num_classes: int) -> pa.Table:
        """The clips that are taken; for a cap over survivors, all that are offered to it, in the order of the offer.

        Raises:
            InputError: no clip is left, or the keys cannot be read.
        """
        clips = listed if self.keys is None else _with_keys(listed, self.keys)
        if self.balance is not None:
            survivors = self.over == "survivors"
            rows = (offered if survivors else balanced_rows)(clips, self.balance, num_classes)
            clips = clips.take(pa.array(rows))
        if self.limit is not None:
            splits = sorted(pc.unique(clips["split"]).to_pylist())
            clips = pa.concat_tables(clips.filter(pc.equal(clips["split"], split)).slice(0, self.limit) for split in splits)
        if not clips.num_rows:
            raise InputError("the plan holds no clip", "Raise --limit, or give a list with clips")
        return clips

    def caps(self, clips: pa.Table) -> dict[str, int]:
        """Caps that are still to be kept while the clips of a plan are fetched."""
        if self.balance is None or self.over == "list":
            return {}
        return dict.fromkeys(pc.unique(clips["split"]).to_pylist(), self.balance.cap)

    def likely(self, clips: pa.Table, num_classes: int) -> pa.Table:
        """Of the clips of a plan, those that will be asked for if as many are there as the paper found."""
        if not self.caps(clips):
            return clips
        assert self.balance is not None
        alive = np.random.default_rng(self.balance.seed).random(clips.num_rows) < ALIVE
        as_offered = Balance(self.balance.cap, "list")
        return clips.take(pa.array(balanced_rows(clips, as_offered, num_classes, alive)))


def _with_keys(listed: pa.Table, path: Path) -> pa.Table:
    try:
        keys = pq.read_table(path, columns=["key"])["key"]
    except (OSError, pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise InputError(f"cannot read keys of {path}: {error}", "Give a Parquet file with a column key") from None
    chosen = listed.filter(pc.is_in(listed["key"], value_set=pc.unique(keys)))
    if missing := pc.count_distinct(keys).as_py() - chosen.num_rows:
        raise InputError(f"{missing:,} keys of {path} are not in the list", "Give the list that the keys were chosen from")
    return chosen
