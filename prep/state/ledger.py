"""The ledger of fetching: append-only JSON lines, one attempt a line, one file a worker; `fold` gives a clip's state."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from mbt.manifests.atomic import storage_errors
from mbt.prep.state.failure_codes import HOUR_S, Action

LEDGER_FOLDER = "work/ledger"
LOST = "fetch.lost"
COUNTED = {action.label for action in Action if action.uses_attempt}
NOT_THE_CLIPS = {action.label for action in Action if action.ends}
"""Actions that say something of a lane or of the whole run, and nothing of the clip."""
MAX_ATTEMPTS = 6
WAITS_S = (1 * HOUR_S, 6 * HOUR_S, 24 * HOUR_S, 72 * HOUR_S)
"""Between the counted attempts at a clip; the last stands for all further ones."""
CONFIRMED_AFTER_S = 24 * HOUR_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """What came of asking a source for a clip.

    Attributes:
        key: the clip.
        source: what served it: "local", or the host of a URL.
        lane: the network address that asked.
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
    lane: str = ""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """What an attempt took: further columns of its row, which no state depends on.

    Attributes:
        http_status: of the answer that made it fail, if there was one.
        warnings: of the extractor.
        formats: the site's names of the formats that were chosen.
        requests: for media.
        transferred: bytes of media.
        extract_s: seconds that the extraction took; on the first clip of a video that is asked for.
        transfer_s: seconds that the media took, with the wait that a site demands before.
        versions: of the extractor and what it needs.
    """

    http_status: int | None = None
    warnings: tuple[str, ...] = ()
    formats: str = ""
    requests: int = 0
    transferred: int = 0
    extract_s: float = 0.0
    transfer_s: float = 0.0
    versions: str = ""


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
        with storage_errors(self.path):
            self._file.close()

    def append(self, rows: Iterable[Attempt | tuple[Attempt, Effort]]) -> None:
        """Append these attempts, with what they took where that is known.

        Raises:
            StorageError: no space left.
        """
        records = ([row] if isinstance(row, Attempt) else row for row in rows)
        with storage_errors(self.path):
            for parts in records:
                self._file.write(json.dumps({name: value for part in parts for name, value in asdict(part).items()}) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


class LedgerReader:
    """Reads the ledger files of a folder, from where it stopped the time before; a line torn by a crash is passed over.

    Args:
        folder: the dataset folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / LEDGER_FOLDER
        self._read: dict[Path, int] = {}

    def new(self) -> Iterator[Attempt]:
        """The attempts of all workers that have come since, those of a worker in order of time."""
        return (attempt for attempt, _ in self._rows())

    def new_with_effort(self) -> Iterator[tuple[Attempt, Effort]]:
        """The same, each with what it took."""
        return ((attempt, _effort(row)) for attempt, row in self._rows())

    def _rows(self) -> Iterator[tuple[Attempt, dict[str, Any]]]:
        for path in sorted(self._folder.glob("*.jsonl")):
            yield from self._of(path)

    def _of(self, path: Path) -> Iterator[tuple[Attempt, dict[str, Any]]]:
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            for line in file:
                parsed = _parsed(line)
                if parsed is None and not line.endswith(b"\n"):
                    break
                self._read[path] = self._read.get(path, 0) + len(line)
                if parsed is not None:
                    yield parsed


COLUMNS = frozenset(field.name for field in fields(Attempt))
EFFORT_COLUMNS = frozenset(field.name for field in fields(Effort))


def _parsed(line: bytes) -> tuple[Attempt, dict[str, Any]] | None:
    """The attempt of a line, and the whole row."""
    try:
        row = json.loads(line)
        return Attempt(**{name: value for name, value in row.items() if name in COLUMNS}), row
    except (ValueError, TypeError, AttributeError):
        return None


def _effort(row: dict[str, Any]) -> Effort:
    known = {name: value for name, value in row.items() if name in EFFORT_COLUMNS}
    return Effort(**{**known, "warnings": tuple(known.get("warnings", ()))})


def read_ledger(folder: Path) -> dict[str, Attempt]:
    """The state of each clip, by `fold`."""
    return states(LedgerReader(folder).new())


def states(attempts: Iterable[Attempt]) -> dict[str, Attempt]:
    """The state of each clip that was served or refused, by `fold`, from attempts in any order."""
    of_clip: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        if attempt.action not in NOT_THE_CLIPS:
            of_clip.setdefault(attempt.key, []).append(attempt)
    return {key: fold(sorted(own, key=lambda attempt: attempt.time)) for key, own in of_clip.items()}


def fold(attempts: Sequence[Attempt]) -> Attempt:
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
