"""The import rules of the house: folders depend downwards only, and heavy packages stay behind their doors."""

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (
    "benchmarks",
    "cli.py",
    "demo",
    "train",
    "train/inference",
    "train/evaluation",
    "train/engine",
    "train/data",
    "train/models",
    "train/recipes",
    "train/sampling",
    "train/distributed",
    "prep/pilot",
    "prep",
    "prep/report",
    "prep/shards",
    "prep/pack",
    "prep/fetch",
    "prep/plan",
    "prep/sources",
    "prep/state",
    "prep/media",
    "prep/workers",
    "manifests/reading",
    "manifests/lists",
    "manifests",
    "mbt/weights",
    "mbt",
)
"""Every folder, from the top floor down: each imports from itself and from those below it only."""
NEVER = {"train": {"prep"}, "prep": {"mbt"}, "manifests": {"mbt"}}
"""Rooms that may not know each other although one is below the other."""
DOORS = {
    "flax": {"benchmarks/flax_peer.py"},
    "jax": {"benchmarks/flax_peer.py"},
    "nvidia": {"train/data/decode.py", "benchmarks/loader.py"},
    "deepspeed": {"train/engine/deepspeed_engine.py"},
    "yt_dlp": {f"prep/sources/{name}.py" for name in ("http_ranges", "problems", "whole_file", "ytdlp", "ytdlp_flags")},
}
PREDICTION = "train/inference/predict.py"
"""It decodes a video by the function that packed the training data, and so may import prep."""
ROOMS = ("benchmarks", "demo", "manifests", "mbt", "prep", "train")
FACE = "mbt/__init__.py"
"""It names the public classes of every room, and imports them at first use."""
START = "mbt/__main__.py"
"""`python -m mbt`: it starts cli.py."""


@cache
def files() -> list[Path]:
    """Our Python files, relative to the root; the links inside mbt/ are not followed."""
    found = [Path("cli.py")]
    for room in ROOMS:
        for folder, _, names in os.walk(ROOT / room):
            found += [Path(folder, name).relative_to(ROOT) for name in names if name.endswith(".py")]
    return sorted(path for path in found if not (ROOT / path).is_symlink() or path == Path("cli.py"))


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" if where(f"{module}.{alias.name}") else module for alias in node.names)


def where(module: str) -> str | None:
    """The file of one of our modules, or None."""
    parts = module.split(".")
    if parts[0] == "mbt" and len(parts) > 1 and (parts[1] in ROOMS or parts[1] == "cli"):
        parts = parts[1:]
    elif parts[0] not in ("mbt", "benchmarks"):
        return None
    path = Path(*parts)
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if (ROOT / candidate).is_file():
            return str(candidate)
    return None


def floor(path: str) -> str:
    """The folder that a file is on; cli.py is one of its own."""
    return path if path in FLOORS else str(Path(path).parent)


def test_every_folder_has_its_floor_and_says_what_goes_in_and_out() -> None:
    assert {floor(str(path)) for path in files()} == set(FLOORS)
    for folder in set(FLOORS) - {"benchmarks", "cli.py", "mbt"}:
        tree = ast.parse((ROOT / folder / "__init__.py").read_text())
        text = ast.get_docstring(tree) or ""
        assert len(tree.body) == 1, f"{folder}/__init__.py exports something"
        assert "In: " in text, folder
        assert "Out: " in text, folder


@pytest.mark.parametrize("folder", FLOORS)
def test_folders_import_downwards_only(folder: str) -> None:
    below = FLOORS[FLOORS.index(folder) :]
    for path in files():
        if floor(str(path)) != folder or str(path) in (FACE, START):
            continue
        for module in imports(path):
            if (target := where(module)) is None or target == FACE:
                continue
            assert floor(target) in below, f"{path} imports {module}, which is above it"
            forbidden = NEVER.get(path.parts[0], set()) if str(path) != PREDICTION else set()
            assert Path(target).parts[0] not in forbidden, f"{path} imports {module}"


def test_no_file_imports_in_a_circle() -> None:
    graph = {str(path): {file for module in imports(path) if (file := where(module))} - {FACE} for path in files()}
    graph[FACE] = set()
    while leaves := {file for file, targets in graph.items() if not targets}:
        graph = {file: targets - leaves for file, targets in graph.items() if file not in leaves}
    assert not graph, f"in or above a circle: {sorted(graph)}"


@pytest.mark.parametrize("package", DOORS)
def test_one_file_imports(package: str) -> None:
    assert {str(path) for path in files() if package in {name.partition(".")[0] for name in imports(path)}} == DOORS[package]


def test_the_command_line_imports_nothing_heavy_at_the_top() -> None:
    light = {"click", "sys", "pathlib", "typing", "collections.abc"}
    for file, ours in {"cli.py": {"mbt.prep.command_line"}, "prep/command_line.py": set()}.items():
        tree = ast.parse((ROOT / file).read_text())
        top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        top |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert top <= light | ours, file


def test_help_takes_less_than_half_a_second() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "mbt", "--help"], cwd=ROOT, check=True, capture_output=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


def test_the_package_imports_nothing_heavy_and_the_model_no_more_than_torch() -> None:
    program = "import sys, mbt; before = set(sys.modules); mbt.MBTConfig; mbt.MBT; print(*before, '|', *sys.modules)"
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    before, after = (set(names.split()) for names in out.split("|"))
    assert not before & {"torch", "numpy", "pyarrow", "click"}
    assert "torch" in after
    assert not after & {"nvidia.dali", "deepspeed", "pyarrow", "webdataset", "yt_dlp"}


def test_files_are_of_a_comfortable_length() -> None:
    assert not {str(path): n for path in files() if (n := len((ROOT / path).read_text().splitlines())) > 400}


def test_folders_hold_at_most_twelve_files() -> None:
    folders = [str(path.parent) for path in files() if path.name != "__init__.py"]
    assert not {folder: n for folder in folders if (n := folders.count(folder)) > 12}
