"""JPEG decoding with DALI: one pipeline function for CPU and GPU. No other file of this package imports DALI."""

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import pipeline_def
from nvidia.dali.plugin.pytorch import feed_ndarray
from nvidia.dali.tensors import TensorListGPU
from torch.utils.dlpack import from_dlpack

from mbt.train.data.batch import RawBatch

HALF_RANGE = 127.5
DECODER = {"output_type": types.RGB, "jpeg_fancy_upsampling": True}


@pipeline_def
def frames(  # type: ignore[no-untyped-def]
    source: Callable[[], tuple[list[np.ndarray], ...]],
    cover: tuple[int, int] | None,
    scaled: bool,
    image_shape: tuple[int, int],
    device: str,
):
    """Pipeline from JPEG files to float32 (N, 3, H, W) in [-1, 1]; pixels outside the crops are not decoded.

    Args:
        source: returns the next batch as lists of N arrays: JPEG bytes, crop_x, crop_y, mirror, and, if `scaled`, factors of
            height and width; raises StopIteration at the end.
        cover: (height, width) that a frame covers before the crop: it gets the smallest size, at its own aspect ratio, at which
            neither side is shorter; None: frames are cropped as stored.
        scaled: scale height and width before the crop; sizes are rounded down, as in the official code.
        image_shape: (H, W) of the crop.
        device: "cpu", or "mixed" to decode on the GPU.
    """
    jpegs, crop_x, crop_y, mirror, *scale = fn.external_source(
        source,
        num_outputs=4 + scaled,
        batch=True,
        batch_info=False,
        dtype=[types.UINT8, types.FLOAT, types.FLOAT, types.INT32, types.FLOAT][: 4 + scaled],
        ndim=[1, 0, 0, 0, 1][: 4 + scaled],
    )
    if cover is None and not scaled:
        images = fn.decoders.image_crop(jpegs, device=device, crop=image_shape, crop_pos_x=crop_x, crop_pos_y=crop_y, **DECODER)
    else:
        stored = fn.cast(fn.slice(fn.peek_image_shape(jpegs), start=0, end=2, axes=[0]), dtype=types.FLOAT)
        size = stored if cover is None else math.max(*(math.floor(stored * cover[i] / stored[i]) for i in (0, 1)))
        if scaled:
            size = math.floor(size * scale[0])
        crop = types.Constant(np.array(image_shape, np.float32))
        corner = math.floor(fn.stack(crop_y, crop_x) * (size - crop) + 0.5)
        ratio = stored / size
        begin, end = corner * ratio, (corner + crop) * ratio
        margin = math.ceil(ratio) + 1
        first, last = math.max(math.floor(begin - margin), 0.0), math.min(math.ceil(end + margin), stored)
        images = fn.decoders.image_slice(
            jpegs,
            device=device,
            start=fn.cast(first, dtype=types.INT32),
            end=fn.cast(last, dtype=types.INT32),
            axis_names="HW",
            **DECODER,
        )
        images = fn.resize(
            images,
            size=image_shape,
            roi_start=begin - first,
            roi_end=end - first,
            interp_type=types.INTERP_LINEAR,
            antialias=cover is not None,
        )
    middle, half = [HALF_RANGE] * 3, [HALF_RANGE] * 3
    return fn.crop_mirror_normalize(images, dtype=types.FLOAT, output_layout="CHW", mirror=mirror, mean=middle, std=half)


def decode(
    next_batch: Callable[[], RawBatch | None],
    max_images: int,
    cover: tuple[int, int] | None,
    image_shape: tuple[int, int],
    device: torch.device,
    threads: int,
    scaled: bool = False,
) -> Iterator[tuple[RawBatch, torch.Tensor]]:
    """Yield each batch of `next_batch`, until it returns None, with its frames, float32 (B * F, 3, H, W) on `device`.

    On the CPU the frames are in DALI's memory, which is reused once they are garbage-collected; on a GPU they are a copy.
    A JPEG header that DALI rejects kills its pipeline; `Sample.frames` rejects such files first.

    Args:
        next_batch: called once per batch, from one thread, ahead of the batches that are yielded.
        max_images: maximum of B * F.
        cover: (height, width) that frames are resized to cover before the crop; None: they are cropped as stored.
        image_shape: (H, W) of the crop.
        device: device of the frames; for CUDA they are decoded on the GPU.
        threads: number of DALI threads.
        scaled: whether plans have scales other than 1.
    """
    waiting: deque[RawBatch] = deque()

    def source() -> tuple[list[np.ndarray], ...]:
        batch = next_batch()
        if batch is None:
            raise StopIteration
        waiting.append(batch)
        return _arguments(batch, scaled)

    on_gpu = device.type == "cuda"
    pipeline = frames(
        source,
        cover,
        scaled,
        image_shape,
        "mixed" if on_gpu else "cpu",
        batch_size=max_images,
        num_threads=threads,
        device_id=device.index or 0 if on_gpu else None,
        prefetch_queue_depth=2,
        exec_dynamic=True,
    )
    pipeline.build()
    while True:
        try:
            (images,) = pipeline.run()
        except StopIteration:
            return
        yield waiting.popleft(), _on_gpu(images, device) if on_gpu else from_dlpack(images.as_tensor())


def _on_gpu(images: TensorListGPU, device: torch.device) -> torch.Tensor:
    tensors = images.as_tensor()
    result = torch.empty(tensors.shape(), device=device)
    feed_ndarray(tensors, result, cuda_stream=torch.cuda.current_stream(device))
    return result


def _arguments(batch: RawBatch, scaled: bool) -> tuple[list[np.ndarray], ...]:
    plan = batch.plan
    frames_per_view = len(batch.jpegs) // len(plan.rows)
    views = [plan.crop_x.astype("f4"), plan.crop_y.astype("f4"), plan.flip.astype("i4")]
    if scaled:
        views.append(plan.scale.astype("f4"))
    return (
        [np.frombuffer(jpeg, np.uint8) for jpeg in batch.jpegs],
        *(list(np.repeat(values, frames_per_view, axis=0)) for values in views),
    )
