"""Archives of media files: what is copied out of them, and what they cannot do."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mbt.manifests.errors import StorageError
from mbt.prep.sources.archives import Archive, copy_members

FILES = {
    "scratch/video/one.mp4": b"1" * 700,
    "./two.MP4": b"2" * 20_000,
    "notes.txt": b"n",
    "__MACOSX/._two.MP4": b"m",
    ".hidden/three.mp4": b"h",
    "three.f140.m4a": b"f",
    "four.wav": b"4",
}
MEDIA = {"scratch/video/one.mp4", "two.MP4", "four.wav"}
TAKEN = {"scratch/video/one.mp4": b"1" * 700, "two.MP4": b"2" * 20_000}


def write_tar(path: Path, files: Mapping[str, bytes], mode: str) -> None:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_zip(path: Path, files: Mapping[str, bytes], method: int) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


WRITERS: dict[str, Callable[[Path, Mapping[str, bytes]], None]] = {
    "a.tar": lambda path, files: write_tar(path, files, "w"),
    "a.tar.gz": lambda path, files: write_tar(path, files, "w:gz"),
    "a.TGZ": lambda path, files: write_tar(path, files, "w:gz"),
    "a.zip": lambda path, files: write_zip(path, files, zipfile.ZIP_DEFLATED),
    "stored.zip": lambda path, files: write_zip(path, files, zipfile.ZIP_STORED),
}


def copied(path: Path, out: Path, wanted: Callable[[str], bool] = TAKEN.__contains__) -> tuple[dict[str, bytes], str]:
    copies, problem = copy_members(Archive(path, ""), out, wanted)
    assert all(copy.is_relative_to(out / "raw/archives") for copy in copies.values())
    return {name: copy.read_bytes() for name, copy in copies.items()}, problem


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", WRITERS)
def test_wanted_media_are_copied_and_nothing_else(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, FILES)
    seen = []
    assert copied(tmp_path / name, tmp_path / "out", lambda member: (seen.append(member), member in TAKEN)[1]) == (TAKEN, "")
    assert set(seen) == MEDIA
    assert {path.suffix for path in files_below(tmp_path / "out/raw")} == {".mp4"}
    assert len(files_below(tmp_path / "out/raw")) == 2


def test_an_archive_is_read_again_only_for_members_that_were_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "a.tar.gz", tmp_path / "out"
    WRITERS["a.tar.gz"](path, FILES)
    assert copied(path, out, {"two.MP4"}.__contains__)[0].keys() == {"two.MP4"}
    reads = []
    opening = tarfile.open
    monkeypatch.setattr("tarfile.open", lambda *args, **kwargs: (reads.append(1), opening(*args, **kwargs))[1])
    assert copied(path, out, {"two.MP4", "not-in-it.mp4"}.__contains__)[0].keys() == {"two.MP4"}
    assert not reads
    assert copied(path, out) == (TAKEN, "")
    assert len(reads) == 1
    WRITERS["a.tar.gz"](path, {"two.MP4": b"changed, " * 100})
    assert copied(path, out) == ({"two.MP4": b"changed, " * 100}, "")


def test_an_interrupted_pass_keeps_its_copies(tmp_path: Path) -> None:
    path, out = tmp_path / "a.tar.gz", tmp_path / "out"
    WRITERS["a.tar.gz"](path, FILES)

    def interrupted(member: str) -> bool:
        if member == "two.MP4":
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        copied(path, out, interrupted)
    (first,) = files_below(out)
    written = first.stat().st_mtime_ns
    assert copied(path, out) == (TAKEN, "")
    assert first.stat().st_mtime_ns == written


def test_a_full_disk_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(28, "No space left on device")

    WRITERS["a.zip"](tmp_path / "a.zip", FILES)
    monkeypatch.setattr("shutil.copyfileobj", fill)
    with pytest.raises(StorageError, match="no space left"):
        copied(tmp_path / "a.zip", tmp_path / "out")
    assert not files_below(tmp_path / "out")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_names_in_an_archive_cannot_leave_the_folder_of_copies(tmp_path: Path, name: str) -> None:
    evil = {"../../evil.mp4": b"e", "/tmp/evil.mp4": b"f", "a/../../../evil.mp4": b"g", "x" * 200 + ".mp4": b"h"}
    WRITERS[name](tmp_path / name, evil)
    contents, problem = copied(tmp_path / name, tmp_path / "out", lambda _: True)
    assert (sorted(contents.values()), problem) == ([b"f", b"h"], "")
    assert {path.name for path in tmp_path.rglob("*") if "evil" in path.name} == set()


def test_links_and_devices_in_a_tar_are_no_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)):
            member = tarfile.TarInfo(f"{number}.mp4")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    assert copied(tmp_path / "a.tar", tmp_path / "out", lambda _: True) == ({}, "")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_a_decompression_bomb_is_not_unpacked(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, {"one.mp4": b"1" * 1000, "two.mp4": bytes(100_000_000), "three.mp4": b"3"})
    assert (tmp_path / name).stat().st_size < 200_000
    contents, problem = copied(tmp_path / name, tmp_path / "out", lambda _: True)
    assert contents == {"one.mp4": b"1" * 1000}
    assert "more than 100 times as large as the archive" in problem


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("a.tar", lambda data: data[:2500]),
        ("a.tar", lambda data: data[: 512 * 3]),
        ("a.tar", lambda data: data[:1536] + b"x" * 512 + data[2048:]),
        ("a.tar.gz", lambda data: data[:-40]),
        ("a.zip", lambda data: data.replace(b"2222", b"2322", 1)),
    ],
)
def test_the_intact_part_of_a_damaged_archive_is_used(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / name
    if name == "a.zip":
        WRITERS["stored.zip"](path, FILES)
    else:
        WRITERS[name](path, {**FILES, "random.mp4": b"".join(hash(n).to_bytes(8, "big") for n in range(0, 9**9, 9**6))})
    path.write_bytes(damage(path.read_bytes()))
    contents, problem = copied(path, tmp_path / "out")
    assert contents["scratch/video/one.mp4"] == TAKEN["scratch/video/one.mp4"]
    assert problem
    assert not [found for found in files_below(tmp_path / "out") if ".tmp" in found.name]
    WRITERS["stored.zip" if name == "a.zip" else name](path, FILES)
    assert copied(path, tmp_path / "out") == (TAKEN, "")


def test_what_is_no_archive_is_said(tmp_path: Path) -> None:
    for name in ("a.tar", "a.zip", "a.tgz"):
        (tmp_path / name).write_bytes(b"no archive at all" * 100)
        contents, problem = copied(tmp_path / name, tmp_path / "out")
        assert contents == {}
        assert problem
        assert "\n" not in problem
    assert copied(tmp_path / "gone.tar", tmp_path / "out")[1]
