"""Ctrl-C and SIGTERM: the first finishes the work in progress, the second stops at once."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from tqdm import tqdm

FINISHING = "interrupted: finishing the work in progress; press Ctrl-C again to stop now"
STOPPED = "stopped: finished work is kept; run the same command again to resume"


class Interrupted(KeyboardInterrupt):
    """The process was asked to end.

    Args:
        number: the signal: SIGINT or SIGTERM.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


_events: list[threading.Event] = []
"""The event of the outermost block of the main thread."""


@contextmanager
def graceful_interrupts() -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT or SIGTERM sets. A second one ends the process at once, as safely as killing it.

    Only the main thread receives signals; in other threads they never set the event. A block inside another one shares its
    event, and leaves the exception to it.

    Raises:
        Interrupted: at the end of the block, if a signal has set the event.
    """
    if threading.current_thread() is not threading.main_thread():
        yield threading.Event()
        return
    if _events:
        yield _events[-1]
        return
    stop_requested = threading.Event()
    _events.append(stop_requested)
    received: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if received:
            os.write(sys.stderr.fileno(), f"\n{STOPPED}\n".encode())
            os._exit(128 + number)
        received.append(number)
        stop_requested.set()
        with suppress(RuntimeError):  # The signal came while this thread was writing to the same stream.
            tqdm.write(FINISHING, file=sys.stderr)

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop_requested
    except KeyboardInterrupt:
        if not received:
            raise
    finally:
        _events.pop()
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        raise Interrupted(received[0])
