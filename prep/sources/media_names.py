"""File names of media: which files are media, and by which names the file of a clip is known."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mbt.manifests.clips import Clip

PICTURE_SUFFIXES = frozenset(
    (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")
)
SOUND_SUFFIXES = frozenset((".aac", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav"))
MEDIA_SUFFIXES = PICTURE_SUFFIXES | SOUND_SUFFIXES
LEFTOVER = re.compile(r".+\.(temp|f\d+(-\w+)*)")
"""Stem of a file that yt-dlp had not finished: a single track, or one that was being merged."""
YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")


@dataclass(frozen=True)
class Names:
    """Names that say the same about a file.

    Attributes:
        stems: file names without suffix.
        is_cut: the file begins at the clip's start; otherwise it is named after the video only.
        folder: the folder of the file, relative to the source; None: any.
        suffix: suffix of the file; None: any media suffix.
    """

    stems: frozenset[str]
    is_cut: bool
    folder: str | None = None
    suffix: str | None = None

    def fit(self, stem: str, folder: str, suffix: str) -> bool:
        """Whether a file has one of these names."""
        return stem in self.stems and self.folder in (None, folder) and self.suffix in (None, suffix)


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name belongs to the operating system or is hidden."""
    return name.startswith(".") or name == "__MACOSX"


def split_media_name(name: str) -> tuple[str, str] | None:
    """Stem and suffix of a media file's name; None if it is not a media file, is hidden, or is a leftover of yt-dlp."""
    stem, dot, extension = name.rpartition(".")
    if not stem or f".{extension.lower()}" not in MEDIA_SUFFIXES or is_ignored(name) or LEFTOVER.fullmatch(stem):
        return None
    return stem, dot + extension


def names_of(clip: Clip) -> Iterator[Names]:
    """The names under which the file of a clip may exist, the best first.

    Times in a name are those of the clip, all in seconds or all in milliseconds. After a YouTube id a number is a time; after
    any other name it may number the recordings, so a file with exactly that name comes first.

    Args:
        clip: a clip.
    """
    folder, _, name = clip.video_id.rpartition("/")
    place = folder or None
    if media_name := split_media_name(name):
        yield Names(frozenset({media_name[0]}), False, place, media_name[1])
        return
    times = _times(clip.start_ms, clip.end_ms)
    if YOUTUBE_ID.fullmatch(name):
        for video_id in (name, f"Y{name}"):
            yield from _cut_names(video_id, times, place)
            yield Names(frozenset({video_id}), False, place)
    else:
        yield Names(frozenset({name}), False, place)
        yield from _cut_names(name, times, place)
    yield Names(frozenset({clip.key}), True)


def base_names(clip: Clip) -> set[str]:
    """Names one of which is in `stem_bases` of every name of the clip's file."""
    name = clip.video_id.rpartition("/")[2]
    media_name = split_media_name(name)
    base = media_name[0] if media_name else name
    return {base} if clip.key.startswith(f"{base}_") else {base, clip.key}


def stem_bases(stem: str) -> set[str]:
    """What a file of this name may be named after: itself, or the part before times and after the prefix `Y`."""
    before_one = stem.rpartition("_")[0]
    bases = {stem, before_one, before_one.rpartition("_")[0]}
    return bases | {base[1:] for base in bases if base.startswith("Y")}


def _cut_names(name: str, times: Iterable[tuple[str, str]], place: str | None) -> Iterator[Names]:
    yield Names(frozenset(f"{name}_{start}_{end}" for start, end in times), True, place)
    yield Names(frozenset(f"{name}_{start}" for start, _ in times), True, place)


def _times(start_ms: int, end_ms: int) -> set[tuple[str, str]]:
    """Start and end as downloaders write them: milliseconds, or seconds with decimals, without, or with six digits."""
    found = {(str(start_ms), str(end_ms)), (_seconds(start_ms), _seconds(end_ms))}
    found.add((f"{start_ms / 1000}", f"{end_ms / 1000}"))
    for decimals, unit in ((1, 100), (2, 10), (3, 1)):
        if start_ms % unit == end_ms % unit == 0:
            found.add((f"{start_ms / 1000:.{decimals}f}", f"{end_ms / 1000:.{decimals}f}"))
    if start_ms % 1000 == end_ms % 1000 == 0:
        found.add((f"{start_ms // 1000:06d}", f"{end_ms // 1000:06d}"))
    return found


def _seconds(ms: int) -> str:
    """Seconds with as few decimals as possible."""
    return f"{ms / 1000:.3f}".rstrip("0").rstrip(".")
