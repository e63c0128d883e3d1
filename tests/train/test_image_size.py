"""A model of wide frames, from training to `mbt explain`."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mbt.manifests.reading.reader import ShardReader
from mbt.train.inference import explain as explaining
from mbt.train.inference.predict import predict
from mbt.train.models.model_folder import load_trained
from mbt.train.trainer import train
from tests.conftest import Door
from tests.tiny import tiny

WIDE = ("input.image_size=[32, 64]", "input.resize=32", "train.max_steps=2", "eval.split=none")


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide") / "run"
    train(shards, folder, tiny(*WIDE))
    return folder


def test_a_wide_model_is_trained_and_evaluated(run: Path, shards: Path, mbt: Door) -> None:
    model, preprocessor = load_trained(run)
    assert model.config.rgb_grid == (2, 2, 4)
    assert preprocessor.inputs.image_size == (32, 64)
    assert json.loads((run / "last" / "config.json").read_text())["image_size"] == [32, 64]
    done = mbt("eval", "--checkpoint", run, "--data", shards, "--crops", 2, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["samples"] == 7


def test_it_sees_the_middle_of_the_resized_frame(run: Path, shards: Path, media: Path, tmp_path: Path) -> None:
    """Frames of 86 x 64 become 64 x 47, the smallest size that covers 64 x 32."""
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        real = explaining.attention_figure
        patch.setattr(explaining, "attention_figure", lambda *given: drawn.append(given) or real(*given))
        with ShardReader(shards, "eval") as reader:
            clip = media / "media" / f"{reader.key(0).rpartition('_')[0]}.mp4"
            (jpeg,) = reader[0].frames([10])
        labels = explaining.explain(run, clip, 0.0, 10.0, tmp_path / "explained.png")
    _, seen, heard = drawn[0]
    picture = Image.open(io.BytesIO(jpeg)).resize((64, 47), Image.Resampling.BILINEAR)
    expected = np.asarray(picture, np.float64)[8:40]
    assert seen.frames.shape == (4, 32, 64, 3)
    assert abs(seen.frames[0] - expected).max() <= 1.5
    assert seen.attention.shape == (2, 2, 4)
    assert heard.attention.shape == (10, 2)
    panels = real("", seen, None).axes
    assert {tuple(image.get_extent()) for panel in panels[:4] for image in panel.images} == {(0.0, 2.0, 1.0, 0.0)}
    assert predict(run, [clip], 0.0, 10.0, crops=1, top=5)[0] == labels
