"""Progress of long work: a bar on a terminal, otherwise a line every ten seconds."""

import sys
from typing import Any, TextIO

from tqdm import tqdm

LINE_EVERY_S = 10
CURSOR_UP = "\x1b[A"


class _Lines:
    """A stream that prints each state of the bar on a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        line = text.replace(CURSOR_UP, "").strip()
        if line:
            self.stream.write(line + "\n")

    def flush(self) -> None:
        self.stream.flush()


def progress(total: int, desc: str, unit: str, initial: int = 0, shown: bool = True) -> "tqdm[Any]":
    """A tqdm bar of `total` units on stderr: a bar on a terminal, lines in a log, nothing if not `shown`."""
    bar: dict[str, Any] = {"total": total, "desc": desc, "unit": unit, "initial": initial, "disable": not shown}
    if sys.stderr.isatty():
        return tqdm(**bar, file=sys.stderr, dynamic_ncols=True)
    return tqdm(**bar, file=_Lines(sys.stderr), mininterval=LINE_EVERY_S, ncols=100)
