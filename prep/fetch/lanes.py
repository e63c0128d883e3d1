"""Lanes: the network addresses that a source is asked from, each one item at a time, at its own rate, with its own rests."""

import random
import time
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mbt.manifests.clips import Clip
from mbt.manifests.errors import InputError
from mbt.prep.fetch.options import FetchOptions
from mbt.prep.fetch.ytdlp import Answer, YtDlp, check_options, parse_options
from mbt.prep.state.failure_codes import HOUR_S, Action
from mbt.prep.state.ledger import LedgerReader

REST_S = {
    Action.COOL.label: (HOUR_S, 2 * HOUR_S, 4 * HOUR_S),
    Action.BLOCK.label: (6 * HOUR_S,),
}
"""How long a lane rests after what it was told, the first time in a row, the second, and so on."""

TICK_S = 0.01

T = TypeVar("T")


@dataclass
class Lane:
    """One network address.

    Attributes:
        name: in the ledger.
        source: asks from there.
        sleep_s: seconds from one extraction to the next, give or take a fifth.
        turn: `time.monotonic()` from which on the next may start.
        rests_until: Unix time in seconds until which it must not ask.
        rests: how often in a row it had to rest.
    """

    name: str
    source: YtDlp
    sleep_s: float
    turn: float = 0.0
    rests_until: float = 0.0
    rests: int = 0

    def fetch(self, video_id: str, clips: Sequence[Clip]) -> list[Answer]:
        """What came of each clip of a video."""
        return self.source.fetch(video_id, clips)

    def wait_s(self) -> float:
        """Seconds until it may ask again."""
        return max(self.turn - time.monotonic(), self.rests_until - time.time(), 0.0)

    def rest(self, action: str) -> None:
        """Ask nothing for a while: it is longer each time, until a clip was served."""
        spans = REST_S.get(action, (HOUR_S,))
        self.rests_until = time.time() + spans[min(self.rests, len(spans) - 1)]
        self.rests += 1


def remember(lanes: Iterable[Lane], folder: Path) -> None:
    """Take up the rests for a rate that a folder's ledger has; who was blocked may try again by a new run."""
    known = {lane.name: lane for lane in lanes}
    for attempt in LedgerReader(folder).new():
        if lane := known.get(attempt.lane):
            if attempt.action == Action.COOL.label:
                lane.rests += attempt.not_before != lane.rests_until
                lane.rests_until = attempt.not_before
            elif attempt.code == "ok":
                lane.rests = 0


class LaneTable(BaseModel):
    """A table `[[lane]]` of a lanes file: a name, a rate, and options of yt-dlp for this lane alone."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(pattern=r"^[\w.-]+$")
    sleep: float | None = Field(default=None, ge=0)


class LanesFile(BaseModel):
    """A lanes file: options of yt-dlp for every lane, and the lanes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ytdlp: dict[str, Any] = Field(default_factory=dict)
    lane: tuple[LaneTable, ...] = Field(min_length=1)


def make_lanes(folder: Path, options: FetchOptions) -> list[Lane]:
    """The lanes of a lanes file, or the one that this machine has by itself.

    Args:
        folder: the dataset folder.
        options: options of the fetch stage. `options.lanes` is TOML: `[[lane]]` with `name`, `sleep` and yt-dlp options
            (`proxy`, `cookiefile`, `source_address`, ...); `[ytdlp]` with yt-dlp options of every lane, which override
            `options.ytdlp`.

    Raises:
        InputError: the file or an option is malformed, two lanes have one name, or the template lacks its placeholder.
    """
    template, file, ytdlp = options.source, options.lanes, parse_options(options.ytdlp)
    prefix = f"{options.share.rank}." if options.share.world > 1 else ""
    if file is None:
        return [Lane(f"{prefix}direct", YtDlp(folder, template, ytdlp), options.sleep)]
    content = _read_file(file)
    common = {**ytdlp, **check_options(content.ytdlp, f"{file}: [ytdlp]")}
    lanes = []
    for table in content.lane:
        own = check_options(table.model_extra or {}, f"{file}: lane {table.name}")
        sleep = options.sleep if table.sleep is None else table.sleep
        lanes.append(Lane(f"{prefix}{table.name}", YtDlp(folder, template, {**common, **own}), sleep))
        cookies = own.get("cookiefile")
        if cookies is not None and not Path(cookies).is_file():
            raise InputError(
                f"{file}: lane {table.name}: there is no file {cookies}", "Give the path of its cookies, or leave them out"
            )
    if len({lane.name for lane in lanes}) < len(lanes):
        raise InputError(f"{file} names a lane twice", "Give each lane its own name")
    return lanes


def _read_file(path: Path) -> LanesFile:
    fix = 'Write it as docs/scale.md shows: [[lane]], name = "a", proxy = "http://host:port"'
    try:
        return LanesFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot read the lanes of {path}: {error}", fix) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path} is malformed at {place}: {first['msg']}", fix) from None


@dataclass
class LanePool(Generic[T]):
    """Lanes at work, each on one item.

    Attributes:
        lanes: all of them.
        busy: what is in flight, and on which lane (its place in `lanes`).
    """

    lanes: Sequence[Lane]
    busy: dict["Future[list[Answer]]", tuple[int, T]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(len(self.lanes), thread_name_prefix="lane")

    def __enter__(self) -> "LanePool[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def free(self) -> int | None:
        """A lane that may ask now, or None."""
        taken = {lane for lane, _ in self.busy.values()}
        return next((i for i, lane in enumerate(self.lanes) if i not in taken and not lane.wait_s()), None)

    def ask(self, lane: int, item: T, clips: Sequence[Clip]) -> None:
        """Let a free lane fetch clips of one video."""
        chosen = self.lanes[lane]
        chosen.turn = time.monotonic() + chosen.sleep_s * random.uniform(0.8, 1.2)
        self.busy[self._threads.submit(chosen.fetch, clips[0].video_id, clips)] = lane, item

    def answers(self, patience_s: float, more: bool) -> list[tuple[int, T, list[Answer]]]:
        """Lane, item and answers of what came.

        Args:
            patience_s: how long to wait for the first.
            more: there are items to ask for: return as soon as a lane may.
        """
        if more:
            taken = {lane for lane, _ in self.busy.values()}
            patience_s = min([patience_s, *(max(lane.wait_s(), TICK_S) for i, lane in enumerate(self.lanes) if i not in taken)])
        if not self.busy:
            time.sleep(patience_s)
        done, _ = wait(self.busy, patience_s, FIRST_COMPLETED)
        return [(*self.busy.pop(future), future.result()) for future in done]
