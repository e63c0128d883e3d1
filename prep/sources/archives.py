"""Archives of media files: the members that clips need are copied, in one pass over each archive."""

import hashlib
import json
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO

from mbt.manifests.atomic import atomic_file, write_text
from mbt.prep.sources.media_names import is_ignored, split_media_name

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
ZIP_SUFFIX = ".zip"
COPIES_FOLDER = "raw/archives"
LISTINGS_FOLDER = "work/archives"
MAX_EXPANSION = 100
"""Maximum bytes that are read from an archive, in multiples of its size: media hardly compress."""
CHUNK = 8 << 20
PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What reading an archive raises when it is damaged, encrypted, or compressed by an unknown method."""

Opener = Callable[[], IO[bytes]]
"""Opens a member."""


@dataclass(frozen=True)
class Archive:
    """A tar or zip file.

    Attributes:
        path: the file; absolute.
        folder: the folder that holds it, relative to the source; empty for the source itself.
    """

    path: Path
    folder: str

    @cached_property
    def id(self) -> str:
        """Name of this content of the archive in the dataset folder."""
        status = self.path.stat()
        return _digest(f"{self.path}\0{status.st_size}\0{status.st_mtime_ns}")


def is_archive(name: str) -> bool:
    """Whether a file of this name is an archive."""
    return name.lower().endswith((*TAR_SUFFIXES, ZIP_SUFFIX))


def copy_members(archive: Archive, folder: Path, is_wanted: Callable[[str], bool]) -> tuple[dict[str, Path], str]:
    """Copy the wanted media files of an archive into a dataset folder, each complete or not at all.

    The copies are named by digests, so that no name in an archive is a path outside. A complete pass leaves a list of the
    members: a later call reads the archive again only if it holds wanted members that were not copied.

    Args:
        archive: the archive.
        folder: the dataset folder.
        is_wanted: whether the member of this name is wanted.

    Returns:
        The path of each copy, by the name of the member; and why the archive could not be read to its end, or "".

    Raises:
        StorageError: no space left.
    """
    try:
        listing = folder / LISTINGS_FOLDER / f"{archive.id}.json"
        copies_folder = folder / COPIES_FOLDER / archive.id
        if listing.exists():
            known = {name: _copy_path(copies_folder, name) for name in json.loads(listing.read_bytes()) if is_wanted(name)}
            if all(path.exists() for path in known.values()):
                return known, ""
        return _copy(archive, copies_folder, listing, is_wanted)
    except OSError as error:
        return {}, _reason(error)


def _copy(archive: Archive, folder: Path, listing: Path, is_wanted: Callable[[str], bool]) -> tuple[dict[str, Path], str]:
    copies: dict[str, Path] = {}
    names: list[str] = []
    problem = ""
    try:
        for name, opened in _members(archive.path):
            names.append(name)
            path = _copy_path(folder, name)
            if is_wanted(name):
                try:
                    if not path.exists():
                        with opened() as source, atomic_file(path) as file:
                            shutil.copyfileobj(source, file, CHUNK)
                    copies[name] = path
                except (OSError, *DAMAGE) as error:
                    problem = problem or f"{name}: {_reason(error)}"
    except (OSError, *DAMAGE) as error:
        problem = problem or _reason(error)
    if not problem:
        write_text(listing, json.dumps(names) + "\n")
    return copies, problem


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _copy_path(folder: Path, name: str) -> Path:
    digest = _digest(name)
    return folder / digest[:2] / f"{digest}{Path(name).suffix.lower()}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:24]


def _members(path: Path) -> Iterator[tuple[str, Opener]]:
    """Name and opener of the media files in an archive, in its order.

    Raises:
        TarError: the archive is damaged, or its members are far larger than the archive; also the other errors in DAMAGE.
    """
    limit = MAX_EXPANSION * path.stat().st_size + CHUNK
    read_members = _zip_members if path.name.lower().endswith(ZIP_SUFFIX) else _tar_members
    for name, end, opened in read_members(path):
        if end > limit:
            raise tarfile.ReadError(f"up to {name} it would be more than {MAX_EXPANSION} times as large as the archive")
        *folders, base = (part for part in name.split("/") if part not in ("", "."))
        if split_media_name(base) is not None and not any(map(is_ignored, folders)):
            yield "/".join((*folders, base)), opened


class _Header(tarfile.TarInfo):
    """A header that must be intact: by default, tarfile takes a damaged one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise tarfile.ReadError(f"damaged at byte {tarfile_.offset}: {error}") from None


def _tar_members(path: Path) -> Iterator[tuple[str, int, Opener]]:
    """Name, end in the unpacked tar, and opener of each regular file."""
    with tarfile.open(path, "r:*", tarinfo=_Header) as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # Otherwise they all stay in memory.
            if member.type in PLAIN and not member.issparse():
                yield member.name, member.offset_data + member.size, partial(_opened, tar, member)


def _opened(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    assert file is not None, "only regular files are opened"
    return file


def _zip_members(path: Path) -> Iterator[tuple[str, int, Opener]]:
    """Name, bytes of all members so far, and opener of each file."""
    end = 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            end += member.file_size
            if not member.is_dir():
                yield member.filename, end, partial(archive.open, member)
