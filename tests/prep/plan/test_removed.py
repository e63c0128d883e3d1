"""Removal lists: which lines are read, and which are refused."""

from pathlib import Path

import pytest

from mbt.manifests.errors import InputError
from mbt.prep.plan.removed import read_removed
from tests.conftest import Collection, Door


def listed(folder: Path, *lines: str) -> Path:
    path = folder / "removed.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    "line",
    [
        "https://www.youtube.com/watch?v=-bcdefghij_",
        "http://youtube.com/watch?v=-bcdefghij_&t=10s",
        "https://m.youtube.com/watch?feature=share&v=-bcdefghij_#top  # by mail",
        "https://youtu.be/-bcdefghij_?t=10",
        "youtu.be/-bcdefghij_",
        "-bcdefghij_",
        "\ufeff-bcdefghij_",
    ],
)
def test_a_youtube_url_stands_for_its_id(tmp_path: Path, line: str) -> None:
    assert read_removed(listed(tmp_path, line)) == {"-bcdefghij_"}


@pytest.mark.parametrize(
    "line",
    ["abcdefghijk,private", '"abcdefghijk"', "abcdefghijk by request", "https://example.org/abcdefghijk", "youtu.be/a b"],
)
def test_a_line_that_is_no_key_or_id_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match=r"removed\.txt, line 3: .* is not a key or video id\. Write one key"):
        read_removed(listed(tmp_path, "# list", "lmnopqrstuv", line))


def test_entries_that_match_no_clip_are_counted(collection: Collection, tmp_path: Path, mbt: Door) -> None:
    removed = listed(tmp_path, "whole", "half_0", "tall.mp4")
    run = collection.arguments(tmp_path / "out", "--removed", removed)
    said = "removed: 1 of 3 entries match no clip of the plan, such as 'tall.mp4'"
    for stage in ("plan", "fetch"):
        done = mbt(*run, "--stage", stage)
        assert (done.code, said in done.out.splitlines()) == (0, True)
    listed(tmp_path, "whole", "half_0")
    assert "removed:" not in mbt(*run, "--stage", "fetch").out
