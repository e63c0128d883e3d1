"""`mbt explain`: its picture and its errors."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mbt import MBT
from mbt.cli import cli
from mbt.manifests.errors import ConfigError, InputError
from mbt.manifests.reading.reader import ShardReader
from mbt.rollout import attention_rollout
from mbt.train.evaluation.figures import DPI, FrameAttention, SpecAttention, attention_figure
from mbt.train.inference import explain as explaining
from mbt.train.inference.predict import predict
from mbt.train.models.model_folder import Preprocessor, load_trained, save_trained
from tests.tiny import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model_folder(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of both modalities with random weights, whose attention already differs between clips."""
    return save_model(shards, tmp_path_factory.mktemp("models") / "both")


def save_model(shards: Path, folder: Path, *settings: str) -> Path:
    recipe = tiny(*settings)
    with ShardReader(shards, "eval") as reader:
        config, inputs = recipe.mbt_config(reader.info), recipe.inputs(reader.info)
        labels = tuple((label.id, label.display_name) for label in reader.labels.labels)
    torch.manual_seed(0)
    model = MBT(config)
    torch.nn.init.normal_(model.head.weight)
    save_trained(folder, model.state_dict(), config, Preprocessor(task="multilabel", inputs=inputs, labels=labels))
    return folder


def picture(media: Path, out: Path, checkpoint: Path, clip: str, *options: str) -> tuple[np.ndarray, str]:
    """Run the command; returns the picture and the output."""
    file = media / "media" / f"{clip}.mp4"
    arguments = ["explain", str(file), "--checkpoint", str(checkpoint), "--out", str(out), *options]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    with Image.open(out) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int), result.output


def test_the_command_draws_the_clip(model_folder: Path, media: Path, tmp_path: Path) -> None:
    pixels, printed = picture(media, tmp_path / "a.png", model_folder, "eval-0000")
    assert pixels.shape == (8 * DPI, 14 * DPI, 3)
    assert 0.2 < (pixels.min(axis=2) < 250).mean() < 0.9
    again, _ = picture(media, tmp_path / "b.png", model_folder, "eval-0000")
    assert np.array_equal(pixels, again)
    other, _ = picture(media, tmp_path / "c.png", model_folder, "eval-0001")
    assert (abs(pixels - other).max(axis=2) > 30).mean() > 0.05
    (labels,) = predict(model_folder, [media / "media" / "eval-0000.mp4"], 0.0, 10.0, crops=1, top=5)
    assert printed == "".join(f"{p.probability:6.3f}  {p.name}\n" for p in labels) + f"\nwritten to {tmp_path / 'a.png'}\n"


def test_the_middle_view_is_drawn(
    model_folder: Path, shards: Path, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The middle view of 40 in 60 frames starts at 10; frames and log-mel equal those of the shards."""
    drawn = []
    monkeypatch.setattr(explaining, "attention_figure", lambda *given: drawn.append(given) or attention_figure(*given))
    with ShardReader(shards, "eval") as reader:
        clip = reader.key(0).rpartition("_")[0]
        jpegs = reader[0].frames([10, 20, 30, 40])
        log_mel = reader[0].log_mel(40, 200).astype(np.float32)
    picture(media, tmp_path / "a.png", model_folder, clip)
    title, rgb, spec = drawn[0]
    frames = np.stack([np.asarray(Image.open(io.BytesIO(jpeg)))[:, 11:75] for jpeg in jpegs])
    assert np.array_equal(rgb.frames, frames)
    assert rgb.times == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert spec.span == pytest.approx((0.4, 2.0))
    model, preprocessor = load_trained(model_folder)
    standardized = (log_mel - preprocessor.inputs.mel_mean) / preprocessor.inputs.mel_std
    np.testing.assert_allclose(spec.log_mel, standardized, atol=1e-4)
    pixels = torch.from_numpy(frames.transpose(0, 3, 1, 2) / np.float32(127.5) - 1)
    attention = attention_rollout(model, pixels[None], torch.from_numpy(standardized)[None])
    np.testing.assert_allclose(rgb.attention, attention["rgb"][0], rtol=1e-3)
    np.testing.assert_allclose(spec.attention, attention["spec"][0], rtol=1e-3)
    assert rgb.attention.shape == (2, 4, 4)
    assert spec.attention.shape == (10, 2)
    assert title.startswith(f"{clip}.mp4\n")


@pytest.mark.parametrize(("modality", "inches"), [("rgb", 4.6), ("spec", 4.1)])
def test_a_single_modality_is_drawn_alone(modality: str, inches: float, shards: Path, media: Path, tmp_path: Path) -> None:
    folder = save_model(shards, tmp_path / "model", f'model.modalities=["{modality}"]')
    pixels, _ = picture(media, tmp_path / "a.png", folder, "eval-0000")
    assert pixels.shape == (round(inches * DPI), 14 * DPI, 3)


def test_the_span_can_be_chosen(model_folder: Path, media: Path, tmp_path: Path) -> None:
    first, _ = picture(media, tmp_path / "a.png", model_folder, "eval-0000", "--seconds", "1.6")
    last, _ = picture(media, tmp_path / "b.png", model_folder, "eval-0000", "--start", "0.8")
    assert not np.array_equal(first, last)


@pytest.mark.parametrize(("frames", "maps"), [(1, 1), (4, 2), (8, 8), (32, 16), (32, 32)])
def test_every_map_is_drawn_over_the_middle_of_its_frames(frames: int, maps: int) -> None:
    rng = np.random.default_rng(0)
    rgb = FrameAttention(
        rng.integers(0, 255, (frames, 6, 6, 3), np.uint8), [0.5 * k for k in range(frames)], rng.random((maps, 3, 3))
    )
    panels = attention_figure("$ does not start a formula", rgb, None).axes[: maps + 2]
    relative = rgb.attention / rgb.attention.mean()
    assert np.array_equal(panels[0].images[0].get_array(), rgb.frames[frames // 2])
    np.testing.assert_allclose(panels[1].images[1].get_array(), relative.mean(0))
    for index, panel in enumerate(panels[2:]):
        number = index * (frames // maps) + frames // maps // 2
        below, above = panel.images
        assert np.array_equal(below.get_array(), rgb.frames[number])
        np.testing.assert_allclose(above.get_array(), relative[index])
        assert above.get_clim() == pytest.approx((0, relative.max()))
        assert panel.get_title() == f"{0.5 * number:.2f} s"


def test_the_spectrogram_map_is_aligned_with_the_spectrogram() -> None:
    """In both images, time runs to the right and the lowest band is at the bottom."""
    rng = np.random.default_rng(0)
    spec = SpecAttention(rng.random((32, 16)), (3.0, 5.0), rng.random((4, 2)))
    plain, total = attention_figure("", None, spec).axes[:2]
    for image in (*plain.images, *total.images):
        assert image.get_extent() == pytest.approx((3, 5, 0, 16))
        assert image.origin == "lower"
    np.testing.assert_allclose(total.images[1].get_array(), (spec.attention / spec.attention.mean()).T)
    np.testing.assert_allclose(plain.images[0].get_array(), spec.log_mel.T)


def test_errors_equal_those_of_prediction(model_folder: Path, media: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "a.png")
    nothing = CliRunner().invoke(cli, ["explain", str(tmp_path / "no.mp4"), "--checkpoint", str(model_folder), "--out", out])
    assert isinstance(nothing.exception, InputError)
    assert "does not exist" in str(nothing.exception)
    clip = str(media / "media" / "eval-0000.mp4")
    no_model = CliRunner().invoke(cli, ["explain", clip, "--checkpoint", str(tmp_path), "--out", out])
    assert isinstance(no_model.exception, ConfigError)
    assert "no trained model in" in str(no_model.exception)
    assert not list(tmp_path.iterdir())
