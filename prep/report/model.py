"""What a report of a dataset folder says: the content of report.json."""

from pydantic import AwareDatetime

from mbt.manifests.shards import Frozen


class Share(Frozen):
    """A share and its 95 % interval.

    Attributes:
        of: clips that it is a share of.
        share: from 0 to 1.
        low: lower end of Wilson's score interval (Wilson 1927).
        high: its upper end.
    """

    of: int
    share: float
    low: float
    high: float


class Reason(Frozen):
    """Why clips are not there, or were not packed.

    Attributes:
        code: stable name of the failure.
        action: what it means, as in `prep.taxonomy.Action`; empty where there is none.
        clips: how many.
        final: those of them that are not asked for again.
        example: the failure of one of them in words.
    """

    code: str
    action: str
    clips: int
    final: int
    example: str


class SplitReport(Frozen):
    """One split: `planned` >= `asked` = `there` + `not_there`.

    Attributes:
        planned: clips of the plan; of a split with a cap all that are offered to it.
        asked: those that a source was asked for.
        there: those whose media are on disk or were when they were packed.
        not_there: asked for in vain.
        alive: share of `there` in the clips that a source gave or refused: failures of the network and files that were lost
            tell nothing.
        reasons: of `not_there`, the most frequent first.
        to_ask: never asked for, or in vain and due again; of a split with a cap an expectation: those that will find room
            if the share that is there stays as it is.
        due_later: asked for in vain, to be asked for again after a wait.
        packed: samples in finished shards.
        pack_failures: clips that finished shards lack since their media could not be packed.
    """

    planned: int
    asked: int
    there: int
    not_there: int
    alive: Share | None
    reasons: tuple[Reason, ...]
    to_ask: int
    due_later: int
    packed: int
    pack_failures: tuple[Reason, ...]


class ClassReport(Frozen):
    """One class, over all splits.

    Attributes:
        index: of the label.
        id: of the label.
        name: of the label.
        planned: clips of the plan with this label.
        answered: those that a source gave or refused.
        there: those that are there.
        share: `there` / `answered`.
    """

    index: int
    id: str
    name: str
    planned: int
    answered: int
    there: int
    share: float | None


class Span(Frozen):
    """Attempts from `start_s` on, seconds since the first attempt, until the next span."""

    start_s: float
    there: int
    not_there: int


class Pace(Frozen):
    """How fast fetching goes.

    Attributes:
        attempts: clips asked for, each as often as it was.
        first: time of the first attempt.
        last: time of the last.
        last_hour: attempts an hour over the last hour before the report, or since the first attempt if that is less.
        overall: attempts an hour between the first and the last, with all pauses.
        eta_hours: until all of `to_ask` are asked for, at the pace of the last hour, else overall; None where it is not known.
        spans: the attempts over time, in equal spans.
    """

    attempts: int
    first: AwareDatetime | None
    last: AwareDatetime | None
    last_hour: float | None
    overall: float | None
    eta_hours: float | None
    spans: tuple[Span, ...]


class Rest(Frozen):
    """Why a lane asks for nothing until a time: code and message of the refusal that it was told last."""

    until: AwareDatetime
    code: str
    message: str


class LaneReport(Frozen):
    """One lane, the network address that asked: what came of it, how fast it is, and its rests.

    Attributes:
        name: in the ledger: of several workers RANK.NAME.
        attempts: clips asked for, each as often as it was, without what the lane itself was refused.
        there: clips that are there and came over it.
        share: `there` / `attempts`.
        transferred: bytes of media.
        requests: for media.
        last_hour: attempts in the hour before the report.
        hourly: attempts an hour over the time in which it was at work: without rests, and without pauses of over ten minutes.
        rests: how often it had to rest because its rate was limited or it was blocked.
        resting: the rest that it takes now.
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
    resting: Rest | None


class Report(Frozen):
    """The content of report.json.

    Attributes:
        dataset: its name.
        time: when the report was made.
        splits: by name.
        classes: all of them, in index order.
        pace: of fetching.
        lanes: those that the ledger knows, by name; none where all media lay in a folder.
        raw_bytes: of the distinct media files of the clips that are there, by the ledger.
        packed_bytes: of the finished tars.
    """

    dataset: str
    time: AwareDatetime
    splits: dict[str, SplitReport]
    classes: tuple[ClassReport, ...]
    pace: Pace
    lanes: tuple[LaneReport, ...]
    raw_bytes: int
    packed_bytes: int
