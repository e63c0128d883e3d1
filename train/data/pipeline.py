"""Raw batches to decoded batches on the device."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from mbt.train.data.batch import Batch, RawBatch, uninitialized
from mbt.train.data.decode import decode
from mbt.train.sampling.inputs import Inputs


def decode_batches(
    raw: Iterator[RawBatch],
    inputs: Inputs,
    batch_size: int,
    device: torch.device,
    targets: Callable[[np.ndarray], np.ndarray] | None,
    threads: int,
    scaled: bool = False,
) -> Iterator[Batch]:
    """Decode raw batches onto `device` and standardize their log-mel.

    Args:
        raw: batches of at most `batch_size` views.
        inputs: how clips become model inputs.
        batch_size: the largest B.
        device: where the tensors are placed.
        targets: returns the multi-hot labels, float32 (B, C), of rows of the index; None: batches have no targets.
        threads: decoding threads.
        scaled: the plans contain scales other than 1.
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
            spec = uninitialized(batch.spec.shape, device).copy_(torch.from_numpy(batch.spec))
            spec.sub_(inputs.mel_mean).div_(inputs.mel_std)
        labels = None if targets is None else {"all": torch.from_numpy(targets(batch.plan.rows)).to(device)}
        yield Batch(batch.plan, rgb, spec, labels)
