"""Lanes: the network addresses that a source is fetched from. Each makes one request at a time, at its own rate."""

import random
import time
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mbt.manifests.clips import Clip
from mbt.manifests.errors import InputError
from mbt.prep.fetch.options import FetchOptions
from mbt.prep.sources.ytdlp import Answer, YtDlp, parse_ytdlp
from mbt.prep.state.failure_codes import HOUR_S, Action
from mbt.prep.state.ledger import LedgerReader

PAUSE_S = {
    Action.COOL.label: (HOUR_S, 2 * HOUR_S, 4 * HOUR_S),
    Action.BLOCK.label: (6 * HOUR_S,),
}
"""By action, seconds of a lane's first pause in a row, its second, and so on; the last value applies to all later ones."""
DEFAULT_PAUSE_S = (HOUR_S,)
MIN_WAIT_S = 0.01

T = TypeVar("T")


@dataclass
class Lane:
    """One network address.

    Attributes:
        name: name in the ledger.
        source: fetches from this address.
        sleep_s: seconds between the starts of two extractions, randomly varied by up to 20%.
        next_start: `time.monotonic()` from which the next extraction may start.
        paused_until: Unix time in seconds before which the lane makes no request.
        num_pauses: pauses in a row, without a clip served in between.
    """

    name: str
    source: YtDlp
    sleep_s: float
    next_start: float = 0.0
    paused_until: float = 0.0
    num_pauses: int = 0

    def fetch(self, video_id: str, clips: Sequence[Clip]) -> list[Answer]:
        """The result of each clip of a video."""
        return self.source.fetch(video_id, clips)

    def wait_s(self) -> float:
        """Seconds until the lane may make its next request."""
        return max(self.next_start - time.monotonic(), self.paused_until - time.time(), 0.0)

    def pause(self, action: str) -> None:
        """Pause the lane; pauses in a row grow longer until a clip is served."""
        pauses = PAUSE_S.get(action, DEFAULT_PAUSE_S)
        self.paused_until = time.time() + pauses[min(self.num_pauses, len(pauses) - 1)]
        self.num_pauses += 1


def restore_pauses(lanes: Iterable[Lane], folder: Path) -> None:
    """Apply the rate-limit pauses in a folder's ledger to the lanes; a blocked lane may try again in a new run."""
    by_name = {lane.name: lane for lane in lanes}
    for attempt in LedgerReader(folder).new():
        if lane := by_name.get(attempt.lane):
            if attempt.action == Action.COOL.label:
                lane.num_pauses += attempt.not_before != lane.paused_until
                lane.paused_until = attempt.not_before
            elif attempt.code == "ok":
                lane.num_pauses = 0


class LaneTable(BaseModel):
    """A `[[lane]]` table of a lanes file: a name, a rate, and yt-dlp's command-line flags for this lane only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[\w.-]+$")
    sleep: float | None = Field(default=None, ge=0)
    ytdlp: str = ""


class LanesFile(BaseModel):
    """A lanes file: yt-dlp's command-line flags for every lane, and the lanes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ytdlp: str = ""
    lane: tuple[LaneTable, ...] = Field(min_length=1)


def make_lanes(folder: Path, options: FetchOptions) -> list[Lane]:
    """The lanes in a lanes file; without a file, one lane: this machine's own network address.

    Args:
        folder: the dataset folder.
        options: options of the fetch stage. `options.lanes` is TOML: `ytdlp` with yt-dlp's command-line flags for every lane,
            which override `options.ytdlp`, and `[[lane]]` tables with `name`, `sleep`, and `ytdlp` for that lane.

    Raises:
        InputError: the file or a flag is malformed, two lanes have the same name, or the template has no placeholder.
    """
    template, file, shared = options.source, options.lanes, options.ytdlp
    prefix = f"{options.share.rank}." if options.share.world > 1 else ""
    if file is None:
        return [Lane(f"{prefix}direct", YtDlp(folder, template, parse_ytdlp(shared)), options.sleep)]
    content = _read_file(file)
    names = [table.name for table in content.lane]
    if len(set(names)) < len(names):
        raise InputError(f"{file}: a lane name is used twice", "Give every lane its own name")
    lanes = []
    parse_ytdlp(shared)
    for table in content.lane:
        flags = parse_ytdlp((*shared, content.ytdlp, table.ytdlp), f"{file}: lane {table.name}: ytdlp")
        sleep = options.sleep if table.sleep is None else table.sleep
        lanes.append(Lane(f"{prefix}{table.name}", YtDlp(folder, template, flags), sleep))
    return lanes


def _read_file(path: Path) -> LanesFile:
    fix = 'Write it as docs/scale.md shows: [[lane]], name = "a", ytdlp = "--proxy http://host:port"'
    try:
        return LanesFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot read the lanes file {path}: {error}", fix) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {place} is not valid: {first['msg']}", fix) from None


@dataclass
class LanePool(Generic[T]):
    """Lanes and the items that they work on, one each.

    Attributes:
        lanes: all lanes.
        busy: for each item in flight, the index of its lane and the item.
    """

    lanes: Sequence[Lane]
    busy: dict["Future[list[Answer]]", tuple[int, T]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(len(self.lanes), thread_name_prefix="lane")

    def __enter__(self) -> "LanePool[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def free_lane(self) -> int | None:
        """Index of a lane that may make a request now, or None."""
        return next((index for index in self._idle() if not self.lanes[index].wait_s()), None)

    def start(self, lane: int, item: T, clips: Sequence[Clip]) -> None:
        """Let a free lane fetch clips of one video, which belong to `item`."""
        chosen = self.lanes[lane]
        chosen.next_start = time.monotonic() + chosen.sleep_s * random.uniform(0.8, 1.2)
        self.busy[self._threads.submit(chosen.fetch, clips[0].video_id, clips)] = lane, item

    def finished(self, timeout_s: float, more: bool) -> list[tuple[int, T, list[Answer]]]:
        """Lane, item and answers of the items that have finished.

        Args:
            timeout_s: maximum wait for the first.
            more: items are waiting, so return as soon as another lane may make a request.
        """
        if more:
            waits = (max(self.lanes[index].wait_s(), MIN_WAIT_S) for index in self._idle())
            timeout_s = min([timeout_s, *waits])
        if not self.busy:
            time.sleep(timeout_s)
        done, _ = wait(self.busy, timeout_s, FIRST_COMPLETED)
        return [(*self.busy.pop(future), future.result()) for future in done]

    def _idle(self) -> list[int]:
        """Indices of the idle lanes."""
        at_work = {lane for lane, _ in self.busy.values()}
        return [index for index in range(len(self.lanes)) if index not in at_work]
