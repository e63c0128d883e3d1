"""Shards behind URLs to raw batches: tars are read end to end, and the planned views of their samples are kept."""

from collections.abc import Generator, Iterator
from functools import lru_cache
from itertools import islice

import numpy as np

from mbt.manifests.errors import ConfigError, ShardError
from mbt.manifests.reading.split import Sample
from mbt.manifests.reading.stream import ShardStream
from mbt.train.data.batch import RawBatch
from mbt.train.data.corruption import CorruptSamples
from mbt.train.data.prefetch import PREFETCH_BATCHES, Prefetcher, round_robin
from mbt.train.data.views import View, eval_plan, raw_batch, read_view
from mbt.train.sampling.inputs import Inputs
from mbt.train.sampling.order import Streamed
from mbt.train.sampling.plan import TrainPlan

EVAL_STREAMS = 4


class TrainStream:
    """The planned training views of one rank.

    A corrupt sample's draws go to the next readable sample of its stream.

    Args:
        split: the shards.
        inputs: how clips become model inputs.
        plan: plan whose order is `Streamed`.
        synchronized: rgb and spec views begin at the same time.
        corrupt: records corrupt samples.
        rank: this process.
        world_size: number of processes; divides the number of streams, see `check_streams`.
    """

    def __init__(
        self,
        split: ShardStream,
        inputs: Inputs,
        plan: TrainPlan,
        synchronized: bool,
        corrupt: CorruptSamples,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert isinstance(plan.order, Streamed)
        streams = plan.order.streams
        self.split, self.inputs, self.plan, self.order, self.corrupt = split, inputs, plan, plan.order, corrupt
        self.synchronized, self.rank, self.world_size = synchronized, rank, world_size
        self.views_per_step = plan.batch_size // streams
        own = streams // world_size
        self.streams = range(rank * own, (rank + 1) * own)
        self._step = lru_cache(maxsize=1024)(plan.step)

    def batches(self, steps: range) -> Generator[RawBatch]:
        """The batches of these steps.

        Raises:
            ShardError: a tar cannot be read, or too many samples are corrupt.
        """
        ahead = PREFETCH_BATCHES * self.views_per_step
        streams = [Prefetcher(self._views(stream, steps), ahead) for stream in self.streams]
        try:
            for step in steps:
                views = [view for stream in streams for view in islice(stream, self.views_per_step)]
                yield raw_batch(self.inputs, self._step(step).for_rank(self.rank, self.world_size), views)
        finally:
            for stream in streams:
                stream.close()

    def _views(self, stream: int, steps: range) -> Iterator[View]:
        per_epoch = self.plan.steps_per_epoch
        while steps:
            epoch, number = divmod(steps[0], per_epoch)
            in_epoch = steps[: per_epoch - number]
            yield from self._views_of_epoch(stream, epoch, in_epoch)
            steps = steps[len(in_epoch) :]

    def _views_of_epoch(self, stream: int, epoch: int, steps: range) -> Iterator[View]:
        """A stream's views for steps of one epoch, in the order of the plan; samples arrive in the order of the tars."""
        size = self.views_per_step
        first = steps[0] % self.plan.steps_per_epoch
        rows = self.plan.rows(epoch).reshape(-1, self.order.streams, size)[first : first + len(steps), stream].ravel()
        positions = {row: position for position, row in enumerate(rows.tolist())}
        piece = self.order.pieces(self.plan.order_rng(epoch))[stream]
        wanted = np.isin(piece, rows)
        samples = zip(np.flatnonzero(wanted).tolist(), self.split.walk(piece[wanted]), strict=True)
        held: dict[int, View] = {}
        for row in rows.tolist():
            while row not in held:
                at, sample = next(samples)
                step, slot = divmod(positions[sample.row], size)
                draws = self._step(steps[step]).start[stream * size + slot]
                held[sample.row] = self._view(sample, draws) or self._replacement(piece, at, draws)
            yield held.pop(row)

    def _view(self, sample: Sample, draws: np.ndarray) -> View | None:
        """The view of a sample, or None if the sample is corrupt."""
        start = self.inputs.window.random_start(draws, sample.num_frames, self.synchronized)
        try:
            return read_view(sample, self.inputs, start)
        except ShardError as error:
            self.corrupt.record(sample.row, error.what)
            return None

    def _replacement(self, piece: np.ndarray, at: int, draws: np.ndarray) -> View:
        """A view of the first readable sample after position `at` of the stream, independent of where reading began."""
        for sample in self.split.walk(np.roll(piece, -at - 1)[:-1]):
            if view := self._view(sample, draws):
                return view
        raise ShardError(f"no sample of {self.split.place} can be read", "Pack it again")


def eval_batches(split: ShardStream, inputs: Inputs, rows: np.ndarray, crops: int, batch_size: int) -> Generator[RawBatch]:
    """Read `crops` views of each sample, in the order of the streams; all views of a sample are consecutive.

    Raises:
        ShardError: a sample is damaged, or a tar cannot be read.
    """

    def views(piece: np.ndarray) -> Iterator[View]:
        for sample in split.walk(piece):
            for start in inputs.window.crop_starts(crops, sample.num_frames):
                yield read_view(sample, inputs, start)

    streams = [Prefetcher(views(piece), 2 * crops) for piece in np.array_split(rows, EVAL_STREAMS)]
    all_views = round_robin(streams, crops)
    try:
        while part := list(islice(all_views, batch_size)):
            yield raw_batch(inputs, eval_plan(np.array([view.row for view in part])), part)
    finally:
        for stream in streams:
            stream.close()


def check_streams(streams: int, batch_size: int, samples: int, world_size: int) -> None:
    """Check that the ranks can share the streams equally, and the streams the batch.

    Raises:
        ConfigError: they cannot, or there are fewer samples than a batch needs.
    """
    if batch_size % streams or streams % world_size:
        raise ConfigError(
            f"input.streams {streams} must divide train.batch_size {batch_size} and be divisible by the number of ranks, "
            f"{world_size}",
            f"For example, --set input.streams={world_size}",
        )
    if samples < batch_size:
        raise ConfigError(
            f"{samples} samples cannot fill a batch of {batch_size}",
            "Lower train.batch_size, or copy the shards to this machine and pass their folder as --data",
        )
