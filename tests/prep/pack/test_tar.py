"""Tars of samples have the bytes that tarfile and webdataset write for the same members, and are read back."""

import io
import os
import tarfile
from pathlib import Path

import pytest
import webdataset

from mbt.prep.pack.tar import BLOCK, END, TarError, append_member, archive_size, members

CONTENT = {
    "-a_0.json": b"{}",
    "-a_0.mel.npy": bytes(511),
    "-a_0.mjpg": bytes(512),
    "b_7.json": b"",
    "b_7.mjpg": os.urandom(20_001),
}


def write(path: Path, content: dict[str, bytes]) -> dict[str, int]:
    with path.open("wb") as file:
        offsets = {name: append_member(file, name, data) for name, data in content.items()}
        file.write(bytes(archive_size(file.tell()) - file.tell()))
    return offsets


def test_bytes_are_those_of_tarfile(tmp_path: Path) -> None:
    write(tmp_path / "ours.tar", CONTENT)
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in CONTENT.items():
            header = tarfile.TarInfo(name)
            header.size, header.mode = len(data), 0o444
            tar.addfile(header, io.BytesIO(data))
    assert (tmp_path / "ours.tar").read_bytes() == expected.getvalue()


def test_bytes_are_those_of_webdataset(tmp_path: Path) -> None:
    write(tmp_path / "ours.tar", CONTENT)
    expected = io.BytesIO()
    with webdataset.TarWriter(expected, user="", group="", mode=0o444, mtime=0, encoder=False) as writer:
        for name, data in CONTENT.items():
            key, _, extension = name.partition(".")
            writer.write({"__key__": key, extension: data})
    assert (tmp_path / "ours.tar").read_bytes() == expected.getvalue()


def test_appending_after_closing_the_file_gives_the_same_bytes(tmp_path: Path) -> None:
    offsets = write(tmp_path / "at once.tar", CONTENT)
    path = tmp_path / "one by one.tar"
    for name, data in CONTENT.items():
        with path.open("ab") as file:
            assert append_member(file, name, data) == offsets[name]
    end = path.stat().st_size
    with path.open("ab") as file:
        file.write(bytes(archive_size(end) - end))
    assert path.read_bytes() == (tmp_path / "at once.tar").read_bytes()


@pytest.mark.parametrize(("size", "total"), [(0, 10_240), (9216, 10_240), (9728, 20_480), (10_240, 20_480), (512_000, 522_240)])
def test_archive_has_whole_records(size: int, total: int) -> None:
    assert archive_size(size) == total


def test_members_are_read_back(tmp_path: Path) -> None:
    offsets = write(tmp_path / "x.tar", CONTENT)
    with (tmp_path / "x.tar").open("rb") as file:
        found = list(members(file.fileno()))
        assert {member.name: member.read(file.fileno()) for member in found} == CONTENT
        assert [member.name for member in members(file.fileno(), found[2].offset - BLOCK)] == list(CONTENT)[2:]
    assert {member.name: member.offset for member in found} == offsets
    assert {(member.key, member.violations) for member in found} == {("-a_0", ()), ("b_7", ())}


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (b"", "tar.truncated"),
        (bytes(BLOCK), "tar.truncated"),
        (END[:-1], "tar.truncated"),
        (END + b"x", "tar.end"),
        (END, None),
    ],
)
def test_end_of_archive_is_checked(end: bytes, code: str | None, tmp_path: Path) -> None:
    with (tmp_path / "x.tar").open("w+b") as file:
        append_member(file, "a.json", b"{}")
        file.write(end)
        file.flush()
        if code is None:
            assert [member.name for member in members(file.fileno())] == ["a.json"]
            return
        with pytest.raises(TarError) as error:
            list(members(file.fileno()))
    assert (error.value.code, error.value.position) == (code, 2 * BLOCK)
