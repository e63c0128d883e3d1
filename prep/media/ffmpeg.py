"""Bytes through an ffmpeg child: in by a pipe, out by a file in memory, so that formats with a header can be ended."""

import os
import resource
import subprocess
from collections.abc import Sequence

from mbt.prep.media.decode import ClipError, Limits, ffmpeg


def piped(data: bytes, source: Sequence[str], result: Sequence[str], limits: Limits) -> tuple[bytes, str]:
    """What ffmpeg makes of the data up to its first error, and its log, which is empty where there is none.

    Args:
        data: what it reads.
        source: options of the input.
        result: options of the output.
        limits: what the child may take.

    Raises:
        ClipError: `decode.timeout`.
    """
    command = [
        *(ffmpeg(), "-y", "-hide_banner", "-loglevel", "error", "-xerror", "-err_detect", "explode"),
        *("-protocol_whitelist", "pipe", "-threads", "1", *source, "-i", "pipe:0"),
        *("-threads", "1", *result, "file:/proc/self/fd/1"),
    ]
    with os.fdopen(os.memfd_create("result"), "rb") as made:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=made, stderr=subprocess.PIPE) as process:
            for kind in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE):
                resource.prlimit(process.pid, kind, (limits.memory_bytes, limits.memory_bytes))
            try:
                _, log = process.communicate(data, limits.wall_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise ClipError("decode.timeout", f"not done within {limits.wall_s:g} s") from None
        if process.returncode and not log:
            log = f"ffmpeg ended with status {process.returncode}".encode()
        return made.read(), log.decode(errors="replace")
