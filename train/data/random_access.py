"""Shards to batches: reads only the bytes that a view needs, ahead of time on threads, and has them decoded."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain

import numpy as np
import torch

from mbt.manifests.errors import ShardError
from mbt.manifests.reading.reader import ShardReader
from mbt.manifests.reading.split import Sample
from mbt.train.data.batch import Batch, RawBatch, uninitialised
from mbt.train.data.corruption import Damage
from mbt.train.data.decode import decode
from mbt.train.sampling.inputs import Inputs
from mbt.train.sampling.plan import UNCOLORED, UNSCALED, StepPlan
from mbt.train.sampling.window import Start

READ_AHEAD = 3
READ_THREADS = 4

View = tuple[int, list[bytes], np.ndarray | None]
"""Row of the index, JPEGs of the frames, log-mel float16 (T, M)."""
Read = Callable[[StepPlan, ThreadPoolExecutor], RawBatch]


def read_view(sample: Sample, inputs: Inputs, start: Start) -> View:
    """Read the view of a sample that begins at `start`.

    Raises:
        ShardError: its bytes are damaged.
    """
    jpegs: list[bytes] = []
    spec = None
    if "rgb" in inputs.modalities:
        jpegs = sample.frames(inputs.window.frame_numbers(start.rgb, sample.num_frames))
    if "spec" in inputs.modalities:
        spec = np.concatenate([sample.log_mel(*span) for span in inputs.window.mel_spans(start.spec, sample.num_frames)])
    return sample.row, jpegs, spec


def read_ahead(work: Iterable[tuple[StepPlan, Read]]) -> Generator[RawBatch]:
    """Read each plan's batch, in order, a few batches ahead of what is taken."""
    with ThreadPoolExecutor(READ_AHEAD) as ahead, ThreadPoolExecutor(READ_THREADS) as pool:
        waiting: deque[Future[RawBatch]] = deque()
        for plan, read in work:
            waiting.append(ahead.submit(read, plan, pool))
            if len(waiting) == READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def train_views(
    reader: ShardReader, inputs: Inputs, plans: Iterable[StepPlan], synchronised: bool, damage: Damage
) -> Generator[RawBatch]:
    """Read the planned training batches; a damaged sample is replaced, with its draws, by one that `damage` names.

    Raises:
        ShardError: too many samples are damaged.
    """

    def view(rows: Iterator[int], draws: np.ndarray) -> View:
        for row in rows:
            try:
                sample = reader[row]
                return read_view(sample, inputs, inputs.window.random_start(draws, sample.num_frames, synchronised))
            except ShardError as error:
                damage.note(row, error.what)
        raise ShardError(f"no sample of {reader.place} can be read", "Pack it again")

    def read(plan: StepPlan, pool: ThreadPoolExecutor) -> RawBatch:
        rows = [chain([row], damage.substitutes(row)) for row in plan.rows.tolist()]
        return raw_batch(inputs, plan, list(pool.map(view, rows, plan.start)))

    return read_ahead((plan, read) for plan in plans)


def eval_views(reader: ShardReader, inputs: Inputs, rows: np.ndarray, crops: int, batch_size: int) -> Iterator[RawBatch]:
    """Read these samples in `crops` views each, in this order; the views of a sample follow each other.

    Raises:
        ShardError: a sample is damaged.
    """
    starts = [(row, start) for row in rows.tolist() for start in inputs.window.crop_starts(crops, reader.num_frames(row))]

    def read(part: list[tuple[int, Start]], plan: StepPlan, pool: ThreadPoolExecutor) -> RawBatch:
        return raw_batch(inputs, plan, list(pool.map(lambda place: read_view(reader[place[0]], inputs, place[1]), part)))

    parts = (starts[first : first + batch_size] for first in range(0, len(starts), batch_size))
    return read_ahead((centred(np.array([row for row, _ in part])), partial(read, part)) for part in parts)


def raw_batch(inputs: Inputs, plan: StepPlan, views: list[View]) -> RawBatch:
    """The views that were read for a plan."""
    return RawBatch(
        plan=replace(plan, rows=np.array([row for row, _, _ in views])),
        jpegs=[jpeg for _, jpegs, _ in views for jpeg in jpegs],
        spec=np.stack([spec for _, _, spec in views if spec is not None]) if "spec" in inputs.modalities else None,
    )


def centred(rows: np.ndarray) -> StepPlan:
    """Plan of an evaluation batch: the crop in the middle, and nothing changed."""
    size = len(rows)
    half, no = np.full(size, 0.5), np.zeros(size, bool)
    return StepPlan(
        rows=rows,
        start=np.full((size, 2), 0.5),
        crop_x=half,
        crop_y=half,
        flip=no,
        scale=np.tile(UNSCALED, (size, 1)),
        color=np.tile(UNCOLORED, (size, 1)),
        gray=no,
        mask=np.zeros((size, 4)),
        mix=np.ones((size, 2)),
    )


def batches(
    raw: Iterator[RawBatch],
    inputs: Inputs,
    batch_size: int,
    device: torch.device,
    targets: Callable[[np.ndarray], np.ndarray] | None,
    threads: int,
    scaled: bool = False,
) -> Iterator[Batch]:
    """Decode batches of at most `batch_size` views onto `device`.

    Args:
        raw: compressed batches.
        inputs: how clips become inputs.
        batch_size: the largest B.
        device: where tensors are wanted.
        targets: gives the multi-hot labels, float32 (B, C), of rows of the index; or None.
        threads: decoding threads.
        scaled: plans have scales that are not 1.
    """
    if "rgb" in inputs.modalities:
        frames = inputs.window.frames
        decoded = decode(
            lambda: next(raw, None), batch_size * frames, inputs.cover, inputs.image_shape, device, threads, scaled
        )
        pairs: Iterator[tuple[RawBatch, torch.Tensor | None]] = (
            (batch, images.unflatten(0, (-1, frames))) for batch, images in decoded
        )
    else:
        pairs = ((batch, None) for batch in raw)
    for batch, rgb in pairs:
        spec = None
        if batch.spec is not None:
            spec = uninitialised(batch.spec.shape, device).copy_(torch.from_numpy(batch.spec))
            spec.sub_(inputs.mel_mean).div_(inputs.mel_std)
        wanted = None if targets is None else {"all": torch.from_numpy(targets(batch.plan.rows)).to(device)}
        yield Batch(batch.plan, rgb, spec, wanted)
