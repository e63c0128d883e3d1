"""JPEG decoding by DALI: one pipeline function for CPU and GPU. The only file that imports DALI."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import pipeline_def
from nvidia.dali.plugin.pytorch import feed_ndarray

from train.batch import RawBatch

HALF_RANGE = 127.5


@pipeline_def
def frames(source: Callable[[], tuple[list[np.ndarray], ...]], resize: int | None, image_size: int, device: str):  # type: ignore[no-untyped-def]
    """Pipeline from JPEG files to float32 (N, 3, S, S) in [-1, 1].

    Args:
        source: the next batch as lists of N arrays: JPEG bytes, crop_x, crop_y, mirror; StopIteration at the end.
        resize: short side before the crop; None: as stored.
        image_size: S, side of the crop.
        device: "cpu", or "mixed" to decode on the GPU.
    """
    jpegs, crop_x, crop_y, mirror = fn.external_source(
        source,
        num_outputs=4,
        batch=True,
        batch_info=False,
        dtype=[types.UINT8, types.FLOAT, types.FLOAT, types.INT32],
        ndim=[1, 0, 0, 0],
    )
    images = fn.decoders.image(jpegs, device=device, output_type=types.RGB, jpeg_fancy_upsampling=True)
    if resize is not None:
        images = fn.resize(images, resize_shorter=resize, interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT,
        output_layout="CHW",
        crop=(image_size, image_size),
        crop_pos_x=crop_x,
        crop_pos_y=crop_y,
        mirror=mirror,
        mean=[HALF_RANGE] * 3,
        std=[HALF_RANGE] * 3,
    )


def decode(
    next_batch: Callable[[], RawBatch | None],
    max_images: int,
    resize: int | None,
    image_size: int,
    device: torch.device,
    threads: int,
) -> Iterator[tuple[RawBatch, torch.Tensor]]:
    """Yield each batch of `next_batch` (until None) with its frames, float32 (B * F, 3, S, S) on `device`.

    Args:
        next_batch: called ahead of what is yielded, once a batch, from one thread.
        max_images: the largest B * F.
        resize: short side before the crop; None: as stored.
        image_size: S, side of the crop.
        device: where the frames are wanted; on CUDA they are decoded there.
        threads: DALI's threads.
    """
    waiting: list[RawBatch] = []

    def source() -> tuple[list[np.ndarray], ...]:
        batch = next_batch()
        if batch is None:
            raise StopIteration
        waiting.append(batch)
        plan = batch.plan
        frames_a_view = len(batch.jpegs) // len(plan.rows)
        arguments = (plan.crop_x, plan.crop_y, plan.flip)
        return (
            [np.frombuffer(jpeg, np.uint8) for jpeg in batch.jpegs],
            *(list(np.repeat(a.astype(t), frames_a_view)) for a, t in zip(arguments, ("f4", "f4", "i4"), strict=True)),
        )

    on_gpu = device.type == "cuda"
    pipeline = frames(
        source,
        resize,
        image_size,
        "mixed" if on_gpu else "cpu",
        batch_size=max_images,
        num_threads=threads,
        device_id=device.index or 0 if on_gpu else None,
        prefetch_queue_depth=2,
    )
    pipeline.build()
    while True:
        try:
            (images,) = pipeline.run()
        except StopIteration:
            return
        tensors = images.as_tensor()
        result = torch.empty(tensors.shape(), dtype=torch.float32, device=device)
        feed_ndarray(tensors, result, cuda_stream=torch.cuda.current_stream(device) if on_gpu else None)
        yield waiting.pop(0), result
