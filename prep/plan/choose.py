"""Which clips of a list are planned: those with given keys, a balanced subset, or the first N of each split."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mbt.manifests.balance import Balance, balanced_rows, ordered_rows
from mbt.manifests.errors import InputError
from mbt.prep.plan.options import PlanOptions

ALIVE = 0.9125
"""Share of AudioSet's clips that the paper could still find: 18,589 of 20,371 in the evaluation list."""


def choose(listed: pa.Table, options: PlanOptions, num_classes: int) -> pa.Table:
    """The clips to plan; for a cap over survivors, all clips that may be needed, in the order in which they are considered.

    Args:
        listed: clip table.
        options: which clips to take.
        num_classes: number of classes.

    Raises:
        InputError: no clip is left, or the keys cannot be read.
    """
    clips = listed if options.keys is None else _with_keys(listed, options.keys)
    if options.balancing is not None:
        rows = (ordered_rows if options.caps_survivors else balanced_rows)(clips, options.balancing, num_classes)
        clips = clips.take(pa.array(rows))
    if options.limit is not None:
        splits = sorted(pc.unique(clips["split"]).to_pylist())
        clips = pa.concat_tables(clips.filter(pc.equal(clips["split"], split)).slice(0, options.limit) for split in splits)
    if not clips.num_rows:
        raise InputError("the plan is empty", "Give a list or --keys with at least one clip")
    return clips


def fetch_caps(clips: pa.Table, options: PlanOptions) -> dict[str, int]:
    """By split, the caps that must be enforced while the planned clips are fetched."""
    if options.cap is None or not options.caps_survivors:
        return {}
    return dict.fromkeys(pc.unique(clips["split"]).to_pylist(), options.cap)


def likely_clips(clips: pa.Table, options: PlanOptions, num_classes: int) -> pa.Table:
    """The planned clips that will probably be fetched, if the paper's share of clips can still be found."""
    if options.cap is None or not options.caps_survivors:
        return clips
    alive = np.random.default_rng(options.seed).random(clips.num_rows) < ALIVE
    return clips.take(pa.array(balanced_rows(clips, Balance(options.cap, "list"), num_classes, alive)))


def _with_keys(listed: pa.Table, path: Path) -> pa.Table:
    try:
        keys = pq.read_table(path, columns=["key"])["key"]
    except (OSError, pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise InputError(f"cannot read keys from {path}: {error}", "Give a Parquet file with a column named key") from None
    chosen = listed.filter(pc.is_in(listed["key"], value_set=pc.unique(keys)))
    if missing := pc.count_distinct(keys).as_py() - chosen.num_rows:
        raise InputError(f"{missing:,} keys of {path} are not in the list", "Use the list that the keys were taken from")
    return chosen
