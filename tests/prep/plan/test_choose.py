"""Which clips of a list are planned, what they will cost, and which of them a cap over survivors selects."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbt.manifests.balance import Balance, balanced_rows, ordered_rows
from mbt.manifests.clips import SCHEMA, table_clips
from mbt.manifests.errors import InputError, StorageError
from mbt.manifests.shards import MediaFormat
from mbt.prep.plan.choose import choose, fetch_caps, likely_clips
from mbt.prep.plan.estimate import check_disk, estimate
from mbt.prep.plan.options import PlanOptions
from mbt.prep.state.ledger import Attempt
from mbt.prep.state.selection import Selection, select_clips
from tests.conftest import Door, LoopbackServer, serving
from tests.media import Spec

CLASSES = 4


def table(labels: list[set[int]], split: str = "train") -> pa.Table:
    rows = [
        {"key": f"k{i:03}", "video_id": f"v{i // 2}", "start_ms": 0, "end_ms": 10_000, "split": split, "labels": sorted(of)}
        for i, of in enumerate(labels)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def attempt(key: str, alive: bool) -> Attempt:
    return Attempt(key=key, source="test", path="x" if alive else None, code="ok" if alive else "perm.private")


LABELS = st.lists(st.sets(st.integers(0, CLASSES - 1), min_size=1, max_size=3), min_size=1, max_size=50)


@given(LABELS, st.integers(1, 20), st.randoms(use_true_random=False))
def test_a_cap_over_survivors_equals_balancing_the_survivors(labels: list[set[int]], cap: int, random) -> None:  # type: ignore[no-untyped-def]
    """And no clip is requested that could not be selected."""
    listed = table(labels)
    planned = choose(listed, PlanOptions(cap=cap), CLASSES)
    alive = {key: random.random() < 0.7 for key in listed["key"].to_pylist()}

    selection, ledger = Selection({"train": cap}, CLASSES), {}
    for clip in table_clips(planned):
        if selection.has_room(clip):
            ledger[clip.key] = attempt(clip.key, alive[clip.key])
            if alive[clip.key]:
                selection.take(clip)

    order = ordered_rows(listed, Balance(cap), CLASSES)
    survivors = listed.take(pa.array([row for row in order if alive[listed["key"][row].as_py()]], pa.int64()))
    expected = survivors.take(pa.array(balanced_rows(survivors, Balance(cap, "list"), CLASSES)))["key"].to_pylist()
    assert len(planned) == len(listed)
    chosen = [clip for _, clip in select_clips(table_clips(planned), ledger, (), Selection({"train": cap}, CLASSES))]
    assert {clip.key for clip in chosen if alive[clip.key]} == set(expected)
    assert [clip.key for clip in chosen] == list(ledger)
    in_order = np.array([alive[key] for key in planned["key"].to_pylist()])
    requested = planned.take(pa.array(balanced_rows(planned, Balance(cap, "list"), CLASSES, in_order)))["key"].to_pylist()
    assert requested == list(ledger)


@pytest.mark.parametrize("options", [PlanOptions(seed=3), PlanOptions(cap=2, balance="list", order="list", seed=3)])
def test_the_plan_is_in_a_seeded_order(options: PlanOptions) -> None:
    """Of videos or of keys; the clips of a video stay together, in list order, and every part of a list keeps its order."""
    listed = table([{0}] * 10 if options.cap is None else [{0}] * 3 + [{1}] * 3)
    expected = [key for key in listed["key"].to_pylist() if options.cap is None or key in ("k000", "k001", "k003", "k004")]

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"3:{name}".encode()).digest()

    by_video = sorted(expected, key=lambda key: rank(f"v{int(key[1:]) // 2}"))
    assert choose(listed, options, CLASSES)["key"].to_pylist() == by_video != expected
    assert choose(listed, options, CLASSES, "key")["key"].to_pylist() == sorted(expected, key=rank)
    first = choose(listed, replace(options, limit=3), CLASSES)["key"].to_pylist()
    assert first == [key for key in by_video if key in expected[:3]]


def test_packed_clips_keep_their_room() -> None:
    """A clip that becomes available later does not replace one that is in a shard."""
    clips = table_clips(table([{0}, {0}, {0}]))
    ledger = {clip.key: attempt(clip.key, True) for clip in clips}
    chosen = [clip for _, clip in select_clips(clips, ledger, (), Selection({"train": 2}, CLASSES, frozen=[clips[2]]))]
    assert [clip.key for clip in chosen] == ["k000", "k002"]


def test_splits_without_a_cap_are_complete() -> None:
    clips = table_clips(table([{0}] * 5, "eval"))
    assert list(select_clips(clips, {}, (), Selection({"train": 1}, CLASSES))) == list(enumerate(clips))


def test_a_cap_over_the_list_needs_no_cap_while_fetching() -> None:
    options = PlanOptions(cap=2, balance="list")
    clips = choose(table([{0}] * 5 + [{1}]), options, CLASSES)
    assert clips.num_rows == 3
    assert fetch_caps(clips, options) == {}
    assert fetch_caps(clips, PlanOptions(cap=2)) == {"train": 2}


def test_likely_clips_obey_the_caps_of_their_split() -> None:
    """Of 1,000 clips of one class, a cap of 100 takes about 110, of which 91 % are available; other splits are complete."""
    clips = pa.concat_tables([table([{0}] * 1000), table([{0}] * 1000, "eval")])
    likely = likely_clips(clips, {"train": 100}, CLASSES, seed=0)["split"].to_pylist()
    assert likely.count("eval") == 1000
    assert 100 < likely.count("train") < 125
    assert likely_clips(clips, {}, CLASSES, seed=0).num_rows == 2000


def test_keys_of_another_plan(tmp_path: Path) -> None:
    listed = table([{0}] * 6)
    pq.write_table(listed.slice(2, 2), tmp_path / "clips.parquet")
    assert choose(listed, PlanOptions(keys=tmp_path / "clips.parquet"), CLASSES)["key"].to_pylist() == ["k002", "k003"]
    with pytest.raises(InputError, match=r"2 keys of .* are not in the list"):
        choose(listed.slice(0, 2), PlanOptions(keys=tmp_path / "clips.parquet"), CLASSES)
    with pytest.raises(InputError, match="cannot read keys"):
        choose(listed, PlanOptions(keys=tmp_path / "nothing.parquet"), CLASSES)
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="cannot read keys"):
        choose(listed, PlanOptions(keys=tmp_path / "other.parquet"), CLASSES)


def test_the_estimate_is_arithmetic() -> None:
    """Six clips of 10 s in three videos: 250 frames of 15.7 kB and 1000 rows of 256 bytes each."""
    costs = estimate(table([{0}] * 6), MediaFormat(), [240])
    assert (costs.clips, costs.videos, costs.hours) == (6, 3, pytest.approx(3.09 / 240))
    assert costs.raw_bytes == 6 * 1_200_000
    assert costs.shard_bytes == 6 * (250 * 15_700 + 1000 * 256 + 2_500)
    assert costs.disk_bytes == costs.raw_bytes + costs.shard_bytes
    local = estimate(table([{0}] * 6), MediaFormat(), [])
    assert (local.videos, local.raw_bytes) == (0, 0)


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path) -> None:
    check_disk(tmp_path / "new" / "folder", 1)
    with pytest.raises(StorageError, match="the plan needs about 1,000,000,000"):
        check_disk(tmp_path, 10**18)


def test_what_the_folder_already_holds_counts_as_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.mkv").write_bytes(bytes(1000))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=500))
    check_disk(tmp_path, 1500)
    with pytest.raises(StorageError):
        check_disk(tmp_path, 1501)


def test_the_dry_run_prints_and_writes_nothing(tmp_path: Path, mbt: Door) -> None:
    nowhere = ["--source", tmp_path / "nowhere"]
    done = mbt("prep", "audioset", "--subset", "balanced", "--out", tmp_path / "set", "--dry-run", *nowhere)
    assert (done.code, "nowhere does not exist" in done.err) == (2, True)
    done = mbt("prep", "audioset", "--subset", "balanced", "--out", tmp_path / "set", "--dry-run")
    assert done.code == 0, done.err
    lines = dict(line.split(maxsplit=1) for line in done.out.strip().splitlines())
    assert lines["clips"] == "22,160"
    assert lines["requests"] == "22,825: one per video, and 3% retries"
    assert lines["time"] == "95.1 h on 1 network address"
    assert not (tmp_path / "set").exists()


def test_balancing_without_a_cap_is_refused(tmp_path: Path, mbt: Door) -> None:
    done = mbt("prep", "audioset", "--subset", "balanced", "--out", tmp_path, "--order", "random", "--dry-run")
    assert done.code == 2
    assert "Add --cap N" in done.err


def test_any_list_can_be_capped(tmp_path: Path, mbt: Door) -> None:
    done = mbt(
        *("prep", "audioset", "--subset", "balanced", "--cap", 50, "--balance", "list", "--stage", "plan"), "--out", tmp_path
    )
    assert done.code == 0, done.err
    labels = pq.read_table(tmp_path / "clips.parquet")["labels"].combine_chunks().flatten().to_numpy()
    assert np.bincount(labels).max() == 50


def test_only_clips_that_can_still_be_selected_are_requested(
    server: LoopbackServer, rendered: Callable[[Spec], Path], tmp_path: Path, mbt: Door
) -> None:
    """Ten videos of one class and a cap of three: a dead video takes no room, and the fifth is never requested."""
    video = rendered(Spec("25.mp4")).read_bytes()
    names = [f"v{number}" for number in range(10)]
    (tmp_path / "clips.csv").write_text(
        "\n".join(["video_id,start,end,split,labels", *(f"{name},0,2,train,a" for name in names), "other,0,2,eval,a"]) + "\n"
    )
    (tmp_path / "labels.csv").write_text("id,display_name\na,Alpha\n")
    server.answer = serving({f"/{name}.mp4": video for name in [*names, "other"] if name != "v1"})
    arguments = ["prep", "custom", "--list", tmp_path / "clips.csv", "--labels", tmp_path / "labels.csv", "--cap", 3]
    arguments += ["--source", f"{server.url}/{{video_id}}.mp4", "--sleep", 0, "--out", tmp_path / "set"]
    done = mbt(*arguments)
    assert done.code == 0, done.err
    assert {path for path, _ in server.requests} == {"/v0.mp4", "/v1.mp4", "/v2.mp4", "/v3.mp4", "/other.mp4"}
    assert sorted(pq.read_table(tmp_path / "set" / "train.parquet")["key"].to_pylist()) == ["v0_0", "v2_0", "v3_0"]
    failures = pq.read_table(tmp_path / "set" / "failures.parquet").to_pylist()
    assert [(row["key"], row["code"]) for row in failures] == [("v1_0", "perm.gone")]
    assert "fetch: 4 clips found, 1 missing" in done.out

    server.requests.clear()
    server.answer = serving({f"/{name}.mp4": video for name in [*names, "other"]})
    again = mbt(*arguments)
    assert again.code == 0, again.err
    assert not server.requests, "packed clips keep their room"
