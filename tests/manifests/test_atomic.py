"""Atomic writes: files appear complete or not at all, also on a full disk."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mbt.manifests.atomic import atomic_file, exclusive_writer, nearest_existing, write_bytes, write_table, write_text
from mbt.manifests.errors import StorageError


def test_file_appears_only_when_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on the way" / "file"
    with atomic_file(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        assert all(other.name.startswith(".") for other in path.parent.iterdir())
    assert path.read_bytes() == b"half"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_error_in_the_block_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, sys
from pathlib import Path
from mbt.manifests.atomic import atomic_file
with atomic_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    os._exit(1)
"""


def test_only_partial_files_of_dead_writers_are_deleted(tmp_path: Path) -> None:
    """Not a file that another process is writing, nor files of other programs, whatever their names are."""
    (tmp_path / "work").mkdir()
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "work" / "plan.json")]).returncode == 1
    assert len(list((tmp_path / "work").iterdir())) == 1
    others = {".notes.tmp", ".report.html.abcd1234.tmp", "work/.x.tmp"}
    for name in others:
        (tmp_path / name).write_text("not ours")
    with atomic_file(tmp_path / "report.html") as file:
        with exclusive_writer(tmp_path):
            left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob(".*") if path.is_file()}
            assert {name for name in left - others if not name.startswith(".report.html.")} == {".lock"}
            assert others < left
        file.write(b"whole")
    assert (tmp_path / "report.html").read_bytes() == b"whole"


def test_write_replaces_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old, but good")
    write_text(tmp_path / "file", "größer")
    assert (tmp_path / "file").read_bytes() == b"gr\xc3\xb6\xc3\x9fer"


def test_table_is_stored_as_parquet(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", pa.table({"n": [3, 1, 2]}))
    assert pq.read_table(tmp_path / "t.parquet").to_pydict() == {"n": [3, 1, 2]}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_errors_about_space_and_permission_are_storage_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=f"cannot write {tmp_path}/file: "):
        write_bytes(tmp_path / "file", b"data")
    assert not list(tmp_path.iterdir())


def test_other_errors_are_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="broken disk"):
        write_bytes(tmp_path / "file", b"data")


@pytest.mark.parametrize("below", [".", "deeper"])
def test_file_where_a_folder_should_be_is_a_storage_error(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        write_bytes(tmp_path / "file" / below / "name", b"data")


def test_nearest_existing_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for path, nearest in {"a/b": tmp_path, "": tmp_path, "file/c": tmp_path / "file", f"{tmp_path}/d": tmp_path}.items():
        assert nearest_existing(Path(path)) == nearest


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_full_disk_is_a_storage_error_and_keeps_the_old_file(tiny_disk: Path) -> None:
    write_bytes(tiny_disk / "file", b"old")
    with pytest.raises(StorageError, match="no space left"):
        write_bytes(tiny_disk / "file", bytes(1 << 20))
    assert [path.name for path in tiny_disk.iterdir()] == ["file"]
    assert (tiny_disk / "file").read_bytes() == b"old"
