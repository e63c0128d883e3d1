"""Clip tables, label lists and custom lists."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mbt.manifests.clips import KEY_PATTERN, SCHEMA, Clip, check_clips, clip_key, clip_table, read_clips, table_clips
from mbt.manifests.errors import InputError
from mbt.manifests.labels import Label, LabelSet, read_labels
from mbt.manifests.lists.custom import custom_clips

CLIPS = (Clip("a_0", "a", 0, 10_000, "train", (0, 2)), Clip("-b_c_1500", "-b_c", 1500, 4000, "eval", ()))
LABELS = LabelSet((Label("x", "Ex"), Label("y", 'Why, "really"'), Label("z", "Zett")))


def row(**changes: object) -> dict[str, object]:
    good = {"key": "a_0", "video_id": "a", "start_ms": 0, "end_ms": 1, "split": "train", "labels": [0]}
    return {**good, **changes}


def test_key_is_id_and_milliseconds() -> None:
    assert clip_key("-x_Y", 30_017) == "-x_Y_30017"


def test_the_key_of_a_path_is_valid_unique_and_says_what_it_is() -> None:
    paths = ["a/b_c", "a_b/c", "a b/c", "é/1", "è/1", "deep/" * 30 + "x", "x" * 90]
    keys = [clip_key(path, 1500) for path in paths]
    assert len(set(keys)) == len(paths)
    assert all(KEY_PATTERN.fullmatch(key) and key.endswith("_1500") for key in keys)
    assert keys[0].startswith("a_b_c-")
    assert keys[0] != clip_key("a/b_c", 1501)


def test_duration_is_end_minus_start() -> None:
    assert [clip.duration_ms for clip in CLIPS] == [10_000, 2500]


def test_table_holds_the_clips(tmp_path: Path) -> None:
    table = clip_table(CLIPS)
    assert table.to_pydict() == {
        "key": ["a_0", "-b_c_1500"],
        "video_id": ["a", "-b_c"],
        "start_ms": [0, 1500],
        "end_ms": [10_000, 4000],
        "split": ["train", "eval"],
        "labels": [[0, 2], []],
    }
    pq.write_table(table, tmp_path / "clips.parquet")
    assert table_clips(read_clips(tmp_path / "clips.parquet")) == list(CLIPS)


def test_other_column_orders_and_narrower_types_are_accepted() -> None:
    columns = {"labels": pa.array([[0]], pa.list_(pa.int64())), "start_ms": pa.array([5], pa.int32())}
    table = pa.table({**columns, "extra": [1], "split": ["train"], "end_ms": [9], "video_id": ["v"], "key": ["k"]})
    checked = check_clips(table, "here")
    assert checked.schema == SCHEMA
    assert table_clips(checked) == [Clip("k", "v", 5, 9, "train", (0,))]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "has no clips"),
        ([row(key="a.b")], r"the key 'a\.b' is invalid"),
        ([row(key="")], "the key '' is invalid"),
        ([row(key="x" * 81)], "is invalid"),
        ([row(key="a\n")], "is invalid"),
        *[
            ([row(video_id=video_id)], "the video id .* is invalid")
            for video_id in (
                "",
                "../x",
                "a/../b",
                "a/..",
                "/etc/x",
                "./x",
                "a//b",
                "a/",
                "..",
                ".",
                "a\\b",
                "a\nb",
                "a\0b",
                "x" * 201,
            )
        ],
        ([row(), row(start_ms=0)], "'a_0' is duplicated"),
        ([row(start_ms=7, end_ms=7)], "a_0 ends before it starts"),
        ([row(split="")], "the split name '' is invalid"),
        ([row(split=None)], "is not a clip table: .*'split' with null values"),
        ([row(split="../train")], r"the split name '\.\./train' is invalid"),
        ([row(split="failures")], "the split name 'failures' is invalid"),
    ],
)
def test_invalid_rows_are_named(rows: list[dict[str, object]], reason: str) -> None:
    with pytest.raises(InputError, match=f"here.*{reason}"):
        check_clips(pa.Table.from_pylist(rows, schema=SCHEMA), "here")


@pytest.mark.parametrize("video_id", ["-_", "day1/001", "a..b", ".hidden", "a b", "é", "x" * 200])
def test_names_of_files_are_video_ids(video_id: str) -> None:
    assert check_clips(pa.Table.from_pylist([row(video_id=video_id)], schema=SCHEMA), "here").num_rows == 1


def test_missing_column_is_named() -> None:
    with pytest.raises(InputError, match="is not a clip table"):
        check_clips(clip_table(CLIPS).drop_columns(["labels"]), "here")


def test_file_that_is_not_a_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clips.parquet").write_bytes(b"PAR1 not at all")
    for name in ("clips.parquet", "nothing.parquet"):
        with pytest.raises(InputError, match="cannot read the clip table"):
            read_clips(tmp_path / name)


def test_labels_are_written_as_csv_and_read_back(tmp_path: Path) -> None:
    LABELS.write(tmp_path / "labels.csv")
    assert (tmp_path / "labels.csv").read_text() == 'index,id,display_name\n0,x,Ex\n1,y,"Why, ""really"""\n2,z,Zett\n'
    assert read_labels(tmp_path / "labels.csv") == LABELS
    assert LABELS.index == {"x": 0, "y": 1, "z": 2}
    assert LABELS.ids([2, 0]) == ["z", "x"]


@pytest.mark.parametrize("text", ["id\nx\ny\n", "mid,display_name\nx,x\ny,\n", "display_name,id,index\r\nx,x,0\r\n,y,1\r\n"])
def test_label_lists_with_other_columns_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.csv").write_bytes(text.encode())
    assert read_labels(tmp_path / "labels.csv") == LabelSet((Label("x", "x"), Label("y", "y")))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("id,display_name\n", "is empty"),
        ("name\nx\n", "the header is missing: line 1 has no column id, but 'name'. .* the header id,display_name"),
        ("dog,Dog\ncat,Cat\n", "the header is missing: line 1 has no column id, but 'dog,Dog'"),
        ("id,display_name\n\ndog,Dog, bark\n", "line 3 has more than the 2 fields of the header"),
        ("id,display_name\nx,X\n,Y\n", "line 3 has no label id"),
        ("id\nx\ny\nx\n", "has duplicate label ids"),
        ("index,id\n0,x\n2,y\n", "line 3 has index 2, expected 1"),
    ],
)
def test_invalid_label_list_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=reason):
        read_labels(tmp_path / "labels.csv")


def test_missing_label_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the label list"):
        read_labels(tmp_path / "labels.csv")


def custom(folder: Path, text: str) -> list[Clip]:
    (folder / "clips.csv").write_text(text)
    return table_clips(custom_clips(folder / "clips.csv", LABELS, "multilabel"))


def test_custom_list_is_read_in_any_column_order(tmp_path: Path) -> None:
    text = "labels,split,note,end,start,video_id\nz;x,train,hello,2.5,0.04,vid\n,eval,,11,1,-w\n"
    assert custom(tmp_path, text) == [
        Clip("vid_40", "vid", 40, 2500, "train", (0, 2)),
        Clip("-w_1000", "-w", 1000, 11_000, "eval", ()),
    ]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("v,zero,1,train,x", "line 3: invalid row: the start 'zero' is not a number of seconds"),
        ("v,,1,train,x", "line 3: invalid row: the start '' is not a number of seconds"),
        ("v,0,nan,train,x", "line 3: invalid row: the end 'nan' is not a number of seconds"),
        ("v,0,inf,train,x", "line 3: invalid row: the end 'inf' is not a number of seconds"),
        ("v,0,1e300,train,x", "line 3: invalid row: the end 1e300 is too late"),
        ("v,0,1,train", "line 3: invalid row: the field labels is missing"),
        ("v,0,1,train,x,y", "line 3: invalid row: it has more than the 5 fields of the header.* label ids separated by ;"),
        ("v,2,1,train,x", "line 3: invalid row: the end 1 is not after the start 2"),
        ("v,-1,1,train,x", "line 3: invalid row: the start -1 is negative"),
        ("v,0,1,train,x;unknown", "line 3: unknown label id 'unknown'"),
        ("../v,0,1,train,x", r"the video id '\.\./v' is invalid"),
        ("v,0,1,a/b,x", "the split name 'a/b' is invalid"),
        ("good,0.0,2,train,y", "the clip 'good_0' is duplicated. Remove one row"),
    ],
)
def test_invalid_row_of_a_custom_list_is_named(tmp_path: Path, bad: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        custom(tmp_path, f"video_id,start,end,split,labels\ngood,0,1,train,x\n{bad}\n")


def test_lists_saved_by_excel_are_read(tmp_path: Path) -> None:
    for name, text in {"labels.csv": "id\nx\ny\n", "clips.csv": "video_id,start,end,split,labels\nv,0,1,train,x;y\n"}.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    labels = read_labels(tmp_path / "labels.csv")
    assert [label.id for label in labels.labels] == ["x", "y"]
    clips = table_clips(custom_clips(tmp_path / "clips.csv", labels, "multilabel"))
    assert clips == [Clip("v_0", "v", 0, 1000, "train", (0, 1))]


def test_row_without_a_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 2: invalid row"):
        custom(tmp_path, "labels,start,end,video_id,split\nx,0,1,v\n")


@pytest.mark.parametrize(("text", "reason"), [("", "lacks the column 'video_id'"), ("video_id,start,end,split\n", "'labels'")])
def test_custom_list_without_a_column_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        custom(tmp_path, text)


def test_empty_or_missing_custom_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no clips"):
        custom(tmp_path, "video_id,start,end,split,labels\n")
    with pytest.raises(InputError, match=r"the list .*nothing\.csv does not exist"):
        custom_clips(tmp_path / "nothing.csv", LABELS, "multilabel")


@pytest.mark.parametrize(("labels", "count"), [("", 0), ("x;y", 2)])
def test_a_multiclass_clip_has_one_label(tmp_path: Path, labels: str, count: int) -> None:
    path = tmp_path / "clips.csv"
    path.write_text("video_id,start,end,split,labels\nv,0,1,train,x\nw,0,1,train,x;x\n")
    assert [clip.labels for clip in table_clips(custom_clips(path, LABELS, "multiclass"))] == [(0,), (0,)]
    path.write_text(f"video_id,start,end,split,labels\nv,0,1,train,x\nw,0,1,train,{labels}\n")
    with pytest.raises(InputError, match=rf"line 3: {count} labels, but a multiclass clip has one\. .* --task multilabel"):
        custom_clips(path, LABELS, "multiclass")
