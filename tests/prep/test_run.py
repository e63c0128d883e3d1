"""`mbt prep` as a whole: what it writes, what it leaves alone, how it goes on, and how it refuses."""

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.conftest import Collection, Door
from tests.media import Spec

ROOT = Path(__file__).parents[2]
FAILED = {"silent_0": "clip.no_audio", "broken_0": "decode.unreadable", "absent_0": "local.missing"}
SPEECH, MUSIC = "/m/09x0r", "/m/04rlf"


def described(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def keys(folder: Path) -> dict[str, list[str]]:
    """Keys by tar."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found[path.name] = [name[: -len(".json")] for name in tar.getnames() if name.endswith(".json")]
    return found


def failed(folder: Path) -> dict[str, str]:
    table = pq.read_table(folder / "failures.parquet")
    return dict(zip(table["key"].to_pylist(), table["code"].to_pylist(), strict=True))


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def few(folder: Path, collection: Collection, *rows: str) -> Collection:
    """The collection with other rows."""
    folder.mkdir(exist_ok=True)
    path = folder / "few.csv"
    path.write_text("\n".join(["video_id,start,end,split,labels", *rows]) + "\n")
    return Collection(collection.source, path, collection.labels, collection.content)


def refusal(mbt: Door, *arguments: object) -> str:
    """The one line that a refused command prints."""
    outcome = mbt(*arguments)
    assert outcome.code == 2
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    assert lines[0].endswith(".")
    return lines[0]


def test_every_clip_is_in_a_shard_or_among_the_failures(packed: Path, collection: Collection) -> None:
    assert sorted(key for found in keys(packed).values() for key in found) == sorted(collection.content)
    assert failed(packed) == FAILED
    table = pq.read_table(packed / "failures.parquet").to_pylist()
    assert {row["key"]: row["stage"] for row in table} == {"silent_0": "pack", "broken_0": "pack", "absent_0": "fetch"}
    assert all(row["message"] for row in table)
    absent = next(row for row in table if row["key"] == "absent_0")
    assert (absent["video_id"], absent["start_ms"], absent["end_ms"], absent["split"], absent["labels"]) == (
        "absent",
        0,
        2000,
        "eval",
        [2],
    )


def test_shards_hold_two_samples_of_one_split(packed: Path) -> None:
    content = keys(packed)
    assert {name.partition("-")[0] for name in content} == {"train", "eval"}
    assert all(len(found) <= 2 for found in content.values())
    assert {key for name, found in content.items() if name.startswith("eval") for key in found} == {"_under_1500", "vgg_12000"}
    assert not [path for path in packed.rglob("*") if ".tmp" in path.name]


def test_order_in_the_shards_is_shuffled_by_the_seed(packed: Path, collection: Collection, tmp_path: Path, mbt: Door) -> None:
    found = [key for name, shard in keys(packed).items() if name.startswith("train") for key in shard]
    listed = [key for key in collection.content if key in found]
    assert sorted(found) == sorted(listed)
    assert found != listed
    packable = [
        "whole,0,0.4,train,a", "whole,1,1.4,train,a", "whole,2,2.4,train,a", "whole,3,3.4,train,a", "whole,4,4.4,train,a",
        "whole,5,5.4,train,a",
    ]  # fmt: skip
    orders = []
    for seed in (0, 1):
        small = few(tmp_path / str(seed), collection, *packable)
        assert mbt(*small.arguments(tmp_path / str(seed) / "out", "--seed", seed, "--short-side", 32)).code == 0
        orders.append([key for shard in keys(tmp_path / str(seed) / "out").values() for key in shard])
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_dataset_json_matches_the_folder(packed: Path) -> None:
    info = described(packed)
    assert (info["dataset"], info["task"], info["num_classes"]) == ("custom", "multilabel", 3)
    splits = info["splits"]
    assert (splits["train"]["samples"], splits["train"]["failures"]) == (6, 1)
    assert (splits["eval"]["samples"], splits["eval"]["failures"]) == (2, 2)
    assert splits["train"]["seconds"] == pytest.approx(2 + 2 + 2 + 2 + 4 + 3)
    assert splits["eval"]["seconds"] == pytest.approx(4)
    recorded = {s["name"]: (s["sha256"], s["size"], s["samples"]) for split in splits.values() for s in split["shards"]}
    content = keys(packed)
    wanted = {name: (d, (packed / name).stat().st_size, len(content[name])) for name, d in digests(packed).items()}
    assert recorded == {name: value for name, value in wanted.items() if value[2]}


def test_statistics_are_those_of_all_train_log_mels(packed: Path) -> None:
    arrays = []
    for path in packed.glob("train-*.tar"):
        with tarfile.open(path) as tar:
            arrays += [np.load(io.BytesIO(tar.extractfile(m).read())) for m in tar if m.name.endswith(".npy")]
    values = np.concatenate(arrays).astype(np.float64)
    statistics = described(packed)["log_mel_statistics"]
    assert statistics["split"] == "train"
    assert statistics["mean"] == pytest.approx(values.mean(), rel=1e-9)
    assert statistics["std"] == pytest.approx(values.std(), rel=1e-9)
    assert len(values) == 1500


def test_index_and_json_identify_the_clip(packed: Path) -> None:
    expected = {
        "whole_3300": ("whole", 3300, 5300, "train", [0], ["a"]),
        "-dash_500": ("-dash", 500, 2500, "train", [2], ["c"]),
        "_under_1500": ("_under", 1500, 3500, "eval", [1], ["b"]),
    }
    found = {}
    for split in ("train", "eval"):
        for row in pq.read_table(packed / f"{split}.parquet").to_pylist():
            with tarfile.open(packed / row["shard"]) as tar:
                sample = json.load(tar.extractfile(f"{row['key']}.json"))
            shared = row.keys() & sample.keys()
            assert len(shared) == 13
            assert {name: row[name] for name in shared} == {name: sample[name] for name in shared}
            assert (sample["fps"], sample["source"]) == (25, "local")
            clip = [sample[name] for name in ("video_id", "start_ms", "end_ms", "split", "labels", "label_ids")]
            found[row["key"]] = tuple(clip)
    assert {key: found[key] for key in expected} == expected


def test_index_points_at_the_members(packed: Path) -> None:
    for split in ("train", "eval"):
        for row in pq.read_table(packed / f"{split}.parquet").to_pylist():
            with tarfile.open(packed / row["shard"]) as tar:
                for column, extension in (("json", "json"), ("mel", "mel.npy"), ("mjpg", "mjpg")):
                    member = tar.getmember(f"{row['key']}.{extension}")
                    assert (row[f"{column}_offset"], row[f"{column}_size"]) == (member.offset_data, member.size)


def test_index_has_the_checksum_of_the_members(packed: Path) -> None:
    table = pq.read_table(packed / "train.parquet")
    assert str(table.schema.field("crc32").type) == "uint32"
    for row in table.to_pylist():
        with tarfile.open(packed / row["shard"]) as tar:
            parts = [tar.extractfile(f"{row['key']}.{extension}").read() for extension in ("json", "mel.npy", "mjpg")]
        assert row["crc32"] == zlib.crc32(b"".join(parts))


def test_tars_are_plain_and_say_nothing_of_the_machine(packed: Path) -> None:
    for path in packed.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
                assert (member.mode, member.isreg(), member.pax_headers) == (0o444, True, {})
        assert path.read_bytes()[257:263] == b"ustar\x00"


def test_flags_and_padding_are_recorded(packed: Path) -> None:
    rows = {row["key"]: row for split in ("train", "eval") for row in pq.read_table(packed / f"{split}.parquet").to_pylist()}
    assert rows["early_0"]["padded_frames"] == 8
    assert rows["early_0"]["padded_audio_samples"] == pytest.approx(0.32 * 16_000, abs=400)
    assert rows["half_0"]["flags"] == ["short", "upscaled"]
    assert (rows["half_0"]["num_frames"], rows["half_0"]["num_mel_rows"]) == (75, 300)
    assert rows["tall_0"]["flags"] == ["upscaled"]
    assert (rows["tall_0"]["width"], rows["whole_0"]["height"]) == (256, 256)
    assert rows["whole_3300"]["labels"] == [0]
    assert rows["whole_0"]["labels"] == [0, 1]
    assert rows["vgg_12000"]["labels"] == []


def test_labels_and_card_are_written(packed: Path) -> None:
    with (packed / "labels.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["index", "id", "display_name"],
            ["0", "a", "Alpha"],
            ["1", "b", "Beta, the second"],
            ["2", "c", "Gamma"],
        ]
    card = (packed / "README.md").read_text()
    assert "| train | 6 | 1 |" in card
    assert "| eval | 2 | 2 |" in card


def test_two_runs_give_the_same_bytes(packed: Path, collection: Collection, tmp_path: Path, mbt: Door) -> None:
    assert mbt(*collection.arguments(tmp_path / "again", "--workers", 1)).code == 0
    assert digests(tmp_path / "again") == digests(packed)
    assert len(set(digests(packed).values())) > 3
    for name in ("dataset.json", "README.md", "labels.csv", "train-000000.idx"):
        assert (tmp_path / "again" / name).read_bytes() == (packed / name).read_bytes()
    assert pq.read_table(tmp_path / "again/train.parquet").equals(pq.read_table(packed / "train.parquet"))


def test_a_second_run_leaves_finished_shards_alone(packed: Path, collection: Collection, tmp_path: Path, mbt: Door) -> None:
    out = Path(shutil.copytree(packed, tmp_path / "out"))
    before, content = snapshot(out), digests(out)
    outcome = mbt(*collection.arguments(out))
    assert outcome.code == 0
    tars = len(list(out.glob("train-*.tar")))
    assert f"pack: train: 6 samples in {tars} shards, 1 clip failed" in outcome.out
    after = snapshot(out)
    shards = [name for name in before if name.endswith((".tar", ".idx", ".tar.json"))]
    assert len(shards) >= 12
    assert {name: after[name] for name in shards} == {name: before[name] for name in shards}
    assert digests(out) == content
    assert before.keys() == after.keys()


@pytest.mark.parametrize("damage", ["cut", "gone", "no idx", "no record"])
def test_a_damaged_shard_is_packed_again(packed: Path, collection: Collection, tmp_path: Path, mbt: Door, damage: str) -> None:
    out = Path(shutil.copytree(packed, tmp_path / "out"))
    tar = out / "train-000001.tar"
    {
        "cut": lambda: os.truncate(tar, 1000),
        "gone": tar.unlink,
        "no idx": tar.with_suffix(".idx").unlink,
        "no record": (out / "work/train-000001.tar.json").unlink,
    }[damage]()
    assert mbt(*collection.arguments(out)).code == 0
    assert digests(out) == digests(packed)
    assert tar.with_suffix(".idx").read_bytes() == (packed / "train-000001.idx").read_bytes()


def test_separate_stages_give_the_same_files(packed: Path, collection: Collection, tmp_path: Path, mbt: Door) -> None:
    out = tmp_path / "out"
    assert mbt(*collection.arguments(out, "--stage", "plan")).out == f"plan: 11 clips in {out}/clips.parquet\n"
    assert pq.read_table(out / "clips.parquet").num_rows == 11
    assert not (out / "work/ledger").exists()
    assert mbt(*collection.arguments(out, "--stage", "fetch")).out == "fetch: 10 clips found, 1 missing\n"
    assert not list(out.glob("*.tar"))
    assert mbt(*collection.arguments(out, "--stage", "pack")).code == 0
    assert digests(out) == digests(packed)
    assert (out / "dataset.json").read_bytes() == (packed / "dataset.json").read_bytes()


@pytest.mark.parametrize("stage", ["fetch", "pack"])
def test_a_stage_without_the_one_before_is_refused(collection: Collection, tmp_path: Path, mbt: Door, stage: str) -> None:
    assert "holds no plan. Run the plan stage first" in refusal(mbt, *collection.arguments(tmp_path / "out", "--stage", stage))


def test_packing_before_fetching_says_what_is_missing(collection: Collection, tmp_path: Path, mbt: Door) -> None:
    assert mbt(*collection.arguments(tmp_path, "--stage", "plan")).code == 0
    outcome = mbt(*collection.arguments(tmp_path, "--stage", "pack"))
    assert outcome.code == 2
    assert "fetch.pending: not fetched yet" in outcome.err.splitlines()[-1]


def test_limit_takes_the_first_clips_of_each_split(collection: Collection, tmp_path: Path, mbt: Door) -> None:
    assert mbt(*collection.arguments(tmp_path, "--limit", 1, "--stage", "plan")).code == 0
    assert sorted(pq.read_table(tmp_path / "clips.parquet")["key"].to_pylist()) == ["_under_1500", "whole_0"]


def test_late_arrivals_go_into_further_shards(collection: Collection, tmp_path: Path, mbt: Door) -> None:
    source = tmp_path / "media"
    source.mkdir()
    rows = ["whole,0,1,train,a", "whole,1,2,train,a", "whole,2,3,train,a", "tall,0,1,train,b", "half,0,1,eval,c"]
    shutil.copy(collection.source / "whole.mp4", source)
    growing = Collection(source, few(tmp_path, collection, *rows).clips, collection.labels, {})
    out = tmp_path / "out"
    assert mbt(*growing.arguments(out)).code == 0
    before, early = snapshot(out), keys(out)
    assert {name: len(found) for name, found in early.items()} == {"train-000000.tar": 2, "train-000001.tar": 1}
    assert failed(out) == {"tall_0": "local.missing", "half_0": "local.missing"}
    shutil.copy(collection.source / "tall.mp4", source)
    shutil.copy(collection.source / "half.mp4", source)
    assert mbt(*growing.arguments(out)).code == 0
    assert keys(out) == {**early, "eval-000000.tar": ["half_0"], "train-000002.tar": ["tall_0"]}
    assert all(snapshot(out)[name] == before[name] for name in early)
    assert failed(out) == {}
    assert [shard["name"] for shard in described(out)["splits"]["train"]["shards"]] == [f"train-00000{i}.tar" for i in range(3)]


def test_a_second_split_joins_the_folder(collection: Collection, tmp_path: Path, mbt: Door) -> None:
    out = tmp_path / "out"
    assert mbt(*few(tmp_path, collection, "whole,0,1,train,a").arguments(out)).code == 0
    before = digests(out)
    assert mbt(*few(tmp_path, collection, "whole,1,2,eval,b").arguments(out)).code == 0
    assert keys(out) == {"train-000000.tar": ["whole_0"], "eval-000000.tar": ["whole_1000"]}
    assert digests(out)["train-000000.tar"] == before["train-000000.tar"]
    assert set(described(out)["splits"]) == {"train", "eval"}


@pytest.mark.parametrize("stage", ["plan", "fetch", "pack", None])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--short-side", 128], "was packed with other settings: --short-side 256, not 128 (see "),
        (["--flac"], "was packed with other settings: --flac False, not True (see "),
        (["--shard-samples", 3], "was packed with other settings: --shard-samples 2, not 3 (see "),
        (["--to", "memory://there"], "was packed with other settings: --to unset, not memory://there (see "),
        (["--seed", 1], "--seed 0, not 1"),
    ],
)
def test_options_that_contradict_a_packed_folder_are_refused_by_every_stage(
    packed: Path, collection: Collection, mbt: Door, stage: str | None, option: list[object], message: str
) -> None:
    before = snapshot(packed)
    stages = [] if stage is None else ["--stage", stage]
    assert message in refusal(mbt, *collection.arguments(packed, *option, *stages))
    assert snapshot(packed) == before


def test_stages_agree_on_what_is_stored(collection: Collection, tmp_path: Path, mbt: Door) -> None:
    """Until something is packed, the plan stage may choose other settings; the other stages may not."""
    out = tmp_path / "out"
    assert mbt(*collection.arguments(out, "--stage", "plan")).code == 0
    before = snapshot(out)
    for stage in ("fetch", "pack"):
        refused = refusal(mbt, *collection.arguments(out, "--short-side", 32, "--stage", stage))
        assert "was planned with other settings: --short-side 256, not 32" in refused
        assert "--stage plan records new settings" in refused
    assert snapshot(out) == before
    for stage in ("plan", "fetch", "pack"):
        assert mbt(*collection.arguments(out, "--short-side", 32, "--stage", stage)).code == 0
    assert described(out)["media"]["video"]["short_side"] == 32


def test_another_dataset_in_the_same_folder_is_refused(packed: Path, collection: Collection, tmp_path: Path, mbt: Door) -> None:
    before = snapshot(packed)
    (tmp_path / "labels.csv").write_text("id\nb\na\nc\n")
    swapped = Collection(collection.source, collection.clips, tmp_path / "labels.csv", {})
    assert "planned with another label set: class 0 was 'a', not 'b'. " in refusal(mbt, *swapped.arguments(packed))
    (tmp_path / "labels.csv").write_text("id,display_name\na,Alpha\nb,Bee\nc,Gamma\nd,Delta\n")
    assert "it had 3 classes, not 4" in refusal(mbt, *swapped.arguments(packed))
    assert "holds the dataset 'custom', not 'other'. " in refusal(mbt, *collection.arguments(packed, "--name", "other"))
    single = few(tmp_path, collection, "tall,0,2,train,a")
    assert "the task multilabel, not multiclass. " in refusal(mbt, *single.arguments(packed, "--task", "multiclass"))
    balanced = ["prep", "audioset", "--subset", "balanced", "--shard-samples", 2, "--out", packed]
    assert "holds the dataset 'custom', not 'audioset'. " in refusal(mbt, *balanced)
    assert snapshot(packed) == before


def test_a_list_without_packed_clips_is_refused_and_overwrites_nothing(
    packed: Path, collection: Collection, tmp_path: Path, mbt: Door
) -> None:
    before = snapshot(packed)
    fewer = few(tmp_path, collection, "whole,0,2,train,b;a")
    for more in ([], ["--replan"], ["--stage", "plan"]):
        refused = refusal(mbt, *fewer.arguments(packed, *more))
        assert "6 clips would leave it or change; 6 clips already fetched or packed, such as " in refused
    assert snapshot(packed) == before


def test_the_same_command_rewrites_no_plan(collection: Collection, tmp_path: Path, mbt: Door) -> None:
    run = collection.arguments(tmp_path / "out", "--stage", "plan")
    assert mbt(*run).code == 0
    before = snapshot(tmp_path / "out")
    assert mbt(*run).out == f"plan: 11 clips in {tmp_path}/out/clips.parquet\n"
    after = snapshot(tmp_path / "out")
    plan = {"clips.parquet", "labels.csv", "work/plan.json", "work/pack.json"}
    assert {name: after[name] for name in plan} == {name: before[name] for name in plan}


def test_a_plan_grows_with_its_limit_and_shrinks_only_when_asked(collection: Collection, tmp_path: Path, mbt: Door) -> None:
    out = tmp_path / "out"
    for limit in (1, 2, 3):
        assert mbt(*collection.arguments(out, "--limit", limit)).code == 0
        assert len(pq.read_table(out / "clips.parquet")) == 2 * limit
    found = [key for shard in keys(out).values() for key in shard]
    assert sorted(found) == ["-dash_500", "_under_1500", "vgg_12000", "whole_0", "whole_3300"]
    assert len(keys(out)) == 5, "each run added a clip of train, and the first two one of eval"
    assert failed(out) == {"broken_0": "decode.unreadable"}

    assert mbt(*collection.arguments(out, "--stage", "plan")).code == 0
    refused = refusal(mbt, *collection.arguments(out, "--limit", 3, "--stage", "plan"))
    assert "5 clips would leave it or change. Use the same list and options, another --out, or --replan " in refused
    assert mbt(*collection.arguments(out, "--limit", 3, "--stage", "plan", "--replan")).code == 0
    assert len(pq.read_table(out / "clips.parquet")) == 6


def test_a_refused_command_writes_nothing(
    collection: Collection, tmp_path: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = collection.arguments(tmp_path / "out")
    (tmp_path / "file").touch()
    assert "cannot reach file://" in refusal(mbt, *run, "--to", f"file://{tmp_path}/file/below")
    assert "nowhere" in refusal(mbt, *run, "--to", "nowhere://bucket/set")
    assert "cannot read the label list" in refusal(mbt, *run, "--labels", tmp_path / "none")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=500))
    assert "the plan needs about" in refusal(mbt, *run)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("stage", [[], ["--stage", "plan"], ["--stage", "fetch"]])
def test_a_folder_of_other_files_is_refused(collection: Collection, tmp_path: Path, mbt: Door, stage: list[str]) -> None:
    (tmp_path / "media").mkdir()
    shutil.copy(collection.source / "whole.mp4", tmp_path / "media")
    before = snapshot(tmp_path)
    refused = refusal(mbt, *collection.arguments(tmp_path / "media", *stage))
    assert f"{tmp_path}/media is not empty and was not written by mbt prep: it holds 'whole.mp4'. " in refused
    assert refused.endswith(f"for example --out {tmp_path}/media/shards.")
    assert "a part of the path is a file" in refusal(
        mbt, *collection.arguments(tmp_path / "media" / "whole.mp4" / "set", *stage)
    )
    assert snapshot(tmp_path) == before


def test_users_mistakes_are_one_line(collection: Collection, tmp_path: Path, mbt: Door) -> None:
    good = collection.arguments(tmp_path / "out")

    def changed(option: str, value: object) -> list[object]:
        return [value if i and good[i - 1] == option else part for i, part in enumerate(good)]

    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "none").mkdir()
    (tmp_path / "bad.csv").write_text("video_id,start,end,split,labels\nv,0,1,train,a\nv,x,1,train,a\n")
    assert "does not exist" in refusal(mbt, *changed("--source", tmp_path / "nowhere"))
    assert "holds no media file" in refusal(mbt, *changed("--source", tmp_path / "none"))
    assert "lacks {video_id}" in refusal(mbt, *changed("--source", "https://example.org/v.mp4"))
    assert "lacks the column" in refusal(mbt, *changed("--list", tmp_path / "empty.csv"))
    assert "line 3: invalid row" in refusal(mbt, *changed("--list", tmp_path / "bad.csv"))
    assert "nothing.csv does not exist" in refusal(mbt, *changed("--list", tmp_path / "nothing.csv"))
    assert "is empty" in refusal(mbt, *changed("--labels", tmp_path / "empty.csv"))
    assert "has no subset 'huge'" in refusal(mbt, "prep", "audioset", "--subset", "huge", "--out", tmp_path / "as")


def test_failed_clips_are_printed_and_listed_as_csv(packed: Path, collection: Collection, tmp_path: Path, mbt: Door) -> None:
    """The list is a list of clips that `mbt prep custom` takes."""
    rows = list(csv.DictReader((packed / "failures.csv").read_text().splitlines()))
    assert {row["key"]: (row["video_id"], row["start"], row["end"], row["split"], row["labels"]) for row in rows} == {
        "silent_0": ("silent", "0.0", "2.0", "train", "a"),
        "broken_0": ("broken", "0.0", "2.0", "eval", "a"),
        "absent_0": ("absent", "0.0", "2.0", "eval", "c"),
    }
    assert {row["key"]: (row["code"], row["message"]) for row in rows} == {
        row["key"]: (row["code"], row["message"]) for row in pq.read_table(packed / "failures.parquet").to_pylist()
    }
    out = Path(shutil.copytree(packed, tmp_path / "out"))
    done = mbt(*collection.arguments(out))
    lines = done.out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("pack: failed clips: 1 "))
    assert all(f"1 {code}" in lines[start] for code in FAILED.values())
    shown = sorted(line.partition(": ")[0].strip() for line in lines[start + 1 : -1])
    assert (shown, lines[-1]) == (["absent_0", "broken_0", "silent_0"], f"  listed in {out}/failures.csv")
    again = Collection(collection.source, packed / "failures.csv", collection.labels, {})
    assert mbt(*again.arguments(tmp_path / "again", "--stage", "plan")).out.startswith("plan: 3 clips in ")


def test_only_the_first_ten_failures_are_printed(collection: Collection, tmp_path: Path, mbt: Door) -> None:
    rows = ["whole,0,0.4,train,a", *(f"absent{number:02},0,2,train,a" for number in range(13))]
    done = mbt(*few(tmp_path, collection, *rows).arguments(tmp_path / "out", "--short-side", 32))
    lines = done.out.splitlines()
    assert sum(": local.missing: no file named" in line for line in lines) == 10
    assert lines[-1] == f"  and 3 more in {tmp_path}/out/failures.csv"


def test_strict_makes_a_failure_an_exit_code(collection: Collection, tmp_path: Path, mbt: Door) -> None:
    good = few(tmp_path / "good", collection, "whole,0,0.4,train,a").arguments(tmp_path / "a", "--short-side", 32)
    bad = few(tmp_path / "bad", collection, "whole,0,0.4,train,a", "absent,0,1,train,a").arguments(
        tmp_path / "b", "--short-side", 32
    )
    assert mbt(*good, "--strict").code == 0
    assert mbt(*bad, "--strict").code == 3
    assert mbt(*bad).code == 0
    assert [mbt(*bad, "--strict", "--stage", stage).code for stage in ("plan", "fetch", "pack")] == [0, 3, 3]
    assert (tmp_path / "b" / "dataset.json").exists()


def test_nothing_but_bad_clips_is_an_error_with_every_reason(collection: Collection, tmp_path: Path, mbt: Door) -> None:
    bad = few(tmp_path, collection, "silent,0,2,train,a", "broken,0,2,train,a", "absent,0,2,train,a")
    outcome = mbt(*bad.arguments(tmp_path / "out"))
    assert outcome.code == 2
    assert "no clip could be packed; the first failure is" in outcome.err.splitlines()[-1]
    assert failed(tmp_path / "out") == FAILED
    assert not (tmp_path / "out/dataset.json").exists()


def test_a_shard_whose_clips_all_fail_has_no_tar_and_is_not_packed_again(
    collection: Collection, tmp_path: Path, mbt: Door
) -> None:
    mixed = few(tmp_path, collection, "silent,0,2,train,a", "whole,0,0.4,train,a", "broken,0,2,train,a")
    out = tmp_path / "out"
    run = [*mixed.arguments(out), "--shard-samples", 1, "--short-side", 32]
    assert mbt(*run).code == 0
    assert list(keys(out).values()) == [["whole_0"]]
    assert len(list(out.glob("*.idx"))) == 1
    assert failed(out) == {"silent_0": "clip.no_audio", "broken_0": "decode.unreadable"}
    records = {name: moment for name, moment in snapshot(out).items() if name.endswith(".tar.json")}
    assert len(records) == 3
    assert mbt(*run).code == 0
    assert records.items() <= snapshot(out).items()


def test_media_that_vanish_before_and_after_packing(collection: Collection, tmp_path: Path, mbt: Door) -> None:
    """Before its shard is packed, a lost clip is a failure; afterwards, packing requires that it is fetched again."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for name in ("one", "two"):
        shutil.copy(collection.source / "whole.mp4", source / f"{name}.mp4")
    two = few(tmp_path, collection, "one,0,2,train,a", "two,0,2,train,a")
    run = Collection(source, two.clips, two.labels, {}).arguments(out)
    for stage in ("plan", "fetch"):
        assert mbt(*run, "--stage", stage).code == 0
    (source / "two.mp4").rename(tmp_path / "away.mp4")
    assert mbt(*run, "--stage", "pack").code == 0
    assert failed(out) == {"two_0": "fetch.lost"}

    (out / "train-000000.tar").unlink()
    (source / "one.mp4").unlink()
    refused = mbt(*run, "--stage", "pack")
    assert refused.code == 2
    assert "Run the fetch stage again" in refused.err
    (tmp_path / "away.mp4").rename(source / "one.mp4")
    assert mbt(*run).code == 0
    assert failed(out) == {"two_0": "local.missing"}


def test_limits_of_a_clip_are_options(collection: Collection, tmp_path: Path, mbt: Door) -> None:
    one = few(tmp_path, collection, "whole,0,5,train,a")
    assert mbt(*one.arguments(tmp_path / "slow", "--clip-timeout", 0.01)).code == 2
    assert failed(tmp_path / "slow") == {"whole_0": "decode.timeout"}


@pytest.mark.slow
def test_a_separate_process_prints_one_line_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("# only comments\n")
    command = [sys.executable, "-m", "mbt", "prep", "audioset", "--subset", "eval", "--list", str(tmp_path / "list.csv")]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: the list {tmp_path}/list.csv is empty. "
        'Write rows as in the official CSV files: YTID, start_seconds, end_seconds, "mid,mid,...".'
    ]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes(collection: Collection, tmp_path: Path, mbt: Door) -> None:
    rows = [f"whole,{i * 0.1:.1f},{i * 0.1 + 2:.1f},train,a" for i in range(36)]
    many = few(tmp_path, collection, *rows)
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "-m", "mbt", *map(str, many.arguments(out))]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.tar"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    at_kill = digests(out)
    assert 3 <= len(at_kill) < 18
    assert not (out / "dataset.json").exists()
    for path in out.iterdir():
        assert path.suffix != ".tmp" or path.name.startswith(".")

    assert mbt(*many.arguments(out)).code == 0
    assert mbt(*many.arguments(whole)).code == 0
    assert len(digests(whole)) == 18
    assert digests(out) == digests(whole)
    assert at_kill.items() <= digests(whole).items()
    assert (out / "dataset.json").read_bytes() == (whole / "dataset.json").read_bytes()


def test_audioset_list_is_packed_with_its_labels(tmp_path: Path, mbt: Door, rendered: Callable[[Spec], Path]) -> None:
    (tmp_path / "media").mkdir()
    shutil.copy(rendered(Spec("25.mp4")), tmp_path / "media" / "-abcdefghi0.mp4")
    shutil.copy(rendered(Spec("25.mp4")), tmp_path / "media" / "_bcdefghij1_000030.mp4")
    (tmp_path / "list.csv").write_text(
        "# a list\n"
        f'-abcdefghi0, 1.000, 3.000, "{MUSIC},{SPEECH}"\n'
        f'_bcdefghij1, 30.000, 33.000, "{SPEECH}"\n'
        f'missing_one, 0.000, 10.000, "{SPEECH}"\n'
        f'beyond_limi, 0.000, 10.000, "{SPEECH}"\n'
    )
    lists = ["prep", "audioset", "--subset", "eval", "--list", tmp_path / "list.csv", "--source", tmp_path / "media"]
    outcome = mbt(*lists, "--out", tmp_path / "out", "--limit", 3, "--short-side", 64)
    assert outcome.code == 0
    assert "plan: 3 clips" in outcome.out
    info = described(tmp_path / "out")
    assert (info["dataset"], info["task"], info["num_classes"]) == ("audioset", "multilabel", 527)
    assert (info["splits"]["eval"]["samples"], info["splits"]["eval"]["failures"]) == (2, 1)
    assert info["log_mel_statistics"]["split"] == "eval"
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "out/eval.parquet").to_pylist()}
    assert {key: row["labels"] for key, row in rows.items()} == {"-abcdefghi0_1000": [0, 137], "_bcdefghij1_30000": [0]}
    with tarfile.open(tmp_path / "out/eval-000000.tar") as tar:
        sample = json.load(tar.extractfile("-abcdefghi0_1000.json"))
    assert sample["label_ids"] == [SPEECH, MUSIC]
    assert failed(tmp_path / "out") == {"missing_one_0": "local.missing"}
    assert len((tmp_path / "out/labels.csv").read_text().splitlines()) == 528


@pytest.mark.slow
def test_clips_on_the_removal_list_are_removed(collection: Collection, tmp_path: Path, mbt: Door) -> None:
    """Of shards that are done too, and by key as by video; the other samples stay byte for byte."""
    out = tmp_path / "set"
    assert mbt(*collection.arguments(out)).code == 0
    before = members_of(out)
    (tmp_path / "removed.txt").write_text("# asked for by their owners\nwhole\ntall_0  # a key\n")
    assert mbt("shards", "verify", out, "--removed", tmp_path / "removed.txt").code == 1
    again = mbt(*collection.arguments(out, "--removed", tmp_path / "removed.txt"))
    assert again.code == 0, again.err
    after = members_of(out)
    gone = {"whole_0", "whole_3300", "tall_0"}
    assert {name.partition(".")[0] for name in before.keys() - after.keys()} == gone
    assert all(before[name] == content for name, content in after.items())
    codes = {row["key"]: row["code"] for row in pq.read_table(out / "failures.parquet").to_pylist()}
    assert {key for key, code in codes.items() if code == "removed.listed"} == gone
    assert mbt("shards", "verify", out, "--removed", tmp_path / "removed.txt").code == 0
    missing = mbt(*collection.arguments(out, "--removed", tmp_path / "nothing.txt"))
    assert (missing.code, "cannot read the removal list" in missing.err) == (2, True)


def members_of(folder: Path) -> dict[str, bytes]:
    """Every member of every tar."""
    members = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    return members
