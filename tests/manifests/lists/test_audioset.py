"""AudioSet's lists: invalid rows, and the parser and the shipped tables against Python's csv module."""

import csv
import lzma
import re
import time
from pathlib import Path

import pytest

from mbt.manifests.clips import Clip, table_clips
from mbt.manifests.errors import InputError
from mbt.manifests.labels import read_labels
from mbt.manifests.lists.audioset import audioset_labels, segments_table, shipped_segments

HEADER = "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=3\n# YTID, start_seconds, end_seconds, positive_labels\n"
SPEECH, MUSIC = "/m/09x0r", "/m/04rlf"
EXCERPTS = Path(__file__).parents[2] / "excerpts" / "audioset"


def write(folder: Path, text: str) -> Path:
    path = folder / "segments.csv"
    path.write_bytes(text.encode())
    return path


def read(folder: Path, text: str) -> list[Clip]:
    return table_clips(segments_table(write(folder, text), "train"))


def official_rows(path: Path) -> list[tuple[str, float, float, set[str]]]:
    """Id, start and end in seconds, and label ids of each row, by Python's csv module."""
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file, skipinitialspace=True) if not row[0].startswith("#")]
    return [(video_id, float(start), float(end), set(mids.split(","))) for video_id, start, end, mids in rows]


def test_rows_become_clips_in_order(tmp_path: Path) -> None:
    text = (
        f'--4gqARaEJE, 0.000, 10.000, "{SPEECH}"\n'
        f'__zYIqoXI-0, 30.000, 36.500, "{MUSIC},{SPEECH}"\n'
        f'Zx-_yW01234, 17.017, 27.017, "{MUSIC}"\n'
    )
    assert read(tmp_path, HEADER + text) == [
        Clip("--4gqARaEJE_0", "--4gqARaEJE", 0, 10_000, "train", (0,)),
        Clip("__zYIqoXI-0_30000", "__zYIqoXI-0", 30_000, 36_500, "train", (0, 137)),
        Clip("Zx-_yW01234_17017", "Zx-_yW01234", 17_017, 27_017, "train", (137,)),
    ]


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(b"\xef\xbb\xbf" + f'abcdefghijk, 0.000, 10.000, "{SPEECH}"\n'.encode())
    assert [clip.key for clip in table_clips(segments_table(path, "train"))] == ["abcdefghijk_0"]


def test_crlf_and_blank_lines_are_read(tmp_path: Path) -> None:
    row = f'abcdefghijk, 1.000, 2.000, "{SPEECH}"\n'
    assert read(tmp_path, (HEADER + "\n" + row).replace("\n", "\r\n")) == read(tmp_path, row)
    assert len(read(tmp_path, (HEADER + row).replace("\n", "\r\n"))) == 1


@pytest.mark.parametrize(
    "row",
    [
        f'abcdefghij, 0.000, 10.000, "{SPEECH}"',
        f'abcdefghijk,0.000,10.000,"{SPEECH}"',
        f"abcdefghijk, 0.000, 10.000, {SPEECH}",
        'abcdefghijk, 0.000, 10.000, ""',
        f'abcdefghijk, -1.000, 10.000, "{SPEECH}"',
        f'abcdefghijk, zero, 10.000, "{SPEECH}"',
        "empty",
    ],
)
def test_invalid_row_is_named_with_its_line(tmp_path: Path, row: str) -> None:
    with pytest.raises(InputError, match="line 5: invalid row"):
        read(tmp_path, HEADER + f'abcdefghijk, 0.000, 10.000, "{SPEECH}"\n' + row + "\n")


def test_clip_that_ends_before_it_starts_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 4: the clip ends before it starts"):
        read(tmp_path, HEADER + f'abcdefghijk, 10.000, 10.000, "{SPEECH}"\n')


@pytest.mark.parametrize("label", ["/m/nothing", "{row}", "}"])
def test_unknown_label_is_named_with_its_line(tmp_path: Path, label: str) -> None:
    with pytest.raises(InputError, match=f"line 4: unknown label id '{re.escape(label)}': 'abcdefghijk, 0.000"):
        read(tmp_path, HEADER + f'abcdefghijk, 0.000, 10.000, "{SPEECH},{label}"\n')


def test_unknown_label_that_is_a_prefix_of_a_known_one_is_named_with_its_own_line(tmp_path: Path) -> None:
    rows = [f'abcdefghijk, 0.000, 10.000, "{SPEECH}"', f'bcdefghijkl, 0.000, 10.000, "{SPEECH[:-1]}"']
    with pytest.raises(InputError, match="line 5: unknown label id '/m/09x0'"):
        read(tmp_path, HEADER + "\n".join(rows) + "\n")


@pytest.mark.parametrize("text", ["", HEADER, "\n\n"])
def test_list_without_clips_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="is empty"):
        read(tmp_path, text)


def test_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the list"):
        segments_table(tmp_path / "nothing.csv", "train")


def test_binary_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"\x1f\x8b\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read the list"):
        segments_table(tmp_path / "list.csv", "train")


def test_clip_listed_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, f'abcdefghijk, 0.000, 10.000, "{SPEECH}"\n' * 2)
    with pytest.raises(InputError, match="'abcdefghijk_0' is duplicated"):
        segments_table(path, "train")


@pytest.mark.parametrize(
    ("subset", "split", "clips", "labels", "short", "fractional"),
    [("balanced", "train", 22_160, 52_882, 345, 7), ("eval", "eval", 20_371, 51_804, 361, 3)],
)
def test_shipped_lists_have_the_official_counts(
    subset: str, split: str, clips: int, labels: int, short: int, fractional: int
) -> None:
    shipped = table_clips(shipped_segments(subset))
    assert len(shipped) == len({clip.key for clip in shipped}) == clips
    assert sum(len(clip.labels) for clip in shipped) == labels
    assert sum(clip.end_ms - clip.start_ms < 10_000 for clip in shipped) == short
    assert sum(clip.start_ms % 1000 != 0 for clip in shipped) == fractional
    assert {clip.split for clip in shipped} == {split}


def described(clips: list[Clip]) -> list[tuple[str, float, float, set[str]]]:
    """Clips as rows of the official files: id, start and end in seconds, label ids."""
    labels = audioset_labels()
    return [(clip.video_id, clip.start_ms / 1000, clip.end_ms / 1000, set(labels.ids(clip.labels))) for clip in clips]


@pytest.mark.parametrize(
    ("name", "clips", "labels", "short", "fractional", "dashes", "classes"),
    [
        ("balanced_train_segments", 157, 450, 31, 7, 34, 207),
        ("eval_segments", 152, 456, 31, 3, 32, 234),
        ("unbalanced_train_segments", 565, 1302, 33, 62, 367, 527),
    ],
)
def test_excerpts_of_the_official_lists_are_parsed(
    name: str, clips: int, labels: int, short: int, fractional: int, dashes: int, classes: int
) -> None:
    """The counts were taken with grep and awk."""
    parsed = table_clips(segments_table(EXCERPTS / f"{name}.csv", "any"))
    assert described(parsed) == official_rows(EXCERPTS / f"{name}.csv")
    assert len(parsed) == len({clip.key for clip in parsed}) == clips
    assert sum(len(clip.labels) for clip in parsed) == labels
    assert sum(clip.duration_ms < 10_000 for clip in parsed) == short
    assert sum(clip.start_ms % 1000 != 0 for clip in parsed) == fractional
    assert sum(clip.video_id.startswith("-") for clip in parsed) == dashes
    assert len({label for clip in parsed for label in clip.labels}) == classes
    assert (min(clip.duration_ms for clip in parsed), max(clip.start_ms for clip in parsed)) == (1000, 590_000)


@pytest.mark.parametrize(("subset", "name"), [("balanced", "balanced_train_segments"), ("eval", "eval_segments")])
def test_shipped_lists_hold_the_rows_of_the_excerpts(subset: str, name: str) -> None:
    rows = official_rows(EXCERPTS / f"{name}.csv")
    ids = {video_id for video_id, *_ in rows}
    assert described([clip for clip in table_clips(shipped_segments(subset)) if clip.video_id in ids]) == rows


@pytest.mark.parametrize(("subset", "name"), [("balanced", "balanced_train_segments"), ("eval", "eval_segments")])
def test_shipped_and_parsed_lists_equal_the_official_ones(official_lists: Path, subset: str, name: str) -> None:
    path = official_lists / "audioset" / f"{name}.csv"
    expected = official_rows(path)
    assert described(table_clips(shipped_segments(subset))) == expected
    assert described(table_clips(segments_table(path, "any"))) == expected


def test_labels_equal_the_official_ones() -> None:
    with (EXCERPTS / "class_labels_indices.csv").open(newline="") as file:
        expected = [(int(row["index"]), row["mid"], row["display_name"]) for row in csv.DictReader(file)]
    labels = audioset_labels()
    assert [(i, label.id, label.display_name) for i, label in enumerate(labels.labels)] == expected
    assert len(labels) == 527
    assert labels.index[MUSIC] == 137
    assert read_labels(EXCERPTS / "class_labels_indices.csv") == labels


@pytest.mark.slow
def test_unbalanced_list_parses_within_a_minute(official_lists: Path, tmp_path: Path) -> None:
    path = tmp_path / "unbalanced.csv"
    packed = official_lists / "audioset" / "unbalanced_train_segments.csv.xz"
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    start = time.process_time()
    table = segments_table(path, "train")
    assert time.process_time() - start < 60
    starts, ends = table["start_ms"].to_numpy(), table["end_ms"].to_numpy()
    labels = table["labels"].combine_chunks().flatten().to_numpy()
    assert (table.num_rows, len(labels)) == (2_041_789, 4_020_212)
    assert (int((ends - starts < 10_000).sum()), int((starts % 1000 != 0).sum())) == (23_365, 62)
    names = audioset_labels().names()
    counts = {"Speech": 999_421, "Music": 999_366, "Guitar": 50_941, "Toothbrush": 7, "Gargling": 17}
    assert {name: int((labels == names.index(name)).sum()) for name in counts} == counts
