"""The duration of a media file, as its container states it."""

import re
from pathlib import Path

from mbt.prep.media.ffmpeg import DEFAULT_LIMITS, ClipError, Limits, ffmpeg, run_ffmpeg

DURATION = re.compile(r"^\[info\]   Duration: (\d+):(\d+):(\d+\.\d+)", re.MULTILINE)


def duration_s(path: Path, limits: Limits = DEFAULT_LIMITS) -> float | None:
    """Duration in seconds; None if the file does not state it, or is not readable as media."""
    command = [ffmpeg(), "-nostdin", "-nostats", "-hide_banner", "-loglevel", "level+info"]
    source = ["-protocol_whitelist", "file,pipe", "-i", f"file:{path}"]
    try:
        outputs = run_ffmpeg([*command, *source, "-map", "0", "-c", "copy", "-t", "0", "-f", "null", "-"], limits)
    except ClipError:
        return None
    if match := DURATION.search(outputs["log"].decode(errors="replace")):
        return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
    return None
