"""An interrupted shard resumes where it stopped, and the samples that it kept are checked."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from mbt.prep.media.decode import DecodedClip
from mbt.prep.pack import pack_shard
from tests.conftest import Collection, Door

PARTIAL, JOURNAL = "work/train-000000.tar.partial", "work/train-000000.tar.partial.jsonl"


class Decoder:
    """A decode_clip that counts its calls, and is interrupted at the n-th."""

    def __init__(self, stop_at: int) -> None:
        self.calls: Counter[float] = Counter()
        self.stop_at = stop_at
        self.decode = pack_shard.decode_clip

    def __call__(self, path: Path, start_s: float, *more: object) -> DecodedClip:
        if sum(self.calls.values()) + 1 == self.stop_at:
            raise KeyboardInterrupt
        self.calls[start_s if path.stem == "whole" else -1] += 1
        return self.decode(path, start_s, *more)  # type: ignore[arg-type]


class Packing:
    """Packs six clips, one of them broken, one by one into a single shard of `out`."""

    def __init__(self, clips: Collection, folder: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clips, self.mbt, self.monkeypatch = clips, mbt, monkeypatch
        self.out = folder / "out"
        assert self.pack(folder / "whole") == 0
        self.expected = digest(folder / "whole")

    def pack(self, out: Path) -> int:
        return self.mbt(*self.clips.arguments(out), "--shard-samples", 8, "--workers", 1, "--short-side", 32).code

    def interrupt(self, stop_at: int) -> Counter[float]:
        """Pack up to the n-th clip; return what was decoded."""
        calls = self._decoded(stop_at, code=130)
        assert not (self.out / "train-000000.tar").exists()
        return calls

    def resume(self) -> Counter[float]:
        """Pack to the end, and compare with the bytes of an uninterrupted run; return what was decoded."""
        calls = self._decoded(stop_at=0, code=0)
        assert digest(self.out) == self.expected
        return calls

    def _decoded(self, stop_at: int, code: int) -> Counter[float]:
        decoder = Decoder(stop_at)
        with self.monkeypatch.context() as patch:
            patch.setattr(pack_shard, "decode_clip", decoder)
            assert self.pack(self.out) == code
        return decoder.calls


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "train-000000.tar").read_bytes()).hexdigest()


@pytest.fixture
def packing(collection: Collection, tmp_path: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch) -> Packing:
    rows = [f"whole,{start},{start + 1},train,a" for start in (0, 0.5, 1, 1.5, 2)]
    clips = tmp_path / "six.csv"
    clips.write_text("\n".join(["video_id,start,end,split,labels", *rows, "broken,0,1,train,a"]) + "\n")
    return Packing(Collection(collection.source, clips, collection.labels, {}), tmp_path, mbt, monkeypatch)


@pytest.mark.parametrize("stop_at", [1, 4, 6])
def test_nothing_is_decoded_twice(stop_at: int, packing: Packing) -> None:
    before = packing.interrupt(stop_at)
    after = packing.resume()
    assert len(before) == stop_at - 1
    assert set((before + after).values()) == {1}
    assert len(before + after) == 6
    assert not list((packing.out / "work").glob("*.partial*"))


def test_a_damaged_sample_and_those_after_it_are_decoded_again(packing: Packing) -> None:
    packing.interrupt(6)
    partial = packing.out / PARTIAL
    data = bytearray(partial.read_bytes())
    data[len(data) // 2] ^= 255
    partial.write_bytes(data)
    assert 1 < len(packing.resume()) < 6


@pytest.mark.parametrize("kept", [0, 100, 5000])
def test_a_truncated_journal_or_tar_does_not_change_the_result(kept: int, packing: Packing) -> None:
    packing.interrupt(6)
    for name in (JOURNAL, PARTIAL):
        path = packing.out / name
        path.write_bytes(path.read_bytes()[: kept or None][:-1])
    packing.resume()


def test_after_a_crash_before_the_rename_nothing_is_decoded_again(packing: Packing, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mbt.prep.pack.growing_tar.GrowingTar.publish", crash)
        assert packing.pack(packing.out) == 130
    assert not packing.resume()
