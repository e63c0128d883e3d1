"""Lanes: the network addresses that a source is fetched from. Each makes one request at a time, at its own rate."""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mbt.manifests.clips import Clip
from mbt.manifests.errors import InputError
from mbt.prep.fetch.options import FetchOptions
from mbt.prep.sources.ytdlp import Answer, Offer, YtDlp, parse_ytdlp
from mbt.prep.state.failure_codes import HOUR_S, Action, Verdict
from mbt.prep.state.ledger import LedgerReader
from mbt.prep.workers.clock import Clock

PAUSE_S = {
    Action.COOL.label: (HOUR_S, 2 * HOUR_S, 4 * HOUR_S),
    Action.BLOCK.label: (6 * HOUR_S,),
}
"""By action, seconds of a lane's first pause in a row, its second, and so on; the last value applies to all later ones."""
DEFAULT_PAUSE_S = (HOUR_S,)


class VideoSource(Protocol):
    """Where videos come from; `name` is the source's name in the ledger."""

    name: str

    def fetch(self, video_id: str, clips: Sequence[Clip]) -> list[Answer]:
        """The result of each clip of a video; the last clips may be missing after a result that stops the lane."""

    def probe(self, video_id: str) -> Offer | Verdict:
        """What the site offers for a video, or why it offers nothing."""


@dataclass
class Lane:
    """One network address.

    Attributes:
        name: name in the ledger.
        source: fetches from this address.
        sleep_s: seconds between the starts of two extractions, randomly varied by up to 20%; after one that took longer, the
            next ones follow sooner.
        next_start: monotonic time in seconds from which the next extraction may start.
        free_since: monotonic time in seconds at which the last answer came.
        paused_until: Unix time in seconds before which the lane makes no request.
        num_pauses: pauses in a row, without a clip served in between.
    """

    name: str
    source: VideoSource
    sleep_s: float
    next_start: float = 0.0
    free_since: float = 0.0
    paused_until: float = 0.0
    num_pauses: int = 0

    def wait_s(self, clock: Clock) -> float:
        """Seconds until the lane may make its next request."""
        return max(self.next_start - clock.monotonic(), self.paused_until - clock.time(), 0.0)

    def pause(self, action: str, now: float) -> None:
        """Pause the lane at Unix time `now`; pauses in a row grow longer until a clip is served."""
        pauses = PAUSE_S.get(action, DEFAULT_PAUSE_S)
        self.paused_until = now + pauses[min(self.num_pauses, len(pauses) - 1)]
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
