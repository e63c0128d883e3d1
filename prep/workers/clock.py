"""The time and waiting of a run: real, unless a test or a simulation passes a clock of its own."""

import time


class Clock:
    """The real clock. A clock that is driven by hand overrides all three methods."""

    def time(self) -> float:
        """Unix time in seconds; it jumps when the system's clock is set, or the machine was suspended."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since any moment; never goes back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)
