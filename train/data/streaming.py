"""Shards behind URLs to batches: whole samples come by in streams, and the views that are wanted of them are kept."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from typing import TypeVar

import numpy as np

from mbt.manifests.errors import ConfigError, ShardError
from mbt.manifests.reading.split import Sample
from mbt.manifests.reading.stream import ShardStream
from mbt.train.data.batch import RawBatch
from mbt.train.data.corruption import Damage
from mbt.train.data.random_access import READ_AHEAD, View, centred, raw_batch, read_view
from mbt.train.sampling.inputs import Inputs
from mbt.train.sampling.order import Streamed
from mbt.train.sampling.plan import TrainPlan

EVAL_STREAMS = 4

T = TypeVar("T")


class Ahead(Iterator[T]):
    """Items, so many of them made ahead of time by a thread, from now on.

    Args:
        items: none of them None.
        count: how many.
    """

    def __init__(self, items: Iterator[T], count: int) -> None:
        self._items = items
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[T | None]] = deque(self._made() for _ in range(count))

    def __next__(self) -> T:
        item = self._waiting.popleft().result() if self._waiting else None
        if item is None:
            self.close()
            raise StopIteration
        self._waiting.append(self._made())
        return item

    def close(self) -> None:
        """Make no further items."""
        self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _made(self) -> "Future[T | None]":
        return self._thread.submit(next, self._items, None)


def in_turn(streams: Iterable[Iterator[T]], count: int) -> Iterator[T]:
    """So many items of each stream in turn, until all have ended."""
    left = deque(streams)
    while left:
        items = list(islice(left[0], count))
        if items:
            yield from items
            left.rotate(-1)
        else:
            left.popleft()


class TrainViews:
    """The planned training views of one rank.

    A damaged sample is replaced, with its draws, by the next that comes by.

    Args:
        split: the shards.
        inputs: how clips become inputs.
        plan: in an order that is `Streamed`.
        synchronised: picture and sound begin together.
        damage: takes note of damaged samples.
        rank: this process.
        world_size: processes, a divisor of the streams; see `check_streams`.
    """

    def __init__(
        self,
        split: ShardStream,
        inputs: Inputs,
        plan: TrainPlan,
        synchronised: bool,
        damage: Damage,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert isinstance(plan.order, Streamed)
        streams = plan.order.streams
        self.split, self.inputs, self.plan, self.order, self.damage = split, inputs, plan, plan.order, damage
        self.synchronised, self.rank, self.world_size = synchronised, rank, world_size
        self.share = plan.batch_size // streams
        own = streams // world_size
        self.streams = range(rank * own, (rank + 1) * own)
        self._step = lru_cache(maxsize=1024)(plan.step)

    def batches(self, steps: range) -> Generator[RawBatch]:
        """The batches of these steps.

        Raises:
            ShardError: a tar cannot be read, or too many samples are damaged.
        """
        streams = [Ahead(self._views(stream, steps), READ_AHEAD * self.share) for stream in self.streams]
        try:
            for step in steps:
                views = [view for stream in streams for view in islice(stream, self.share)]
                yield raw_batch(self.inputs, self._step(step).for_rank(self.rank, self.world_size), views)
        finally:
            for stream in streams:
                stream.close()

    def _views(self, stream: int, steps: range) -> Iterator[View]:
        per_epoch = self.plan.steps_per_epoch
        while steps:
            epoch, number = divmod(steps[0], per_epoch)
            now = steps[: per_epoch - number]
            yield from self._views_of_epoch(stream, epoch, now)
            steps = steps[len(now) :]

    def _views_of_epoch(self, stream: int, epoch: int, steps: range) -> Iterator[View]:
        """The views of a stream in steps of one epoch: in the order of the plan, out of samples in the order of the tars."""
        first = steps[0] % self.plan.steps_per_epoch
        rows = self.plan.rows(epoch).reshape(-1, self.order.streams, self.share)[first : first + len(steps), stream].ravel()
        places = {row: place for place, row in enumerate(rows.tolist())}
        piece = self.order.pieces(self.plan.order_rng(epoch))[stream]
        coming = np.isin(piece, rows)
        samples = zip(np.flatnonzero(coming).tolist(), self.split.walk(piece[coming]), strict=True)
        held: dict[int, View] = {}
        for row in rows.tolist():
            while row not in held:
                at, sample = next(samples)
                step, slot = divmod(places[sample.row], self.share)
                draws = self._step(steps[step]).start[stream * self.share + slot]
                held[sample.row] = self._view(sample, draws) or self._substitute(piece, at, draws)
            yield held.pop(row)

    def _view(self, sample: Sample, draws: np.ndarray) -> View | None:
        start = self.inputs.window.random_start(draws, sample.num_frames, self.synchronised)
        try:
            return read_view(sample, self.inputs, start)
        except ShardError as error:
            self.damage.note(sample.row, error.what)
            return None

    def _substitute(self, piece: np.ndarray, at: int, draws: np.ndarray) -> View:
        """A view of the first whole sample behind place `at` of the stream, wherever reading began."""
        for sample in self.split.walk(np.roll(piece, -at - 1)[:-1]):
            if view := self._view(sample, draws):
                return view
        raise ShardError(f"no sample of {self.split.place} can be read", "Pack it again")


def eval_views(split: ShardStream, inputs: Inputs, rows: np.ndarray, crops: int, batch_size: int) -> Iterator[RawBatch]:
    """Read these samples in `crops` views each, in an order of its own; the views of a sample follow each other.

    Raises:
        ShardError: a sample is damaged, or a tar cannot be read.
    """

    def views(piece: np.ndarray) -> Iterator[View]:
        for sample in split.walk(piece):
            for start in inputs.window.crop_starts(crops, sample.num_frames):
                yield read_view(sample, inputs, start)

    streams = [Ahead(views(piece), 2 * crops) for piece in np.array_split(rows, EVAL_STREAMS)]
    all_views = in_turn(streams, crops)
    try:
        while part := list(islice(all_views, batch_size)):
            yield raw_batch(inputs, centred(np.array([row for row, _, _ in part])), part)
    finally:
        for stream in streams:
            stream.close()


def check_streams(streams: int, batch_size: int, samples: int, world_size: int) -> None:
    """Make sure that ranks can share the streams, and streams the batch.

    Raises:
        ConfigError: they cannot, or there are too few samples.
    """
    if batch_size % streams or streams % world_size:
        raise ConfigError(
            f"input.streams {streams} must divide train.batch_size {batch_size} and be a multiple of the {world_size} ranks",
            f"Such as --set input.streams={world_size}",
        )
    if samples < batch_size:
        raise ConfigError(
            f"{samples} samples are fewer than a batch of {batch_size}", "Copy the shards here, or lower train.batch_size"
        )
