"""Run programs in parallel on given cores, and measure what they and their child processes use."""

import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mbt.manifests.errors import InputError

ROOT = Path(__file__).parents[1]
SAMPLE_EVERY_S = 0.2
"""Seconds between two measurements of memory."""


@dataclass(frozen=True)
class Usage:
    """What one run used.

    Attributes:
        core_s: user and system time of all processes, core-seconds.
        start_s: the part of `core_s` before the first clip, core-seconds.
        wall_s: elapsed time, seconds.
        idle_s: time in which the cores were idle, core-seconds.
        peak_bytes: peak memory of all processes together, without mapped files.
    """

    core_s: float
    start_s: float
    wall_s: float
    idle_s: float
    peak_bytes: int


def run(commands: Sequence[list[str]], at_once: int, folder: Path) -> Usage:
    """Run commands, `at_once` of them in parallel, and measure them and all their child processes.

    Args:
        commands: programs with their arguments.
        at_once: number of commands that run in parallel.
        folder: where each command writes its time before the first clip.

    Raises:
        InputError: a command failed.
    """
    started, log = folder / "started", folder / "log"
    for path in (started, log):
        path.write_text("")
    idle, begin, peak = _idle_s(), time.perf_counter(), 0
    with ThreadPoolExecutor(at_once) as pool:
        runs = [pool.submit(_core_s, command, log) for command in commands]
        while wait(runs, SAMPLE_EVERY_S).not_done:
            peak = max(peak, _children_bytes())
        wall = time.perf_counter() - begin
    core_s = sum(each.result() for each in runs)
    return Usage(core_s, sum(map(float, started.read_text().split())), wall, _idle_s() - idle, peak)


def _core_s(command: list[str], log: Path) -> float:
    with log.open("a") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        reason = (log.read_text(errors="replace").splitlines() or [f"status {process.returncode}"])[-1]
        raise InputError(f"a contender failed: {reason}", "Give files with picture and sound")
    return usage.ru_utime + usage.ru_stime


def _idle_s() -> float:
    """Idle time of this process's cores since boot, core-seconds."""
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = map(str.split, Path("/proc/stat").read_text().splitlines())
    ticks = sum(int(cells[4]) + int(cells[5]) for cells in lines if cells and cells[0] in cores)
    return ticks / os.sysconf("SC_CLK_TCK")


def _children_bytes() -> int:
    """Memory of this process's descendants, without mapped files, which are shared with other processes."""
    commands, parents = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            pid = int(folder.name)
            commands[pid] = (folder / "cmdline").read_bytes()
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    total, pending = 0, [os.getpid()]
    while pending:
        parent = pending.pop()
        # A process that is just starting still has its parent's memory and command line.
        children = [pid for pid, above in parents.items() if above == parent and commands[pid] != commands.get(parent)]
        total += sum(map(_anonymous_bytes, children))
        pending += children
    return total


def _anonymous_bytes(pid: int) -> int:
    with suppress(OSError):
        if found := re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE):
            return int(found[1]) << 10
    return 0


@contextmanager
def pinned(workers: int) -> Iterator[None]:
    """Restrict this process, and those that it starts, to this many cores.

    Raises:
        InputError: fewer cores are available.
    """
    cores = os.sched_getaffinity(0)
    if len(cores) < workers:
        raise InputError(f"--workers {workers}: only {len(cores)} cores are available", f"Use --workers {len(cores)} or fewer")
    os.sched_setaffinity(0, sorted(cores)[:workers])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
