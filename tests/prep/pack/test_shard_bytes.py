"""Tars with a size limit, interrupts while packing, and reading the results."""

import json
import os
import signal
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mbt.manifests.reading.reader import ShardReader
from mbt.prep.media.decode import DecodedClip, decode_clip
from tests.conftest import Collection, Door

pytestmark = pytest.mark.slow

LIMIT = 150_000
ONE_SHARD = ("--short-side", 96, "--shard-samples", 20)


@pytest.fixture
def many(collection: Collection, tmp_path: Path) -> Collection:
    rows = [f"whole,{start / 4},{start / 4 + 1},train,a" for start in range(14)]
    clips = tmp_path / "many.csv"
    clips.write_text("\n".join(["video_id,start,end,split,labels", *rows, "broken,0,1,train,a"]) + "\n")
    return Collection(collection.source, clips, collection.labels, {})


def read(folder: Path) -> dict[str, tuple[bytes, bytes]]:
    """Frames and log-mel of each sample, read through the index."""
    with ShardReader(folder, "train") as reader:
        return {
            reader.key(row): (b"".join(reader[row].frames(list(range(25)))), reader[row].log_mel(0, 100).tobytes())
            for row in range(len(reader))
        }


def test_tars_keep_the_limit_and_nothing_else_changes(many: Collection, tmp_path: Path, mbt: Door) -> None:
    whole, limited = tmp_path / "whole", tmp_path / "limited"
    assert mbt(*many.arguments(whole), *ONE_SHARD).code == 0
    done = mbt(*many.arguments(limited), *ONE_SHARD, "--shard-bytes", LIMIT)
    assert done.code == 0, done.err
    names = [shard["name"] for shard in json.loads((limited / "dataset.json").read_text())["splits"]["train"]["shards"]]
    assert names[0] == "train-000000.tar"
    assert names[1:] == [f"train-000000-{number}.tar" for number in range(1, len(names))]
    sizes = [(limited / name).stat().st_size for name in names]
    assert len(sizes) >= 3
    assert max(sizes) <= LIMIT
    sample = max(sizes[:-1])
    assert all(size + sample > LIMIT - 10240 for size in sizes[:-1]), "each is as full as possible"
    assert read(limited) == read(whole)
    assert [member for name in names for member in listed(limited / name)] == listed(whole / "train-000000.tar")
    assert mbt("shards", "verify", limited).code == 0
    assert "14 samples in" in done.out


def test_a_larger_sample_has_its_own_tar(many: Collection, tmp_path: Path, mbt: Door) -> None:
    out = tmp_path / "out"
    assert mbt(*many.arguments(out), *ONE_SHARD, "--shard-bytes", "1kB").code == 0
    assert len(list(out.glob("*.tar"))) == len(list(out.glob("*.idx"))) == 14
    assert mbt("shards", "verify", out).code == 0


def test_clips_that_are_removed_later_leave_no_tar_behind(many: Collection, tmp_path: Path, mbt: Door) -> None:
    out = tmp_path / "out"
    options = [*ONE_SHARD, "--shard-bytes", "1kB"]
    assert mbt(*many.arguments(out), *options).code == 0
    (tmp_path / "removed").write_text("whole_250\nwhole_500\n")
    assert mbt(*many.arguments(out), *options, "--removed", tmp_path / "removed").code == 0
    assert len(list(out.glob("*.tar"))) == len(list(out.glob("*.idx"))) == 12
    assert mbt("shards", "verify", out, "--removed", tmp_path / "removed").code == 0


def listed(tar: Path) -> list[str]:
    with tarfile.open(tar) as file:
        return file.getnames()


@pytest.mark.parametrize("given", ["0", "many", "1XB", "-5", "0.1"])
def test_invalid_sizes_are_rejected(given: str, many: Collection, tmp_path: Path, mbt: Door) -> None:
    done = mbt(*many.arguments(tmp_path / "out"), "--shard-bytes", given)
    assert (done.code, "(try 1GB)" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("given", "count"), [("1500", 1500), ("1.5kB", 1500), ("2MB", 2_000_000), ("1GiB", 1 << 30), ("1G", 10**9)]
)
def test_sizes_are_parsed(given: str, count: int, many: Collection, tmp_path: Path, mbt: Door) -> None:
    out = tmp_path / "out"
    assert mbt(*many.arguments(out), *ONE_SHARD, "--limit", 1, "--shard-bytes", given).code == 0
    assert json.loads((out / "work/pack.json").read_text())["shard_bytes"] == count


def test_an_interrupt_lets_clips_in_progress_finish(
    many: Collection, tmp_path: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like Ctrl-C: the test's own process receives the signal."""

    def slowly(*arguments: Any) -> DecodedClip:
        time.sleep(0.1)
        return decode_clip(*arguments)

    monkeypatch.setattr("mbt.prep.pack.pack_shard.decode_clip", slowly)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert mbt(*many.arguments(whole), *ONE_SHARD).code == 0
    journal = out / "work/train-000000.tar.partial.jsonl"

    def interrupt() -> None:
        while not (journal.exists() and journal.read_text().count("\n") >= 3):
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    done = mbt(*many.arguments(out), *ONE_SHARD, "--workers", 2)
    assert done.code == 130, done.err
    assert "finishing the work in progress" in done.err
    kept = journal.read_text().count("\n")
    assert 3 <= kept < 15
    assert not list(out.glob("*.tar"))
    assert mbt(*many.arguments(out), *ONE_SHARD).code == 0
    assert (out / "train-000000.tar").read_bytes() == (whole / "train-000000.tar").read_bytes()
