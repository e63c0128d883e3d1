"""Ctrl-C: the first finishes the work in progress, the second stops at once."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tqdm import tqdm

FINISHING = "interrupted: finishing the work in progress; press Ctrl-C again to stop now"
STOPPED = "stopped: finished work is kept; run the same command again to resume"
EXIT_CODE = 130


@contextmanager
def graceful_interrupts() -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT sets. A second one ends the process at once, which is as safe as killing it.

    Only the main thread receives signals; in other threads the event is never set.

    Raises:
        KeyboardInterrupt: at the end of the block, if the event was set.
    """
    stop_requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop_requested
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if stop_requested.is_set():
            os.write(sys.stderr.fileno(), f"\n{STOPPED}\n".encode())
            os._exit(EXIT_CODE)
        stop_requested.set()
        tqdm.write(FINISHING, file=sys.stderr)

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop_requested
    finally:
        signal.signal(signal.SIGINT, previous)
    if stop_requested.is_set():
        raise KeyboardInterrupt
