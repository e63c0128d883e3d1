"""The ledger of fetching: append-only JSON lines, one attempt a line, one file a worker; a clip's state is its last line."""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TextIO

from manifests.atomic import storage_errors

LEDGER_FOLDER = "work/ledger"
LOST = "fetch.lost"


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
        message: the failure in words.
        final: asking again is no use.
        time: Unix time in seconds.
    """

    key: str
    source: str
    path: str | None = None
    size: int = 0
    offset_ms: int = 0
    code: str = "ok"
    message: str = ""
    final: bool = False
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


def read_ledger(folder: Path) -> dict[str, Attempt]:
    """The last attempt of each clip over all workers' files; a line torn by a crash is passed over."""
    state: dict[str, Attempt] = {}
    for path in sorted((folder / LEDGER_FOLDER).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                attempt = Attempt(**json.loads(line))
            except (ValueError, TypeError):
                continue
            if attempt.key not in state or state[attempt.key].time <= attempt.time:
                state[attempt.key] = attempt
    return state
