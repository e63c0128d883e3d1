"""Removal lists: clips and videos that must no longer be in a dataset."""

import re
from pathlib import Path

from mbt.manifests.clips import Clip
from mbt.manifests.errors import InputError

REMOVED = "removed.listed"


def is_removed(clip: Clip, removed: frozenset[str]) -> bool:
    """Whether the clip's key or its video's id is on the list."""
    return clip.key in removed or clip.video_id in removed


def read_removed(path: Path) -> frozenset[str]:
    """The keys and video ids in a removal list, one per line; `#` at the start of a line or after a space begins a comment.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the removal list {path}: {error}", "Give a text file with one key or video id per line"
        ) from None
    entries = (re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip() for line in lines)
    return frozenset(entry for entry in entries if entry)
