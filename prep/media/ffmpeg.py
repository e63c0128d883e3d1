"""ffmpeg: where it is, and running it in a child process with limits on time and memory."""

import fcntl
import math
import os
import re
import resource
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import imageio_ffmpeg

from mbt.manifests.errors import InputError

INTERRUPTED = "decode.interrupted"
LOG_BYTES = 1 << 20
"""ffmpeg's log is kept up to this many bytes; the rest is read and dropped."""
CHUNK = 1 << 20
PIPE_BYTES = 1 << 18
"""With the usual 64 KiB, ffmpeg and its reader wait for each other more often; a user may have 64 MiB in all."""
DEMUXERS = (
    *("mov", "matroska", "webm", "avi", "flv", "live_flv", "asf", "mpeg", "mpegts", "ogg", "mpegvideo", "h264", "hevc", "m4v"),
    *("aac", "ac3", "flac", "mp3", "wav", "w64", "aiff", "amr", "caf", "mxf", "ivf", "rm", "dv"),
)
"""The demuxers of real media. Others open the files that a file names: hls, concat, image2."""
OUTPUT = re.compile(r"(pipe|memory):\{(\w+)\}")
"""Placeholder for an output in a command."""


class ClipError(Exception):
    """This clip cannot be decoded or encoded; `code` is the stable name of the reason (docs/shards.md, section 8)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Limits:
    """What one ffmpeg child may use: seconds of wall-clock time, and bytes of address space."""

    wall_s: float = 60.0
    memory_bytes: int = 3 << 30


DEFAULT_LIMITS = Limits()


@cache
def ffmpeg() -> str:
    """Path of ffmpeg: $IMAGEIO_FFMPEG_EXE, the one in imageio-ffmpeg, or the one on PATH.

    Raises:
        InputError: ffmpeg was not found.
    """
    try:
        path = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        raise InputError("ffmpeg was not found", "Install imageio-ffmpeg from a wheel, or put ffmpeg on PATH") from None
    if shutil.which(path) is None:
        raise InputError(f"$IMAGEIO_FFMPEG_EXE is {path}, which is not a program", "Unset it, or set it to the path of ffmpeg")
    return path


@cache
def ffmpeg_version() -> str:
    """Version of `ffmpeg()`, such as 7.1."""
    return imageio_ffmpeg.get_ffmpeg_version()


def media_input(path: Path) -> list[str]:
    """ffmpeg options that read a local media file, and nothing that the file names."""
    return ["-protocol_whitelist", "file,pipe", "-format_whitelist", ",".join(DEMUXERS), "-i", f"file:{path}"]


def run_ffmpeg(command: Sequence[str], limits: Limits, max_bytes: int = 0) -> dict[str, bytes]:
    """Run ffmpeg and return what it wrote to each argument `pipe:{NAME}` of its command, by NAME.

    Args:
        command: the program and its arguments, with `-loglevel level+info`.
        limits: limits of the child process.
        max_bytes: limit for the output of each pipe.

    Returns:
        The outputs; `log` is the first MiB of ffmpeg's log.

    Raises:
        ClipError: ffmpeg failed or exceeded a limit; a `decode.*` or `clip.*` code.
    """
    status, outputs = _run(command, limits, max_bytes)
    if status != 0:
        raise _failure(status, outputs["log"].decode(errors="replace"))
    return outputs


def convert(data: bytes, source: Sequence[str], result: Sequence[str], limits: Limits) -> tuple[bytes, str]:
    """Pass data through ffmpeg.

    The result is written to a file in memory and not to a pipe, so that ffmpeg can seek back and complete a format's header.

    Args:
        data: the input.
        source: ffmpeg options of the input.
        result: ffmpeg options of the output.
        limits: limits of the child process.

    Returns:
        The output up to the first error, and the log, which is empty if there was no error.

    Raises:
        ClipError: `decode.timeout` or `decode.interrupted`.
    """
    command = [
        *(ffmpeg(), "-y", "-hide_banner", "-loglevel", "error", "-xerror", "-err_detect", "explode"),
        *("-protocol_whitelist", "pipe", "-threads", "1", *source, "-i", "pipe:0"),
        *("-threads", "1", *result, "memory:{result}"),
    ]
    status, outputs = _run(command, limits, data=data)
    if status < 0 and status != -signal.SIGXFSZ:  # That one is the limit of the file in memory.
        raise _ended_by_signal(status)
    log = outputs["log"].decode(errors="replace")
    return outputs["result"], log or (f"ffmpeg exited with status {status}" if status else "")


def _run(command: Sequence[str], limits: Limits, max_bytes: int = 0, data: bytes = b"") -> tuple[int, dict[str, bytes]]:
    """Run a command in a session of its own; return its exit status, its outputs and its log.

    Each argument `pipe:{NAME}` becomes a pipe and each `memory:{NAME}` a file in memory. On an error the whole session is
    killed: a wrapper script may have children.

    Args:
        command: the program and its arguments.
        limits: a file in memory is also limited to `memory_bytes`.
        max_bytes: limit for the output of each pipe except the log.
        data: standard input.
    """
    outputs = [match.groups() for part in command if (match := OUTPUT.fullmatch(part))]
    with ExitStack() as opened:
        stdin = opened.enter_context(_memory_file(data))
        files = {name: opened.enter_context(_memory_file()) for kind, name in outputs if kind == "memory"}
        readers: dict[str, FileIO] = {}
        with ExitStack() as until_started:
            writers: dict[str, FileIO] = {}
            for name in ("log", *(name for kind, name in outputs if kind == "pipe")):
                read, write = os.pipe()
                with suppress(OSError):
                    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
                readers[name] = opened.enter_context(FileIO(read, "r"))
                writers[name] = until_started.enter_context(FileIO(write, "w"))
            urls = {f"pipe:{{{name}}}": f"pipe:{file.fileno()}" for name, file in writers.items()}
            urls |= {f"memory:{{{name}}}": f"file:/proc/self/fd/{file.fileno()}" for name, file in files.items()}
            try:
                process = subprocess.Popen(
                    [urls.get(part, part) for part in command],
                    stdin=stdin,
                    stdout=subprocess.DEVNULL,
                    stderr=writers["log"],
                    pass_fds=[file.fileno() for name, file in (*writers.items(), *files.items()) if name != "log"],
                    start_new_session=True,
                )
            except OSError as error:
                fix = "Check that it is still installed and that memory is free, then run the same command again"
                raise InputError(f"cannot start {command[0]}: {error.strerror}", fix) from None
        deadline = time.monotonic() + limits.wall_s
        try:
            for kind in (resource.RLIMIT_AS, *([resource.RLIMIT_FSIZE] if files else ())):
                resource.prlimit(process.pid, kind, (limits.memory_bytes, limits.memory_bytes))
            piped = _read_all(readers, deadline, max_bytes)
            status = process.wait(max(0.0, deadline - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            raise ClipError("decode.timeout", f"ffmpeg did not finish within {limits.wall_s:g} s") from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return status, piped | {name: file.read() for name, file in files.items()}


def _memory_file(data: bytes = b"") -> BinaryIO:
    """A file in memory that holds the data, at its start."""
    file = os.fdopen(os.memfd_create("ffmpeg"), "w+b")
    file.write(data)
    file.seek(0)
    return file


def _read_all(readers: dict[str, FileIO], deadline: float, max_bytes: int) -> dict[str, bytes]:
    outputs = {name: bytearray() for name in readers}
    with selectors.DefaultSelector() as selector:
        for name, reader in readers.items():
            selector.register(reader, selectors.EVENT_READ, name)
        while selector.get_map():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            for key, _ in selector.select(left_s):
                data = os.read(key.fd, CHUNK)
                output = outputs[key.data]
                if key.data == "log":
                    output += data[: LOG_BYTES - len(output)]
                elif len(output) + len(data) <= max_bytes:
                    output += data
                else:
                    raise ClipError("decode.memory", f"the decoder's output exceeds {max_bytes:,} bytes")
                if not data:
                    selector.unregister(key.fileobj)
    return {name: bytes(output) for name, output in outputs.items()}


def _failure(status: int, log: str) -> ClipError:
    errors = re.findall(r"^(?:\[[^\]]+\] )?\[(?:error|fatal)\] (.+)$", log, re.MULTILINE)
    text = "\n".join(errors)
    if "matches no streams" in text:
        missing = "audio" if source_size(log) else "video"
        return ClipError(f"clip.no_{missing}", f"the file has no {missing} stream")
    if "Cannot allocate memory" in text or "pthread_create() failed" in text:
        return ClipError("decode.memory", "the decoder reached its memory limit")
    if status < 0:
        return _ended_by_signal(status)
    if "Error opening input" in text:
        return ClipError("decode.unreadable", f"not a readable media file: {errors[-1]}"[:300])
    return ClipError("decode.error", (errors or [f"ffmpeg exited with status {status}"])[0][:300])


def _ended_by_signal(status: int) -> ClipError:
    return ClipError(INTERRUPTED, f"ffmpeg was ended by {signal.Signals(-status).name}; the machine may be short of memory")


def source_size(log: str) -> tuple[int, int] | None:
    """Width and height of the first video stream, not counting cover art, in ffmpeg's description of its input."""
    for line in log.partition("Output #0")[0].splitlines():
        match = re.search(r"Stream #.*: Video: .*?, (\d+)x(\d+)", line)
        if match and "(attached pic)" not in line:
            return int(match[1]), int(match[2])
    return None


def source_seconds(log: str) -> float:
    """Duration of the file in seconds, in ffmpeg's description of its input; infinite if it is unknown."""
    match = re.search(r"Duration: (\d+):(\d+):(\d+\.\d+)", log.partition("Output #0")[0])
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else math.inf
