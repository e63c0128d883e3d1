"""The ledger of fetching: append-only JSON lines, one attempt per line, one file per worker; `fold` gives a clip's state."""

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
COUNTED_ACTIONS = {action.label for action in Action if action.uses_attempt}
STOPPING_ACTIONS = {action.label for action in Action if action.stops}
"""Actions that stop a lane or the run; they say nothing about the clip."""
MAX_ATTEMPTS = 6
WAITS_S = (1 * HOUR_S, 6 * HOUR_S, 24 * HOUR_S, 72 * HOUR_S)
"""Seconds between the counted attempts at a clip; the last value applies to all later ones."""
CONFIRMED_AFTER_S = 24 * HOUR_S


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
    """Appends attempts to one worker's ledger file; each line is on disk when `append` returns."""

    def __init__(self, folder: Path, worker: str) -> None:
        self.path = folder / LEDGER_FOLDER / f"{worker}.jsonl"

    def __enter__(self) -> "LedgerWriter":
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            cut_off = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
            self._file: TextIO = self.path.open("a", encoding="utf-8")
            if cut_off:
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
                self._file.write(json.dumps({name: value for part in parts for name, value in asdict(part).items()}) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


class LedgerReader:
    """Reads the ledger files of a folder; each call continues after the last one. Lines cut off by a crash are skipped.

    Args:
        folder: the dataset folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / LEDGER_FOLDER
        self._read: dict[Path, int] = {}

    def new(self) -> Iterator[Attempt]:
        """The new attempts of all workers; those of one worker are in order of time."""
        return (attempt for attempt, _ in self._all_new_rows())

    def new_with_effort(self) -> Iterator[tuple[Attempt, Effort]]:
        """The new attempts, each with its cost."""
        return ((attempt, _effort(row)) for attempt, row in self._all_new_rows())

    def _all_new_rows(self) -> Iterator[tuple[Attempt, dict[str, Any]]]:
        for path in sorted(self._folder.glob("*.jsonl")):
            yield from self._new_rows(path)

    def _new_rows(self, path: Path) -> Iterator[tuple[Attempt, dict[str, Any]]]:
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            for line in file:
                parsed = _parse(line)
                if parsed is None and not line.endswith(b"\n"):
                    break
                self._read[path] = self._read.get(path, 0) + len(line)
                if parsed is not None:
                    yield parsed


COLUMNS = frozenset(field.name for field in fields(Attempt))
EFFORT_COLUMNS = frozenset(field.name for field in fields(Effort))


def _parse(line: bytes) -> tuple[Attempt, dict[str, Any]] | None:
    """The attempt in a line, and its whole row; None if the line is not valid."""
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
    """The state of each clip that was served or refused, by `fold`; the attempts may come in any order."""
    by_clip: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        if attempt.action not in STOPPING_ACTIONS:
            by_clip.setdefault(attempt.key, []).append(attempt)
    return {key: fold(sorted(own, key=lambda attempt: attempt.time)) for key, own in by_clip.items()}


def fold(attempts: Sequence[Attempt]) -> Attempt:
    """The state of a clip after these attempts, in order of time: the last one, made final or delayed by those before it.

    Only attempts at the same source count. A failure with the action CONFIRM is final if the same failure was found at least
    24 hours earlier, and any failure is final after six counted attempts. Until then the waits grow.
    """
    last = attempts[-1]
    if last.action not in COUNTED_ACTIONS or last.final:
        return last
    failed: list[Attempt] = []
    for attempt in attempts:
        if attempt.code == "ok":
            failed.clear()
        elif attempt.action in COUNTED_ACTIONS and attempt.source == last.source:
            failed.append(attempt)
    confirmed = last.action == Action.CONFIRM.label and any(
        attempt.code == last.code and last.time - attempt.time >= CONFIRMED_AFTER_S for attempt in failed
    )
    wait_s = WAITS_S[min(len(failed), len(WAITS_S)) - 1]
    return replace(last, final=confirmed or len(failed) >= MAX_ATTEMPTS, not_before=max(last.not_before, last.time + wait_s))


def late_keys(attempts: Iterable[Attempt]) -> set[str]:
    """The clips that failed when they were first asked for; the attempts may come in any order."""
    first: dict[str, Attempt] = {}
    for attempt in attempts:
        if attempt.action not in STOPPING_ACTIONS and (attempt.key not in first or attempt.time < first[attempt.key].time):
            first[attempt.key] = attempt
    return {key for key, attempt in first.items() if attempt.code != "ok"}
