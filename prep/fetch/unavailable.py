"""A sudden rise of "unavailable": the site then refuses the address, the client or the proxy, and says so of the videos."""

import math
from collections import Counter, deque
from typing import Generic, TypeVar

UNAVAILABLE = "confirm.unavailable"
WINDOW = 50
MIN_WINDOW, MIN_BEFORE = 20, 200
"""Videos that are needed to tell a rise: recent ones, and ones before them."""
MIN_SHARE = 0.4
"""Of a list, a tenth to a fifth is unavailable; less than this never counts as a rise."""
CHANCE = 1e-9
"""A rise is one that chance makes in fewer than this share of windows."""
REMEDY = (
    "Look at some of these videos in a browser; if they play, update yt-dlp, wait a day, or use another address, proxy or "
    "client (--ytdlp), then run again. The clips were not harmed"
)

T = TypeVar("T")


class UnavailableWatch(Generic[T]):
    """Compares the share of unavailable videos among the last 50, of a lane and of all, with the share before.

    Args:
        unavailable: number of unavailable videos in earlier runs.
        others: number of all other videos in earlier runs.
    """

    def __init__(self, unavailable: int = 0, others: int = 0) -> None:
        self._counts = Counter({True: unavailable, False: others})
        self._windows: dict[int | None, deque[tuple[bool, T]]] = {}

    def add(self, is_unavailable: bool, video: T, lane: int) -> str | None:
        """Add the result of a video, and return the reason to stop if the share has risen."""
        self._counts[is_unavailable] += 1
        for scope in (None, lane):
            window = self._windows.setdefault(scope, deque(maxlen=WINDOW))
            window.append((is_unavailable, video))
            if is_unavailable and (reason := self._rise(window)):
                return reason
        return None

    def suspects(self) -> list[T]:
        """The recent unavailable videos, which may be available after all."""
        videos = [video for window in self._windows.values() for is_unavailable, video in window if is_unavailable]
        return list(dict.fromkeys(videos))

    def _rise(self, window: deque[tuple[bool, T]]) -> str | None:
        size, recent = len(window), sum(is_unavailable for is_unavailable, _ in window)
        before = self._counts[True] - recent
        size_before = self._counts.total() - size
        if size < MIN_WINDOW or size_before < MIN_BEFORE or recent < MIN_SHARE * size:
            return None
        if _chance(recent, size, (before + 1) / (size_before + 2)) > CHANCE:
            return None
        return f"calls {recent} of the last {size} videos unavailable, but only {before:,} of the {size_before:,} before"


def _chance(hits: int, size: int, share: float) -> float:
    """Probability of at least `hits` hits among `size`."""
    return sum(math.comb(size, k) * share**k * (1 - share) ** (size - k) for k in range(hits, size + 1))
