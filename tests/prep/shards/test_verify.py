"""`mbt shards verify` on copies of a dataset with one damage each: the fault names its kind and its sample."""

import hashlib
import io
import json
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mbt.prep.shards.verify import read_removed, verify
from tests.conftest import Door

Members = list[tuple[str, bytes]]
Fault = tuple[str, str | None]
KEY, OTHER = "-dash_500", "half_0"
COLUMNS = {"json": "json", "mel.npy": "mel", "mjpg": "mjpg", "flac": "flac"}


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    """A copy of the files that readers need, and of failures.parquet."""
    return Path(shutil.copytree(packed, tmp_path / "copy", ignore=shutil.ignore_patterns("work", "raw", "clips.parquet")))


def faults(folder: Path, **options: Any) -> set[Fault]:
    return {(fault.code, fault.key) for fault in verify(folder, workers=1, **options).faults}


def index(folder: Path, split: str = "train") -> list[dict]:
    return pq.read_table(folder / f"{split}.parquet").to_pylist()


def rewrite_index(folder: Path, rows: list[dict], split: str = "train") -> None:
    path = folder / f"{split}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)


def edit_index(folder: Path, sample_key: str, **columns: object) -> None:
    rewrite_index(folder, [{**row, **columns} if row["key"] == sample_key else row for row in index(folder)])


def row_of(folder: Path, key: str) -> dict:
    return next(row for row in index(folder) if row["key"] == key)


def edit_dataset(folder: Path, change: Callable[[dict], object]) -> None:
    info = json.loads((folder / "dataset.json").read_text())
    change(info)
    (folder / "dataset.json").write_text(json.dumps(info))


def flip(folder: Path, key: str, position: Callable[[dict], int], value: int | None = None) -> None:
    """Flip the bits of the byte at a position computed from the sample's index row, or set the byte to a value."""
    row = row_of(folder, key)
    path = folder / row["shard"]
    data = bytearray(path.read_bytes())
    data[position(row)] = data[position(row)] ^ 0xFF if value is None else value
    path.write_bytes(data)


def header(name: str, size: int, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def rewrite(folder: Path, shard: str, change: Callable[[Members], Members], **fields: object) -> None:
    """Change the members of a shard; then update its index rows, its .idx and dataset.json to match the new tar."""
    path = folder / shard
    with tarfile.open(path) as tar:
        content = change([(member.name, tar.extractfile(member).read()) for member in tar])
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in content:
            tar.addfile(header(name, len(data), **fields), io.BytesIO(data))
    stored = dict(content)
    with tarfile.open(path) as tar:
        spans = {member.name: (member.offset_data, member.size) for member in tar}
    keys = list(dict.fromkeys(name.partition(".")[0] for name in spans))
    lines = [[f"{n.partition('.')[2]} {o} {s} {n}" for n, (o, s) in spans.items() if n.startswith(f"{key}.")] for key in keys]
    path.with_suffix(".idx").write_text("\n".join([f"v1.2 {len(keys)}", *map(" ".join, lines)]) + "\n")
    split = shard.rpartition("-")[0]
    rows = index(folder, split)
    for row in rows:
        for extension, column in COLUMNS.items():
            if row["shard"] == shard and (span := spans.get(f"{row['key']}.{extension}")):
                row[f"{column}_offset"], row[f"{column}_size"] = span
        if row["shard"] == shard:
            row["crc32"] = zlib.crc32(b"".join(stored.get(f"{row['key']}.{extension}", b"") for extension in COLUMNS))
    rewrite_index(folder, rows, split)

    def record(info: dict) -> None:
        entry = next(entry for entry in info["splits"][split]["shards"] if entry["name"] == shard)
        entry.update(size=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())

    edit_dataset(folder, record)


def replace_member(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    shard = row_of(folder, name.partition(".")[0])["shard"]
    rewrite(folder, shard, lambda content: [(n, change(data) if n == name else data) for n, data in content])


def edit_json(folder: Path, sample_key: str, **fields: object) -> None:
    replace_member(folder, f"{sample_key}.json", lambda data: json.dumps({**json.loads(data), **fields}).encode())


def edit_frames(folder: Path, key: str, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the frames, and `frame_bytes` to match."""
    row = row_of(folder, key)
    sizes = sample(folder, key)["frame_bytes"]
    stream = (folder / row["shard"]).read_bytes()[row["mjpg_offset"] :]
    starts = np.cumsum([0, *sizes])
    frames = change([stream[a:b] for a, b in pairwise(starts)])
    replace_member(folder, f"{key}.mjpg", lambda _: b"".join(frames))
    edit_json(folder, key, frame_bytes=[len(frame) for frame in frames])


def sample(folder: Path, key: str) -> dict:
    row = row_of(folder, key)
    return json.loads((folder / row["shard"]).read_bytes()[row["json_offset"] :][: row["json_size"]])


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def edit_mel(folder: Path, key: str, change: Callable[[np.ndarray], np.ndarray], version: tuple[int, int] = (1, 0)) -> None:
    replace_member(folder, f"{key}.mel.npy", lambda data: npy(change(np.load(io.BytesIO(data))), version))


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[7, 5] = value
        return array

    return change


def jpeg(size: tuple[int, int], **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 90)).save(file, "JPEG", **{"subsampling": 2, **options})
    return file.getvalue()


def test_packed_folder_has_no_faults(packed: Path) -> None:
    report = verify(packed, workers=1, decode=True)
    assert (report.whole, report.faults, report.shards, report.samples) == (True, (), len([*packed.glob("*.tar")]), 8)
    assert report.size == sum(path.stat().st_size for path in packed.glob("*.tar"))
    assert report.statistics_checked


def test_rewriting_without_changes_makes_no_fault(folder: Path) -> None:
    edit_mel(folder, KEY, lambda array: array)
    edit_frames(folder, KEY, lambda frames: frames)
    assert faults(folder, decode=True) == set()


SHA: Fault = ("shard.sha256", None)
CRC: Fault = ("sample.crc32", KEY)
RAW: dict[str, tuple[Callable[[Path], object], set[Fault]]] = {
    "a bit in a frame": (lambda f: flip(f, KEY, lambda row: row["mjpg_offset"] + 900), {SHA, CRC}),
    "a bit between two members": (lambda f: flip(f, KEY, lambda row: row["mjpg_offset"] - 513), {SHA}),
    "start of the first frame": (lambda f: flip(f, KEY, lambda row: row["mjpg_offset"]), {SHA, CRC, ("mjpg.jpeg", KEY)}),
    "end of the last frame": (
        lambda f: flip(f, KEY, lambda row: row["mjpg_offset"] + row["mjpg_size"] - 1),
        {SHA, CRC, ("mjpg.jpeg", KEY)},
    ),
    "exponent of a log-mel value": (
        lambda f: flip(f, KEY, lambda row: row["mel_offset"] + 1129, 0x7E),
        {SHA, CRC, ("mel.values", KEY)},
    ),
    "NPY magic": (lambda f: flip(f, KEY, lambda row: row["mel_offset"]), {SHA, CRC, ("mel.header", KEY)}),
    "brace of the JSON": (lambda f: flip(f, KEY, lambda row: row["json_offset"]), {SHA, CRC, ("json.damaged", KEY)}),
    "header of the log-mel": (
        lambda f: flip(f, KEY, lambda row: row["mel_offset"] - 500),
        {SHA, ("tar.header", KEY), ("shard.count", None)},
    ),
    "header of the sample": (
        lambda f: flip(f, KEY, lambda row: row["json_offset"] - 512),
        {SHA, ("tar.header", KEY), ("shard.count", None)},
    ),
}


@pytest.mark.parametrize("what", RAW)
def test_flipped_bits_are_found(what: str, folder: Path) -> None:
    damage, expected = RAW[what]
    damage(folder)
    assert faults(folder) == expected


def two_samples(folder: Path) -> tuple[str, list[dict]]:
    """A shard of the split train with two samples, and its rows."""
    rows = index(folder)
    shard = next(row["shard"] for i, row in enumerate(rows) if i and rows[i - 1]["shard"] == row["shard"])
    return shard, [row for row in rows if row["shard"] == shard]


def test_sample_after_a_damaged_header_is_read(folder: Path) -> None:
    _, (first, second) = two_samples(folder)
    flip(folder, first["key"], lambda row: row["mel_offset"] - 500)
    flip(folder, second["key"], lambda row: row["mjpg_offset"])
    found = faults(folder)
    assert {("tar.header", first["key"]), ("mjpg.jpeg", second["key"])} <= found
    assert not [code for code, key in found if code == "sample.missing"]


def test_truncated_tar_names_the_truncated_sample_and_those_after_it(folder: Path) -> None:
    shard, (first, second) = two_samples(folder)
    data = (folder / shard).read_bytes()
    (folder / shard).write_bytes(data[: second["mel_offset"] + 100])
    assert {("tar.truncated", second["key"]), ("shard.size", None)} <= faults(folder)
    (folder / shard).write_bytes(data[: first["mjpg_offset"] + 100])
    found = faults(folder)
    assert {("tar.truncated", first["key"]), ("sample.missing", second["key"]), ("shard.size", None)} <= found
    (folder / shard).write_bytes(data[: second["mjpg_offset"] + second["mjpg_size"] // 512 * 512 + 512])
    assert faults(folder) == {("tar.truncated", None), ("shard.size", None)}
    (folder / shard).write_bytes(data + b"more")
    assert faults(folder) == {("tar.end", None), ("shard.size", None)}


def test_missing_tar_names_its_samples(folder: Path) -> None:
    shard, rows = two_samples(folder)
    (folder / shard).unlink()
    assert faults(folder) == {("shard.missing", None), *(("sample.missing", row["key"]) for row in rows)}
    assert not verify(folder, workers=1).statistics_checked


def drop_line(folder: Path) -> None:
    path = (folder / row_of(folder, KEY)["shard"]).with_suffix(".idx")
    path.write_text("\n".join(line for line in path.read_text().splitlines() if KEY not in line) + "\n")


def shift_idx(folder: Path) -> None:
    row = row_of(folder, KEY)
    path = (folder / row["shard"]).with_suffix(".idx")
    path.write_text(path.read_text().replace(f"mjpg {row['mjpg_offset']} ", f"mjpg {row['mjpg_offset'] + 512} "))


def drop_row(folder: Path) -> None:
    rewrite_index(folder, [row for row in index(folder) if row["key"] != KEY])


def add_row(folder: Path) -> None:
    rows = index(folder)
    rewrite_index(folder, [*rows, {**rows[-1], "key": "ghost_0", "json_offset": 1 << 40}])


def reorder(folder: Path) -> None:
    shard, rows = two_samples(folder)
    others = index(folder)
    place = next(i for i, row in enumerate(others) if row["shard"] == shard)
    others[place : place + 2] = rows[::-1]
    rewrite_index(folder, others)


def swap_labels(folder: Path) -> None:
    lines = (folder / "labels.csv").read_text().replace("0,a,", "0,x,")
    (folder / "labels.csv").write_text(lines)


def add_failure(folder: Path) -> None:
    path = folder / "failures.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    pq.write_table(pa.Table.from_pylist([*rows, {**rows[0], "key": KEY, "split": "train"}], schema=table.schema), path)


def unversioned(folder: Path) -> None:
    path = folder / "train.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)


def set_field(*place: str | int, value: object) -> Callable[[Path], None]:
    def change(info: Any) -> None:
        for part in place[:-1]:
            info = info[part]
        info[place[-1]] = value

    return lambda folder: edit_dataset(folder, change)


WITH_A = ["whole_0", "whole_3300", "tall_0"]
OUTSIDE: dict[str, tuple[Callable[[Path], object], set[Fault]]] = {
    "another SHA-256": (set_field("splits", "train", "shards", 0, "sha256", value="0" * 64), {SHA}),
    "another digest": (set_field("config_digest", value="0" * 16), {("dataset.digest", None)}),
    "another count": (set_field("splits", "eval", "samples", value=3), {("dataset.count", None)}),
    "another length": (set_field("splits", "train", "seconds", value=14.0), {("dataset.seconds", None)}),
    "another mean": (set_field("log_mel_statistics", "mean", value=-1.46), {("statistics.mean", None)}),
    "no mean": (set_field("log_mel_statistics", "std", value=float("inf")), {("statistics.std", None)}),
    "statistics of the wrong split": (
        set_field("log_mel_statistics", "split", value="eval"),
        {("statistics.split", None), ("statistics.mean", None), ("statistics.std", None)},
    ),
    "unlisted tar": (lambda f: shutil.copy(f / "train-000000.tar", f / "train-000009.tar"), {("shard.unlisted", None)}),
    "unlisted further tar": (
        lambda f: shutil.copy(f / "train-000000.tar", f / "train-000003-1.tar"),
        {("shard.unlisted", None)},
    ),
    "unlisted tar of another split": (lambda f: (f / "old-split-000000.tar").touch(), {("shard.unlisted", None)}),
    "unlisted idx": (lambda f: (f / "train-000000-2.idx").touch(), {("shard.unlisted", None)}),
    "unlisted index": (lambda f: shutil.copy(f / "train.parquet", f / "test.parquet"), {("shard.unlisted", None)}),
    "no idx": (lambda f: (f / "train-000000.idx").unlink(), {("idx.missing", None)}),
    "idx without the sample": (drop_line, {("idx.entry", KEY), ("idx.samples", None)}),
    "idx with another offset": (shift_idx, {("idx.entry", KEY)}),
    "index offset": (lambda f: edit_index(f, KEY, mjpg_offset=512), {("index.offset", KEY)}),
    "index size": (lambda f: edit_index(f, KEY, mel_size=51_200), {("index.offset", KEY)}),
    "index label": (lambda f: edit_index(f, KEY, labels=[1]), {("json.index", KEY)}),
    "index without the sample": (drop_row, {("index.missing", KEY), ("dataset.count", None), ("dataset.seconds", None)}),
    "index with a ghost": (add_row, {("sample.missing", "ghost_0"), ("dataset.count", None), ("dataset.seconds", None)}),
    "index under another shard": (
        lambda f: edit_index(f, KEY, shard="train-000077.tar"),
        {("index.shard", KEY), ("index.missing", KEY)},
    ),
    "index without version": (unversioned, {("index.damaged", None)}),
    "no index": (lambda f: (f / "train.parquet").unlink(), {("index.damaged", None)}),
    "other label ids": (swap_labels, {("json.labels", key) for key in WITH_A}),
    "no labels": (lambda f: (f / "labels.csv").unlink(), {("labels.damaged", None)}),
    "a failure that is packed": (add_failure, {("failures.packed", KEY), ("failures.count", None)}),
    "garbage for failures": (lambda f: (f / "failures.parquet").write_bytes(b"PAR1"), {("failures.damaged", None)}),
    "multiclass": (set_field("task", value="multiclass"), {("json.labels", key) for key in ("whole_0", "tall_0", "vgg_12000")}),
}


@pytest.mark.parametrize("what", OUTSIDE)
def test_faults_outside_the_tars_are_found(what: str, folder: Path) -> None:
    damage, expected = OUTSIDE[what]
    damage(folder)
    assert faults(folder) == expected


def test_rows_in_another_order_are_found(folder: Path) -> None:
    reorder(folder)
    assert {code for code, _ in faults(folder)} == {"index.order"}


def test_failures_are_optional(folder: Path) -> None:
    (folder / "failures.parquet").unlink()
    assert faults(folder) == set()


def progressive(frames: list[bytes]) -> list[bytes]:
    return [frames[0], jpeg((456, 256), progressive=True), *frames[2:]]


MEL: set[Fault] = {("mel.values", KEY)}
SHAPE: set[Fault] = {("mel.shape", KEY)}
DEEP: dict[str, tuple[Callable[[Path], object], set[Fault]]] = {
    "NaN": (lambda f: edit_mel(f, KEY, with_value(np.nan)), MEL),
    "infinity": (lambda f: edit_mel(f, KEY, with_value(np.inf)), MEL),
    "below the floor": (lambda f: edit_mel(f, KEY, with_value(-14.0)), MEL),
    "single precision": (lambda f: edit_mel(f, KEY, lambda a: a.astype("<f4")), SHAPE),
    "big endian": (lambda f: edit_mel(f, KEY, lambda a: a.astype(">f2")), SHAPE),
    "Fortran order": (lambda f: edit_mel(f, KEY, np.asfortranarray), SHAPE),
    "a row missing": (lambda f: edit_mel(f, KEY, lambda a: a[:-1]), SHAPE),
    "64 bands": (lambda f: edit_mel(f, KEY, lambda a: np.ascontiguousarray(a[:, :64])), SHAPE),
    "NPY 2.0": (lambda f: edit_mel(f, KEY, lambda a: a, (2, 0)), {("mel.header", KEY)}),
    "truncated values": (lambda f: replace_member(f, f"{KEY}.mel.npy", lambda d: d[:-2]), SHAPE),
    "a frame missing": (lambda f: edit_frames(f, KEY, lambda frames: frames[:-1]), {("json.frame_bytes", KEY)}),
    "an extra byte": (lambda f: replace_member(f, f"{KEY}.mjpg", lambda d: d + b"\0"), {("mjpg.size", KEY)}),
    "two JPEGs as one frame": (
        lambda f: edit_frames(f, KEY, lambda frames: [*frames[:-2], frames[-2] + frames[-1], frames[0]]),
        {("mjpg.jpeg", KEY)},
    ),
    "a frame with another size": (
        lambda f: edit_frames(f, KEY, lambda frames: [jpeg((454, 256)), *frames[1:]]),
        {("mjpg.format", KEY)},
    ),
    "a progressive frame": (lambda f: edit_frames(f, KEY, progressive), {("mjpg.format", KEY)}),
    "a frame of 4:4:4": (
        lambda f: edit_frames(f, KEY, lambda frames: [*frames[:-1], jpeg((456, 256), subsampling=0)]),
        {("mjpg.format", KEY)},
    ),
    "EXIF": (
        lambda f: edit_frames(f, KEY, lambda frames: [*frames[:-1], jpeg((456, 256), exif=b"Exif\0\0MM\0*")]),
        {("mjpg.format", KEY)},
    ),
    "label in the JSON": (lambda f: edit_json(f, KEY, labels=[1]), {("json.index", KEY), ("json.labels", KEY)}),
    "label id in the JSON": (lambda f: edit_json(f, KEY, label_ids=["b"]), {("json.labels", KEY)}),
    "no such class": (lambda f: edit_json(f, KEY, labels=[3], label_ids=["d"]), {("json.index", KEY), ("json.labels", KEY)}),
    "number as text": (lambda f: edit_json(f, KEY, start_ms="500"), {("json.damaged", KEY)}),
    "no source": (lambda f: edit_json(f, KEY, source=None), {("json.damaged", KEY)}),
    "30 frames per second": (lambda f: edit_json(f, KEY, fps=30), {("json.damaged", KEY)}),
    "another key": (lambda f: edit_json(f, KEY, key="other_0"), {("json.key", KEY), ("json.index", KEY)}),
    "another split": (lambda f: edit_json(f, KEY, split="eval"), {("json.split", KEY), ("json.index", KEY)}),
    "longer clip": (
        lambda f: (edit_json(f, KEY, end_ms=9000), edit_index(f, KEY, end_ms=9000)),
        {("json.length", KEY)},
    ),
    "all padding": (
        lambda f: (edit_json(f, KEY, padded_frames=50), edit_index(f, KEY, padded_frames=50)),
        {("json.length", KEY)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DEEP)
def test_damage_with_matching_checksums_is_found(what: str, folder: Path) -> None:
    damage, expected = DEEP[what]
    damage(folder)
    assert faults(folder) == expected


def test_other_values_of_the_log_mel_show_in_the_statistics(folder: Path) -> None:
    edit_mel(folder, KEY, with_value(20.0))
    assert faults(folder) == {("statistics.mean", None), ("statistics.std", None)}


def test_only_decoding_finds_a_damaged_scan(folder: Path) -> None:
    def damage(frames: list[bytes]) -> list[bytes]:
        return [*frames[:20], frames[20][:900] + b"\x55" * 200 + frames[20][1100:], *frames[21:]]

    edit_frames(folder, KEY, damage)
    assert faults(folder) == set()
    (fault,) = verify(folder, workers=1, decode=True).faults
    assert (fault.code, fault.key, fault.shard) == ("mjpg.decode", KEY, row_of(folder, KEY)["shard"])
    assert fault.what == "frame 20 does not decode"


def grouped(content: Members) -> dict[str, Members]:
    groups: dict[str, Members] = {}
    for name, data in content:
        groups.setdefault(name.partition(".")[0], []).append((name, data))
    return groups


def of_key(change: Callable[[Members], Members]) -> Callable[[Members], Members]:
    """Changes only the members of the sample KEY."""
    return lambda content: [
        member for key, sample in grouped(content).items() for member in (change(sample) if key == KEY else sample)
    ]


ARCHIVE: dict[str, tuple[Callable[[Members], Members], set[Fault]]] = {
    "swapped members": (of_key(lambda sample: [sample[1], sample[0], sample[2]]), {("members.order", KEY)}),
    "no frames": (of_key(lambda sample: sample[:2]), {("members.missing", KEY)}),
    "sample twice": (of_key(lambda sample: sample + sample), {("members.order", KEY), ("idx.entry", KEY)}),
    "new member, as a later version may have": (of_key(lambda sample: [*sample, (f"{KEY}.later", b"more")]), set()),
}


@pytest.mark.parametrize("what", ARCHIVE)
def test_members_out_of_place_are_found(what: str, folder: Path) -> None:
    change, expected = ARCHIVE[what]
    rewrite(folder, row_of(folder, KEY)["shard"], change)
    assert faults(folder) == expected


def test_members_that_are_not_adjacent_are_found(folder: Path) -> None:
    shard, (first, second) = two_samples(folder)
    rewrite(folder, shard, lambda content: [content[i] for i in (0, 3, 1, 2, 4, 5)])
    found = faults(folder)
    assert {("members.missing", first["key"]), ("key.twice", first["key"])} <= found
    assert {("members.missing", second["key"]), ("key.twice", second["key"])} <= found


def test_sample_that_is_not_in_the_index_is_found(folder: Path) -> None:
    shard = row_of(folder, KEY)["shard"]
    extra = [("extra_0.json", b"{}"), ("extra_0.mel.npy", npy(np.zeros((4, 128), "<f2"))), ("extra_0.mjpg", b"")]
    rewrite(folder, shard, lambda content: [*content, *extra])
    assert faults(folder) == {("index.missing", "extra_0"), ("json.damaged", "extra_0"), ("shard.count", None)}


@pytest.mark.parametrize(("field", "value"), [("mode", 0o644), ("mtime", 1), ("uid", 1000)])
def test_headers_with_traces_of_the_machine_are_found(field: str, value: int, folder: Path) -> None:
    rewrite(folder, row_of(folder, "early_0")["shard"], lambda content: content, **{field: value})
    assert {code for code, _ in faults(folder)} == {"tar.format"}


def test_sample_in_two_shards_is_found(folder: Path) -> None:
    row, other = row_of(folder, KEY), row_of(folder, OTHER)
    assert row["shard"] != other["shard"]
    edit_index(folder, KEY, key=OTHER)
    rename = [(f"{KEY}.{extension}", f"{OTHER}.{extension}") for extension in COLUMNS]
    rewrite(folder, row["shard"], lambda content: [(dict(rename).get(name, name), data) for name, data in content])
    found = verify(folder, workers=1).faults
    (in_index, in_tars) = (fault for fault in found if fault.code == "key.twice")
    assert (in_index.key, in_index.what) == (OTHER, "it appears 2 times in train.parquet")
    first, second = sorted((row["shard"], other["shard"]))
    assert (in_tars.key, in_tars.what) == (OTHER, f"it is in {first} and in {second}")


def test_removed_clips_that_are_still_in_the_folder_are_found(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "removed.txt"
    path.write_text("# requested on a Monday\nwhole\n\n  half_0   # by key\n-dash#\nabsent\nsilent_0\n")
    assert read_removed(path) == {"whole", "half_0", "-dash#", "absent", "silent_0"}
    assert faults(folder, removed=path) == {("removed.listed", key) for key in ("whole_0", "whole_3300", "half_0")}
    assert verify(folder, workers=1, removed=path).summary().splitlines()[0] == (
        "removed: 1 of 5 entries match no clip of the dataset, such as '-dash#'"
    )
    path.write_text("whole\nhalf_0\nsilent_0\n")
    assert not verify(folder, workers=1, removed=path).unmatched
    path.write_text("# whole\nhalf\n-dash\n")
    assert faults(folder, removed=path) == {("removed.listed", "half_0"), ("removed.listed", "-dash_500")}


def test_command_prints_one_line_per_fault_and_exits_with_one(mbt: Door, folder: Path) -> None:
    flip(folder, KEY, lambda row: row["mjpg_offset"])
    shard = row_of(folder, KEY)["shard"]
    outcome = mbt("shards", "verify", folder, "--workers", 1)
    assert outcome.code == 1
    first, second, third, last = outcome.out.splitlines()
    assert re.fullmatch(f"{shard}: {KEY}: sample.crc32: its CRC-32 is [0-9a-f]{{8}}; the index says [0-9a-f]{{8}}", first)
    assert second == f"{shard}: {KEY}: mjpg.jpeg: frame 0 starts with 00 d8 and ends with ff d9, not ff d8 and ff d9"
    assert third == f"{shard}: shard.sha256: its SHA-256 is not the one in dataset.json"
    assert last.endswith("DAMAGED: 3 faults, 1 damaged sample (1 sample.crc32, 1 mjpg.jpeg, 1 shard.sha256)")


def test_command_reads_with_several_processes(mbt: Door, folder: Path) -> None:
    edit_mel(folder, KEY, with_value(np.nan))
    outcome = mbt("shards", "verify", folder, "--workers", 2, "--json")
    report = json.loads(outcome.out)
    assert (outcome.code, report["whole"], report["samples"], report["shards"]) == (1, False, 8, len([*folder.glob("*.tar")]))
    (fault,) = report["faults"]
    assert (fault["code"], fault["key"], fault["what"]) == ("mel.values", KEY, "1 values are not finite")


def test_folder_without_faults_exits_with_zero(mbt: Door, packed: Path) -> None:
    outcome = mbt("shards", "verify", packed, "--workers", 1)
    assert (outcome.code, outcome.out.rstrip().endswith("no faults")) == (0, True)


def test_folder_without_dataset_json_is_rejected(mbt: Door, folder: Path, tmp_path: Path) -> None:
    outcome = mbt("shards", "verify", folder, "--removed", tmp_path / "none.txt")
    assert (outcome.code, outcome.err.startswith("error: cannot read the removal list")) == (2, True)
    (folder / "dataset.json").unlink()
    outcome = mbt("shards", "verify", folder)
    assert (outcome.code, "has no dataset.json" in outcome.err) == (2, True)


def test_other_peoples_files_in_the_folder_are_not_faults(packed: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(packed, tmp_path / "out"))
    pq.write_table(pq.read_table(out / "train.parquet").replace_schema_metadata(None), out / "mine.parquet")
    for name in ("media.tar", "train-1.tar", "notes.parquet", "train-000000.tar.md5"):
        (out / name).write_text("mine")
    assert verify(out, workers=1).whole
