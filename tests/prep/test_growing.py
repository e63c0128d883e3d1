"""An interrupted shard goes on where it stopped, and what it kept is checked."""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import prep.pack
from prep.decode import DecodedClip
from tests.conftest import Collection, Door

PARTIAL, JOURNAL = "work/train-000000.tar.partial", "work/train-000000.tar.partial.jsonl"


@pytest.fixture
def one_shard(collection: Collection, tmp_path: Path) -> Callable[[str], list[object]]:
    """Arguments that pack six clips, one of them broken, into one shard of the folder of this name, one after the other."""
    rows = [f"whole,{start},{start + 1},train,a" for start in (0, 0.5, 1, 1.5, 2)]
    clips = tmp_path / "six.csv"
    clips.write_text("\n".join(["video_id,start,end,split,labels", *rows, "broken,0,1,train,a"]) + "\n")
    six = Collection(collection.source, clips, collection.labels, {})

    def arguments(name: str) -> list[object]:
        return [*six.arguments(tmp_path / name), "--shard-samples", 8, "--workers", 1, "--short-side", 32]

    return arguments


class Decoder:
    """decode_clip that counts what it decodes, and is interrupted at its n-th call."""

    def __init__(self, stop_at: int) -> None:
        self.calls: Counter[float] = Counter()
        self.stop_at = stop_at
        self.decode = prep.pack.decode_clip

    def __call__(self, path: Path, start_s: float, *more: object) -> DecodedClip:
        if sum(self.calls.values()) + 1 == self.stop_at:
            raise KeyboardInterrupt
        self.calls[start_s if path.stem == "whole" else -1] += 1
        return self.decode(path, start_s, *more)  # type: ignore[arg-type]


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "train-000000.tar").read_bytes()).hexdigest()


def interrupted(
    stop_at: int, one_shard: Callable[[str], list[object]], tmp_path: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch
) -> Counter[float]:
    """Run `out` up to its n-th clip; returns what was decoded."""
    decoder = Decoder(stop_at)
    with monkeypatch.context() as patch:
        patch.setattr(prep.pack, "decode_clip", decoder)
        assert mbt(*one_shard("out")).code == 130
    assert not (tmp_path / "out/train-000000.tar").exists()
    return decoder.calls


def resumed(one_shard: Callable[[str], list[object]], mbt: Door, monkeypatch: pytest.MonkeyPatch) -> Counter[float]:
    """Run `out` to its end; returns what was decoded."""
    decoder = Decoder(0)
    with monkeypatch.context() as patch:
        patch.setattr(prep.pack, "decode_clip", decoder)
        assert mbt(*one_shard("out")).code == 0
    return decoder.calls


@pytest.fixture
def expected(one_shard: Callable[[str], list[object]], tmp_path: Path, mbt: Door) -> str:
    assert mbt(*one_shard("whole")).code == 0
    return digest(tmp_path / "whole")


@pytest.mark.parametrize("stop_at", [1, 4, 6])
def test_nothing_is_decoded_twice(
    stop_at: int,
    expected: str,
    one_shard: Callable[[str], list[object]],
    tmp_path: Path,
    mbt: Door,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = interrupted(stop_at, one_shard, tmp_path, mbt, monkeypatch)
    after = resumed(one_shard, mbt, monkeypatch)
    assert len(before) == stop_at - 1
    assert set((before + after).values()) == {1}
    assert len(before + after) == 6
    assert digest(tmp_path / "out") == expected
    assert not list((tmp_path / "out/work").glob("*.partial*"))


def test_a_damaged_sample_is_decoded_again_with_what_follows_it(
    expected: str, one_shard: Callable[[str], list[object]], tmp_path: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(6, one_shard, tmp_path, mbt, monkeypatch)
    partial = tmp_path / "out" / PARTIAL
    data = bytearray(partial.read_bytes())
    data[len(data) // 2] ^= 255
    partial.write_bytes(data)
    assert 1 < len(resumed(one_shard, mbt, monkeypatch)) < 6
    assert digest(tmp_path / "out") == expected


@pytest.mark.parametrize("kept", [0, 100, 5000])
def test_a_journal_or_tar_cut_short_costs_no_more_than_what_is_cut(
    kept: int,
    expected: str,
    one_shard: Callable[[str], list[object]],
    tmp_path: Path,
    mbt: Door,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupted(6, one_shard, tmp_path, mbt, monkeypatch)
    for name in (JOURNAL, PARTIAL):
        path = tmp_path / "out" / name
        path.write_bytes(path.read_bytes()[: kept or None][:-1])
    resumed(one_shard, mbt, monkeypatch)
    assert digest(tmp_path / "out") == expected


def test_a_crash_before_the_tar_has_its_name_costs_nothing(
    expected: str, one_shard: Callable[[str], list[object]], tmp_path: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prep.growing.GrowingTar.publish", crash)
        assert mbt(*one_shard("out")).code == 130
    assert not resumed(one_shard, mbt, monkeypatch)
    assert digest(tmp_path / "out") == expected
