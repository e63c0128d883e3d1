"""Planning and packing on a full disk, at any step: a one-line error, no partial files, and it can be resumed."""

import hashlib
import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import Collection, Door

Resize = Callable[[int], None]
PAGE = 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Resize]]:
    """A file system of one page, and a function that resizes it."""

    def mount(*options: str) -> bool:
        return not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", *options, "tmpfs", str(folder)], capture_output=True
        ).returncode

    def resize(size: int) -> None:
        assert mount(f"remount,size={size}")

    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or not mount(f"size={PAGE}"):
        pytest.skip("only root can mount a file system")
    yield folder, resize
    subprocess.run(["umount", str(folder)], check=True)


def digests(folder: Path, pattern: str = "*-*.*") -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(pattern))}


def check(folder: Path, final: dict[str, str]) -> None:
    """Visible files have their final bytes, and there are no temporary files."""
    assert digests(folder).items() <= final.items()
    for path in folder.glob("*.parquet"):
        pq.read_table(path)
    for path in (*folder.glob("*.json"), *folder.glob("work/*.json")):
        json.loads(path.read_bytes())
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
def test_a_disk_that_fills_up_repeatedly(disk: tuple[Path, Resize], collection: Collection, tmp_path: Path, mbt: Door) -> None:
    folder, resize = disk
    (tmp_path / "clips.csv").write_text(
        "video_id,start,end,split,labels\n" + "".join(f"whole,{start},{start + 1},train,a\n" for start in range(5))
    )
    clips = Collection(collection.source, tmp_path / "clips.csv", collection.labels, {})
    options = ["--ignore-disk", "--short-side", 64]
    assert mbt(*clips.arguments(tmp_path / "whole", *options)).code == 0
    final = digests(tmp_path / "whole")
    size, where = PAGE, set()
    while (outcome := mbt(*clips.arguments(folder / "set", *options))).code != 0:
        assert outcome.code == 2, outcome.err
        errors = [line for line in outcome.err.splitlines() if not line.startswith(("fetch:", "pack:"))]
        (line,) = [line for line in errors if line]
        assert line.startswith("error: cannot write ")
        assert "no space left on the disk" in line
        assert "run the same command again" in line
        check(folder / "set", final)
        where.add(Path(line.removeprefix("error: cannot write ").partition(": ")[0]).name)
        size += max(PAGE, size // 8)
        assert size < 20 * sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*.*"))
        resize(size // PAGE * PAGE)
    check(folder / "set", final)
    assert digests(folder / "set") == final
    assert {"labels.csv", "train-000000.tar", "train-000001.tar"} <= where, "others depend on the sizes"
    assert len(where) >= 6
    assert mbt("shards", "verify", folder / "set", "--workers", 1).code == 0


def test_a_file_beyond_the_size_limit(collection: Collection, tmp_path: Path, mbt: Door) -> None:
    out, options = tmp_path / "set", ["--short-side", 64]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        outcome = mbt(*collection.arguments(out, *options))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.code == 2, outcome.err
    assert "-000000.tar: the file is too large for the file system. " in outcome.err.splitlines()[-1]
    assert not list(out.glob("*.tar"))
    assert mbt(*collection.arguments(out, *options)).code == 0
    assert mbt("shards", "verify", out, "--workers", 1).code == 0
