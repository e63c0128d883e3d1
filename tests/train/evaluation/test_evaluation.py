"""Evaluation and prediction with a trained model."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.metrics import average_precision_score

from mbt.cli import cli
from mbt.manifests.errors import ConfigError, InputError, ShardError
from mbt.manifests.reading.reader import ShardReader
from mbt.train.evaluation.evaluate import evaluate, table
from mbt.train.inference.predict import predict
from mbt.train.models.model_folder import load_trained
from mbt.train.trainer import train
from tests.tiny import tiny

SECONDS = 2.4


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(shards, folder, tiny("train.max_steps=8"))
    return folder


def test_logits_are_averaged_over_the_views_of_each_sample(shards: Path, run: Path) -> None:
    """The reference cuts the views and runs the model one by one, without the loader."""
    model, preprocessor = load_trained(run)
    how = preprocessor.inputs
    with ShardReader(shards, "eval") as reader:
        expected = []
        for row in range(len(reader)):
            views = []
            for start in (0, 6, 13, 20):
                jpegs = reader[row].frames([start, start + 10, start + 20, start + 30])
                frames = np.stack([np.asarray(Image.open(io.BytesIO(jpeg)))[:, 11:75] for jpeg in jpegs])
                rgb = torch.from_numpy(frames.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
                mel = reader[row].log_mel(4 * start, 4 * start + 160).astype(np.float32)
                spec = torch.from_numpy((mel - how.mel_mean) / how.mel_std)
                with torch.inference_mode():
                    views.append(model(rgb=rgb[None], spec=spec[None])[0].numpy())
            expected.append(np.mean(views, axis=0))
        targets = reader.targets()
    report = evaluate(run, shards, "eval", crops=4, batch_size=5)
    assert report["samples"] == 7
    again = evaluate(run, shards, "eval", crops=4, batch_size=64)
    assert report["classes"] == again["classes"]
    for c, row_of_class in enumerate(report["classes"]):
        if targets[:, c].any():
            ap = average_precision_score(targets[:, c], np.stack(expected)[:, c])
            assert row_of_class["average_precision"] == pytest.approx(ap, abs=1e-6)
        else:
            assert row_of_class["average_precision"] is None


def test_a_file_is_predicted_like_its_packed_sample(shards: Path, run: Path, media: Path) -> None:
    model, preprocessor = load_trained(run)
    with ShardReader(shards, "eval") as reader:
        key = reader.key(0)
    predictions = predict(run, [media / "media" / f"{key.rpartition('_')[0]}.mp4"], 0.0, 10.0, crops=4, top=15)
    logits = _logits(shards, run)[0]
    probabilities = {p.id: p.probability for p in predictions[0]}
    ids = [label.id for label in preprocessor.label_set.labels]
    assert [probabilities[i] for i in ids] == pytest.approx(list(1 / (1 + np.exp(-logits))), abs=1e-5)
    values = [p.probability for p in predictions[0]]
    assert values == sorted(values, reverse=True)
    assert model.config.num_classes == 15


def _logits(shards: Path, run: Path) -> np.ndarray:
    from mbt.train.evaluation.evaluate import evaluate_split

    model, preprocessor = load_trained(run)
    with ShardReader(shards, "eval") as reader, torch.inference_mode():
        device = torch.device("cpu")
        return evaluate_split(reader, preprocessor.inputs, 4, 8, device, lambda b: model(rgb=b.rgb, spec=b.spec)).logits


def test_the_command_writes_json_and_a_table(shards: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    arguments = ["eval", "--checkpoint", str(run), "--data", str(shards), "--crops", "2", "--out", str(out)]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0, shown.output
    report = json.loads(out.read_text())
    assert report["crops"] == 2
    assert f"mAP {report['mAP']:.4f}" in shown.output
    assert "red is seen" in shown.output
    as_json = CliRunner().invoke(cli, [*arguments, "--json"])
    assert json.loads(as_json.stdout)["mAP"] == report["mAP"]


def test_long_tables_show_the_best_and_worst_classes() -> None:
    classes = [{"id": str(i), "name": f"class {i}", "positives": 1, "average_precision": i / 100} for i in range(100)]
    text = table({"split": "eval", "mAP": 0.5, "samples": 3, "crops": 4, "classes_without_positives": 2, "classes": classes})
    assert "class 99" in text
    assert "class 0" in text
    assert "class 50" not in text
    assert "80 classes between" in text


def test_shards_with_other_media_options_are_rejected(run: Path, media: Path, tmp_path: Path) -> None:
    lists = ["--list", str(media / "clips.csv"), "--labels", str(media / "labels.csv"), "--source", str(media / "media")]
    out = tmp_path / "set"
    packed = CliRunner().invoke(cli, ["prep", "custom", *lists, "--short-side", "72", "--limit", "1", "--out", str(out)])
    assert packed.exit_code == 0, packed.output
    with pytest.raises(ConfigError, match=r"video.short_side 72, but the model was trained with 64"):
        evaluate(run, out, "eval", 4, 8)


def test_shards_with_other_labels_are_rejected(run: Path, shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(shards, folder)
    labels = folder / "labels.csv"
    labels.write_text(labels.read_text().replace("seen:red", "seen:pink"))
    with pytest.raises(ConfigError, match=r"the labels of .* differ from those of the model"):
        evaluate(run, folder, "eval", 4, 8)


def test_a_truncated_tar_is_named(run: Path, shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(shards, folder)
    tar = folder / "eval-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-20_000])
    with pytest.raises(ShardError, match=r"eval-000000.tar has \d+ bytes, expected \d+"):
        evaluate(run, folder, "eval", 4, 8)


def test_a_damaged_frame_is_an_error(run: Path, shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(shards, folder)
    with ShardReader(folder, "eval") as reader:
        offset, size = reader.index["mjpg_offset"][2].as_py(), reader.index["mjpg_size"][2].as_py()
    tar = folder / "eval-000000.tar"
    data = bytearray(tar.read_bytes())
    data[offset : offset + size] = bytes(size)
    tar.write_bytes(data)
    with pytest.raises(ShardError, match="is not a valid JPEG"):
        evaluate(run, folder, "eval", 4, 8)


def test_weights_that_do_not_fit_the_configuration_are_rejected(run: Path, shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(run / "best", folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"mlp_dim": 32', '"mlp_dim": 48'))
    with pytest.raises(ConfigError, match=r"tensor encoder\.blocks\..* has shape .*, but the model"):
        evaluate(folder, shards, "eval", 4, 8)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_damaged_model_files_are_errors(name: str, run: Path, shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(run / "best", folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:50])
    with pytest.raises(ConfigError):
        evaluate(folder, shards, "eval", 4, 8)


def test_files_that_cannot_be_decoded_are_errors(run: Path, tmp_path: Path) -> None:
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(np.random.default_rng(0).bytes(10_000))
    with pytest.raises(InputError, match=r"noise\.mp4 cannot be decoded: decode\.unreadable"):
        predict(run, [noise], 0.0, 10.0, 4, 5)
    with pytest.raises(InputError, match="does not exist"):
        predict(run, [tmp_path / "nothing.mp4"], 0.0, 10.0, 4, 5)


def test_a_multiclass_dataset_trains_and_reports_accuracy(media: Path, tmp_path: Path) -> None:
    lines = (media / "clips.csv").read_text().splitlines()
    labels = [line.rpartition(",")[0] + "," + line.rpartition(",")[2].split(";")[0] for line in lines[1:]]
    (tmp_path / "clips.csv").write_text("\n".join([lines[0], *labels]) + "\n")
    (tmp_path / "labels.csv").write_text("id,display_name\nseen:red,red\nseen:green,green\nseen:blue,blue\n")
    lists = ["--list", str(tmp_path / "clips.csv"), "--labels", str(tmp_path / "labels.csv"), "--source", str(media / "media")]
    out = tmp_path / "set"
    packed = CliRunner().invoke(
        cli, ["prep", "custom", *lists, "--task", "multiclass", "--short-side", "64", "--out", str(out)]
    )
    assert packed.exit_code == 0, packed.output
    train(out, tmp_path / "run", tiny("train.max_steps=60", "train.learning_rate=0.1", "input.flip=false"))
    report = evaluate(tmp_path / "run", out, "train", 1, 8)
    assert report["top-1"] > 0.8
    assert report["top-5"] == 1.0
    (prediction,) = predict(tmp_path / "run", [media / "media" / "eval-0000.mp4"], 0.0, 10.0, 4, 3)
    assert sum(label.probability for label in prediction) == pytest.approx(1.0)


def test_the_newest_run_is_the_default(run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = CliRunner().invoke(cli, ["eval", "--data", str(shards)])
    assert isinstance(nothing.exception, ConfigError)
    for name, age in (("old", 100), ("new", 0)):
        shutil.copytree(run, tmp_path / "runs" / name)
        log = tmp_path / "runs" / name / "metrics.jsonl"
        os.utime(log, (log.stat().st_atime, 1e9 - age))
    assert CliRunner().invoke(cli, ["eval", "--data", str(shards), "--crops", "1"]).exit_code == 0
    assert (tmp_path / "runs/new/eval-eval.json").exists()
    assert not (tmp_path / "runs/old/eval-eval.json").exists()
