"""Failed clips that are decoded again: after a change of limits, machine, media or mind."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mbt.prep.media.ffmpeg import ClipError, Limits
from mbt.prep.pack import pack_shard
from mbt.prep.pack.growing_tar import GrowingTar
from tests.conftest import Collection, Door, LoopbackServer, serving

HARD_S = 1.5


class Decoder:
    """Decodes every clip but the one at `HARD_S`, which fails as `fails` says; counts the calls for each clip.

    Attributes:
        fails: takes the limits and returns the code of the failure, or None.
        calls: starts of the decoded clips.
    """

    def __init__(self, fails: Callable[[Limits], str | None]) -> None:
        self.fails = fails
        self.calls: Counter[float] = Counter()
        self._decode = pack_shard.decode_clip

    def __call__(self, path: Path, start_s: float, seconds: float, video: Any, limits: Limits) -> Any:
        self.calls[start_s] += 1
        code = self.fails(limits)
        if start_s == HARD_S and code is not None:
            raise ClipError(code, "the reason")
        return self._decode(path, start_s, seconds, video, limits)


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Decoder:
    decoder = Decoder(lambda limits: None)
    monkeypatch.setattr(pack_shard, "decode_clip", decoder)
    return decoder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "set"


@pytest.fixture
def command(collection: Collection, tmp_path: Path, out: Path) -> list[object]:
    """Packs three clips of a video into one shard."""
    rows = [f"whole,{start},{start + 0.4},train,a" for start in (0.0, HARD_S, 3.0)]
    (tmp_path / "media").mkdir()
    shutil.copy(collection.source / "whole.mp4", tmp_path / "media")
    (tmp_path / "clips.csv").write_text("\n".join(["video_id,start,end,split,labels", *rows]) + "\n")
    clips = Collection(tmp_path / "media", tmp_path / "clips.csv", collection.labels, {})
    return clips.arguments(out, "--shard-samples", 8, "--short-side", 32)


def shards(folder: Path) -> dict[str, set[str]]:
    """Keys by tar."""
    found: dict[str, set[str]] = {}
    for row in pq.read_table(folder / "train.parquet").to_pylist():
        found.setdefault(row["shard"], set()).add(row["key"])
    return found


def failed(folder: Path) -> dict[str, str]:
    table = pq.read_table(folder / "failures.parquet")
    return dict(zip(table["key"].to_pylist(), table["code"].to_pylist(), strict=True))


FIRST = {"train-000000.tar": {"whole_0", "whole_3000"}}
BOTH = {**FIRST, "train-000001.tar": {"whole_1500"}}


@pytest.mark.parametrize(
    ("option", "low", "high", "fails"),
    [
        ("--clip-timeout", 7, 8, lambda limits: "decode.timeout" if limits.wall_s < 8 else None),
        ("--clip-memory", 2, 3, lambda limits: "decode.memory" if limits.memory_bytes < 3 << 30 else None),
    ],
)
def test_a_raised_limit_decodes_the_clip_again(
    command: list[object],
    decoder: Decoder,
    out: Path,
    mbt: Door,
    option: str,
    low: float,
    high: float,
    fails: Callable[[Limits], str | None],
) -> None:
    decoder.fails = fails
    for limit, calls in ((low, 1), (low, 1), (low / 2, 1)):
        assert mbt(*command, option, limit).code == 0
        assert (shards(out), failed(out)) == (FIRST, {"whole_1500": fails(Limits(0, 0))})
        assert decoder.calls == Counter({0.0: 1, HARD_S: calls, 3.0: 1})
    first = (out / "train-000000.tar").read_bytes()
    for _ in range(2):
        assert mbt(*command, option, high).code == 0
        assert (shards(out), failed(out)) == (BOTH, {})
        assert decoder.calls == Counter({0.0: 1, HARD_S: 2, 3.0: 1})
    assert (out / "train-000000.tar").read_bytes() == first
    assert mbt("shards", "verify", out, "--workers", 1).code == 0

    (out / "train-000000.tar").unlink()
    assert mbt(*command, option, high).code == 0
    assert (out / "train-000000.tar").read_bytes() == first, "the clip stays in the later shard"
    assert mbt("shards", "verify", out, "--workers", 1).code == 0


def test_a_limit_that_is_still_too_low_is_recorded_and_not_tried_twice(
    command: list[object], decoder: Decoder, out: Path, mbt: Door
) -> None:
    decoder.fails = lambda limits: "decode.timeout" if limits.wall_s < 60 else None
    for limit, calls in ((5, 1), (6, 2), (6, 2), (5, 2), (60, 3)):
        assert mbt(*command, "--clip-timeout", limit).code == 0
        assert decoder.calls[HARD_S] == calls
    assert list(shards(out).values()) == [{"whole_0", "whole_3000"}, {"whole_1500"}]


def test_records_of_earlier_versions_do_not_say_the_limit(
    command: list[object], decoder: Decoder, out: Path, mbt: Door
) -> None:
    """Then it was the default, or so we assume."""
    decoder.fails = lambda limits: "decode.timeout" if limits.wall_s <= 60 else None
    assert mbt(*command).code == 0
    record = out / "work/train-000000.tar.json"
    content = json.loads(record.read_bytes())
    assert content["failures"][0].pop("limit") == 60
    record.write_text(json.dumps(content))
    assert mbt(*command, "--clip-timeout", 60).code == 0
    assert decoder.calls[HARD_S] == 1
    assert mbt(*command, "--clip-timeout", 61).code == 0
    assert shards(out) == BOTH


def test_a_decoder_that_was_killed_is_started_again_by_the_next_run(
    command: list[object], decoder: Decoder, out: Path, mbt: Door
) -> None:
    decoder.fails = lambda limits: "decode.interrupted"
    for calls in (1, 2):
        assert mbt(*command).code == 0
        assert (shards(out), failed(out)) == (FIRST, {"whole_1500": "decode.interrupted"})
        assert decoder.calls[HARD_S] == calls
    decoder.fails = lambda limits: None
    assert mbt(*command).code == 0
    assert failed(out) == {}
    assert list(shards(out).values()) == [{"whole_0", "whole_3000"}, {"whole_1500"}]


@pytest.mark.parametrize(
    ("code", "is_asked"), [("decode", 2), ("decode.error", 2), ("clip,decode.error", 2), ("clip.short", 1)]
)
def test_recheck_decodes_clips_with_these_codes_again(
    command: list[object], decoder: Decoder, out: Path, mbt: Door, code: str, is_asked: int
) -> None:
    decoder.fails = lambda limits: "decode.error"
    for _ in range(2):
        assert mbt(*command).code == 0
    assert decoder.calls == Counter({0.0: 1, HARD_S: 1, 3.0: 1})
    decoder.fails = lambda limits: None
    assert mbt(*command, "--recheck", code).code == 0
    assert decoder.calls == Counter({0.0: 1, HARD_S: is_asked, 3.0: 1})
    assert shards(out) == (BOTH if is_asked == 2 else FIRST)


def test_recheck_needs_the_media(command: list[object], decoder: Decoder, out: Path, tmp_path: Path, mbt: Door) -> None:
    decoder.fails = lambda limits: "decode.error"
    assert mbt(*command).code == 0
    (tmp_path / "media/whole.mp4").unlink()
    assert mbt(*command, "--stage", "pack", "--recheck", "decode").code == 0
    assert (shards(out), failed(out)) == (FIRST, {"whole_1500": "decode.error"})


def test_a_clip_that_is_no_longer_on_the_removal_list_is_packed(
    command: list[object], decoder: Decoder, out: Path, tmp_path: Path, mbt: Door
) -> None:
    (tmp_path / "removed.txt").write_text("whole_1500\n")
    assert mbt(*command, "--stage", "plan").code == 0
    assert mbt(*command, "--stage", "fetch").code == 0
    assert mbt(*command, "--stage", "pack", "--removed", tmp_path / "removed.txt").code == 0
    assert (shards(out), failed(out)) == (FIRST, {"whole_1500": "removed.listed"})
    assert mbt(*command).code == 0
    assert (shards(out), failed(out)) == (BOTH, {})


def test_media_that_vanish_while_they_are_decoded_and_come_back(
    command: list[object], decoder: Decoder, out: Path, tmp_path: Path, mbt: Door
) -> None:
    media = tmp_path / "media/whole.mp4"

    def vanish(limits: Limits) -> str | None:
        if decoder.calls[HARD_S] and media.exists():
            media.rename(tmp_path / "away")
        return "decode.unreadable" if not media.exists() else None

    decoder.fails = vanish
    mbt(*command, "--workers", 1)
    assert failed(out)["whole_1500"] == "fetch.lost"
    (tmp_path / "away").rename(media)
    decoder.fails = lambda limits: None
    assert mbt(*command).code == 0
    assert failed(out) == {}
    assert set().union(*shards(out).values()) == {"whole_0", "whole_1500", "whole_3000"}


def test_an_unfinished_shard_decodes_the_clip_again_itself(
    command: list[object], decoder: Decoder, out: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: GrowingTar) -> None:
        raise KeyboardInterrupt

    decoder.fails = lambda limits: "decode.timeout" if limits.wall_s < 8 else None
    with monkeypatch.context() as patch:
        patch.setattr(GrowingTar, "finish", stop)
        assert mbt(*command, "--clip-timeout", 7).code == 130
    assert mbt(*command, "--clip-timeout", 8).code == 0
    assert shards(out) == {"train-000000.tar": {"whole_0", "whole_1500", "whole_3000"}}


def test_media_that_may_be_needed_again_are_kept(
    collection: Collection, command: list[object], decoder: Decoder, out: Path, server: LoopbackServer, mbt: Door
) -> None:
    server.answer = serving({"/whole.mp4": (collection.source / "whole.mp4").read_bytes()})
    command = [
        f"{server.url}/{{video_id}}.mp4" if i and command[i - 1] == "--source" else part for i, part in enumerate(command)
    ]
    command += ["--no-keep-raw", "--sleep", 0]
    decoder.fails = lambda limits: "decode.timeout" if limits.wall_s < 8 else None
    for limit in (7, 7, 8):
        assert mbt(*command, "--clip-timeout", limit).code == 0
        assert [path.name for path in (out / "raw").rglob("*.mp4")] == (["whole.mp4"] if limit == 7 else [])
    assert (shards(out), failed(out)) == (BOTH, {})
