"""Fetched files that hold several clips: deleted when the last of them is done, whichever shards the clips are in."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mbt.prep.pack.raw_files import RawFiles
from tests.conftest import Collection, Door, LoopbackServer, serving
from tests.forked import Forks, forks

KEYS = [f"whole_{start}" for start in (0, 500, 1000, 1500, 2000)]


@pytest.fixture
def arguments(collection: Collection, server: LoopbackServer, tmp_path: Path) -> list[object]:
    """Five clips of a video that is fetched as one file, and one of another; two samples per shard, so three shards."""
    rows = [f"whole,{int(key[6:]) / 1000},{int(key[6:]) / 1000 + 1},train,a" for key in KEYS] + ["half,0,1,train,b"]
    (tmp_path / "clips.csv").write_text("\n".join(["video_id,start,end,split,labels", *rows]) + "\n")
    server.answer = serving({f"/{name}.mp4": (collection.source / f"{name}.mp4").read_bytes() for name in ("whole", "half")})
    lists = ["--list", tmp_path / "clips.csv", "--labels", collection.labels]
    source = ["--source", f"{server.url}/{{video_id}}.mp4", "--sleep", 0]
    return ["prep", "custom", *lists, *source, "--shard-samples", 2, "--short-side", 32, "--workers", 2]


def packed(folder: Path) -> set[str]:
    return set(pq.read_table(folder / "train.parquet")["key"].to_pylist())


def failed(folder: Path) -> dict[str, str]:
    table = pq.read_table(folder / "failures.parquet")
    return dict(zip(table["key"].to_pylist(), table["code"].to_pylist(), strict=True))


def raw(folder: Path) -> set[str]:
    return {path.name for path in (folder / "raw").rglob("*.*")}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")}


def test_clips_of_several_shards_in_one_file_are_all_packed(arguments: list[object], tmp_path: Path, mbt: Door) -> None:
    done = mbt(*arguments, "--out", tmp_path / "set", "--no-keep-raw")
    assert done.code == 0, done.err
    assert packed(tmp_path / "set") == {*KEYS, "half_0"}
    assert failed(tmp_path / "set") == {}
    assert raw(tmp_path / "set") == set()


def test_removing_one_clip_of_a_file_leaves_the_file_to_the_others(
    arguments: list[object], server: LoopbackServer, tmp_path: Path, mbt: Door
) -> None:
    out, removed = tmp_path / "set", tmp_path / "removed.txt"
    for stage in ("plan", "fetch"):
        assert mbt(*arguments, "--out", out, "--stage", stage).code == 0
    removed.write_text("whole_500\nhalf_0\n")
    assert mbt(*arguments, "--out", out, "--stage", "pack", "--removed", removed).code == 0
    assert packed(out) == {*KEYS} - {"whole_500"}
    assert failed(out) == {"whole_500": "removed.listed", "half_0": "removed.listed"}
    assert raw(out) == {"whole.mp4"}, "the only clip of the other file is on the list"

    removed.write_text("whole\nhalf\n")
    assert mbt(*arguments, "--out", out, "--stage", "pack", "--removed", removed).code == 2
    assert raw(out) == set()


def test_a_kill_between_record_and_deletion_leaves_a_file_that_the_next_run_deletes(
    arguments: list[object], tmp_path: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: RawFiles, keys: object) -> None:
        if sum(1 for _ in (tmp_path / "set/work").glob("*.tar.json")) == 3:
            raise KeyboardInterrupt

    out = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr(RawFiles, "release", killed)
        assert mbt(*arguments, "--out", out, "--no-keep-raw").code == 130
    assert raw(out) == {"whole.mp4", "half.mp4"}
    assert mbt(*arguments, "--out", out, "--no-keep-raw").code == 0
    assert raw(out) == set()
    assert packed(out) == {*KEYS, "half_0"}


def test_a_clip_that_can_never_be_packed_does_not_keep_the_file(
    arguments: list[object], server: LoopbackServer, tmp_path: Path, mbt: Door
) -> None:
    server.answer = serving({"/whole.mp4": b"no media at all" * 99, "/half.mp4": b"nor here" * 99})
    assert mbt(*arguments, "--out", tmp_path / "set", "--no-keep-raw").code == 2
    assert set(failed(tmp_path / "set").values()) == {"decode.unreadable"}
    assert raw(tmp_path / "set") == set()


def test_files_of_a_source_folder_are_never_deleted(collection: Collection, tmp_path: Path, mbt: Door) -> None:
    before = {path: path.stat().st_mtime_ns for path in collection.source.rglob("*.*")}
    (tmp_path / "removed.txt").write_text("whole\n")
    options = ["--no-keep-raw", "--removed", tmp_path / "removed.txt", "--short-side", 32]
    assert mbt(*collection.arguments(tmp_path / "set"), *options).code == 0
    assert {path: path.stat().st_mtime_ns for path in collection.source.rglob("*.*")} == before


@pytest.fixture(scope="module")
def forked() -> Iterator[Forks]:
    with forks() as server:
        yield server


@pytest.mark.slow
def test_killed_at_random_moments_no_clip_and_no_file_is_left(
    arguments: list[object], tmp_path: Path, mbt: Door, forked: Forks
) -> None:
    whole, out, rng = tmp_path / "whole", tmp_path / "set", random.Random(5)
    assert mbt(*arguments, "--out", whole).code == 0
    for stage in ("plan", "fetch"):
        assert mbt(*arguments, "--out", out, "--stage", stage).code == 0
    command = [*arguments, "--out", out, "--stage", "pack", "--no-keep-raw"]
    for _ in range(8):
        process = forked.start(command, tmp_path / "log", b"pack")
        process.ends_within(rng.uniform(0, 0.25))
        process.kill()
        assert process.code() in (0, -9)
        if (out / "failures.parquet").exists():
            assert failed(out) == {}
    assert mbt(*command).code == 0
    assert (failed(out), raw(out)) == ({}, set())
    assert digests(out) == digests(whole)
