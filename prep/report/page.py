"""The report as one HTML page with its plots inside."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from html import escape

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mbt.manifests.sizes import format_bytes
from mbt.prep.report.html import document, image, table
from mbt.prep.report.model import ClassReport, LaneReport, Reason, Refusal, Report, Share, SplitReport

GOOD, BAD = "tab:blue", "tab:orange"
SHOWN = 15
"""Classes with the lowest and with the highest survival that are always visible."""
BARS = 20
"""Reasons in the bar chart."""
CODE_WIDTH = 40
"""Characters of a failure code beside its bar."""

NOTHING_YET = "No clip has been requested yet."


def page(report: Report) -> str:
    """The report as HTML; every text is escaped."""
    title = f"{report.dataset}: fetched and packed clips"
    classes = sorted((row for row in report.classes if row.share is not None), key=lambda row: (row.share, row.index))
    parts = [
        f"<p>{report.time:%Y-%m-%d %H:%M:%S} UTC. {escape(pace_line(report))}</p>",
        "<h2>Splits</h2>",
        table(SPLIT_HEAD, [split_row(name, split) for name, split in report.splits.items()], texts=1),
        f"<p>Survival: available clips as a share of those whose outcome is known, with its 95% confidence interval. Clips "
        f"that will be requested again do not count, except those that are unavailable. Media files: "
        f"{format_bytes(report.raw_bytes)}; finished shards: {format_bytes(report.packed_bytes)}.</p>",
        "<h2>Why clips are missing</h2>",
        *_reasons_part(report),
        "<h2>Progress</h2>",
        image(_over_time(report), "attempts over time") if report.pace.attempts else f"<p>{NOTHING_YET}</p>",
        *_lanes_part(report.lanes),
        "<h2>Classes</h2>",
        *_classes_part(classes, report.classes),
    ]
    return document(title, parts)


SPLIT_HEAD = (
    "split",
    "planned",
    "requested",
    "available",
    "survival",
    "missing",
    "to fetch",
    "retry later",
    "packed",
    "pack failures",
)


def split_row(name: str, split: SplitReport) -> list[str]:
    """A split as cells below SPLIT_HEAD."""
    failed = sum(reason.clips for reason in split.pack_failures)
    before = (split.planned, split.asked, split.there)
    after = (split.not_there, split.to_ask, split.due_later, split.packed, failed)
    return [name, *(f"{count:,}" for count in before), percent(split.alive), *(f"{count:,}" for count in after)]


LANE_HEAD = ("lane", "attempts", "available", "success", "media", "requests", "last hour", "per hour", "pauses", "paused until")


def lane_row(lane: LaneReport) -> list[str]:
    """A lane as cells below LANE_HEAD."""
    return [
        visible(lane.name),
        f"{lane.attempts:,}",
        f"{lane.there:,}",
        "-" if lane.share is None else f"{lane.share:.1%}",
        format_bytes(lane.transferred),
        f"{lane.requests:,}",
        f"{lane.last_hour:,}",
        "-" if lane.hourly is None else f"{lane.hourly:,.0f}",
        f"{lane.rests:,}",
        f"{lane.resting.until:%Y-%m-%d %H:%M}, {visible(lane.resting.code)}" if lane.resting else "-",
    ]


REASON_HEAD = ("code", "action", "clips", "final", "retry from", "clip", "example")


def reason_row(reason: Reason) -> list[str]:
    """A reason as cells below REASON_HEAD."""
    counts = (f"{reason.clips:,}", f"{reason.final:,}")
    return [reason.code, reason.action, *counts, _minute(reason.retry_from), reason.example_key, reason.example]


REFUSAL_HEAD = ("code", "action", "times", "example")


def refusal_row(refusal: Refusal) -> list[str]:
    """Refused requests as cells below REFUSAL_HEAD."""
    return [refusal.code, refusal.action, f"{refusal.times:,}", refusal.example]


def _minute(time: datetime | None) -> str:
    """A time in UTC, to the next full minute, so that what is due at it is due at the time shown."""
    return "-" if time is None else f"{time + timedelta(seconds=59):%Y-%m-%d %H:%M}"


def percent(share: Share | None) -> str:
    """A share and its interval in percent."""
    return f"{share.share:.1%} ({share.low:.1%} to {share.high:.1%})" if share else "-"


def pace_line(report: Report) -> str:
    """The number of attempts, their pace and the time left, as a sentence."""
    pace = report.pace
    if not pace.attempts:
        return NOTHING_YET
    rates = [
        f"{rate:,.0f} per hour {period}"
        for rate, period in ((pace.last_hour, "in the last hour"), (pace.overall, "overall"))
        if rate is not None
    ]
    to_fetch = sum(split.to_ask for split in report.splits.values())
    eta = f", {pace.eta_hours:,.1f} h left at this pace" if to_fetch and pace.eta_hours is not None else ""
    speed = f" ({', '.join(rates)})" if rates else ""
    return f"{pace.attempts:,} attempts{speed}; {to_fetch:,} clip{'s' * (to_fetch != 1)} to fetch{eta}{_retries(report)}."


def _retries(report: Report) -> str:
    """The clips that are due later, and when."""
    splits = [split for split in report.splits.values() if split.due_from and split.due_until]
    if not splits:
        return ""
    count = sum(split.due_later for split in splits)
    first = min(split.due_from for split in splits if split.due_from)
    last = max(split.due_until for split in splits if split.due_until)
    when = _minute(first) if _minute(first) == _minute(last) else f"{_minute(first)} to {_minute(last)}"
    return f"; {count:,} to retry later, due {when} UTC"


def _reasons_part(report: Report) -> list[str]:
    fetching = [(name, reason) for name, split in report.splits.items() for reason in split.reasons]
    packing = [(name, reason) for name, split in report.splits.items() for reason in split.pack_failures]
    parts = []
    if fetching or packing:
        parts.append(image(_by_reason(report), "clips by reason"))
    if fetching:
        parts += [
            "<h3>Fetching</h3>",
            table(("split", *REASON_HEAD), ((name, *reason_row(r)) for name, r in fetching), texts=3),
        ]
    if packing:
        short = [(name, r.code, f"{r.clips:,}", r.example) for name, r in packing]
        parts += ["<h3>Packing</h3>", table(("split", "code", "clips", "example"), short, texts=2)]
    if report.refusals:
        parts += ["<h3>Refused requests</h3>", table(REFUSAL_HEAD, map(refusal_row, report.refusals), texts=2)]
    return parts or ["<p>No requested clip is missing.</p>"]


def _lanes_part(lanes: Sequence[LaneReport]) -> list[str]:
    if not lanes:
        return []
    rows = [[*lane_row(lane), lane.resting.message if lane.resting else ""] for lane in lanes]
    return [
        "<h2>Lanes</h2>",
        table((*LANE_HEAD, "why"), rows, texts=1),
        "<p>Success: available clips as a share of attempts. Media: downloaded bytes. Per hour: attempts per hour of work, "
        "without pauses. A lane pauses after a rate limit or a block; times are UTC.</p>",
    ]


def _classes_part(known: Sequence[ClassReport], classes: Sequence[ClassReport]) -> list[str]:
    """The classes with the lowest and the highest survival, and all of them, folded.

    Args:
        known: classes whose survival is known, in ascending order of it.
        classes: all classes.
    """
    rest = [row for row in classes if row.share is None]
    everything = ["<details><summary>All classes, lowest survival first</summary>", _class_table([*known, *rest]), "</details>"]
    if not known:
        return ["<p>No survival is known yet.</p>", *everything]
    plot = image(_by_class(known), "survival by class")
    lowest, highest = known[:SHOWN], known[::-1][:SHOWN]
    return [
        plot,
        "<h3>Lowest survival</h3>",
        _class_table(lowest),
        "<h3>Highest survival</h3>",
        _class_table(highest),
        *everything,
    ]


def _class_table(rows: Iterable[ClassReport]) -> str:
    head = ("id", "class", "planned", "answered", "available", "survival")
    cells = (
        (
            row.id,
            row.name,
            f"{row.planned:,}",
            f"{row.answered:,}",
            f"{row.there:,}",
            "-" if row.share is None else f"{row.share:.1%}",
        )
        for row in rows
    )
    return table(head, cells, texts=2)


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.5, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _by_reason(report: Report) -> Figure:
    """A bar chart of missing and unpacked clips by reason, over all splits, the most frequent on top."""
    counts = clips_by_code(report)
    shown = counts.most_common(BARS)
    if rest := len(counts) - len(shown):
        shown.append((f"{rest} more", counts.total() - sum(count for _, count in shown)))
    figure, axes = _axes(0.8 + 0.28 * len(shown))
    places = range(len(shown))
    bars = axes.barh(places, [count for _, count in shown], color=BAD)
    axes.bar_label(bars, [f"{count:,}" for _, count in shown], padding=3, fontsize="small")
    axes.set_yticks(places, [code for code, _ in shown], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("clips that are missing or could not be packed")
    axes.margins(x=0.1)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return figure


def clips_by_code(report: Report) -> Counter[str]:
    """Clips that are missing or could not be packed, over all splits."""
    counts: Counter[str] = Counter()
    for split in report.splits.values():
        for reason in (*split.reasons, *split.pack_failures):
            counts[visible(reason.code)] += reason.clips
    return counts


def visible(code: str) -> str:
    """A code in printable ASCII, cut to CODE_WIDTH."""
    short = code if len(code) <= CODE_WIDTH else f"{code[: CODE_WIDTH - 3]}..."
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in short)


def _over_time(report: Report) -> Figure:
    """Cumulative successful and failed attempts over time."""
    spans = report.pace.spans
    width = spans[1].start_s
    hours = np.array([0.0, *(span.start_s + width for span in spans)]) / 3600
    available = np.cumsum([0, *(span.there for span in spans)])
    missing = np.cumsum([0, *(span.not_there for span in spans)])
    figure, axes = _axes(3.2)
    axes.stackplot(hours, available, missing, labels=["available", "missing"], colors=[GOOD, BAD], alpha=0.85)
    axes.set_xlabel(f"hours since {report.pace.first:%Y-%m-%d %H:%M} UTC")
    axes.set_ylabel("attempts so far")
    axes.set_xlim(0, hours[-1])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="upper left", frameon=False)
    return figure


def _by_class(known: Sequence[ClassReport]) -> Figure:
    """Survival of each class in ascending order; larger dots are classes with more clips."""
    shares = np.array([row.share for row in known], dtype=float)
    sizes = [4 + 6 * math.log10(row.answered) for row in known]
    figure, axes = _axes(3.2)
    axes.scatter(np.arange(1, len(known) + 1), 100 * shares, s=sizes, color=GOOD)
    axes.set_xlabel("classes, lowest survival first; larger dots: more clips")
    axes.set_ylabel("survival, %")
    axes.set_ylim(-3, 103)
    return figure
