"""The import rules of the house: rooms depend downwards only, and heavy packages stay behind their doors."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {"benchmarks", "manifests", "mbt", "prep", "train"}
ALLOWED = {
    "manifests": set(),
    "mbt": set(),
    "prep": {"manifests"},
    "train": {"manifests", "mbt"},
    "benchmarks": {"manifests", "mbt", "prep", "train"},
}
DOORS = {
    "flax": {"benchmarks/flax_peer.py"},
    "jax": {"benchmarks/flax_peer.py"},
    "nvidia": {"train/dali.py", "benchmarks/loader.py"},
    "deepspeed": {"train/deepspeed_engine.py"},
    "yt_dlp": {"prep/ytdlp.py"},
    "prep": {"train/predict.py"},
}


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_import_downwards_only(room: str) -> None:
    for path in (ROOT / room).glob("*.py"):
        name = f"{room}/{path.name}"
        ours = imports(path) & ROOMS - {room}
        excused = {package for package, files in DOORS.items() if name in files}
        assert ours - excused <= ALLOWED[room], name


@pytest.mark.parametrize("package", ["deepspeed", "flax", "jax", "nvidia", "yt_dlp"])
def test_one_file_imports(package: str) -> None:
    files = {f"{room}/{path.name}" for room in ROOMS for path in (ROOT / room).glob("*.py") if package in imports(path)}
    assert files == DOORS[package]


def test_the_command_line_imports_nothing_heavy_at_the_top() -> None:
    tree = ast.parse((ROOT / "cli.py").read_text())
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    top |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert top <= {"click", "sys", "pathlib", "typing", "collections.abc"}


def test_help_takes_less_than_half_a_second() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "cli", "--help"], cwd=ROOT, check=True, capture_output=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


def test_files_are_of_a_comfortable_length() -> None:
    long = {path: n for room in ROOMS for path in (ROOT / room).glob("*.py") if (n := len(path.read_text().splitlines())) > 400}
    assert not long
