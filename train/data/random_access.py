"""Shards on this machine to raw batches: reads only the bytes of each view, ahead of time, on threads."""

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain

import numpy as np

from mbt.manifests.errors import ShardError
from mbt.manifests.reading.reader import ShardReader
from mbt.train.data.batch import RawBatch
from mbt.train.data.corruption import CorruptSamples
from mbt.train.data.prefetch import prefetch_batches
from mbt.train.data.views import View, eval_plan, raw_batch, read_view
from mbt.train.sampling.inputs import Inputs
from mbt.train.sampling.plan import StepPlan
from mbt.train.sampling.window import Start


def train_batches(
    reader: ShardReader, inputs: Inputs, plans: Iterable[StepPlan], synchronized: bool, corrupt: CorruptSamples
) -> Generator[RawBatch]:
    """Read the planned training batches. A corrupt sample's draws go to the replacement that `corrupt` names.

    Raises:
        ShardError: too many samples are corrupt.
    """

    def read_first(rows: Iterator[int], draws: np.ndarray) -> View:
        for row in rows:
            try:
                sample = reader[row]
                return read_view(sample, inputs, inputs.window.random_start(draws, sample.num_frames, synchronized))
            except ShardError as error:
                corrupt.record(row, error.what)
        raise ShardError(f"no sample of {reader.place} can be read", "Pack it again")

    def read(plan: StepPlan, pool: ThreadPoolExecutor) -> RawBatch:
        rows = [chain([row], corrupt.replacements(row)) for row in plan.rows.tolist()]
        return raw_batch(inputs, plan, list(pool.map(read_first, rows, plan.start)))

    return prefetch_batches(partial(read, plan) for plan in plans)


def eval_batches(reader: ShardReader, inputs: Inputs, rows: np.ndarray, crops: int, batch_size: int) -> Generator[RawBatch]:
    """Read `crops` views of each sample, in order; all views of a sample are consecutive.

    Raises:
        ShardError: a sample is damaged.
    """
    starts = [(row, start) for row in rows.tolist() for start in inputs.window.crop_starts(crops, reader.num_frames(row))]

    def read_one(place: tuple[int, Start]) -> View:
        row, start = place
        return read_view(reader[row], inputs, start)

    def read(places: list[tuple[int, Start]], pool: ThreadPoolExecutor) -> RawBatch:
        return raw_batch(inputs, eval_plan(np.array([row for row, _ in places])), list(pool.map(read_one, places)))

    parts = (starts[first : first + batch_size] for first in range(0, len(starts), batch_size))
    return prefetch_batches(partial(read, part) for part in parts)
