"""Packing on a Ray cluster of two nodes on one machine; one of them is killed midway."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mbt.prep.workers.ray_cluster import on_ray
from tests.conftest import Collection, Door

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
Cluster = pytest.importorskip("ray.cluster_utils").Cluster
CLIPS = 14
SLOW_S = 0.4


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> "Iterator[Cluster]":
    """A cluster whose head runs no tasks; tests add the nodes."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def many(collection: Collection, tmp_path: Path) -> Collection:
    """`CLIPS` clips, one of them broken."""
    rows = [f"whole,{start / 8},{start / 8 + 1},train,a" for start in range(CLIPS - 1)]
    clips = tmp_path / "many.csv"
    clips.write_text("\n".join(["video_id,start,end,split,labels", *rows, "broken,0,1,train,a"]) + "\n")
    return Collection(collection.source, clips, collection.labels, {})


def digests(folder: Path) -> dict[str, str]:
    patterns = ("*.tar", "*.idx", "train.parquet", "failures.parquet", "dataset.json")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for pattern in patterns for path in folder.glob(pattern)}


def test_killing_a_node_loses_no_shard(
    cluster: "Cluster", many: Collection, tmp_path: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    options = ["--short-side", 64]
    assert mbt(*many.arguments(whole), *options).code == 0

    slow = tmp_path / "ffmpeg"
    slow.write_text(f'#!/bin/sh\nsleep {SLOW_S}\nexec "{os.environ.get("IMAGEIO_FFMPEG_EXE") or ffmpeg_path()}" "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(slow))
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")

    def kill() -> None:
        while sum(1 for _ in out.glob("*.tar")) < 2:
            time.sleep(0.05)
        cluster.remove_node(nodes[0], allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    arguments = [*many.arguments(out), *options, "--workers", 1, "--ray", cluster.address]
    done = subprocess.run(
        [sys.executable, "-m", "mbt", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not killer.is_alive()
    assert f"pack: train: {CLIPS - 1} samples in {CLIPS // 2} shards, 1 clip failed" in done.stdout
    assert digests(out) == digests(whole)


def ffmpeg_path() -> str:
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def test_a_missing_cluster_is_a_one_line_error(many: Collection, tmp_path: Path, mbt: Door) -> None:
    done = mbt(*many.arguments(tmp_path / "out"), "--ray", "127.0.0.1:9")
    assert (done.code, "no Ray cluster answers at 127.0.0.1:9" in done.err) == (2, True), done.err


def add(shared: int, item: int) -> int:
    return shared + item


def test_ray_does_not_replace_the_handler_of_sigterm(cluster: "Cluster") -> None:
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    during: list[object] = []

    def items() -> Iterator[int]:
        during.append(signal.getsignal(signal.SIGTERM))
        yield 2

    before = signal.getsignal(signal.SIGTERM)
    assert list(on_ray(cluster.address, add, 1, items(), 1, lambda: True)) == [3]
    assert during == [before]
