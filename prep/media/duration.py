"""The duration of a media file, as its container states it."""

import math
from pathlib import Path

from mbt.prep.media.ffmpeg import DEFAULT_LIMITS, ClipError, Limits, ffmpeg, media_input, run_ffmpeg, source_seconds


def duration_s(path: Path, limits: Limits = DEFAULT_LIMITS) -> float:
    """Duration in seconds; infinite if the file does not state it, or cannot be read."""
    command = [ffmpeg(), "-nostdin", "-nostats", "-hide_banner", "-loglevel", "level+info"]
    try:
        outputs = run_ffmpeg([*command, *media_input(path), "-map", "0", "-c", "copy", "-t", "0", "-f", "null", "-"], limits)
    except ClipError:
        return math.inf
    return source_seconds(outputs["log"].decode(errors="replace"))
