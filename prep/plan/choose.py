"""Which clips of a list are planned: those with given keys, a balanced subset, or the first N of each split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mbt.manifests.balance import Balance, Order, balanced_rows, ordered_rows, seeded_positions, spread_rows
from mbt.manifests.errors import InputError
from mbt.prep.plan.options import PlanOptions

OrderedBy = Literal["video_id", "key"]
ALIVE = 0.9125
"""Share of AudioSet's clips that the paper could still find: 18,589 of 20,371 in the evaluation list."""


def choose(listed: pa.Table, options: PlanOptions, num_classes: int, ordered_by: OrderedBy = "video_id") -> pa.Table:
    """The clips to plan, in a seeded order in which the classes are mixed: every part of the plan is a fair sample.

    For a cap over survivors, these are all clips that may be needed, and the order selects the same clips as the order in which
    they are considered.

    Args:
        listed: clip table.
        options: which clips to take.
        num_classes: number of classes.
        ordered_by: the column that determines the place of a clip: by `video_id`, the clips of a video stay together.

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
    positions = seeded_positions(options.seed, clips[ordered_by].to_pylist())
    if options.cap is None or not options.caps_survivors:
        return clips.take(pa.array(np.argsort(positions, kind="stable")))
    alive = _guess_alive(clips.num_rows, options.seed)
    return clips.take(pa.array(spread_rows(clips, options.cap, num_classes, positions, alive)))


def fetch_caps(clips: pa.Table, options: PlanOptions) -> dict[str, int]:
    """By split, the caps that must be enforced while the planned clips are fetched."""
    if options.cap is None or not options.caps_survivors:
        return {}
    return dict.fromkeys(pc.unique(clips["split"]).to_pylist(), options.cap)


def fetch_orders(clips: pa.Table, options: PlanOptions) -> dict[str, Order]:
    """By split, the order in which clips are considered for the caps that are enforced while they are fetched."""
    balancing = options.balancing
    return {} if balancing is None else dict.fromkeys(fetch_caps(clips, options), balancing.order)


def likely_clips(clips: pa.Table, caps: Mapping[str, int], num_classes: int, seed: int) -> pa.Table:
    """The planned clips that will probably be fetched, if the paper's share of clips can still be found.

    Args:
        clips: clip table of the plan.
        caps: maximum clips per class, by split, that are enforced while clips are fetched.
        num_classes: number of classes.
        seed: seed of the guess which clips can be found.
    """
    if not caps:
        return clips
    alive = _guess_alive(clips.num_rows, seed)
    likely = np.ones(clips.num_rows, bool)
    for split, cap in caps.items():
        rows = np.flatnonzero(pc.equal(clips["split"], split).to_numpy(zero_copy_only=False))
        own = balanced_rows(clips.take(pa.array(rows)), Balance(cap, "list"), num_classes, alive[rows])
        likely[rows] = False
        likely[rows[own]] = True
    return clips.filter(pa.array(likely))


def _guess_alive(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(count) < ALIVE


def _with_keys(listed: pa.Table, path: Path) -> pa.Table:
    try:
        keys = pq.read_table(path, columns=["key"])["key"]
    except (OSError, pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise InputError(f"cannot read keys from {path}: {error}", "Give a Parquet file with a column named key") from None
    chosen = listed.filter(pc.is_in(listed["key"], value_set=pc.unique(keys)))
    if missing := pc.count_distinct(keys).as_py() - chosen.num_rows:
        raise InputError(f"{missing:,} keys of {path} are not in the list", "Use the list that the keys were taken from")
    return chosen
