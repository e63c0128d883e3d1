"""Shards to decoded batches, against PIL and the members of the tars."""

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mbt.manifests.reading.reader import ShardReader
from mbt.manifests.reading.split import Sample
from mbt.train.data.batch import Batch
from mbt.train.data.corruption import CorruptSamples
from mbt.train.data.pipeline import decode_batches
from mbt.train.data.random_access import eval_batches, train_batches
from mbt.train.data.views import eval_plan, read_view
from mbt.train.sampling.inputs import Inputs
from mbt.train.sampling.plan import StepPlan, TrainPlan
from tests.tiny import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reader(shards: Path) -> ShardReader:
    return ShardReader(shards, "train")


def inputs(reader: ShardReader, *settings: str) -> Inputs:
    return tiny(*settings).inputs(reader.info)


def one_batch(reader: ShardReader, plan: StepPlan, how: Inputs) -> Batch:
    raw = train_batches(reader, how, [plan], True, CorruptSamples(reader, 0.0))
    (batch,) = decode_batches(raw, how, len(plan.rows), CPU, reader.targets, 1, bool((plan.scale != 1).any()))
    return batch


def plan(rows: list[int], start: float, x: float, y: float, flip: bool) -> StepPlan:
    full = np.ones(len(rows))
    starts = np.full((len(rows), 2), start)
    return replace(eval_plan(np.array(rows)), start=starts, crop_x=full * x, crop_y=full * y, flip=full.astype(bool) & flip)


def pil_frames(reader: ShardReader, row: int, numbers: list[int]) -> np.ndarray:
    """Frames decoded by PIL, float (F, 3, H, W) in [-1, 1]."""
    images = [np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in reader[row].frames(numbers)]
    return np.stack(images).transpose(0, 3, 1, 2) / 127.5 - 1


@pytest.mark.parametrize(("x", "left"), [(0.0, 0), (0.5, 11), (0.999, 22)])
@pytest.mark.parametrize("flip", [False, True])
def test_frames_equal_pil_cropped_and_flipped(reader: ShardReader, x: float, left: int, flip: bool) -> None:
    """Stored at 86 x 64, cropped to 64 x 64; the view starts at the last possible frame, 60 - 40 = 20."""
    batch = one_batch(reader, plan([3, 7], 0.999, x, 0.5, flip), inputs(reader))
    assert batch.rgb is not None
    for place, row in enumerate((3, 7)):
        expected = pil_frames(reader, row, [20, 30, 40, 50])[..., left : left + 64]
        if flip:
            expected = expected[..., ::-1]
        np.testing.assert_allclose(batch.rgb[place].numpy(), expected, atol=1e-6)


def test_resized_frames_are_close_to_pil(reader: ShardReader) -> None:
    how = inputs(reader, "input.resize=32", "input.image_size=32")
    batch = one_batch(reader, plan([0], 0.0, 0.5, 0.5, False), how)
    assert batch.rgb is not None
    (jpeg,) = reader[0].frames([0])
    picture = Image.open(io.BytesIO(jpeg)).resize((43, 32), Image.Resampling.BILINEAR)
    expected = np.asarray(picture, np.float64)[:, 6:38].transpose(2, 0, 1)
    ours = (batch.rgb[0, 0].numpy() + 1) * 127.5
    assert abs(ours - expected).max() <= 1.01
    assert abs(ours - expected).mean() < 0.3


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (3, H, W): half-pixel centers, repeated edges, no antialiasing, like `tf.image.resize`."""
    for axis, size in ((1, height), (2, width)):
        last = image.shape[axis] - 1
        places = (np.arange(size) + 0.5) * (last + 1) / size - 0.5
        low = np.floor(places).astype(int)
        share = (places - low).reshape([-1 if a == axis else 1 for a in range(3)])
        below, above = (np.take(image, np.clip(p, 0, last), axis) for p in (low, low + 1))
        image = below * (1 - share) + above * share
    return image


@pytest.mark.parametrize("scale", [(1.3, 1.0), (1.0, 1.25), (0.9, 1.33), (1.21, 0.93)])
@pytest.mark.parametrize("corner", [(0.0, 0.0), (0.37, 0.71), (0.999, 0.999)])
def test_scaled_frames_equal_frames_resized_and_then_cropped(
    reader: ShardReader, scale: tuple[float, float], corner: tuple[float, float]
) -> None:
    """Although only the crop is decoded and resized. Sizes are rounded down, as in DMVR."""
    y, x = corner
    how = inputs(reader, "input.image_size=48")
    steps = replace(plan([2, 6], 0.4, x, y, False), scale=np.tile(scale, (2, 1)))
    batch = one_batch(reader, steps, how)
    assert batch.rgb is not None
    for place, row in enumerate((2, 6)):
        for found, frame in zip(batch.rgb[place].numpy(), pil_frames(reader, row, [8, 18, 28, 38]), strict=True):
            _, h, w = frame.shape
            height, width = int(h * scale[0]), int(w * scale[1])
            top, left = int(y * (height - 48) + 0.5), int(x * (width - 48) + 0.5)
            wanted = bilinear(frame, height, width)[:, top : top + 48, left : left + 48]
            assert abs(found - wanted).max() <= 1.01 / 127.5


@pytest.mark.parametrize("settings", [(), ("input.stride=1",), ('model.modalities=["spec"]',), ('model.modalities=["rgb"]',)])
def test_a_view_reads_only_its_frames_rows_and_description(
    reader: ShardReader, settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    how = inputs(reader, *settings)
    start = how.window.random_start((0.3, 0.3), reader.num_frames(4))
    needed = 0
    if "rgb" in how.modalities:
        sizes = reader[4].description()["frame_bytes"]
        needed += sum(sizes[n] for n in how.window.frame_numbers(start.rgb, 60)) + reader.index["json_size"][4].as_py()
    if "spec" in how.modalities:
        needed += how.window.mel_rows * 128 * 2
    read_sizes: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: read_sizes.append(size) or pread(file, size, offset))
    read_view(reader[4], how, start)
    assert sum(read_sizes) == needed
    assert len(read_sizes) == {(): 6, ("input.stride=1",): 3}.get(settings, len(read_sizes))


def test_batches_that_are_kept_do_not_change(reader: ShardReader) -> None:
    """Although the decoder reuses its memory."""
    how = inputs(reader)
    steps = [TrainPlan(0, len(reader), 4).step(step) for step in range(20)]
    kept = list(decode_batches(train_batches(reader, how, steps, True, CorruptSamples(reader, 0.0)), how, 4, CPU, None, 1))
    for batch, step in zip(kept, steps, strict=True):
        alone = one_batch(reader, step, how)
        assert batch.rgb is not None
        assert alone.rgb is not None
        assert torch.equal(batch.rgb, alone.rgb)


def test_asynchronous_views_differ_only_in_the_spectrogram(reader: ShardReader) -> None:
    how = inputs(reader)
    steps = [TrainPlan(0, len(reader), 16).step(0)]
    (synchronous,) = decode_batches(train_batches(reader, how, steps, True, CorruptSamples(reader, 0.0)), how, 16, CPU, None, 1)
    (asynchronous,) = decode_batches(
        train_batches(reader, how, steps, False, CorruptSamples(reader, 0.0)), how, 16, CPU, None, 1
    )
    assert synchronous.rgb is not None
    assert asynchronous.rgb is not None
    assert torch.equal(synchronous.rgb, asynchronous.rgb)
    assert asynchronous.spec is not None
    for view, (row, draw) in enumerate(zip(steps[0].rows.tolist(), steps[0].start[:, 1], strict=True)):
        first = 4 * int(draw * 21)
        wanted = (reader[row].log_mel(first, first + 160).astype(np.float32) - how.mel_mean) / how.mel_std
        np.testing.assert_allclose(asynchronous.spec[view].numpy(), wanted, atol=1e-5)


def test_log_mel_covers_the_same_time_span_standardized(reader: ShardReader) -> None:
    how = inputs(reader)
    batch = one_batch(reader, plan([5], 0.999, 0.5, 0.5, False), how)
    assert batch.spec is not None
    rows = reader[5].log_mel(80, 240).astype(np.float32)
    np.testing.assert_allclose(batch.spec[0].numpy(), (rows - how.mel_mean) / how.mel_std, atol=1e-5)
    values = np.concatenate([reader[row].log_mel(0, 240).astype(np.float64).ravel() for row in range(len(reader))])
    assert how.mel_mean == pytest.approx(values.mean(), abs=1e-6)
    assert how.mel_std == pytest.approx(values.std(), abs=1e-6)


def test_targets_are_the_labels_of_the_rows(reader: ShardReader) -> None:
    batch = one_batch(reader, plan([1, 4], 0.0, 0.5, 0.5, False), inputs(reader))
    assert batch.targets is not None
    for place, row in enumerate((1, 4)):
        assert batch.targets["all"][place].nonzero().flatten().tolist() == reader[row].description()["labels"]


def test_single_modality_models_do_not_read_the_other_modality(reader: ShardReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sample, "frames", None)
    heard = one_batch(reader, plan([0], 0.0, 0.5, 0.5, False), inputs(reader, 'model.modalities=["spec"]'))
    assert heard.rgb is None
    assert heard.spec is not None
    monkeypatch.undo()
    monkeypatch.setattr(Sample, "log_mel", None)
    seen = one_batch(reader, plan([0], 0.0, 0.5, 0.5, False), inputs(reader, 'model.modalities=["rgb"]'))
    assert seen.spec is None
    assert seen.rgb is not None


@pytest.mark.parametrize("batch_size", [1, 7, 80, 200])
def test_evaluation_sees_every_view_once_in_order(reader: ShardReader, batch_size: int) -> None:
    how = inputs(reader, 'model.modalities=["spec"]')
    seen = [row for raw in eval_batches(reader, how, np.arange(20), 4, batch_size) for row in raw.plan.rows.tolist()]
    assert seen == [row for row in range(20) for _ in range(4)]


def test_batches_follow_the_order_of_the_plan(reader: ShardReader) -> None:
    how = inputs(reader)
    steps = TrainPlan(0, len(reader), 4)
    raw = train_batches(reader, how, [steps.step(step) for step in range(9)], True, CorruptSamples(reader, 0.0))
    rows = [batch.plan.rows.tolist() for batch in decode_batches(raw, how, 4, CPU, None, 1)]
    assert rows == [steps.step(step).rows.tolist() for step in range(9)]


@pytest.mark.gpu
def test_gpu_frames_are_close_to_the_cpus(reader: ShardReader) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    how = inputs(reader)
    steps = [TrainPlan(0, len(reader), 4).step(0)]
    (cpu,) = decode_batches(train_batches(reader, how, steps, True, CorruptSamples(reader, 0.0)), how, 4, CPU, None, 1)
    (gpu,) = decode_batches(
        train_batches(reader, how, steps, True, CorruptSamples(reader, 0.0)), how, 4, torch.device("cuda", 0), None, 1
    )
    assert cpu.rgb is not None
    assert gpu.rgb is not None
    assert gpu.rgb.device.type == "cuda"
    assert float((gpu.rgb.cpu() - cpu.rgb).abs().mean()) < 2 / 255
