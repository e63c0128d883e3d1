"""DeepSpeed configuration: ours, a user's merged over it, and contradictions."""

import json
from pathlib import Path
from typing import Any

import pytest

from mbt.manifests.errors import ConfigError
from mbt.train.engine.zero_config import Zero
from mbt.train.recipes.schema import TrainRecipe

RECIPE = TrainRecipe(batch_size=24, micro_batch=5, max_grad_norm=0.5)


def merged(folder: Path, content: Any, stage: int | None = None) -> dict[str, Any]:
    file = folder / "zero.json"
    file.write_text(json.dumps(content))
    return Zero(stage, file).config(RECIPE, world_size=2)


def test_the_recipe_decides() -> None:
    config = Zero().config(RECIPE, world_size=2)
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (4, 3)
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"]["stage"] == 1
    assert Zero(3).config(RECIPE, 2)["zero_optimization"]["stage"] == 3
    assert Zero(2).config(TrainRecipe(max_grad_norm=None), 1)["gradient_clipping"] == 0.0


def test_a_file_is_merged(tmp_path: Path) -> None:
    offload = {"device": "cpu", "pin_memory": True}
    config = merged(tmp_path, {"zero_optimization": {"offload_optimizer": offload}, "wall_clock_breakdown": True}, 2)
    assert config["zero_optimization"] == {**Zero(2).config(RECIPE, 2)["zero_optimization"], "offload_optimizer": offload}
    assert config["wall_clock_breakdown"] is True
    assert config["gradient_clipping"] == 0.5
    assert merged(tmp_path, {"zero_optimization": {"stage": 3}})["zero_optimization"]["stage"] == 3


@pytest.mark.parametrize(
    "agreeing",
    [
        {"train_batch_size": 24, "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": 3},
        {
            "gradient_clipping": 0.5,
            "optimizer": "auto",
            "bf16": {"enabled": "auto"},
            "fp16": {"enabled": False, "loss_scale": 0},
        },
        {"zero_optimization": {"stage": "auto"}, "zero_allow_untested_optimizer": True},
    ],
)
def test_keys_that_agree_or_are_auto_are_accepted(agreeing: dict[str, Any], tmp_path: Path) -> None:
    assert merged(tmp_path, agreeing) == Zero().config(RECIPE, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train_batch_size": 32}, "train_batch_size contradicts the recipe. Remove it and set train.batch_size instead"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps contradicts"),
        ({"gradient_clipping": 1.0}, "gradient_clipping contradicts the recipe. Remove it and set train.max_grad_norm instead"),
        ({"optimizer": {"type": "Adam"}}, "optimizer contradicts"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler contradicts"),
        ({"bf16": {"enabled": True}}, "bf16 contradicts the recipe. Remove it and set train.precision instead"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast contradicts"),
        (
            {"zero_allow_untested_optimizer": False},
            "zero_allow_untested_optimizer is false; this trainer needs true",
        ),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage is 3, but --zero-stage is 2"),
        ({"zero_optimization": {"stage": 5}}, "zero_optimization.stage is 5"),
        ({"zero_optimization": True}, "zero_optimization is not an object"),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, "offload_param.device is nvme"),
        ([1], "is not a JSON object"),
    ],
)
def test_contradictions_name_the_key(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        merged(tmp_path, content, 2)


def test_an_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.json is not a readable JSON file"):
        Zero(file=tmp_path / "nothing.json").config(RECIPE, 1)
