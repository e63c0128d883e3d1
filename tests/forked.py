"""The command line in processes that start instantly, to be interrupted and killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SERVER = """
import json, os, sys
import mbt.cli, mbt.prep.run
for line in sys.stdin:
    arguments, log = json.loads(line)
    if (child := os.fork()) == 0:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = ["mbt", *arguments]
        sys.exit(mbt.cli.main())
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Program of the server: it imports the command line once, then forks."""


@dataclass
class Process:
    """A process that runs the command line and writes its output to a file."""

    number: int
    log: Path
    server: "subprocess.Popen[str]"

    def ends_within(self, seconds: float) -> bool:
        """Wait up to this long for its end; whether it has ended."""
        deadline = time.monotonic() + seconds
        while (alive := Path(f"/proc/{self.number}").exists()) and time.monotonic() < deadline:
            time.sleep(0.001)
        return not alive

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it is running."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.number, number)

    def kill(self) -> None:
        """Kill it, if it is running."""
        self.send(signal.SIGKILL)

    def wait_for(self, word: bytes) -> None:
        """Wait until its output contains `word`, or it has ended."""
        while word not in self.log.read_bytes() and not self.ends_within(0.002):
            pass

    def code(self) -> int:
        """Wait for its exit status; -9 if it was killed."""
        assert self.server.stdout is not None
        return int(self.server.stdout.readline())


@dataclass
class Forks:
    """Starts processes, one after another."""

    server: "subprocess.Popen[str]"

    def start(self, arguments: Sequence[object], log: Path, word: bytes = b"") -> Process:
        """Start `mbt` with these arguments, and wait until its output contains `word`."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        log.write_bytes(b"")
        self.server.stdin.write(json.dumps([[str(argument) for argument in arguments], str(log)]) + "\n")
        self.server.stdin.flush()
        process = Process(int(self.server.stdout.readline()), log, self.server)
        process.wait_for(word)
        return process


@contextlib.contextmanager
def forks(path: Sequence[Path] = ()) -> Iterator[Forks]:
    """Run the server; `path` is the PYTHONPATH of its processes."""
    command = [sys.executable, "-c", SERVER]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes) as process:
        yield Forks(process)
