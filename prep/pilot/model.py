"""The content of pilot.json. Nothing in it names the user, the machine, its addresses or its folders."""

from typing import Literal

from pydantic import AwareDatetime

from mbt.manifests.shards import Frozen
from mbt.prep.doctor import Finding
from mbt.prep.report.model import Reason, Refusal, Share


class Interval(Frozen):
    """An expected value and the ends of its 95% confidence interval."""

    low: float
    expected: float
    high: float


class Spread(Frozen):
    """Measured values of one kind.

    Attributes:
        of: number of values.
        mean: their mean, with its interval.
        median: their median.
        p90: value that nine tenths of them do not exceed.
        max: the largest.
    """

    of: int
    mean: Interval
    median: float
    p90: float
    max: float


class Offered(Frozen):
    """A format by the site's name, and the number of videos that it was offered for."""

    format: str
    videos: int


class Chosen(Frozen):
    """The chosen formats, and the number of available clips fetched from them by byte ranges, and as whole files."""

    formats: str
    by_ranges: int
    whole: int


class PilotLane(Frozen):
    """A network address that clips were fetched from, without its name.

    Attributes:
        number: from 1, in the order of the names.
        attempts: requested clips, once per request; refused requests do not count.
        there: available clips that were fetched over the lane.
        rests: number of pauses after a rate limit or a block.
        paused_hours: length of these pauses.
        per_hour: requested videos per hour, pauses included; None if too few were requested.
    """

    number: int
    attempts: int
    there: int
    rests: int
    paused_hours: float
    per_hour: Interval | None


class Costs(Frozen):
    """What was measured per clip and per video; None where nothing was.

    Attributes:
        requests: requests for media per available clip.
        transferred: bytes over the network per available clip.
        raw_bytes: size of the fetched file per available clip.
        shard_bytes: bytes of the members per packed clip.
        extract_s: seconds of yt-dlp's extraction per request of a video.
        wait_s: seconds that the site demanded to wait before the transfer, per available clip.
        transfer_s: seconds of the transfer per available clip.
        decode_s: seconds of decoding per clip on one core, for a few clips decoded once more.
    """

    requests: Spread | None
    transferred: Spread | None
    raw_bytes: Spread | None
    shard_bytes: Spread | None
    extract_s: Spread | None
    wait_s: Spread | None
    transfer_s: Spread | None
    decode_s: Spread | None


class Forecast(Frozen):
    """What AS-500K would take from here, if the rest is like the sample.

    Attributes:
        lanes: number of network addresses.
        requests: requested videos, including the retries that the sample needed.
        clips: available clips.
        hours: hours of fetching at the measured rates of the lanes, pauses included.
        media_requests: requests for media.
        network_bytes: bytes over the network.
        disk_bytes: bytes of the raw clips and the shards.
        disk_bytes_without_raw: the same if raw clips are deleted once they are packed.
        core_hours: hours of decoding on one core; None if no clip could be decoded.
    """

    lanes: int
    requests: Interval
    clips: Interval
    hours: Interval
    media_requests: Interval
    network_bytes: Interval
    disk_bytes: Interval
    disk_bytes_without_raw: Interval
    core_hours: Interval | None


class Advice(Frozen):
    """What was measured, and what to do about it."""

    found: str
    remedy: str


class Ended(Frozen):
    """How the run ended: all its stages were run, the user stopped it, or something went wrong; and why."""

    state: Literal["complete", "interrupted", "stopped"]
    reason: str = ""


class Settings(Frozen):
    """How the pilot was run.

    Attributes:
        subset: name of the AudioSet subset.
        population: clips of the subset.
        sample: clips of the pilot: a random sample of the subset.
        source: "youtube", or "another site".
        sleep_s: seconds between two requests of each lane.
        options: names of the yt-dlp options of any lane; their values are not recorded.
    """

    subset: str
    population: int
    sample: int
    source: Literal["youtube", "another site"]
    sleep_s: tuple[float, ...]
    options: tuple[str, ...]


class PilotReport(Frozen):
    """The content of pilot.json.

    Attributes:
        time: time of the report.
        versions: versions of the programs and libraries that matter, by name.
        settings: how the pilot was run.
        ended: how the run ended.
        checks: the checks of `mbt doctor` before the run.
        asked: requested clips.
        there: available clips.
        not_there: missing clips: requested without success.
        to_ask: clips to request now: not yet requested, or due for a retry.
        due_later: missing clips that will be requested again after `due_from`.
        due_from: time at which the first of them is due.
        packed: clips in finished shards.
        alive: available clips as a share of those whose outcome is known, see `SplitReport.alive`.
        reasons: why clips are missing.
        pack_failures: why available clips could not be packed.
        refusals: why lanes paused or the run stopped.
        offered: formats by the number of videos that they were offered for.
        chosen: formats that available clips were fetched in.
        extractions: requests for a video's formats: what a site's quota counts.
        costs: what a clip took.
        lanes: the network addresses.
        free_bytes: free space of the disk.
        forecast: what AS-500K would take from here; None if fewer than two clips were fetched.
        advice: what to do before a long run.
    """

    time: AwareDatetime
    versions: dict[str, str]
    settings: Settings
    ended: Ended
    checks: tuple[Finding, ...]
    asked: int
    there: int
    not_there: int
    to_ask: int
    due_later: int
    due_from: AwareDatetime | None
    packed: int
    alive: Share | None
    reasons: tuple[Reason, ...]
    pack_failures: tuple[Reason, ...]
    refusals: tuple[Refusal, ...]
    offered: tuple[Offered, ...]
    chosen: tuple[Chosen, ...]
    extractions: int
    costs: Costs
    lanes: tuple[PilotLane, ...]
    free_bytes: int
    forecast: Forecast | None
    advice: tuple[Advice, ...]
