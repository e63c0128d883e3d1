"""Clips that are removed from finished shards: the others are copied, and no media are needed for it."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mbt.prep.pack import pack_shard, write_shard
from mbt.prep.pack.growing_tar import GrowingTar
from tests.conftest import Collection, Door

ROWS = [f"whole,{start / 4},{start / 4 + 0.4},train,a" for start in range(6)] + ["tall,0,0.4,eval,b", "silent,0,1,train,c"]
OPTIONS = ["--short-side", 32, "--workers", 2, "--flac"]


@pytest.fixture
def clips(collection: Collection, tmp_path: Path) -> Collection:
    """Seven clips that can be packed and one that cannot; the tests may delete their media."""
    source = tmp_path / "media"
    source.mkdir()
    for name in ("whole", "tall", "silent"):
        shutil.copy(collection.source / f"{name}.mp4", source)
    (tmp_path / "clips.csv").write_text("\n".join(["video_id,start,end,split,labels", *ROWS]) + "\n")
    return Collection(source, tmp_path / "clips.csv", collection.labels, {})


def listed(folder: Path, *entries: str) -> Path:
    path = folder / "removed.txt"
    path.write_text("\n".join(entries) + "\n")
    return path


def visible(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that readers use."""
    paths = [path for pattern in ("*.tar", "*.idx", "*.parquet", "*.json", "*.csv", "*.md") for path in folder.glob(pattern)]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.name != "clips.parquet"}


def records(folder: Path) -> dict[str, Any]:
    """Each shard's record, without the failed clips."""
    found = {path.name: json.loads(path.read_bytes()) for path in (folder / "work").glob("*.tar.json")}
    return {name: {**record, "failures": None} for name, record in found.items()}


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a clip was decoded")

    monkeypatch.setattr(pack_shard, "decode_clip", refuse)


Removal = tuple[Path, list[object], Path]


def prepared(clips: Collection, folder: Path, mbt: Door, gone: tuple[str, ...], options: list[object]) -> Removal:
    """A packed folder whose media are gone, the command that removes clips, and a folder that never had those clips."""
    out, reference, removed = folder / "set", folder / "reference", listed(folder, *gone)

    def command(name: str) -> list[object]:
        to = ["--to", f"file://{folder}/{name}-at-url"] if "--to" in options else []
        return clips.arguments(folder / name, *OPTIONS, *(option for option in options if option != "--to"), *to)

    assert mbt(*command("set")).code == 0
    for stage in ("plan", "fetch"):
        assert mbt(*command("reference"), "--stage", stage).code == 0
    assert mbt(*command("reference"), "--stage", "pack", "--removed", removed).code == 0
    for path in clips.source.iterdir():
        path.unlink()
    return out, [*command("set"), "--stage", "pack", "--removed", removed], reference


CASES = [("whole_250", "tall"), ("whole", "silent"), ("whole_0", "whole_250", "whole_500", "silent_0")]


@pytest.mark.parametrize("gone", CASES)
@pytest.mark.parametrize("options", [["--shard-samples", 4], ["--shard-samples", 8, "--shard-bytes", "1kB"]])
def test_the_result_equals_a_folder_that_never_had_the_clips(
    clips: Collection,
    tmp_path: Path,
    mbt: Door,
    gone: tuple[str, ...],
    options: list[object],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    out, command, reference = prepared(clips, tmp_path, mbt, gone, options)
    request.getfixturevalue("no_decoding")
    done = mbt(*command)
    assert done.code == 0, done.err
    assert visible(out) == visible(reference)
    assert records(out) == records(reference)
    assert mbt("shards", "verify", out, "--workers", 1, "--removed", tmp_path / "removed.txt").code == 0
    assert not list((out / "work").glob("*.partial*"))


@pytest.mark.parametrize("options", [[], ["--shard-bytes", "1kB"]])
def test_from_a_url(
    clips: Collection, tmp_path: Path, mbt: Door, options: list[object], request: pytest.FixtureRequest
) -> None:
    """Also a shard of which nothing is left."""
    gone = ("whole_250", "whole_500", "tall")
    out, command, reference = prepared(clips, tmp_path, mbt, gone, ["--to", *options])
    request.getfixturevalue("no_decoding")
    done = mbt(*command)
    assert done.code == 0, done.err
    assert visible(tmp_path / "set-at-url") == visible(tmp_path / "reference-at-url")
    assert records(out) == records(reference)
    assert not list(out.glob("*.tar"))


@pytest.mark.parametrize("options", [["--shard-samples", 8], ["--shard-samples", 8, "--shard-bytes", "1kB"]])
@pytest.mark.parametrize("moment", ["copying", "before the record", "before the rename", "before the old tars go"])
def test_a_removal_that_is_interrupted_is_resumed(
    clips: Collection, tmp_path: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch, moment: str, options: list[object]
) -> None:
    out, command, reference = prepared(clips, tmp_path, mbt, ("whole_250", "tall"), options)
    written = iter(range(3))
    add = GrowingTar.add

    def stop_copying(self: GrowingTar, *result: Any) -> None:
        if next(written, None) is None:
            raise KeyboardInterrupt
        add(self, *result)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    where, name, replacement = {
        "copying": (GrowingTar, "add", stop_copying),
        "before the record": (write_shard, "ShardRecord", stop),
        "before the rename": (GrowingTar, "publish", stop),
        "before the old tars go": (pack_shard, "_remove_further_tars", stop),
    }[moment]
    with monkeypatch.context() as patch:
        patch.setattr(where, name, replacement)
        assert mbt(*command).code == 130
    done = mbt(*command)
    assert done.code == 0, done.err
    assert visible(out) == visible(reference)
    assert records(out) == records(reference)


def test_nothing_is_left_of_a_folder_whose_clips_are_all_removed(clips: Collection, tmp_path: Path, mbt: Door) -> None:
    out, command, _ = prepared(clips, tmp_path, mbt, ("whole_0",), [])
    listed(tmp_path, "whole", "tall", "silent")
    done = mbt(*command)
    assert (done.code, "no clip could be packed" in done.err) == (2, True)
    assert {path.name for path in out.glob("*.*") if path.name not in ("clips.parquet", ".lock")} == {
        *("failures.csv", "failures.parquet", "labels.csv", "README.md")
    }


def test_a_damaged_sample_is_not_copied(clips: Collection, tmp_path: Path, mbt: Door) -> None:
    out, command, _ = prepared(clips, tmp_path, mbt, ("whole_250",), ["--shard-samples", 8])
    tar = out / "train-000000.tar"
    (row,) = (row for row in pq.read_table(out / "train.parquet").to_pylist() if row["key"] == "whole_1000")
    data = bytearray(tar.read_bytes())
    data[row["mjpg_offset"] + 100] ^= 1
    tar.write_bytes(data)
    done = mbt(*command)
    assert done.code == 2
    assert "train-000000.tar: the sample whole_1000 is damaged. Delete this tar" in done.err
    assert tar.read_bytes() == data


def test_a_clip_that_is_listed_while_its_shard_is_unfinished_is_not_packed(
    clips: Collection, tmp_path: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "set"
    command = clips.arguments(out, *OPTIONS, "--shard-samples", 8)

    def stop(self: GrowingTar) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(GrowingTar, "finish", stop)
        assert mbt(*command).code == 130
    assert mbt(*command, "--removed", listed(tmp_path, "whole_250")).code == 0
    assert "whole_250" not in pq.read_table(out / "train.parquet")["key"].to_pylist()
    assert mbt("shards", "verify", out, "--workers", 1, "--removed", tmp_path / "removed.txt").code == 0
