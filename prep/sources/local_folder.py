"""A folder of media files as a source: whole videos or clips, named by clip key or video id."""

import re
from collections import defaultdict
from pathlib import Path

from mbt.manifests.clips import Clip
from mbt.manifests.errors import InputError
from mbt.prep.sources.byte_ranges import RawClip

MEDIA_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("3gp", "avi", "flv", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "ogv", "ts", "webm", "wmv"),
        *("aac", "flac", "m4a", "mp3", "ogg", "opus", "wav"),
    )
)
CUT_NAME = re.compile(r"(.+)_(\d+)")


class LocalFolder:
    """Finds clips among the media files below a folder, by file name without suffix.

    A file name is one of: `<key>` or `<video_id>_<start_ms>` (cut at the clip's start), `<video_id>_<SSSSSS>` (cut at that
    second, six digits, as in VGGSound's files), `<video_id>` (the whole video).

    Raises:
        InputError: the folder does not exist, or holds no media file.
    """

    name = "local"

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"the source folder {folder} does not exist", "Give a folder of media files, or a URL template")
        self.folder = folder
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in MEDIA_SUFFIXES and path.is_file())
        if not files:
            raise InputError(
                f"the source folder {folder} holds no media file",
                "Give a folder of media files named by clip key or video id",
            )
        self._by_stem = {path.stem: path for path in reversed(files)}
        self._cuts: dict[str, list[tuple[int, Path]]] = defaultdict(list)
        for path in files:
            if match := CUT_NAME.fullmatch(path.stem):
                self._cuts[match[1]].append((_cut_ms(match[2]), path))

    def find(self, clip: Clip) -> RawClip | None:
        """The file that holds the clip's start, or None."""
        if path := self._by_stem.get(clip.key):
            return _raw_clip(path, clip.start_ms)
        if path := self._by_stem.get(clip.video_id):
            return _raw_clip(path, 0)
        cuts = [(offset_ms, path) for offset_ms, path in self._cuts.get(clip.video_id, ()) if offset_ms <= clip.start_ms]
        if not cuts:
            return None
        offset_ms, path = max(cuts, key=lambda cut: cut[0])
        return _raw_clip(path, offset_ms)


def _raw_clip(path: Path, offset_ms: int) -> RawClip:
    path = path.resolve()
    return RawClip(path, path.stat().st_size, offset_ms)


def _cut_ms(digits: str) -> int:
    """Start in milliseconds: milliseconds are written without leading zeros, VGGSound's seconds with six digits."""
    is_seconds = len(digits) == 6 and digits.startswith("0")
    return int(digits) * (1000 if is_seconds else 1)
