"""A decoder that hangs, crashes, floods its output or writes garbage: its clip fails, and the run continues."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mbt.prep.media.ffmpeg import ffmpeg
from tests.conftest import Door
from tests.media import Spec

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 3.0
MEMORY_GIB = 1
GOOD = ("good-1", "good-2", "good-3")
FAULTS = {
    "sleeps": ("exec sleep 1000", "decode.timeout"),
    "stopped": ("kill -STOP $$", "decode.timeout"),
    "parent": ("sleep 1000; exit 0", "decode.timeout"),
    "deaf": ('exec {python} deaf "$@"', "decode.timeout"),
    "spins": ("while :; do :; done", "decode.timeout"),
    "log": ("while :; do echo '[error] all work and no play makes a dull log'; done | cat >&2", "decode.timeout"),
    "eats": ('exec {python} eats "$@"', "decode.memory"),
    "killed": ("kill -KILL $$", "decode.interrupted"),
    "floods": ('exec {python} floods "$@"', "decode.memory"),
    "crashes": ("kill -SEGV $$", "decode.interrupted"),
    "fails": ("exit 3", "decode.error"),
    "noise": ('exec {python} noise "$@"', "decode.jpeg"),
    "shells": ('exec {python} shells "$@"', "decode.jpeg"),
    "nothing": ("exit 0", "clip.short"),
}
"""What the decoder does for the file of that name, and the code that the clip's row must have."""
MISBEHAVIOR = """
import mmap, os, re, sys
kind = sys.argv[1]
pipes = [int(pipe) for pipe in re.findall(r"pipe:(\\d+)", " ".join(sys.argv))]
if kind == "deaf":
    os.closerange(0, 100)
    os.execv("/bin/sleep", ["sleep", "1000"])
if kind == "eats":
    taken = []
    try:
        while len(taken) < 64:
            taken.append(mmap.mmap(-1, 64 << 20))
    except OSError:
        os.write(2, b"[fatal] Cannot allocate memory\\n")
        os._exit(1)
if kind == "floods":
    while True:
        os.write(pipes[0], bytes(1 << 20))
if kind == "noise":
    os.write(pipes[0], os.urandom(50_000))
if kind == "shells":
    os.write(pipes[0], b"\\xff\\xd8\\xff\\xda\\x00\\x02\\xff\\xd9" * 25)
    os.write(pipes[-1], bytes(64_000))
"""


@dataclass(frozen=True)
class Run:
    """A run over good clips and one clip for each fault.

    Attributes:
        folder: the dataset folder.
        codes: failure codes by video id.
        seconds: time it took.
        good_seconds: time of the same command on the good clips only: start-up and load of the machine.
        peak_bytes: peak resident memory of the command.
        left: command lines of processes that it left behind.
    """

    folder: Path
    codes: dict[str, str]
    seconds: float
    good_seconds: float
    peak_bytes: int
    left: list[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, rendered: Callable[[Spec], Path]) -> Run:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "media").mkdir()
    media = rendered(Spec("25.mp4")).read_bytes()
    for name in (*GOOD, *FAULTS, "chatty"):
        (folder / "media" / f"{name}.mp4").write_bytes(media)
    (folder / "labels.csv").write_text("id,display_name\na,Alpha\n")
    decoder = stand_in(folder)
    begin = time.monotonic()
    process = pack(folder, "good", GOOD, decoder)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    good_seconds = time.monotonic() - begin
    begin = time.monotonic()
    process = pack(folder, "set", (*GOOD, *FAULTS, "chatty"), decoder)
    peak_bytes = 0
    with ThreadPoolExecutor(1) as pool:
        messages = pool.submit(process.communicate)
        while not messages.done():
            peak_bytes = resident_peak(process.pid) or peak_bytes
            time.sleep(0.01)
    stderr = messages.result()[1]
    seconds, left = time.monotonic() - begin, started_with(str(decoder))
    assert process.returncode == 0, stderr
    failures = pq.read_table(folder / "set/failures.parquet").to_pylist()
    codes = {row["video_id"]: row["code"] for row in failures}
    return Run(folder / "set", codes, seconds, good_seconds, peak_bytes, left)


def pack(folder: Path, out: str, names: Iterable[str], decoder: Path) -> "subprocess.Popen[str]":
    """Start packing the clips of these names with this decoder."""
    rows = [f"{name},0,1,train,a" for name in names]
    (folder / f"{out}.csv").write_text("\n".join(["video_id,start,end,split,labels", *rows]) + "\n")
    lists = ["--list", folder / f"{out}.csv", "--labels", folder / "labels.csv", "--source", folder / "media"]
    limits = ["--clip-timeout", TIMEOUT_S, "--clip-memory", MEMORY_GIB, "--short-side", 32, "--workers", 3]
    command = [sys.executable, "-m", "mbt", "prep", "custom", *lists, "--out", folder / out, *limits]
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, "IMAGEIO_FFMPEG_EXE": str(decoder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def resident_peak(number: int) -> int:
    """Peak resident bytes of a process since its program began (getrusage would include its parent's memory before exec)."""
    try:
        match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{number}/status").read_text())
    except OSError:
        return 0
    return int(match[1]) * 1024 if match else 0


def stand_in(folder: Path) -> Path:
    """A program that does what FAULTS says for files with those names, and runs ffmpeg for all others."""
    (folder / "misbehavior.py").write_text(MISBEHAVIOR)
    python = shlex.join([sys.executable, "-S", "-E", str(folder / "misbehavior.py")])
    cases = [f"*/media/{name}.mp4*) {action.replace('{python}', python)};;" for name, (action, _) in FAULTS.items()]
    chatty = "*/media/chatty.mp4*) head -c 300000000 /dev/zero >&2;;"
    path = folder / "decoder"
    path.write_text("\n".join(["#!/bin/sh", 'case "$*" in', *cases, chatty, "esac", f'exec {shlex.quote(ffmpeg())} "$@"']))
    path.chmod(0o755)
    return path


def started_with(setting: str) -> list[str]:
    """Command lines of the processes with this text in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if setting.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_a_row_with_its_code(name: str, run: Run) -> None:
    assert run.codes[name] == FAULTS[name][1]


def test_the_other_clips_are_packed_without_faults(run: Run, mbt: Door) -> None:
    """For one of them the decoder first writes 300 MB of log."""
    packed = pq.read_table(run.folder / "train.parquet")["video_id"].to_pylist()
    assert sorted(packed) == ["chatty", *GOOD]
    assert set(run.codes) == set(FAULTS)
    assert mbt("shards", "verify", run.folder, "--decode", "--workers", 1).code == 0


def test_no_process_is_left_behind(run: Run) -> None:
    assert run.left == []


def test_time_and_memory_stay_bounded(run: Run) -> None:
    """Six clips use all of their time, three at once."""
    assert run.seconds < 2 * TIMEOUT_S + 2 * run.good_seconds + 10
    assert run.peak_bytes < 1 << 30
