"""Interrupts from the keyboard: the first lets what is in flight come to its end, the second stops at once."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tqdm import tqdm

GENTLE = "interrupted: what is in flight is finished first; once more stops at once"
AT_ONCE = "stopped: what is finished is kept; run the same command again to go on"
EXIT_CODE = 130


@contextmanager
def gentle_interrupts() -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT sets; a second one ends the process, which leaves nothing that a kill would not.

    Outside of the main thread, which alone gets signals, the event is never set.

    Raises:
        KeyboardInterrupt: at the end of the block, if it was interrupted.
    """
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def interrupted(number: int, frame: FrameType | None) -> None:
        if stopping.is_set():
            os.write(sys.stderr.fileno(), f"\n{AT_ONCE}\n".encode())
            os._exit(EXIT_CODE)
        stopping.set()
        tqdm.write(GENTLE, file=sys.stderr)

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGINT, before)
    if stopping.is_set():
        raise KeyboardInterrupt
