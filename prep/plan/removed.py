"""Removal lists: clips and videos that must no longer be in a dataset."""

import re
from collections.abc import Collection
from pathlib import Path

from mbt.manifests.clips import Clip
from mbt.manifests.errors import InputError

REMOVED = "removed.listed"
YOUTUBE_URL = re.compile(
    r"(?:https?://)?(?:(?:www\.|m\.|music\.)?youtube\.com/watch\?(?:\S*&)?v=|youtu\.be/)([A-Za-z0-9_-]{11})(?:[?&#]\S*)?"
)
NOT_AN_ENTRY = re.compile(r"[\s,;\"']|://")
"""What a key or a YouTube video id never contains, but a URL, a quoted id or a row of a table does."""


def is_removed(clip: Clip, removed: frozenset[str]) -> bool:
    """Whether the clip's key or its video's id is on the list."""
    return clip.key in removed or clip.video_id in removed


def read_removed(path: Path) -> frozenset[str]:
    """The keys and video ids in a removal list, one per line; `#` at the start of a line or after a space begins a comment.

    The URL of a YouTube video stands for its id.

    Raises:
        InputError: the file cannot be read, or a line has something else (the message has the line number).
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the removal list {path}: {error}", "Give a text file with one key or video id per line"
        ) from None
    entries = set()
    for number, line in enumerate(lines, 1):
        entry = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        if url := YOUTUBE_URL.fullmatch(entry):
            entry = url[1]
        if NOT_AN_ENTRY.search(entry):
            raise InputError(
                f"{path}, line {number}: {entry!r} is not a key or video id",
                "Write one key, video id or YouTube URL per line, and reasons after #; a video id with spaces or commas is "
                "removed by the keys of its clips",
            )
        entries.add(entry)
    return frozenset(entries - {""})


def unmatched(removed: frozenset[str], names: Collection[str], where: str) -> str:
    """A sentence about the entries of a removal list that match nothing; empty if all match.

    Args:
        removed: the entries.
        names: keys and video ids of all clips.
        where: what has these clips.
    """
    unknown = removed.difference(names)
    if not unknown:
        return ""
    return f"removed: {len(unknown):,} of {len(removed):,} entries match no clip of the {where}, such as {min(unknown)!r}"
