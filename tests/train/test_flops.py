"""`mbt flops`: the configuration given by its options, the table and the figure."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mbt import MBTConfig
from mbt.cli import cli
from mbt.flops import clip_flops, fusion_layer_sweep
from mbt.manifests.errors import ConfigError
from mbt.train.evaluation.figures import sweep_figure
from mbt.train.flops import model_config


def flops(*options: object) -> Result:
    return CliRunner().invoke(cli, ["flops", *map(str, options)])


def test_configuration_from_a_size_and_settings() -> None:
    settings = ["fusion=attention", "tubelet=[2, 16, 16]", "share_encoder=true", "num_classes=309", "spec_shape=[400, 128]"]
    assert model_config("L/16", settings) == MBTConfig.vit(
        "L/16", 309, fusion="attention", tubelet=(2, 16, 16), share_encoder=True, spec_shape=(400, 128)
    )
    assert model_config("B/16") == MBTConfig(num_classes=527)


def test_configuration_from_a_models_config_json(tmp_path: Path) -> None:
    config = MBTConfig(num_classes=7, num_frames=4, fusion_layer=2)
    (tmp_path / "config.json").write_text(config.to_json())
    printed = json.loads(flops("--model", tmp_path / "config.json", "--set", "fusion_layer=3", "--json").stdout)
    changed = MBTConfig(num_classes=7, num_frames=4, fusion_layer=3)
    assert MBTConfig.from_json(json.dumps(printed["config"])) == changed
    assert printed["flops"]["total"] == clip_flops(changed).total


def test_parts_are_printed() -> None:
    """The rgb stream has 8 layers of N = 1569 tokens and 4 of 1573, each with 24 N D^2 + 4 N^2 D FLOPs."""
    lines = dict(reversed(line.split()) for line in flops().stdout.splitlines()[1:])
    rgb = sum(n * (24 * t * 768**2 + 4 * t**2 * 768) for n, t in ((8, 1569), (4, 1573)))
    assert lines["rgb"] == f"{rgb / 1e9:.2f}"
    assert float(lines["total"]) == pytest.approx(
        sum(float(lines[part]) for part in ("embeddings", "rgb", "spec", "head")), abs=0.02
    )


def test_the_sweep_prints_a_table_and_draws_a_figure(tmp_path: Path) -> None:
    out = tmp_path / "flops.png"
    shown = flops("--sweep", "fusion-layer", "--set", "spec_shape=[400, 128]", "--out", out).stdout
    rows = fusion_layer_sweep(MBTConfig(num_classes=527, spec_shape=(400, 128)))
    table = [[float(cell) for cell in line.split()] for line in shown.splitlines()[3:16]]
    expected = [[row.fusion_layer, *(cost.total / 1e9 for cost in row.ways().values())] for row in rows]
    np.testing.assert_allclose(table, expected, atol=0.006)
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert 0.02 < (np.asarray(image.convert("L")) < 200).mean() < 0.5
    as_json = json.loads(flops("--sweep", "fusion-layer", "--out", out, "--json").stdout)
    assert as_json["flops"][12]["bottleneck"] == as_json["flops"][12]["official_attention"]
    assert as_json["flops"][0]["bottleneck"] < as_json["flops"][0]["attention"] < as_json["flops"][0]["official_attention"]


def test_the_figure_plots_the_table() -> None:
    rows = fusion_layer_sweep(MBTConfig(num_classes=527))
    (axes,) = sweep_figure(rows, "").axes
    assert [list(line.get_ydata()) for line in axes.lines] == [
        [row.ways()[way].total / 1e9 for row in rows] for way in ("bottleneck", "attention", "official_attention")
    ]
    assert "GFLOP" in axes.get_ylabel()
    assert "fusion layer" in axes.get_xlabel()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "XL/16"], "give one of Ti, S, B, L, H"),
        (["--model", "nothing.json"], "nothing.json cannot be read"),
        (["--set", "color=3"], "not FIELD=VALUE for a field of the model"),
        (["--set", "fusion_layer"], "not FIELD=VALUE for a field of the model"),
        (["--set", "fusion_layer=13"], "fusion_layer 13 is outside 0..12"),
        (["--set", "num_layers=2.5"], "--set num_layers=2.5: Input should be a valid integer"),
        (["--set", "fusion=early"], "--set fusion=early: Input should be 'bottleneck' or 'attention'"),
        (["--set", 'modalities=["rgb"]', "--sweep", "fusion-layer"], "nothing to fuse"),
    ],
)
def test_errors_say_what_is_wrong(options: list[str], message: str) -> None:
    result = flops(*options)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)
