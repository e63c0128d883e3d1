"""Signals that ask a run to end."""

import os
import signal

import pytest

from mbt.prep.workers.interrupt import Interrupted, graceful_interrupts


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("gives_up", [False, True])
def test_a_signal_sets_the_event_and_gives_the_exit_code(number: int, code: int, gives_up: bool) -> None:
    """Whether the block ends by itself or gives up its work."""
    handler = signal.getsignal(number)

    def run() -> None:
        with graceful_interrupts() as stop_requested:
            assert not stop_requested.is_set()
            os.kill(os.getpid(), number)
            assert stop_requested.wait(5)
            if gives_up:
                raise KeyboardInterrupt

    with pytest.raises(Interrupted) as raised:
        run()
    assert raised.value.exit_code == code
    assert signal.getsignal(number) is handler
