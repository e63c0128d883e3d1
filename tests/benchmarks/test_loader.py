"""The loading benchmark at a tiny size: contenders yield the same views, and the table is computed correctly."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks import loader
from benchmarks.loader import CONTENDERS, Row, Views, child, report
from benchmarks.pack import render
from benchmarks.processes import ROOT
from mbt.manifests.reading.reader import ShardReader

pytestmark = pytest.mark.slow

SAVE = """
import sys
from pathlib import Path
import torch
from benchmarks.loader import CONTENDERS, Views
from mbt.train.data.batch import Batch

views = Views(Path(sys.argv[1]), 4, 2, 1)
names = [name for name in CONTENDERS if name not in ("mbt", "webdataset-dali")] + ["mbt", "webdataset-dali"]
found = {name: list(CONTENDERS[name][1](views)) for name in names}
pairs = {n: [(b.rgb, b.spec) if isinstance(b, Batch) else tuple(b) for b in each] for n, each in found.items()}
torch.save(pairs, views.folder / "tensors.pt")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of 9 s, packed."""
    folder = tmp_path_factory.mktemp("loader")
    render(folder / "media", 2, seconds=9.0)
    return loader.packed(folder, folder / "media", 2)


@pytest.fixture(scope="module")
def tensors(folder: Path) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Batches of each contender, from another process: DataLoader forks, which requires a process without threads."""
    subprocess.run([sys.executable, "-c", SAVE, folder], check=True, cwd=ROOT, timeout=120)
    return torch.load(folder / "tensors.pt")


def test_random_access_contenders_yield_the_same_tensors(tensors: dict[str, list[tuple[torch.Tensor, torch.Tensor]]]) -> None:
    own = tensors["mbt"]
    assert len(own) == 2
    for name in ("torch-pil", "torch-torchvision"):
        for (frames, spec), (other_frames, other_spec) in zip(own, tensors[name], strict=True):
            assert (frames - other_frames).abs().max() < 1e-5
            assert (spec - other_spec).abs().max() < 1e-5


@pytest.mark.parametrize("name", list(CONTENDERS))
def test_every_contender_yields_views_of_the_same_shape_and_range(
    tensors: dict[str, list[tuple[torch.Tensor, torch.Tensor]]], name: str
) -> None:
    for frames, spec in tensors[name]:
        assert (frames.shape, spec.shape) == ((2, 8, 3, 224, 224), (2, 800, 128))
        assert -1 <= frames.min() < 0 < frames.max() <= 1
    assert len(tensors[name]) == 2


def test_bytes_read_are_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For 16 more views: random access reads what they need and their KEY.json; a stream reads whole samples."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)

    def further(bytes_per_view: Callable[[int], float]) -> float:
        return (24 * bytes_per_view(24) - 8 * bytes_per_view(8)) / 16

    def read(name: str) -> float:
        child(name, str(folder), "8", "2", "1")
        return further(lambda count: json.loads(child(name, str(folder), str(count), "2", "1"))["bytes"])

    needed = further(lambda count: Views(folder, count, 2, 1).needed_bytes())
    with ShardReader(folder, "train") as reader:
        description = reader.index["json_size"][0].as_py()
        whole = (folder / reader.shard(0)).stat().st_size / 2
    assert read("mbt") == pytest.approx(needed + description, rel=0.01)
    assert read("webdataset-dali") > 0.9 * whole


def test_the_table_compares_contenders_within_rounds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"mbt": [10.0, 40.0, 20.0], "torch-pil": [5.0, 10.0, 20.0], "webdataset-pil": [2.0, 20.0, 5.0]}
    needed = Views(folder, 4, 2, 1).needed_bytes()

    def run(row: Row, views: Views) -> None:
        row.rates.append(rates[row.name][len(row.rates)])
        row.bytes.append(needed * 1.02)

    monkeypatch.setattr(Row, "run", run)
    text = report(Views(folder, 4, 2, 1), list(rates), 3)
    assert "mbt / best of the others 2.00" in text
    assert "mbt / best of webdataset 4.00" in text
    assert "bytes read / needed 1.020" in text
    (own,) = re.findall(r"^mbt train's loader +(.*)$", text, re.MULTILINE)
    assert own.split()[:3] == ["20.0", "160", "1.00"]


def test_the_command_runs(folder: Path) -> None:
    options = ["--data", str(folder), "--batches", "2", "--batch-size", "1", "--repeats", "1", "--cores", "1", "--only", "mbt"]
    done = CliRunner().invoke(loader.main, options)
    assert done.exit_code == 0, done.output
    assert re.search(r"mbt train's loader +[\d.]+ +[\d]+ +1.00", done.output)
