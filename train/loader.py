"""Shards to batches: reads only the bytes that a view needs, ahead of time on threads, and has them decoded."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain

import numpy as np
import torch

from manifests.errors import ShardError
from manifests.reader import ShardReader
from train.batch import Batch, RawBatch, uninitialised
from train.dali import decode
from train.damage import Damage
from train.inputs import Inputs
from train.plan import UNCOLOURED, UNSCALED, StepPlan
from train.views import Start

READ_AHEAD = 3
READ_THREADS = 4

View = tuple[int, list[bytes], np.ndarray | None]
"""Row of the index, JPEGs of the frames, log-mel float16 (T, M)."""
Read = Callable[[StepPlan, ThreadPoolExecutor], RawBatch]


def read_view(reader: ShardReader, inputs: Inputs, row: int, start: Start) -> View:
    """Read the view of a sample that begins at `start`.

    Raises:
        ShardError: its bytes are damaged.
    """
    clip_frames = reader.num_frames(row)
    jpegs: list[bytes] = []
    spec = None
    if "rgb" in inputs.modalities:
        jpegs = reader.frames(row, inputs.window.frame_numbers(start.rgb, clip_frames))
    if "spec" in inputs.modalities:
        spec = np.concatenate([reader.log_mel(row, *span) for span in inputs.window.mel_spans(start.spec, clip_frames)])
    return row, jpegs, spec


def read_ahead(work: Iterable[tuple[StepPlan, Read]]) -> Iterator[RawBatch]:
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
) -> Iterator[RawBatch]:
    """Read the planned training batches; a damaged sample is replaced, with its draws, by one that `damage` names.

    Raises:
        ShardError: too many samples are damaged.
    """

    def view(rows: Iterator[int], draws: np.ndarray) -> View:
        for row in rows:
            try:
                return read_view(reader, inputs, row, inputs.window.random_start(draws, reader.num_frames(row), synchronised))
            except ShardError as error:
                damage.note(row, error.what)
        raise ShardError(f"no sample of {reader.folder} can be read", "Pack it again")

    def read(plan: StepPlan, pool: ThreadPoolExecutor) -> RawBatch:
        rows = [chain([row], damage.substitutes(row)) for row in plan.rows.tolist()]
        return raw_batch(inputs, plan, list(pool.map(view, rows, plan.start)))

    return read_ahead((plan, read) for plan in plans)


def eval_views(
    reader: ShardReader, inputs: Inputs, crops: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[RawBatch]:
    """Read every sample once over all ranks, in `crops` views each; the views of a sample follow each other.

    Ranks take batches in turn. All have as many, since they work in step: after its own, a rank may get the first one again.

    Raises:
        ShardError: a sample is damaged.
    """
    starts = [(row, start) for row in range(len(reader)) for start in inputs.window.crop_starts(crops, reader.num_frames(row))]

    def work() -> Iterator[tuple[StepPlan, Read]]:
        firsts = range(0, len(starts), batch_size)
        for turn in range(-(-len(firsts) // world_size)):
            number = turn * world_size + rank
            first = firsts[number if number < len(firsts) else 0]
            part = starts[first : first + batch_size]
            yield centred(np.array([row for row, _ in part])), partial(read, part)

    def read(part: list[tuple[int, Start]], plan: StepPlan, pool: ThreadPoolExecutor) -> RawBatch:
        return raw_batch(inputs, plan, list(pool.map(lambda place: read_view(reader, inputs, *place), part)))

    return read_ahead(work())


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
        colour=np.tile(UNCOLOURED, (size, 1)),
        grey=no,
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
            lambda: next(raw, None), batch_size * frames, inputs.resize_or_none, inputs.image_size, device, threads, scaled
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
