"""`mbt prep --stage pack`, killed at random moments: finished files are complete, and resuming leads to the same bytes."""

import hashlib
import json
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Collection, Door
from tests.forked import Forks, Process, forks

pytestmark = pytest.mark.slow

SEED = 7
ONE_FOLDER = 12
FRESH_FOLDERS = 4
STATE = ("work", "raw", "clips.parquet", "labels.csv", ".lock")
"""Files from before packing, and state of the writer (docs/shards.md, section 1)."""


@dataclass
class Packing:
    """Packs planned folders, and kills it.

    Attributes:
        server: starts the processes.
        planned: a folder that is planned and fetched.
        arguments: arguments of `mbt prep`, without --out.
        final: digests of the files after an uninterrupted run.
        seconds: duration of that run from the first output of the pack stage on.
    """

    server: Forks
    planned: Path
    arguments: list[str]
    final: dict[str, str]
    seconds: float

    def fresh(self, folder: Path) -> Path:
        """A copy of the planned folder."""
        return Path(shutil.copytree(self.planned, folder))

    def start(self, folder: Path) -> Process:
        """Start packing in another process, and wait for the first output of the stage."""
        return self.server.start([*self.arguments, "--out", str(folder)], folder.with_suffix(".log"), b"pack")

    def killed(self, folder: Path, after_s: float) -> bool:
        """Pack and kill; return whether it was killed before it finished. Checks the files that it leaves."""
        process = self.start(folder)
        process.ends_within(after_s)
        process.kill()
        code = process.code()
        assert code in (0, -9), folder.with_suffix(".log").read_text()
        self.check(folder)
        return code == -9

    def check(self, folder: Path) -> None:
        """Check that visible files have their final bytes, and that the writer's own files can be read."""
        assert visible(folder).items() <= self.final.items()
        for path in (folder / "work").glob("*.json"):
            json.loads(path.read_bytes())

    def finish(self, folder: Path) -> None:
        """Pack to the end, and compare with an uninterrupted run."""
        assert self.start(folder).code() == 0, folder.with_suffix(".log").read_text()
        assert visible(folder) == self.final
        assert not [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".partial", ".partial.jsonl"))]


def visible(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that readers use."""
    paths = [path for path in folder.iterdir() if path.name not in STATE and not path.name.startswith(".")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def server() -> Iterator[Forks]:
    with forks() as server:
        yield server


@pytest.fixture(scope="module")
def packing(server: Forks, collection: Collection, mbt: Door, tmp_path_factory: pytest.TempPathFactory) -> Packing:
    folder = tmp_path_factory.mktemp("killed")
    rows = [f"whole,{start / 4},{start / 4 + 2},{'train' if start < 8 else 'eval'},a" for start in range(11)]
    (folder / "clips.csv").write_text("\n".join(["video_id,start,end,split,labels", *rows, "broken,0,2,train,b"]) + "\n")
    lists = ["--list", folder / "clips.csv", "--labels", collection.labels, "--source", collection.source]
    run = ["prep", "custom", *lists, "--shard-samples", 4, "--workers", 2, "--short-side", 64]
    for stage in ("plan", "fetch"):
        assert mbt(*run, "--out", folder / "planned", "--stage", stage).code == 0
    made = Packing(server, folder / "planned", [str(part) for part in (*run, "--stage", "pack")], {}, 0.0)
    process = made.start(made.fresh(folder / "whole"))
    begin = time.monotonic()
    assert process.code() == 0
    made.seconds = time.monotonic() - begin
    made.final = visible(folder / "whole")
    assert len([name for name in made.final if name.endswith(".tar")]) >= 3
    assert {"train.parquet", "eval.parquet", "failures.parquet", "dataset.json", "train-000000.idx"} <= made.final.keys()
    return made


def test_one_folder_killed_repeatedly(packing: Packing, tmp_path: Path) -> None:
    """Each run gets a sixth of the time at most, so that progress accumulates and the last steps are hit several times."""
    rng, folder = random.Random(SEED), packing.fresh(tmp_path / "set")
    kills = sum(packing.killed(folder, rng.uniform(0, packing.seconds / 6)) for _ in range(ONE_FOLDER))
    assert kills >= ONE_FOLDER / 2
    packing.finish(folder)


def test_fresh_folders_killed_at_any_moment(packing: Packing, tmp_path: Path, collection: Collection) -> None:
    rng = random.Random(SEED)
    moments = [rng.uniform(0, packing.seconds) for _ in range(FRESH_FOLDERS)]
    folders = [packing.fresh(tmp_path / f"set{number}") for number in range(FRESH_FOLDERS)]
    kills = sum(packing.killed(folder, moment) for folder, moment in zip(folders, moments, strict=True))
    assert kills >= FRESH_FOLDERS / 2
    for folder in folders:
        packing.finish(folder)
    assert not decoding(collection.source)


def decoding(source: Path, patience_s: float = 5.0) -> list[str]:
    """Command lines of decoders of these media that are still running after a while."""
    deadline = time.monotonic() + patience_s
    while True:
        lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        found = [line.decode(errors="replace") for line in lines if b"file:" + bytes(source) in line]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)
