"""Commands run our code in a folder whose own files have the names of our modules.

`python -m` puts the working directory first on sys.path, so a file `train.py` there would shadow a top-level module `train`.
All our modules are inside the package `mbt`. A folder named `mbt` in the working directory does shadow it, as with any package.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import TINY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
SHADOWED = 'raise SystemExit("imported {name} of the working directory")\n'
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture
def research_folder(tmp_path: Path) -> Path:
    """A folder with files and packages that end the process when they are imported."""
    for name in ("train", "prep", "cli", "demo", "benchmarks"):
        (tmp_path / f"{name}.py").write_text(SHADOWED.format(name=f"{name}.py"))
    for name in ("manifests", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(SHADOWED.format(name=name))
    return tmp_path


def run(folder: Path, *command: object) -> None:
    """Run a command inside `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_python_m_mbt(research_folder: Path, media: Path) -> None:
    """Packing starts worker processes, which import our modules again."""
    lists = ["--list", media / "clips.csv", "--labels", media / "labels.csv", "--source", media / "media"]
    mbt = [sys.executable, "-m", "mbt"]
    run(research_folder, *mbt, "prep", "custom", *lists, "--limit", 1, "--short-side", 64, "--out", "set")
    assert (research_folder / "set/train-000000.tar").is_file()


@pytest.mark.parametrize(
    ("command", "options"),
    [([Path(sys.executable).parent / "mbt"], ["--gpus", "2"]), ([*TORCHRUN, "-m", "mbt"], [])],
    ids=["mbt --gpus", "torchrun"],
)
def test_ranks(command: list[object], options: list[str], research_folder: Path, shards: Path) -> None:
    if not Path(str(command[0])).exists():
        pytest.skip("the command mbt is not installed")
    settings = [part for setting in (*TINY, "train.max_steps=1", "eval.split=none") for part in ("--set", setting)]
    arguments = ["train", "--data", shards, "--recipe", "demo", "--out", "run", *settings]
    run(research_folder, *command, *arguments, *options)
    assert (research_folder / "run/last/model.safetensors").is_file()
