"""Where batches come from: a dataset folder of this machine, by random access, or one behind a URL, as a stream."""

from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np

from mbt.manifests.errors import ConfigError
from mbt.manifests.reading.reader import ShardReader
from mbt.manifests.reading.stream import ShardStream
from mbt.train.data import random_access as loader
from mbt.train.data import streaming
from mbt.train.data.batch import RawBatch
from mbt.train.data.corruption import Damage
from mbt.train.distributed.process_group import rank_and_world_size
from mbt.train.recipes.schema import Recipe
from mbt.train.sampling.inputs import Inputs
from mbt.train.sampling.order import Drawn, Order, Streamed, balanced_shares
from mbt.train.sampling.plan import TrainPlan

Source = ShardReader | ShardStream


def open_split(data: Path | str, split: str) -> Source:
    """A split of a dataset folder, or of one behind a URL.

    Raises:
        ShardError: it is not there, or damaged.
        InputError: the URL is of no known kind.
    """
    return ShardReader(data, split) if isinstance(data, Path) else ShardStream(data, split)


def epoch_order(source: Source, recipe: Recipe) -> Order | None:
    """The order of an epoch that the recipe asks for; None: all samples, shuffled.

    Raises:
        ConfigError: it cannot be streamed, or not by so many ranks.
    """
    balanced = recipe.train.balanced_sampling
    if isinstance(source, ShardReader):
        return Drawn(balanced_shares(source.index["labels"])) if balanced else None
    if balanced:
        raise ConfigError("train.balanced_sampling takes samples from anywhere, a stream as they come", "Copy the shards here")
    streaming.check_streams(recipe.input.streams, recipe.train.batch_size, len(source), rank_and_world_size()[1])
    return Streamed(source.shard_of, recipe.input.streams, recipe.input.shuffle_buffer, recipe.train.batch_size)


def train_views(
    source: Source,
    inputs: Inputs,
    plan: TrainPlan,
    steps: range,
    synchronised: bool,
    damage: Damage,
    rank: int,
    world_size: int,
) -> Generator[RawBatch]:
    """This rank's part of the training batches of these steps.

    Raises:
        ShardError: too many samples are damaged, or a tar cannot be read.
    """
    if isinstance(source, ShardStream):
        return streaming.TrainViews(source, inputs, plan, synchronised, damage, rank, world_size).batches(steps)
    plans = (plan.step(step).for_rank(rank, world_size) for step in steps)
    return loader.train_views(source, inputs, plans, synchronised, damage)


def eval_views(source: Source, inputs: Inputs, rows: np.ndarray, crops: int, batch_size: int) -> Iterator[RawBatch]:
    """These samples in `crops` views each; the views of a sample follow each other.

    Raises:
        ShardError: a sample is damaged, or a tar cannot be read.
    """
    read = streaming.eval_views if isinstance(source, ShardStream) else loader.eval_views
    return read(source, inputs, rows, crops, batch_size)  # type: ignore[arg-type]
