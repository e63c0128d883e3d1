"""The content of report.json."""

from pydantic import AwareDatetime

from mbt.manifests.shards import Frozen


class Share(Frozen):
    """A share and its 95% confidence interval.

    Attributes:
        of: number of clips that the share refers to.
        share: from 0 to 1.
        low: lower end of Wilson's score interval (Wilson 1927).
        high: upper end of the interval.
    """

    of: int
    share: float
    low: float
    high: float


class Reason(Frozen):
    """One reason why clips are missing or could not be packed.

    Attributes:
        code: stable name of the failure.
        action: label of the failure's `prep.state.failure_codes.Action`; empty if it has none.
        clips: number of clips.
        final: number of these clips that will not be requested again.
        retry_from: time from which the first of the others may be requested again; None if all are final.
        example_key: key of one of the clips.
        example: the message of its failure.
    """

    code: str
    action: str
    clips: int
    final: int
    retry_from: AwareDatetime | None
    example_key: str
    example: str


class Refusal(Frozen):
    """Answers that paused a lane or stopped the run. They say nothing about the requested clips.

    Attributes:
        code: stable name of the failure.
        action: label of its `prep.state.failure_codes.Action`.
        times: how often; the clips of one video count once.
        example: the message of the last one.
    """

    code: str
    action: str
    times: int
    example: str


class SplitReport(Frozen):
    """One split: `planned` >= `asked` = `there` + `not_there`.

    Attributes:
        planned: clips in the plan; with a cap, all clips that are considered for it.
        asked: clips that were requested from a source.
        there: available clips: their media are on disk, or were when they were packed.
        not_there: missing clips: requested without success.
        alive: available clips as a share of those whose outcome is known. Clips that will be requested again do not count,
            except those that are unavailable but not yet confirmed to be: nearly all of them are gone.
        reasons: why clips are missing, the most frequent reason first.
        to_ask: clips to fetch: never requested, or due for a retry, but not missing from a local folder. With a cap, the
            expected number that will fit under it if the share of available clips stays the same.
        due_later: missing clips that will be requested again after a wait.
        due_from: time at which the first of them is due; None if there are none.
        due_until: time at which the last of them is due.
        packed: samples in finished shards.
        pack_failures: why clips with media are not in finished shards, the most frequent reason first.
    """

    planned: int
    asked: int
    there: int
    not_there: int
    alive: Share | None
    reasons: tuple[Reason, ...]
    to_ask: int
    due_later: int
    due_from: AwareDatetime | None
    due_until: AwareDatetime | None
    packed: int
    pack_failures: tuple[Reason, ...]


class ClassReport(Frozen):
    """One class, over all splits.

    Attributes:
        index: index of the label.
        id: id of the label.
        name: display name of the label.
        planned: clips in the plan with this label.
        answered: clips whose outcome is known, as for `SplitReport.alive`.
        there: available clips.
        share: `there` / `answered`; None if no clip was answered.
    """

    index: int
    id: str
    name: str
    planned: int
    answered: int
    there: int
    share: float | None


class Span(Frozen):
    """Successful and failed attempts in an interval that begins `start_s` seconds after the first attempt."""

    start_s: float
    there: int
    not_there: int


class Pace(Frozen):
    """How fast clips are fetched.

    Attributes:
        attempts: requested clips; a clip counts once per request.
        first: time of the first attempt.
        last: time of the last attempt.
        last_hour: attempts per hour in the hour before the report, or since the first attempt if that is shorter.
        overall: attempts per hour between the first and the last attempt, including all pauses.
        eta_hours: hours until all clips to fetch are requested, at the pace of the last hour or else the overall pace; None
            if the pace is unknown.
        spans: the attempts over time, in intervals of equal length.
    """

    attempts: int
    first: AwareDatetime | None
    last: AwareDatetime | None
    last_hour: float | None
    overall: float | None
    eta_hours: float | None
    spans: tuple[Span, ...]


class Pause(Frozen):
    """The pause of a lane: its end, and the code and message of the last refusal."""

    until: AwareDatetime
    code: str
    message: str


class LaneReport(Frozen):
    """The results, speed and pauses of one lane, a network address that clips are fetched from.

    Attributes:
        name: name of the lane in the ledger; RANK.NAME if several workers fetch the plan.
        attempts: requested clips, once per request; rate limits and blocks of the lane do not count.
        there: available clips that were fetched over the lane.
        share: `there` / `attempts`; None without attempts.
        transferred: downloaded bytes of media.
        requests: requests for media.
        last_hour: attempts in the hour before the report.
        hourly: attempts per hour of work: pauses, and gaps of more than ten minutes, do not count.
        rests: number of pauses after a rate limit or a block.
        resting: the current pause, or None.
    """

    name: str
    attempts: int
    there: int
    share: float | None
    transferred: int
    requests: int
    last_hour: int
    hourly: float | None
    rests: int
    resting: Pause | None


class Report(Frozen):
    """The content of report.json.

    Attributes:
        dataset: name of the dataset.
        time: time of the report.
        splits: the splits by name.
        refusals: why lanes paused or a run stopped, the most frequent reason first.
        classes: all classes in index order.
        pace: speed of fetching.
        lanes: the lanes in the ledger, by name; empty if all media came from a local folder.
        raw_bytes: total size of the media files of available clips, according to the ledger.
        packed_bytes: total size of the finished tar files.
    """

    dataset: str
    time: AwareDatetime
    splits: dict[str, SplitReport]
    refusals: tuple[Refusal, ...]
    classes: tuple[ClassReport, ...]
    pace: Pace
    lanes: tuple[LaneReport, ...]
    raw_bytes: int
    packed_bytes: int
