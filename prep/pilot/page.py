"""The pilot's report as one HTML page, and its main numbers for a terminal."""

from collections.abc import Iterator, Sequence
from html import escape

from mbt.manifests.sizes import format_bytes
from mbt.prep.pilot.model import Forecast, Interval, PilotReport, Spread
from mbt.prep.report.html import document, table
from mbt.prep.report.page import REASON_HEAD, REFUSAL_HEAD, percent, reason_row, refusal_row

BYTES = {"transferred", "raw_bytes", "shard_bytes"}
PRIVACY = "This page holds no values of options, no addresses, no cookies, and no names of people, machines or folders."
COSTS = {
    "requests": "requests for media per available clip",
    "transferred": "over the network per available clip",
    "raw_bytes": "per fetched file",
    "shard_bytes": "per sample in the shards",
    "extract_s": "seconds of extraction per video",
    "wait_s": "seconds of waiting that the site demanded",
    "transfer_s": "seconds of the transfer",
    "decode_s": "seconds of decoding, on one core",
}
"""What each field of `Costs` is."""


def page(report: PilotReport) -> str:
    """The report as HTML; every text is escaped."""
    parts = [
        f"<p>{report.time:%Y-%m-%d %H:%M:%S} UTC. {escape(summary(report))}</p>",
        "<h2>Advice</h2>",
        *([_advice(report)] if report.advice else ["<p>Nothing stands out.</p>"]),
        "<h2>What AS-500K would take from here</h2>",
        *_forecast_part(report.forecast),
        "<h2>Why clips are missing</h2>",
        *_reasons_part(report),
        "<h2>Formats</h2>",
        table(
            ("chosen", "clips by byte ranges", "clips as whole files"),
            [(row.formats, f"{row.by_ranges:,}", f"{row.whole:,}") for row in report.chosen],
            texts=1,
        ),
        table(("offered", "videos"), [(row.format, f"{row.videos:,}") for row in report.offered], texts=1),
        "<h2>What a clip took</h2>",
        _costs_part(report),
        f"<p>{report.extractions:,} requests for a video's formats, which a site's quota counts.</p>",
        "<h2>Network addresses</h2>",
        _lanes_part(report),
        "<h2>Installation</h2>",
        table(("program", "version"), list(report.versions.items()), texts=2),
        table(
            ("check", "result", "found", "what to do"),
            [(check.check, check.state, check.found, check.remedy) for check in report.checks],
            texts=4,
        ),
        f"<p>yt-dlp options that were set: {escape(', '.join(report.settings.options) or 'none')}.</p>",
        f"<p>{PRIVACY}</p>",
    ]
    return document(f"Pilot: {report.settings.sample:,} clips of AudioSet {report.settings.subset}", parts)


def summary(report: PilotReport) -> str:
    """What was run and what came back, in two sentences."""
    settings, ended = report.settings, report.ended
    how = {"complete": "The run is complete", "interrupted": "The run was interrupted", "stopped": "The run stopped"}[
        ended.state
    ]
    source = "YouTube" if settings.source == "youtube" else "another site"
    return (
        f"A random sample of {settings.sample:,} of the {settings.population:,} clips of AudioSet {settings.subset}, from "
        f"{source}. {how}{f' ({ended.reason})' if ended.reason else ''}: {report.asked:,} clips requested, {report.there:,} "
        f"available, {report.not_there:,} missing, of which {report.due_later:,} will be retried; {report.packed:,} packed. "
        f"Alive: {percent(report.alive)}, of the clips whose outcome is known."
    )


def lines(report: PilotReport) -> Iterator[str]:
    """The main numbers, for a terminal."""
    yield f"alive      {percent(report.alive)}"
    counts = [(reason.clips, reason.code) for reason in (*report.reasons, *report.pack_failures)]
    counts += [(refusal.times, refusal.code) for refusal in report.refusals]
    if counts:
        yield f"reasons    {', '.join(f'{count:,} {code}' for count, code in counts)}"
    if report.chosen:
        yield f"formats    {', '.join(f'{row.by_ranges + row.whole:,} {row.formats}' for row in report.chosen)}"
    for name, text in COSTS.items():
        if found := getattr(report.costs, name):
            yield f"cost       {_value(name, found.mean.expected)} {text}"
    if report.forecast:
        for what, value in _forecast_rows(report.forecast):
            yield f"AS-500K    {what}: {value}"
    for advice in report.advice:
        yield f"advice     {advice.found}. {advice.remedy}."


def _advice(report: PilotReport) -> str:
    return table(("measured", "what to do"), [(advice.found, advice.remedy) for advice in report.advice], texts=2)


def _forecast_part(forecast: Forecast | None) -> list[str]:
    if forecast is None:
        return ["<p>Unknown: at least two clips must be fetched.</p>"]
    text = "The expected values, with 95% intervals, if the rest is like the sample."
    return [table(("what", "estimate"), _forecast_rows(forecast), texts=2), f"<p>{text}</p>"]


def _forecast_rows(forecast: Forecast) -> list[tuple[str, str]]:
    rows = [
        ("requests of videos", _counts(forecast.requests)),
        ("available clips", _counts(forecast.clips)),
        (f"hours of fetching with {forecast.lanes} address{'es' * (forecast.lanes != 1)}", _counts(forecast.hours)),
        ("requests for media", _counts(forecast.media_requests)),
        ("bytes over the network", _sizes(forecast.network_bytes)),
        ("disk", _sizes(forecast.disk_bytes)),
        ("disk with --no-keep-raw", _sizes(forecast.disk_bytes_without_raw)),
    ]
    return [*rows, *([("core-hours of decoding", _counts(forecast.core_hours))] if forecast.core_hours else [])]


def _counts(interval: Interval) -> str:
    return f"{interval.expected:,.0f} ({interval.low:,.0f} to {interval.high:,.0f})"


def _sizes(interval: Interval) -> str:
    return f"{format_bytes(interval.expected)} ({format_bytes(interval.low)} to {format_bytes(interval.high)})"


def _reasons_part(report: PilotReport) -> list[str]:
    parts = []
    for title, reasons in (("Fetching", report.reasons), ("Packing", report.pack_failures)):
        if reasons:
            parts += [f"<h3>{title}</h3>", table(REASON_HEAD, map(reason_row, reasons), texts=2)]
    if report.refusals:
        parts += ["<h3>Refused requests</h3>", table(REFUSAL_HEAD, map(refusal_row, report.refusals), texts=2)]
    return parts or ["<p>No requested clip is missing.</p>"]


def _costs_part(report: PilotReport) -> str:
    def cells(name: str, text: str, found: Spread) -> Sequence[str]:
        numbers = (found.mean.expected, found.mean.low, found.mean.high, found.median, found.p90, found.max)
        return [text, f"{found.of:,}", *(_value(name, number) for number in numbers)]

    rows = [cells(name, text, found) for name, text in COSTS.items() if (found := getattr(report.costs, name))]
    return table(("what", "of", "mean", "95% from", "to", "median", "90% below", "maximum"), rows, texts=1)


def _value(name: str, number: float) -> str:
    if name in BYTES:
        return format_bytes(number)
    return f"{number:.2f}"


def _lanes_part(report: PilotReport) -> str:
    rows = [
        (
            f"{lane.number}",
            f"{lane.attempts:,}",
            f"{lane.there:,}",
            f"{lane.rests:,}",
            f"{lane.paused_hours:.1f}",
            _counts(lane.per_hour) if lane.per_hour else "-",
        )
        for lane in report.lanes
    ]
    return table(("lane", "attempts", "available", "pauses", "hours paused", "videos per hour"), rows, texts=1)
