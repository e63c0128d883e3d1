"""What a wheel installs, and what stays out of it."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("LICENSE", "README.md", "cli.py", "demo", "manifests", "mbt", "prep", "pyproject.toml", "train")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in a wheel that is built from a clean copy of the sources."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True)
        else:
            shutil.copy2(ROOT / name, copy / name)
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, out], cwd=copy, check=True, capture_output=True)
    with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
        return archive.namelist()


def test_site_packages_gets_one_package(wheel: list[str]) -> None:
    assert {Path(name).parts[0].partition("-")[0] for name in wheel} == {"mbt"}
    assert not [name for name in wheel if "test" in name or "benchmark" in name]


def test_every_module_and_its_data_are_in_the_wheel(wheel: list[str]) -> None:
    rooms = ("prep", "train", "manifests", "demo")
    ours = {f"mbt/{path.relative_to(ROOT)}" for room in rooms for path in (ROOT / room).rglob("*.py")}
    ours |= {f"mbt/{path.relative_to(ROOT)}" for path in (ROOT / "train/recipes").glob("*.toml")}
    ours |= {f"mbt/{path.relative_to(ROOT)}" for path in (ROOT / "manifests/lists/data").glob("*.parquet")}
    ours |= {str(path.relative_to(ROOT)) for folder in (".", "weights") for path in (ROOT / "mbt" / folder).glob("*.py")}
    assert {name for name in wheel if ".dist-info/" not in name} == ours
