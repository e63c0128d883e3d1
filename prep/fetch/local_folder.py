"""A folder of media files as a source: files named by key or by video id, whole or already cut."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from mbt.manifests.clips import Clip
from mbt.manifests.errors import InputError

MEDIA_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("3gp", "avi", "flv", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "ogv", "ts", "webm", "wmv"),
        *("aac", "flac", "m4a", "mp3", "ogg", "opus", "wav"),
    )
)
CUT = re.compile(r"(.+)_(\d+)")


@dataclass(frozen=True)
class LocalFile:
    """A media file and the time in its video at which it begins."""

    path: Path
    offset_ms: int


class LocalFolder:
    """Finds clips among the media files below a folder, by the stem of their names.

    A file is one of: `<key>` or `<video_id>_<start_ms>` (cut at the clip's start), `<video_id>_<SSSSSS>` (cut at that
    second, six digits, as VGGSound is published), `<video_id>` (the whole video).

    Raises:
        InputError: there is no such folder, or no media file in it.
    """

    name = "local"

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"the source folder {folder} does not exist", "Give a folder of media files, or a URL template")
        self.folder = folder
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in MEDIA_SUFFIXES and path.is_file())
        if not files:
            raise InputError(
                f"the source folder {folder} holds no media file", "Give a folder of media files named by key or id"
            )
        self._by_stem = {path.stem: path for path in reversed(files)}
        self._cuts: dict[str, list[LocalFile]] = defaultdict(list)
        for path in files:
            if match := CUT.fullmatch(path.stem):
                self._cuts[match[1]].append(LocalFile(path.resolve(), _cut_ms(match[2])))

    def find(self, clip: Clip) -> LocalFile | None:
        """The file that holds the clip's start, or None."""
        if clip.key in self._by_stem:
            return LocalFile(self._by_stem[clip.key].resolve(), clip.start_ms)
        if clip.video_id in self._by_stem:
            return LocalFile(self._by_stem[clip.video_id].resolve(), 0)
        cuts = [cut for cut in self._cuts[clip.video_id] if cut.offset_ms <= clip.start_ms]
        return max(cuts, key=lambda cut: cut.offset_ms, default=None)


def _cut_ms(digits: str) -> int:
    """Milliseconds are written without leading zeros, VGGSound's seconds with six digits."""
    seconds = len(digits) == 6 and digits.startswith("0")
    return int(digits) * (1000 if seconds else 1)
