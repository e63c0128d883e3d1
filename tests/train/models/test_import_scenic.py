"""`mbt import-scenic`, with a checkpoint written here in Flax's format."""

import json
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from mbt import MBT
from mbt.manifests.reading.reader import ShardReader
from mbt.train.models.model_folder import load_trained
from tests.conftest import Door
from tests.mbt.weights.test_scenic import packed_array, released


def checkpoint(path: Path, params: dict[str, np.ndarray]) -> Path:
    tree: dict[str, Any] = {}
    for name, array in params.items():
        *folders, leaf = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = packed_array(np.random.default_rng(0).normal(size=array.shape, scale=0.02).astype(np.float32))
    path.write_bytes(msgpack.packb({"optimizer": {"target": tree, "state": {}}, "global_step": 15900}))
    return path


SMALL = {"hidden_size": 8, "num_heads": 2, "mlp_dim": 16}


def test_a_checkpoint_becomes_a_model_folder(tmp_path: Path, mbt: Door) -> None:
    config, params = released(**SMALL)
    done = mbt("import-scenic", checkpoint(tmp_path / "mbtb32", params), tmp_path / "model", "--set", "fusion_layer=10")
    assert done.code == 0, done.err
    assert '"fusion_layer": 10' in done.out
    model = MBT.from_pretrained(tmp_path / "model")
    assert json.loads(model.config.to_json()) == {**json.loads(config.to_json()), "fusion_layer": 10}
    assert "Imported from the official checkpoint `mbtb32`" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.slow
def test_a_checkpoint_imported_with_a_dataset_can_be_evaluated(shards: Path, tmp_path: Path, mbt: Door) -> None:
    _, params = released(**SMALL)
    with ShardReader(shards, "eval") as reader:
        classes = len(reader.labels)
    params["output_projection/kernel"] = np.zeros((8, classes))
    params["output_projection/bias"] = np.zeros(classes)
    params["embedding/kernel"] = np.zeros((2, 8, 8, 3, 8))
    params["Transformer/posembed_input/pos_embedding"] = np.zeros((1, 2 * 8 * 8 + 1, 8))
    params["Transformer/posembed_input_spectrogram/pos_embedding"] = np.zeros((1, 10 * 8 + 1, 8))
    file = checkpoint(tmp_path / "mbtb32", params)
    arguments = ("--set", "image_size=64", "--data", shards, "--rgb-seconds", "0.64")
    done = mbt("import-scenic", file, tmp_path / "model", *arguments)
    assert done.code == 0, done.err
    inputs = load_trained(tmp_path / "model")[1].inputs
    assert (inputs.frames, inputs.rgb_seconds, inputs.seconds) == (4, 0.64, 1.6)
    scored = mbt("eval", "--checkpoint", tmp_path / "model", "--data", shards, "--crops", 2, "--json")
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)["samples"] == 7


def test_import_errors_are_one_line(shards: Path, tmp_path: Path, mbt: Door) -> None:
    _, params = released(**SMALL)
    file = checkpoint(tmp_path / "whole", params)
    truncated = tmp_path / "truncated"
    truncated.write_bytes(file.read_bytes()[:-100])
    for arguments, message in (
        ((truncated,), "not a complete Flax checkpoint"),
        ((tmp_path / "nothing",), "No such file"),
        ((file, "--set", "fusion_layer=13"), "fusion_layer 13 is outside 0..12"),
        ((file, "--set", "color=1"), "not FIELD=VALUE for a field of the model"),
        ((file, "--set", "fusion_layer=deep"), "valid integer"),
        ((file, "--data", shards), "15 labels, but the checkpoint has 527 classes"),
    ):
        source, *options = arguments
        done = mbt("import-scenic", source, tmp_path / "out", *options)
        assert done.code == 2
        assert message in done.err
        assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
