"""The ledger of fetching: append-only JSON lines, one attempt per line, one file per worker; `fold` gives a clip's state."""

import heapq
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from mbt.manifests.atomic import storage_errors
from mbt.prep.state.failure_codes import HOUR_S, Action

LEDGER_FOLDER = "work/ledger"
LOST = "fetch.lost"
LOCAL = "local"
"""Name of a local folder as a source."""
COUNTED_ACTIONS = {action.label for action in Action if action.uses_attempt}
NO_OUTCOME_ACTIONS = {action.label for action in Action if not action.uses_attempt}
"""Actions on failures of the lane, the run or the network: they say nothing about the clip."""
WITHDRAWN = "withdrawn"
"""Action of a row that withdraws the failure before it: the source was not to be believed."""
MAX_ATTEMPTS = 6
WAITS_S = (1 * HOUR_S, 6 * HOUR_S, 24 * HOUR_S, 72 * HOUR_S)
"""Seconds between the counted attempts at a clip; the last value applies to all later ones."""
CONFIRMED_AFTER_S = 24 * HOUR_S
MAX_FILE = 1 << 40
"""Maximum bytes of a ledger file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """The result of requesting a clip from a source.

    Attributes:
        key: key of the clip.
        source: "local", or the host of the URL.
        lane: name of the lane that made the request.
        path: the media file, relative to the dataset folder or absolute; None if the attempt failed.
        size: bytes of that file.
        offset_ms: time in the video at which the file begins.
        code: "ok", or the stable name of the failure.
        action: label of the failure's `Action`; empty if there is none.
        message: the failure in words.
        final: whether a retry is useless.
        not_before: Unix time in seconds before which a retry is useless.
        time: Unix time in seconds of the attempt.
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

    @property
    def is_absent(self) -> bool:
        """Whether the clip was not in a local folder."""
        return self.source == LOCAL and self.code != "ok"

    def checked(self, folder: Path) -> "Attempt":
        """This attempt, or `fetch.lost` instead if its media file is missing or has another size than recorded."""
        if self.path is None:
            return self
        try:
            if (folder / self.path).stat().st_size == self.size:
                return self
        except OSError:
            pass
        shown = os.fsencode(self.path).decode(errors="backslashreplace")  # Parquet cannot store names that are not UTF-8.
        return replace(self, path=None, code=LOST, message=f"{shown} is gone or has changed since it was fetched")


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """The cost of an attempt: further columns of its row, which do not affect the clip's state.

    Attributes:
        http_status: status of the response that made the attempt fail, if any.
        warnings: the extractor's warnings.
        offered: the site's names of all formats that it offered, separated by commas.
        formats: the site's names of the chosen formats.
        requests: number of requests for media.
        transferred: bytes of media received.
        extract_s: seconds of the extraction; counted on the first requested clip of a video.
        wait_s: seconds of the wait that the site demanded before the transfer; counted like `extract_s`.
        transfer_s: seconds of the transfer.
        versions: versions of the extractor and its dependencies.
    """

    http_status: int | None = None
    warnings: tuple[str, ...] = ()
    offered: str = ""
    formats: str = ""
    requests: int = 0
    transferred: int = 0
    extract_s: float = 0.0
    wait_s: float = 0.0
    transfer_s: float = 0.0
    versions: str = ""


NEVER_FETCHED = Attempt(key="", source="", code="fetch.pending", message="not fetched yet")
"""The state of a clip that is not in the ledger."""


class LedgerWriter:
    """Appends attempts to one worker's ledger file; each line is on disk when `append` returns.

    Args:
        folder: the dataset folder.
        worker: name of the file without suffix.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        self.path = folder / LEDGER_FOLDER / f"{worker}.jsonl"

    def __enter__(self) -> "LedgerWriter":
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = self.path.open("a", encoding="utf-8")
            if _is_cut_off(self.path):
                self._file.write("\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with storage_errors(self.path):
            self._file.close()

    def append(self, rows: Iterable[Attempt | tuple[Attempt, Effort]]) -> None:
        """Append attempts, with their cost if it is known.

        Raises:
            StorageError: no space left.
        """
        records = ([row] if isinstance(row, Attempt) else row for row in rows)
        with storage_errors(self.path):
            for parts in records:
                self._file.write(json.dumps({name: getattr(part, name) for part in parts for name in part.__slots__}) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def _is_cut_off(path: Path) -> bool:
    """Whether the last line of a file has no end."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read() not in (b"", b"\n")


class LedgerReader:
    """Reads the ledger files of a folder; each call continues after the last one. Lines cut off by a crash are skipped.

    Args:
        folder: the dataset folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / LEDGER_FOLDER
        self._read: dict[Path, int] = {}

    def new(self) -> Iterator[Attempt]:
        """The new attempts of all workers, in order of time."""
        return (attempt for attempt, _, _ in self._all_new_rows())

    def new_with_effort(self) -> Iterator[tuple[Attempt, Effort]]:
        """The new attempts, each with its cost."""
        return ((attempt, _effort(row)) for attempt, row, _ in self._all_new_rows())

    def new_with_place(self, but: str = "") -> Iterator[tuple[Attempt, int]]:
        """The new attempts, each with its place, by which `read` finds it again.

        Args:
            but: a worker whose file is not read.
        """
        return ((attempt, place) for attempt, _, place in self._all_new_rows(but))

    def read(self, place: int) -> Attempt:
        """The attempt at a place."""
        number, offset = divmod(place, MAX_FILE)
        with list(self._read)[number].open("rb") as file:
            file.seek(offset)
            parsed = _parse(file.readline())
        assert parsed is not None
        return parsed[0]

    def _all_new_rows(self, but: str = "") -> Iterator[tuple[Attempt, dict[str, Any], int]]:
        files = [self._new_rows(path) for path in sorted(self._folder.glob("*.jsonl")) if path.stem != but]
        return heapq.merge(*files, key=lambda row: row[0].time)

    def _new_rows(self, path: Path) -> Iterator[tuple[Attempt, dict[str, Any], int]]:
        begin = self._read.setdefault(path, 0)
        number = list(self._read).index(path)
        with path.open("rb") as file:
            file.seek(begin)
            for line in file:
                parsed = _parse(line)
                if parsed is None and not line.endswith(b"\n"):
                    break
                place = number * MAX_FILE + self._read[path]
                self._read[path] += len(line)
                if parsed is not None:
                    yield *parsed, place


COLUMNS = frozenset(field.name for field in fields(Attempt))
EFFORT_COLUMNS = frozenset(field.name for field in fields(Effort))
REPEATED_COLUMNS = frozenset({"source", "lane", "code", "action", "message"})
"""Columns with few different values, which are kept in memory once."""


def _parse(line: bytes) -> tuple[Attempt, dict[str, Any]] | None:
    """The attempt in a line, and its whole row; None if the line is not valid."""
    try:
        row = json.loads(line)
        for name in REPEATED_COLUMNS & row.keys():
            row[name] = sys.intern(row[name])
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
    """The state of each clip that was served or refused, by `fold`; the attempts may come in any order."""
    return {key: fold(own) for key, own in _outcomes_by_clip(attempts).items()}


def late_keys(attempts: Iterable[Attempt]) -> set[str]:
    """The clips whose first outcome was a failure; the attempts may come in any order.

    That a clip was not in a local folder is no outcome here: the others come from elsewhere, on time.
    """
    first = (
        (key, next((own for own in outcomes if not own.is_absent), None))
        for key, outcomes in _outcomes_by_clip(attempts).items()
    )
    return {key for key, attempt in first if attempt is not None and attempt.code != "ok"}


def _outcomes_by_clip(attempts: Iterable[Attempt]) -> dict[str, list[Attempt]]:
    by_clip: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        if attempt.action not in NO_OUTCOME_ACTIONS:
            by_clip.setdefault(attempt.key, []).append(attempt)
    outcomes: dict[str, list[Attempt]] = {}
    for key, own in by_clip.items():
        for attempt in sorted(own, key=lambda attempt: attempt.time):
            add_outcome(outcomes.setdefault(key, []), attempt)
    return {key: own for key, own in outcomes.items() if own}


def add_outcome(outcomes: list[Attempt], attempt: Attempt) -> None:
    """Add a clip's next attempt to its outcomes: a withdrawal removes the failure before it."""
    if attempt.action != WITHDRAWN:
        outcomes.append(attempt)
    elif outcomes and outcomes[-1].code != "ok":
        outcomes.pop()


def fold(outcomes: Sequence[Attempt]) -> Attempt:
    """The state of a clip after these outcomes, in order of time: the last one, made final or delayed by those before it.

    Only attempts at the same source count. A failure with the action CONFIRM is final if the same failure was found at least
    24 hours earlier, and any failure is final after six counted attempts; of those with the code bytes.403, which come and go
    with the site's tokens, one a day counts. Until then the waits grow.
    """
    last = outcomes[-1]
    if last.action not in COUNTED_ACTIONS or last.final:
        return last
    failed: list[Attempt] = []
    for attempt in outcomes:
        if attempt.code == "ok":
            failed.clear()
        elif attempt.action in COUNTED_ACTIONS and attempt.source == last.source:
            failed.append(attempt)
    confirmed = last.action == Action.CONFIRM.label and any(
        attempt.code == last.code and last.time - attempt.time >= CONFIRMED_AFTER_S for attempt in failed
    )
    wait_s = WAITS_S[min(len(failed), len(WAITS_S)) - 1]
    final = confirmed or _num_counted(failed) >= MAX_ATTEMPTS
    return replace(last, final=final, not_before=max(last.not_before, last.time + wait_s))


def _num_counted(failed: Sequence[Attempt]) -> int:
    """Number of failures toward the limit."""
    count, last_403 = 0, -math.inf
    for attempt in failed:
        if attempt.code != "bytes.403":
            count += 1
        elif attempt.time - last_403 >= CONFIRMED_AFTER_S:
            count, last_403 = count + 1, attempt.time
    return count
