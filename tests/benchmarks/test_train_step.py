"""benchmarks/train_step.py with a tiny model."""

import re

import pytest
from click.testing import CliRunner

from benchmarks.train_step import Timing, config, main, table
from mbt.flops import clip_flops
from mbt.train.recipes.loading import load_recipe

pytestmark = pytest.mark.slow

SMALL = (
    "model.size=Ti",
    "model.num_layers=1",
    "model.fusion_layer=1",
    "input.frames=1",
    "train.batch_size=2",
    "train.threads=1",
)


def test_a_variant_has_a_row() -> None:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    only = ["--only", "zero3"]
    done = CliRunner().invoke(main, [*settings, *only, "--steps", "2", "--product-size", "64"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert "batch 2, median of 2 steps" in lines[0]
    (line,) = [line for line in lines if line.startswith("zero3")]
    ms, _, clips, *_ = map(float, re.findall(r"\d+(?:\.\d+)?", line.removeprefix("zero3")))
    assert clips == pytest.approx(2000 / ms, rel=0.05)


def test_rates_are_computed_and_failures_are_shown() -> None:
    recipe = load_recipe("mbt_paper", (*SMALL, "init.weights=none"))
    flop = 3 * 2 * clip_flops(config(recipe)).total
    timing = Timing([3.0, 1.0, 2.0], [0.5, 0.5, 0.5], flop // 2, 8_000_000_000, "NVIDIA H200")
    lines = table(recipe, {"eager": timing, "zero3": "out of memory"}).splitlines()
    cells = lines[1].split()
    assert cells[:4] == ["eager", "2000.0", "1000.0", "1.00"]
    assert float(cells[4]) == pytest.approx(flop / 2e12, rel=0.01)
    assert cells[5] == "50.0%"
    assert float(cells[6].rstrip("%")) == pytest.approx(100 * flop / 2e12 / 989, abs=0.1)
    assert cells[7] == "8.0"
    assert lines[2].split(maxsplit=1) == ["zero3", "out of memory"]
