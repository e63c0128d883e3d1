"""Recipes and their settings."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from manifests.errors import ConfigError
from mbt import MBTConfig
from train.recipe import ModelRecipe, Recipe, load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load(name: str) -> None:
    assert isinstance(load_recipe(name), Recipe)


def test_settings_are_toml_values() -> None:
    recipe = load_recipe(
        "mbt_b",
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
        ("train.batchsize=8", "Did you mean train.batch_size"),
        ("train.batch_size=many", "train.batch_size"),
        ("train.batch_size=0", "train.batch_size"),
        ("model.fusion=magic", "model.fusion"),
        ("batch_size=8", "is not section.field=value"),
        ("train.batch_size", "is not section.field=value"),
        ("input.seconds=0.03", "seconds 0.03"),
        ("input.image_size=300", "image_size 300 is above resize 256"),
        ("wheels.count=4", "wheels"),
    ],
)
def test_wrong_settings_are_named(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("mbt_b", [setting])


def test_an_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="demo, mbt_b"):
        load_recipe("as_giga")


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[train\n")
    with pytest.raises(ConfigError, match="no TOML"):
        load_recipe(str(path))


def test_the_models_fields_and_defaults_are_those_of_its_configuration() -> None:
    from_inputs = {"num_classes", "num_frames", "image_size", "spec_shape"}
    config = {f.name: f.default for f in dataclasses.fields(MBTConfig) if f.name not in from_inputs}
    assert {name: f.default for name, f in ModelRecipe.model_fields.items()} == config
