"""A small dataset of rendered clips, packed by `mbt prep custom`."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from mbt.cli import cli
from mbt.demo.clips import render


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered clips: 20 in split train, 7 in eval."""
    folder = tmp_path_factory.mktemp("clips")
    render(folder, seed=5, num_train=20, num_eval=7, workers=2)
    return folder


@pytest.fixture(scope="session")
def shards(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed clips, with a short side of 64 pixels."""
    folder = tmp_path_factory.mktemp("shards") / "set"
    lists = ["--list", str(media / "clips.csv"), "--labels", str(media / "labels.csv"), "--source", str(media / "media")]
    result = CliRunner().invoke(cli, ["prep", "custom", *lists, "--short-side", "64", "--out", str(folder)])
    assert result.exit_code == 0, result.output
    return folder
