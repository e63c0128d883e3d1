"""Initial models: random weights, a ViT, another MBT."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mbt import MBT
from mbt.manifests.errors import ConfigError
from mbt.manifests.reading.reader import ShardReader
from mbt.train.engine.zero_config import Zero
from mbt.train.models.initial import initial_model
from mbt.train.models.model_folder import load_trained
from mbt.train.recipes.schema import InitRecipe
from mbt.train.trainer import train
from tests.mbt.weights.test_vit import flat_vit
from tests.tiny import CONFIG, tiny

SMALL = replace(CONFIG, hidden_size=8, mlp_dim=16)


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    np.savez(tmp_path / "ViT.npz", **flat_vit())
    return tmp_path / "ViT.npz"


def test_random_weights_depend_only_on_the_seed() -> None:
    first, same, other = (initial_model(SMALL, InitRecipe(), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["encoder.bottleneck"], other["encoder.bottleneck"])


@pytest.mark.parametrize("surgery", ["paper", "official"])
def test_from_a_vit(vit: Path, surgery: Any) -> None:
    config = replace(SMALL, num_bottlenecks=5)
    state = initial_model(config, InitRecipe(weights=str(vit), surgery=surgery), 0).state_dict()
    np.testing.assert_array_equal(state["tokens.rgb.cls"].numpy(), flat_vit()["cls"])
    assert state["tokens.spec.cls"].any() == (surgery == "paper")
    assert (state["encoder.bottleneck"].abs().max() > 0.2) == (surgery == "official")


def test_from_an_mbt_with_other_inputs_and_classes(tmp_path: Path) -> None:
    torch.manual_seed(3)
    other = MBT(replace(SMALL, num_classes=7, num_frames=4))
    other.save_pretrained(tmp_path / "other")
    state = initial_model(SMALL, InitRecipe(weights=str(tmp_path / "other")), 0).state_dict()
    assert torch.equal(state["encoder.bottleneck"], other.encoder.bottleneck)
    assert state["head.weight"].shape == (5, 8)
    assert not state["head.weight"].any()


@pytest.mark.parametrize(
    ("weights", "fields", "message"),
    [
        ("nowhere.npz", {}, "nowhere.npz is neither a folder nor a model id"),
        ("VIT", {"num_layers": 3}, "the ViT has num_layers 2, but the model has 3"),
        ("MBT", {"num_layers": 3}, "tensor encoder.blocks.rgb.2"),
        ("MBT", {"classifier": "gap"}, "unknown tensor tokens"),
        ("timm:resnet18x", {}, "timm has no pretrained model 'resnet18x'"),
    ],
)
def test_weights_that_do_not_fit_are_an_error(
    weights: str, fields: dict[str, Any], message: str, vit: Path, tmp_path: Path
) -> None:
    MBT(SMALL).save_pretrained(tmp_path / "mbt")
    source = {"VIT": str(vit), "MBT": str(tmp_path / "mbt")}.get(weights, weights)
    with pytest.raises(ConfigError, match=message) as caught:
        initial_model(replace(SMALL, **fields), InitRecipe(weights=source), 0)
    assert "init.weights=none" in caught.value.fix


def test_training_starts_from_the_weights_and_resumes_without_them(shards: Path, tmp_path: Path) -> None:
    train(shards, tmp_path / "first", tiny("train.max_steps=4"))
    trained = load_trained(tmp_path / "first")[0]
    weights = tmp_path / "start"
    trained.save_pretrained(weights)
    settings = ("train.max_steps=2", "train.checkpoint_every=1", "train.learning_rate=1e-9", f"init.weights={weights}")
    train(shards, tmp_path / "second", tiny(*settings))
    started = load_trained(tmp_path / "second")[0].state_dict()
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(started[name], tensor, rtol=0, atol=1e-6)
    weights.rename(tmp_path / "gone")
    shutil.rmtree(tmp_path / "second" / "checkpoints" / "step-2")
    train(shards, tmp_path / "second", tiny(*settings), resume=True)


@pytest.mark.parametrize(
    "settings",
    [
        ("train.mixup_alpha=0.3", "train.modality_mixup=true", "train.time_mask=40", "train.frequency_mask=16"),
        ("train.mixup_alpha=0.5", "train.group_size=2", "train.label_smoothing=0.3", "model.drop_path=0.3"),
        ("train.activation_checkpointing=true", "model.classifier=gap", "train.group_size=2"),
    ],
)
def test_training_options_of_the_recipes_resume_bit_for_bit(settings: tuple[str, ...], shards: Path, tmp_path: Path) -> None:
    train(shards, tmp_path / "whole", tiny(*settings, "train.max_steps=6", "train.checkpoint_every=3"))
    train(shards, tmp_path / "parts", tiny(*settings, "train.max_steps=6", "train.checkpoint_every=3"))
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-6")
    train(shards, tmp_path / "parts", tiny(*settings, "train.max_steps=6", "train.checkpoint_every=3"), resume=True)
    whole, parts = (load_trained(tmp_path / name / "last")[0].state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_deepspeed_refuses_groups(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="group_size does not work with ZeRO stage 3, where no rank has"):
        train(shards, tmp_path / "run", tiny("train.group_size=2"), zero=Zero(3))


def test_the_official_window_trains(shards: Path, tmp_path: Path) -> None:
    """Frames over 0.8 s and audio over 1.6 s."""
    train(shards, tmp_path / "run", tiny("input.stride=5", "train.max_steps=2"))
    model, preprocessor = load_trained(tmp_path / "run")
    assert preprocessor.inputs.window.rgb_length == 20
    assert model.config.spec_shape[0] == 160
    with ShardReader(shards, "eval") as reader:
        assert len(reader)
