"""The duration of a media file, as its container states it."""

import math
from pathlib import Path

from mbt.prep.media.ffmpeg import DEFAULT_LIMITS, ClipError, Limits, ffmpeg, run_ffmpeg, source_seconds


def duration_s(path: Path, limits: Limits = DEFAULT_LIMITS) -> float:
    """Duration in seconds; infinite if the file does not state it, or cannot be read."""
    command = [ffmpeg(), "-nostdin", "-nostats", "-hide_banner", "-loglevel", "level+info"]
    source = ["-protocol_whitelist", "file,pipe", "-i", f"file:{path}"]
    try:
        outputs = run_ffmpeg([*command, *source, "-map", "0", "-c", "copy", "-t", "0", "-f", "null", "-"], limits)
    except ClipError:
        return math.inf
    return source_seconds(outputs["log"].decode(errors="replace"))
