"""Given arbitrary bytes, every parser of prep returns a result or raises its own error."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mbt.manifests.clips import clip_table, read_clips
from mbt.manifests.errors import InputError
from mbt.manifests.labels import Label, LabelSet, read_labels
from mbt.manifests.lists.audioset import segments_table
from mbt.manifests.lists.custom import custom_clips
from mbt.manifests.reading.jpeg import jpeg_size
from mbt.prep.media.decode import split_jpegs
from mbt.prep.media.ffmpeg import ClipError, source_size
from mbt.prep.plan.plan import PLAN_FILE, read_plan
from mbt.prep.plan.removed import read_removed
from mbt.prep.shards.check_sample import read_description
from mbt.prep.state.ledger import read_ledger
from mbt.prep.state.shard_record import finished_shard, record_file
from mbt.prep.state.store import Store
from tests.prep.media.test_jpegs import TRICKY

LABELS = LabelSet((Label("a", "Alpha"), Label("b", "Beta")))
JPEGS = TRICKY["plain"] + TRICKY["one pixel"]
CUSTOM = "video_id,start,end,split,labels\n"
many = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
CHANGES = st.lists(st.tuples(st.integers(0, len(JPEGS) - 1), st.integers(0, 255)), max_size=8)
CELL = st.one_of(
    st.text("0123456789.-+eE_naif \t\x00\"',;#\\", max_size=12),
    st.sampled_from(["a", "a;b", "v", "train", "1e300", "-0", "nan", "inf", "9" * 30, '"']),
)
LINES = st.lists(st.lists(CELL, max_size=7).map(",".join), max_size=4).map("\n".join)

Parser = Callable[[Path], object]
LISTS: dict[str, Parser] = {
    "labels": read_labels,
    "custom": lambda path: custom_clips(path, LABELS, "multilabel"),
    "audioset": lambda path: segments_table(path, "eval"),
    "removed": read_removed,
    "clips": read_clips,
}


def survives(data: bytes) -> None:
    """The stream splits into frames that together equal it and each have a size, or a ClipError is raised."""
    try:
        frames = split_jpegs(data)
    except ClipError:
        return
    assert b"".join(frames) == data
    for frame in frames:
        assert (frame[:2], frame[-2:]) == (b"\xff\xd8", b"\xff\xd9")
        assert min(jpeg_size(frame)) >= 0


@many
@given(st.binary(max_size=200))
@example(b"\xff\xd8\xff\xda\x00\x02\xff\xd9")
@example(b"\xff\xd8\xff\xc0\x00\x02\xff\xda\x00\x02\xff\xd9")
def test_any_bytes_give_jpegs_or_an_error(data: bytes) -> None:
    survives(data)
    survives(b"\xff\xd8\xff" + data + b"\xff\xd9")


@many
@given(CHANGES, st.integers(0, len(JPEGS)))
def test_any_change_to_jpegs_gives_jpegs_or_an_error(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(JPEGS)
    for position, value in changes:
        data[position] = value
    survives(bytes(data))
    survives(bytes(data[:cut]))


@many
@given(st.text(max_size=300))
def test_any_log_gives_a_size_or_none(log: str) -> None:
    source_size(log)
    source_size(f"  Stream #0:0: Video: {log}, 64x48")


@pytest.mark.parametrize("name", LISTS)
@many
@given(data=st.one_of(st.binary(max_size=300), LINES.map(str.encode)))
def test_any_file_gives_a_list_or_an_error(name: str, data: bytes, tmp_path: Path) -> None:
    headers = {"labels": b"id,display_name\n", "custom": CUSTOM.encode(), "audioset": b"# a comment\n"}
    for content in (data, headers.get(name, b"") + data):
        (tmp_path / "list").write_bytes(content)
        with contextlib.suppress(InputError):
            LISTS[name](tmp_path / "list")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("custom", f"{CUSTOM}v,0,1e300,train,a\n"),
        ("custom", f"{CUSTOM}v,0,10000000000000000,train,a\n"),
        ("custom", f'{CUSTOM}v,0,1,train,"a\n{"v,0,1,train,a" * 20_000}\n'),
        ("labels", f'id,display_name\na,"{"x" * 200_000}\n'),
        ("audioset", 'abcdefghijk, 0, 99999999999999999999, "/m/09x0r"\n'),
        ("audioset", f'abcdefghijk, 0, 1{"0" * 400}, "/m/09x0r"\n'),
    ],
    ids=["time 1e300", "time 1e16", "quote not closed", "quote not closed", "time 1e20", "time 1e400"],
)
def test_values_out_of_range_give_an_input_error(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(content)
    with pytest.raises(InputError):
        LISTS[name](tmp_path / "list")


@many
@given(data=st.one_of(st.binary(max_size=200), LINES.map(str.encode)))
def test_any_state_file_is_read_or_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "work/ledger").mkdir(parents=True, exist_ok=True)
    (tmp_path / PLAN_FILE).write_bytes(data)
    with pytest.raises(InputError):
        read_plan(tmp_path)
    (tmp_path / "work/ledger/fetch-0.jsonl").write_bytes(data)
    assert not read_ledger(tmp_path)
    record_file(tmp_path, "train-000000.tar").write_bytes(data)
    assert finished_shard(Store(tmp_path), "train-000000.tar") is None
    with pytest.raises(ValueError, match=r"\w"):
        read_description(data)


def test_a_table_without_clips_is_refused(tmp_path: Path) -> None:
    pq.write_table(clip_table([]), tmp_path / "clips.parquet")
    with pytest.raises(InputError, match="has no clips"):
        read_clips(tmp_path / "clips.parquet")
