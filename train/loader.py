"""Shards to batches: reads only the bytes that a view needs, ahead of time on threads, and has them decoded."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from manifests.reader import ShardReader
from train.batch import Batch, RawBatch
from train.dali import decode
from train.inputs import Inputs
from train.plan import StepPlan
from train.views import Start

READ_AHEAD = 3
READ_THREADS = 4


def read_views(reader: ShardReader, inputs: Inputs, plan: StepPlan, starts: list[Start], pool: ThreadPoolExecutor) -> RawBatch:
    """Read one view of each planned sample, from where `starts` says."""

    def read(row: int, start: Start) -> tuple[list[bytes], np.ndarray | None]:
        clip_frames = reader.num_frames(row)
        jpegs: list[bytes] = []
        spec = None
        if "rgb" in inputs.modalities:
            jpegs = reader.frames(row, inputs.window.frame_numbers(start.rgb, clip_frames))
        if "spec" in inputs.modalities:
            spec = np.concatenate([reader.log_mel(row, *span) for span in inputs.window.mel_spans(start.spec, clip_frames)])
        return jpegs, spec

    views = list(pool.map(read, plan.rows.tolist(), starts))
    return RawBatch(
        plan=plan,
        jpegs=[jpeg for jpegs, _ in views for jpeg in jpegs],
        spec=np.stack([spec for _, spec in views if spec is not None]) if "spec" in inputs.modalities else None,
    )


def read_ahead(reader: ShardReader, inputs: Inputs, work: Iterable[tuple[StepPlan, list[Start]]]) -> Iterator[RawBatch]:
    """`read_views` of each plan and its starts, in order, a few batches ahead of what is taken."""
    with ThreadPoolExecutor(READ_AHEAD) as ahead, ThreadPoolExecutor(READ_THREADS) as pool:
        waiting: deque[Future[RawBatch]] = deque()
        for plan, starts in work:
            waiting.append(ahead.submit(read_views, reader, inputs, plan, starts, pool))
            if len(waiting) == READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def train_views(reader: ShardReader, inputs: Inputs, plans: Iterable[StepPlan]) -> Iterator[RawBatch]:
    """Read the planned training batches."""

    def starts(plan: StepPlan) -> list[Start]:
        frames = [reader.num_frames(row) for row in plan.rows.tolist()]
        return [inputs.window.random_start(draw, n) for draw, n in zip(plan.start.tolist(), frames, strict=True)]

    return read_ahead(reader, inputs, ((plan, starts(plan)) for plan in plans))


def eval_views(reader: ShardReader, inputs: Inputs, crops: int, batch_size: int) -> Iterator[RawBatch]:
    """Read every sample once, in `crops` views each; the views of a sample follow each other."""
    views = [(row, start) for row in range(len(reader)) for start in inputs.window.crop_starts(crops, reader.num_frames(row))]
    parts = (views[first : first + batch_size] for first in range(0, len(views), batch_size))
    work = ((centred(np.array([row for row, _ in part])), [start for _, start in part]) for part in parts)
    return read_ahead(reader, inputs, work)


def centred(rows: np.ndarray) -> StepPlan:
    """Plan of an evaluation batch: centre crop, no mirroring."""
    half = np.full(len(rows), 0.5)
    return StepPlan(rows, half, half, half, np.zeros(len(rows), bool), np.zeros((len(rows), 4)), np.ones((len(rows), 2)))


def batches(
    raw: Iterator[RawBatch],
    inputs: Inputs,
    batch_size: int,
    device: torch.device,
    targets: np.ndarray | None,
    threads: int,
) -> Iterator[Batch]:
    """Decode batches of at most `batch_size` views onto `device`.

    Args:
        raw: compressed batches.
        inputs: how clips become inputs.
        batch_size: the largest B.
        device: where tensors are wanted.
        targets: float32 (samples, C), from which each batch takes its rows; or None.
        threads: decoding threads.
    """
    if "rgb" in inputs.modalities:
        frames = inputs.window.frames
        decoded = decode(
            lambda: next(raw, None), batch_size * frames, inputs.resize_or_none, inputs.image_size, device, threads
        )
        pairs: Iterator[tuple[RawBatch, torch.Tensor | None]] = (
            (batch, images.unflatten(0, (-1, frames))) for batch, images in decoded
        )
    else:
        pairs = ((batch, None) for batch in raw)
    for batch, rgb in pairs:
        spec = None
        if batch.spec is not None:
            spec = (torch.from_numpy(batch.spec).to(device).float() - inputs.mel_mean) / inputs.mel_std
        wanted = None if targets is None else {"all": torch.from_numpy(targets[batch.plan.rows]).to(device)}
        yield Batch(batch.plan, rgb, spec, wanted)
