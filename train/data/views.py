"""Views of samples: read one, stack several into a raw batch, and the plan of an evaluation batch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mbt.manifests.reading.split import Sample
from mbt.train.data.batch import RawBatch
from mbt.train.sampling.inputs import Inputs
from mbt.train.sampling.plan import UNCOLORED, UNSCALED, StepPlan
from mbt.train.sampling.window import Start


class View(NamedTuple):
    """The compressed bytes of one view.

    Attributes:
        row: row of the sample in the index.
        jpegs: JPEG files of its F frames; empty for a model without rgb.
        spec: float16 (T, M) log-mel; None for a model without spec.
    """

    row: int
    jpegs: list[bytes]
    spec: np.ndarray | None


def read_view(sample: Sample, inputs: Inputs, start: Start) -> View:
    """Read the view of a sample that begins at `start`, and only its bytes.

    Raises:
        ShardError: the bytes are damaged.
    """
    jpegs: list[bytes] = []
    spec = None
    if "rgb" in inputs.modalities:
        jpegs = sample.frames(inputs.window.frame_numbers(start.rgb, sample.num_frames))
    if "spec" in inputs.modalities:
        spec = np.concatenate([sample.log_mel(*span) for span in inputs.window.mel_spans(start.spec, sample.num_frames)])
    return View(sample.row, jpegs, spec)


def raw_batch(inputs: Inputs, plan: StepPlan, views: Sequence[View]) -> RawBatch:
    """Stack views into a batch; the plan's rows become the rows that were read."""
    return RawBatch(
        plan=replace(plan, rows=np.array([view.row for view in views])),
        jpegs=[jpeg for view in views for jpeg in view.jpegs],
        spec=np.stack([view.spec for view in views if view.spec is not None]) if "spec" in inputs.modalities else None,
    )


def eval_plan(rows: np.ndarray) -> StepPlan:
    """Plan of an evaluation batch: the center crop, no augmentation.

    Args:
        rows: int64 (B,), rows of the index.
    """
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
