"""The live line of a fetching run: what has come, what will be asked again, the speed, and the hours left."""

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from mbt.prep.fetch.clip_states import ClipStates
from mbt.prep.fetch.lanes import Lane
from mbt.prep.workers.clock import Clock

EVERY_S = 10.0
SPEED_OVER_S = 60.0


class LiveLine:
    """Shows the state of a run at most every ten seconds: behind its progress bar on a terminal, otherwise as a line.

    Args:
        bar: the progress bar, in clips.
        states: states of the clips.
        likely: number of planned clips that will probably be requested, by all workers.
        lanes: the lanes of each worker, whose rates limit the run.
        clock: the time.
        note: more text for the line; called each time.
    """

    def __init__(
        self,
        bar: "tqdm[Any]",
        states: ClipStates,
        likely: int,
        lanes: Sequence[Lane],
        clock: Clock,
        note: Callable[[], str],
    ) -> None:
        self._bar = bar
        self._states = states
        self._clock = clock
        self._note = note
        self._likely = likely
        self._per_hour = states.share.world * sum(3600.0 / max(lane.sleep_s, 1.0) for lane in lanes)
        self._received: deque[tuple[float, int]] = deque()
        self._shown = -EVERY_S

    def update(self, transferred: int = 0) -> None:
        """Count received bytes, and show the line if it is time."""
        now = self._clock.monotonic()
        if transferred:
            self._received.append((now, transferred))
        if now - self._shown >= EVERY_S:
            self._shown = now
            if sys.stderr.isatty():
                self._bar.set_postfix_str(self.text())
            else:
                tqdm.write(f"fetch: {self.text()}", file=sys.stderr)

    def text(self) -> str:
        """The line."""
        states = self._states
        parts = [f"asked {states.num_asked:,}", f"available {states.num_available:,}", f"dead {states.num_dead:,}"]
        due = states.next_due()
        when = "" if due is None else f" (from {time.strftime('%m-%d %H:%M', time.localtime(due))})"
        parts.append(f"retry {states.num_to_retry:,}{when}")
        if note := self._note():
            parts.append(note)
        left_h = max(self._likely - states.num_asked, 0) / self._per_hour
        return ", ".join([*parts, f"{self._megabytes_per_s():.1f} MB/s", f"{left_h:,.1f} h left"])

    def _megabytes_per_s(self) -> float:
        now = self._clock.monotonic()
        while self._received and now - self._received[0][0] > SPEED_OVER_S:
            self._received.popleft()
        return sum(count for _, count in self._received) / SPEED_OVER_S / 1e6
