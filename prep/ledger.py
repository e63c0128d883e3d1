"""The ledger of fetching: append-only JSON lines, one attempt a line, one file a worker; `fold` gives a clip's state."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TextIO

from manifests.atomic import storage_errors
from prep.taxonomy import HOUR_S, Action

LEDGER_FOLDER = "work/ledger"
LOST = "fetch.lost"
COUNTED = {action.label for action in Action if action.uses_attempt}
MAX_ATTEMPTS = 6
WAITS_S = (1 * HOUR_S, 6 * HOUR_S, 24 * HOUR_S, 72 * HOUR_S)
"""Between the counted attempts at a clip; the last stands for all further ones."""
CONFIRMED_AFTER_S = 24 * HOUR_S


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What came of asking a source for a clip.

    Attributes:
        key: the clip.
        source: what served it: "local", or the host of a URL.
        path: the media file (relative to the dataset folder, or absolute); None where the attempt failed.
        size: bytes of that file.
        offset_ms: time in the video at which the file begins.
        code: "ok", or a stable name of the failure.
        action: the label of the failure's `Action`; empty where there is none.
        message: the failure in words.
        final: asking again is no use.
        not_before: Unix time in seconds before which asking again is no use.
        time: Unix time in seconds.
    """

    key: str
    source: str
    path: str | None = None
    size: int = 0
    offset_ms: int = 0
    code: str = "ok"
    action: str = ""
    message: str = ""
    final: bool = False
    not_before: float = 0.0
    time: float = 0.0

    def checked(self, folder: Path) -> "Attempt":
        """This attempt, or `fetch.lost` in its place if what it fetched is not there with the recorded size."""
        try:
            if self.path is None or (folder / self.path).stat().st_size == self.size:
                return self
        except OSError:
            pass
        return replace(self, path=None, code=LOST, message=f"{self.path} is gone or has changed since it was fetched")


NEVER_FETCHED = Attempt(key="", source="", code="fetch.pending", message="not asked for yet")
"""What is known of a clip that the ledger does not have."""


class LedgerWriter:
    """Appends attempts to one worker's ledger file; each line is on disk when `append` returns."""

    def __init__(self, folder: Path, worker: str) -> None:
        self.path = folder / LEDGER_FOLDER / f"{worker}.jsonl"

    def __enter__(self) -> "LedgerWriter":
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
            self._file: TextIO = self.path.open("a", encoding="utf-8")
            if torn:
                self._file.write("\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def append(self, attempts: list[Attempt]) -> None:
        """Append these attempts.

        Raises:
            StorageError: no space left.
        """
        with storage_errors(self.path):
            self._file.writelines(json.dumps(asdict(attempt)) + "\n" for attempt in attempts)
            self._file.flush()
            os.fsync(self._file.fileno())


def read_attempts(folder: Path) -> list[Attempt]:
    """All attempts of all workers in order of time; a line torn by a crash is passed over."""
    attempts = []
    for path in sorted((folder / LEDGER_FOLDER).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                attempts.append(Attempt(**json.loads(line)))
            except (ValueError, TypeError):
                continue
    return sorted(attempts, key=lambda attempt: attempt.time)


def read_ledger(folder: Path) -> dict[str, Attempt]:
    """The state of each clip, by `fold`."""
    return states(read_attempts(folder))


def states(attempts: Iterable[Attempt]) -> dict[str, Attempt]:
    """The state of each clip, by `fold`, from attempts in order of time."""
    of_clip: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        of_clip.setdefault(attempt.key, []).append(attempt)
    return {key: fold(own) for key, own in of_clip.items()}


def fold(attempts: list[Attempt]) -> Attempt:
    """The last of these attempts at a clip, in order of time, with what the ones before it at the same source add.

    A failure of the action CONFIRM is final when the same was found at least 24 hours earlier, and any is after six attempts
    that count; until then the waits grow.
    """
    last = attempts[-1]
    if last.action not in COUNTED or last.final:
        return last
    failed: list[Attempt] = []
    for attempt in attempts:
        if attempt.code == "ok":
            failed.clear()
        elif attempt.action in COUNTED and attempt.source == last.source:
            failed.append(attempt)
    sure = last.action == Action.CONFIRM.label and any(
        attempt.code == last.code and last.time - attempt.time >= CONFIRMED_AFTER_S for attempt in failed
    )
    wait_s = WAITS_S[min(len(failed), len(WAITS_S)) - 1]
    return replace(last, final=sure or len(failed) >= MAX_ATTEMPTS, not_before=max(last.not_before, last.time + wait_s))
