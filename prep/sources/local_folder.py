"""A folder of media files as a source: whole videos or clips, named after clips or videos."""

import filecmp
import os
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mbt.manifests.clips import Clip
from mbt.manifests.errors import InputError
from mbt.prep.media.ffmpeg import ClipError
from mbt.prep.sources.archives import Archive, is_archive
from mbt.prep.sources.media_names import PICTURE_SUFFIXES, SOUND_SUFFIXES, Names, is_ignored, names_of, split_media_name

MISSING, AMBIGUOUS = "local.missing", "local.ambiguous"
MANY = 10
"""Files of one name from which on they are indexed by folder too."""
SHOWN = 3
"""Maximum number of file names in a message."""
FIX = "Give a folder of media files named after clips or videos (docs/datasets.md, Local files), or a URL template"


@dataclass(frozen=True)
class FoundFile:
    """A media file that may hold a clip.

    Attributes:
        path: the file; absolute, with links resolved.
        size: bytes.
        is_cut: its name says that it begins at the clip's start; otherwise it is named after the video.
    """

    path: Path
    size: int
    is_cut: bool


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where files with the same suffix are.

    Attributes:
        folder: the folder, relative to the source, with `/` between its parts; empty for the source itself.
        suffix: suffix of the files.
        copy: the copy of an archive's member; None: a file in the folder.
    """

    folder: str
    suffix: str
    copy: Path | None = None


class LocalFolder:
    """Finds the files of clips among the media files below a folder by their names (see `media_names.names_of`).

    Names are indexed without looking at the files: about 200 bytes of memory per file.

    Args:
        place: the folder, or one archive; `~` and `file://` are understood.
        out: the dataset folder, which is never part of the source.

    Attributes:
        place: the folder or archive.
        archives: the archives, whose members are not indexed: see `add_copies`.
        unread: folders that could not be read, each with the reason.

    Raises:
        InputError: the place does not exist, or holds neither a media file nor an archive.
    """

    name = "local"

    def __init__(self, place: str | Path, out: Path | None = None) -> None:
        self.place = local_path(place)
        self.archives: list[Archive] = []
        self.unread: list[str] = []
        self._spots: dict[str, _Spot | list[_Spot]] = {}
        self._by_folder: dict[str, dict[str, list[_Spot]]] = {}
        if not self.place.exists():
            raise InputError(f"the source {self.place} does not exist", FIX)
        if out is not None and self.place.resolve() == out.resolve():
            raise InputError(f"{self.place} is both the source and the dataset folder", "Choose another --out")
        if self.place.is_dir():
            self._index(out)
        elif is_archive(self.place.name):
            self.archives.append(Archive(self.place.absolute(), ""))
        else:
            raise InputError(f"the source {self.place} is neither a folder nor an archive", FIX)
        if not self._spots and not self.archives:
            reason = "".join(f"; it cannot be read: {folder}" for folder in self.unread[:1])
            raise InputError(f"the source {self.place} holds no media file{reason}", FIX)

    def add_copies(self, archive: Archive, copies: Mapping[str, Path]) -> None:
        """Index copied members of an archive, by name in the archive, as if it had been unpacked in its folder."""
        for member, path in copies.items():
            folder, _, name = member.rpartition("/")
            if media_name := split_media_name(name):
                self._add(media_name[0], _Spot(_joined(archive.folder, folder), media_name[1], path))
        self._by_folder.clear()

    @property
    def example(self) -> str:
        """Name of one of the files, for messages; empty if there are only archives."""
        for stem in self._spots:
            spot = self._spots_of(stem)[0]
            return printable(_joined(spot.folder, stem) + spot.suffix)
        return ""

    def has_pictures(self, clip: Clip) -> bool:
        """Whether there is a video file with a name of the clip."""
        return any(spot.suffix.lower() in PICTURE_SUFFIXES for names in names_of(clip) for _, spot in self._named(names))

    def find(self, clip: Clip, listed: Container[str] = frozenset()) -> FoundFile:
        """The file that holds the clip; one with sound only if there is no other.

        Args:
            clip: a clip.
            listed: video ids of the list, without media suffix: a file with exactly this name is no cut of another video.

        Raises:
            ClipError: `local.missing`, or `local.ambiguous`: several files that differ have equally good names.
        """
        problem = ""
        for suffixes in (PICTURE_SUFFIXES, SOUND_SUFFIXES):
            for names in names_of(clip):
                files: dict[Path, str] = {}
                for stem, spot in self._named(names):
                    shown = _joined(spot.folder, stem)
                    is_other_video = names.is_cut and (stem in listed or shown in listed)
                    if spot.suffix.lower() not in suffixes or is_other_video:
                        continue
                    shown += spot.suffix
                    try:
                        path = (spot.copy or self.place / shown).resolve(strict=True)
                        if not path.is_file():
                            raise OSError("not a regular file")
                        files[path] = shown
                    except (OSError, RuntimeError) as error:
                        problem = f"; {printable(shown)} cannot be read: {_reason(error)}"
                if files:
                    _check_same(clip, files)
                    path = min(files)
                    return FoundFile(path, path.stat().st_size, names.is_cut)
        message = f"no file named {clip.key} or {clip.video_id} in {printable(str(self.place))}{problem}"
        raise ClipError(MISSING, message)

    def _index(self, out: Path | None) -> None:
        """Index all files below the place. Links are followed, and every folder is read once, which ends all loops."""
        seen = {_identity(out)} if out is not None and out.exists() else set()
        folders, links = [""], list[str]()
        while folders or links:
            folder = folders.pop() if folders else links.pop()
            try:
                if (identity := _identity(self.place / folder)) not in seen:
                    seen.add(identity)
                    with os.scandir(self.place / folder) as entries:
                        self._index_folder(folder, entries, folders, links)
            except OSError as error:
                self.unread.append(f"{printable(str(self.place / folder))}: {_reason(error)}")

    def _index_folder(self, folder: str, entries: Iterable["os.DirEntry[str]"], folders: list[str], links: list[str]) -> None:
        """Index the files of a folder; append its folders, and its links to folders."""
        spots: dict[str, _Spot] = {}
        for entry in entries:
            if is_ignored(entry.name):
                continue
            is_link = entry.is_symlink()
            media_name = split_media_name(entry.name)
            if media_name and (is_link or entry.is_file()):
                stem, suffix = media_name
                self._add(stem, spots.setdefault(suffix, _Spot(folder, suffix)))
            elif _is_folder(entry):
                (links if is_link else folders).append(_joined(folder, entry.name))
            elif is_archive(entry.name) and (is_link or entry.is_file()):
                self.archives.append(Archive(Path(entry.path).absolute(), folder))

    def _add(self, stem: str, spot: _Spot) -> None:
        spots = self._spots.setdefault(stem, spot)  # Most names are unique, and a list would take more memory.
        if isinstance(spots, list):
            spots.append(spot)
        elif spots is not spot:
            self._spots[stem] = [spots, spot]

    def _spots_of(self, stem: str) -> list[_Spot]:
        spots = self._spots.get(stem, [])
        return spots if isinstance(spots, list) else [spots]

    def _spots_in(self, folder: str, stem: str) -> list[_Spot]:
        """Spots that may be in a folder: thousands of folders may each hold a `video.mp4`."""
        spots = self._spots_of(stem)
        if len(spots) < MANY:
            return spots
        if stem not in self._by_folder:
            by_folder = defaultdict(list)
            for spot in spots:
                by_folder[spot.folder].append(spot)
            self._by_folder[stem] = by_folder
        return self._by_folder[stem].get(folder, [])

    def _named(self, names: Names) -> Iterator[tuple[str, _Spot]]:
        """Stem and spot of the files that have one of these names."""
        for stem in names.stems:
            for spot in self._spots_of(stem) if names.folder is None else self._spots_in(names.folder, stem):
                if names.fit(stem, spot.folder, spot.suffix):
                    yield stem, spot


def local_path(place: str | Path) -> Path:
    """The path in `--source`: `~` is the home folder, and `file://` URLs are paths."""
    text = str(place)
    path = Path(unquote(urlsplit(text).path) if text.startswith("file:") else text)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def printable(path: str) -> str:
    """A path for messages; bytes that are not UTF-8 become escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _check_same(clip: Clip, files: Mapping[Path, str]) -> None:
    """Check that all files have the same content.

    Raises:
        ClipError: `local.ambiguous`.
    """
    first, *others = files
    try:
        same = len({path.stat().st_size for path in files}) == 1 and all(filecmp.cmp(first, other, False) for other in others)
    except OSError:
        same = False
    if not same:
        names = sorted(map(printable, files.values()))
        shown = " or ".join([*names[:SHOWN], f"{len(names) - SHOWN:,} others"] if len(names) > SHOWN else names)
        raise ClipError(AMBIGUOUS, f"{clip.video_id} may be {shown}, and these files differ")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
