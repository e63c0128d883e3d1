"""Recipes, shipped and written, and settings that change them."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from mbt import MBTConfig
from mbt.manifests.errors import ConfigError
from mbt.train.recipes.loading import load_recipe, recipe_names
from mbt.train.recipes.schema import ModelRecipe, Recipe
from mbt.train.sampling.plan import Mixing


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load(name: str) -> None:
    assert isinstance(load_recipe(name), Recipe)


def test_settings_are_toml_values() -> None:
    recipe = load_recipe(
        "mbt_paper",
        [
            "train.batch_size=8",
            'model.modalities=["rgb"]',
            "model.fusion=attention",
            "train.max_grad_norm=none",
            "input.flip=false",
        ],
    )
    assert recipe.train.batch_size == 8
    assert recipe.model.modalities == ("rgb",)
    assert recipe.model.fusion == "attention"
    assert recipe.train.max_grad_norm is None
    assert recipe.input.flip is False


def test_the_resolved_recipe_is_written_and_read_back(tmp_path: Path) -> None:
    recipe = load_recipe("demo", ["train.learning_rate=0.25", "eval.split=none"])
    path = tmp_path / "config.toml"
    path.write_text(recipe.to_toml())
    assert tomllib.loads(path.read_text())["train"]["learning_rate"] == 0.25
    assert load_recipe(str(path)) == recipe
    assert recipe.eval.split is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.batchsize=8", r"Did you mean train\.batch_size\?$"),
        ("train.batch_size=many", "train.batch_size"),
        ("train.batch_size=0", "train.batch_size"),
        ("model.fusion=magic", "model.fusion"),
        ("batch_size=8", "is not section.field=value"),
        ("train.batch_size", "is not section.field=value"),
        ("input.seconds=0.03", "seconds 0.03"),
        ("input.image_size=300", "image_size 300 is larger than resize 256"),
        ("wheels.count=4", "wheels"),
        ("model.image_size=32", r"model\.image_size is not a field of a recipe\. Set input\.image_size\."),
        ("model.num_classes=5", r"model\.num_classes is not a field of a recipe\. The dataset decides"),
    ],
)
def test_wrong_settings_are_named(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("mbt_paper", [setting])


def test_the_error_for_an_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match="audio_paper, demo, mbt_as500k, mbt_official"):
        load_recipe("as_giga")


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[train\n")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.batch_size=9", "batch_size 9 is not divisible by group_size 2"),
        ("train.group_size=6", "batch_size 64 is not divisible by group_size 6"),
        ("train.mixup_alpha=none", "modality_mixup is set, but mixup_alpha is not"),
        ("model.classifier=gap", "model.classifier 'gap' has a single loss"),
        ("model.size=XL", "size 'XL' is not one of Ti, S, B, L, H"),
        ("input.frames=201", "frames 201 is outside 1..200"),
        ("input.stride=0", "input.stride"),
        ("input.scale_jitter=[0.8, 1.2]", "scale_jitter 0.8 times resize 256 is smaller than the crop of image_size 224"),
        ("input.scale_jitter=[1.2, 0.9]", r"scale_jitter \[1.2, 0.9\] is not a range of positive factors"),
        ("input.colour_jitter=1.5", "input.colour_jitter"),
        ("init.surgery=none", "init.surgery"),
    ],
)
def test_contradictions_are_named(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("mbt_paper", [setting])


def test_a_model_size_sets_its_fields() -> None:
    model = load_recipe("mbt_paper", ["model.size=L", "model.mlp_dim=2048"]).model
    assert (model.hidden_size, model.num_layers, model.num_heads, model.mlp_dim) == (1024, 24, 16, 2048)


def test_recipes_of_the_paper_and_of_the_official_code() -> None:
    """The official code has a batch of 2 per device and one mixup weight per device."""
    paper, official = load_recipe("mbt_paper"), load_recipe("mbt_official")
    assert (paper.train.mixup_alpha, paper.train.modality_mixup, paper.train.label_smoothing) == (0.3, True, 0.0)
    assert (official.train.mixup_alpha, official.train.modality_mixup, official.train.label_smoothing) == (0.5, False, 0.3)
    assert (paper.train.time_mask, paper.train.frequency_mask) == (192, 48)
    assert (official.train.time_mask, official.train.frequency_mask) == (0, 48)
    assert (paper.model.num_bottlenecks, official.model.num_bottlenecks) == (4, 5)
    assert (paper.train.mixing, official.train.mixing) == (Mixing(0.3, True, 2), Mixing(0.5, False, 2))


def test_model_fields_and_defaults_match_the_models_configuration() -> None:
    from_inputs = {"num_classes", "num_frames", "image_size", "spec_shape"}
    config = {f.name: f.default for f in dataclasses.fields(MBTConfig) if f.name not in from_inputs}
    assert {name: f.default for name, f in ModelRecipe.model_fields.items()} == config


def test_a_recipe_can_be_based_on_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "mbt_official"\n[train]\nepochs = 3.0\n')
    mine, official = load_recipe(str(path)), load_recipe("mbt_official")
    assert mine.train.epochs == 3
    assert mine == official.model_copy(update={"train": official.train.model_copy(update={"epochs": 3.0})})
    path.write_text('base = "nothing"\n')
    with pytest.raises(ConfigError, match="no recipe 'nothing'"):
        load_recipe(str(path))


def test_baselines_differ_from_the_papers_recipe_only_where_stated() -> None:
    paper, audio = load_recipe("mbt_paper"), load_recipe("audio_paper")
    assert audio.model == paper.model.model_copy(update={"modalities": ("spec",)})
    assert audio.train == paper.train.model_copy(update={"modality_mixup": False})
    assert load_recipe("mbt_as500k").train == paper.train.model_copy(update={"checkpoint_every": 2000})
    modern = load_recipe("mbt_one_gpu").train
    assert (modern.optimizer, modern.balanced_sampling, paper.train.optimizer, paper.train.balanced_sampling) == (
        "adamw",
        True,
        "sgd",
        False,
    )
