"""Shards to batches, against PIL and the members themselves."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from manifests.reader import ShardReader
from tests.tiny import tiny
from train.batch import Batch
from train.inputs import Inputs
from train.loader import batches, centred, eval_views, train_views
from train.plan import StepPlan, TrainPlan

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reader(shards: Path) -> ShardReader:
    return ShardReader(shards, "train")


def inputs(reader: ShardReader, *settings: str) -> Inputs:
    return tiny(*settings).inputs(reader.info)


def one_batch(reader: ShardReader, plan: StepPlan, how: Inputs) -> Batch:
    (batch,) = batches(train_views(reader, how, [plan]), how, len(plan.rows), CPU, reader.targets(), 1)
    return batch


def plan(rows: list[int], start: float, x: float, y: float, flip: bool) -> StepPlan:
    full = np.full(len(rows), 1.0)
    return replace(centred(np.array(rows)), start=full * start, crop_x=full * x, crop_y=full * y, flip=np.full(len(rows), flip))


def pil_frames(reader: ShardReader, row: int, numbers: list[int]) -> np.ndarray:
    """Frames as PIL decodes them: float (F, 3, H, W) in [-1, 1]."""
    images = [np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in reader.frames(row, numbers)]
    return np.stack(images).transpose(0, 3, 1, 2) / 127.5 - 1


@pytest.mark.parametrize(("x", "left"), [(0.0, 0), (0.5, 11), (0.999, 22)])
@pytest.mark.parametrize("flip", [False, True])
def test_frames_equal_pil_cropped_and_mirrored(reader: ShardReader, x: float, left: int, flip: bool) -> None:
    """Stored at 86 x 64, cropped to 64 x 64; the view starts at the last possible frame: 60 - 40 = 20."""
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
    (jpeg,) = reader.frames(0, [0])
    picture = Image.open(io.BytesIO(jpeg)).resize((43, 32), Image.Resampling.BILINEAR)
    expected = np.asarray(picture, np.float64)[:, 6:38].transpose(2, 0, 1)
    ours = (batch.rgb[0, 0].numpy() + 1) * 127.5
    assert abs(ours - expected).max() <= 1.01
    assert abs(ours - expected).mean() < 0.3


def test_log_mel_is_the_same_time_span_standardised(reader: ShardReader) -> None:
    how = inputs(reader)
    batch = one_batch(reader, plan([5], 0.999, 0.5, 0.5, False), how)
    assert batch.spec is not None
    rows = reader.log_mel(5, 80, 240).astype(np.float32)
    np.testing.assert_allclose(batch.spec[0].numpy(), (rows - how.mel_mean) / how.mel_std, atol=1e-5)
    values = np.concatenate([reader.log_mel(row, 0, 240).astype(np.float64).ravel() for row in range(len(reader))])
    assert how.mel_mean == pytest.approx(values.mean(), abs=1e-6)
    assert how.mel_std == pytest.approx(values.std(), abs=1e-6)


def test_targets_are_the_labels_of_the_rows(reader: ShardReader) -> None:
    batch = one_batch(reader, plan([1, 4], 0.0, 0.5, 0.5, False), inputs(reader))
    assert batch.targets is not None
    for place, row in enumerate((1, 4)):
        assert batch.targets["all"][place].nonzero().flatten().tolist() == reader.sample(row)["labels"]


def test_single_modality_models_read_nothing_of_the_other(reader: ShardReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShardReader, "frames", None)
    heard = one_batch(reader, plan([0], 0.0, 0.5, 0.5, False), inputs(reader, 'model.modalities=["spec"]'))
    assert heard.rgb is None
    assert heard.spec is not None
    monkeypatch.undo()
    monkeypatch.setattr(ShardReader, "log_mel", None)
    seen = one_batch(reader, plan([0], 0.0, 0.5, 0.5, False), inputs(reader, 'model.modalities=["rgb"]'))
    assert seen.spec is None
    assert seen.rgb is not None


@pytest.mark.parametrize("batch_size", [1, 7, 80, 200])
def test_evaluation_sees_every_view_once_in_order(reader: ShardReader, batch_size: int) -> None:
    how = inputs(reader, 'model.modalities=["spec"]')
    seen = [row for raw in eval_views(reader, how, 4, batch_size) for row in raw.plan.rows.tolist()]
    assert seen == [row for row in range(20) for _ in range(4)]


def test_batches_come_in_the_order_of_the_plan(reader: ShardReader) -> None:
    how = inputs(reader)
    steps = TrainPlan(0, len(reader), 4)
    raw = train_views(reader, how, [steps.step(step) for step in range(9)])
    rows = [batch.plan.rows.tolist() for batch in batches(raw, how, 4, CPU, None, 1)]
    assert rows == [steps.step(step).rows.tolist() for step in range(9)]


@pytest.mark.gpu
def test_gpu_frames_are_close_to_the_cpus(reader: ShardReader) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    how = inputs(reader)
    steps = [TrainPlan(0, len(reader), 4).step(0)]
    (cpu,) = batches(train_views(reader, how, steps), how, 4, CPU, None, 1)
    (gpu,) = batches(train_views(reader, how, steps), how, 4, torch.device("cuda", 0), None, 1)
    assert cpu.rgb is not None
    assert gpu.rgb is not None
    assert gpu.rgb.device.type == "cuda"
    assert float((gpu.rgb.cpu() - cpu.rgb).abs().mean()) < 2 / 255
