"""Where raw batches come from: a dataset folder, read by random access, or the URL of one, read as a stream."""

from collections.abc import Generator
from pathlib import Path

import numpy as np

from mbt.manifests.errors import ConfigError
from mbt.manifests.reading.reader import ShardReader
from mbt.manifests.reading.stream import ShardStream
from mbt.train.data import random_access, streaming
from mbt.train.data.batch import RawBatch
from mbt.train.data.corruption import CorruptSamples
from mbt.train.distributed.process_group import rank_and_world_size
from mbt.train.recipes.schema import Recipe
from mbt.train.sampling.inputs import Inputs
from mbt.train.sampling.order import Drawn, Order, Streamed, balanced_shares
from mbt.train.sampling.plan import TrainPlan

Source = ShardReader | ShardStream


def open_split(data: Path | str, split: str) -> Source:
    """Open a split of a dataset folder, or of the URL of one.

    Raises:
        ShardError: the split is missing or damaged.
        InputError: unknown kind of URL.
    """
    return ShardReader(data, split) if isinstance(data, Path) else ShardStream(data, split)


def epoch_order(source: Source, recipe: Recipe) -> Order | None:
    """The recipe's order of an epoch; None: all samples, shuffled.

    Raises:
        ConfigError: this order cannot be streamed, or not by this number of ranks.
    """
    balanced = recipe.train.balanced_sampling
    if isinstance(source, ShardReader):
        return Drawn(balanced_shares(source.index["labels"])) if balanced else None
    if balanced:
        raise ConfigError(
            "train.balanced_sampling needs random access, and shards behind a URL are streamed",
            "Copy the shards to this machine and pass their folder as --data",
        )
    streaming.check_streams(recipe.input.streams, recipe.train.batch_size, len(source), rank_and_world_size()[1])
    return Streamed(source.shard_of, recipe.input.streams, recipe.input.shuffle_buffer, recipe.train.batch_size)


def train_batches(
    source: Source,
    inputs: Inputs,
    plan: TrainPlan,
    steps: range,
    synchronized: bool,
    corrupt: CorruptSamples,
    rank: int,
    world_size: int,
) -> Generator[RawBatch]:
    """This rank's part of the training batches of these steps.

    Raises:
        ShardError: too many samples are corrupt, or a tar cannot be read.
    """
    if isinstance(source, ShardStream):
        return streaming.TrainStream(source, inputs, plan, synchronized, corrupt, rank, world_size).batches(steps)
    plans = (plan.step(step).for_rank(rank, world_size) for step in steps)
    return random_access.train_batches(source, inputs, plans, synchronized, corrupt)


def eval_batches(source: Source, inputs: Inputs, rows: np.ndarray, crops: int, batch_size: int) -> Generator[RawBatch]:
    """`crops` views of each of these samples; all views of a sample are consecutive.

    Raises:
        ShardError: a sample is damaged, or a tar cannot be read.
    """
    if isinstance(source, ShardStream):
        return streaming.eval_batches(source, inputs, rows, crops, batch_size)
    return random_access.eval_batches(source, inputs, rows, crops, batch_size)
