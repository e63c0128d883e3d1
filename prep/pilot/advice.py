"""What to do before a long run, by rule: each piece of advice names the measurement that it follows from."""

from collections.abc import Callable, Iterator

from mbt.manifests.sizes import format_bytes
from mbt.prep.pilot.model import Advice, PilotReport
from mbt.prep.state.failure_codes import UNKNOWN, UPGRADE

MANY = 0.02
"""Share of the requested clips from which a reason that the user can change is worth an effort."""
SUSPICIOUS = 0.3
"""Share of "unavailable" videos from which the address may be refused: fewer than a tenth of AudioSet's are gone that way."""
LONG_HOURS = 30 * 24
COOKIES = "Give yt-dlp the cookies of an account that may watch them (--ytdlp '--cookies FILE', or in the lanes file)"
OTHER_CLIENT = "if yt-dlp is the newest, try another player client (--ytdlp '--extractor-args youtube:player_client=CLIENT')"


def advise(report: PilotReport) -> tuple[Advice, ...]:
    """The advice that follows from a report; its own `advice` is ignored."""
    return tuple(advice for rule in RULES for advice in rule(report))


def _stopped(report: PilotReport) -> Iterator[Advice]:
    if report.ended.state == "stopped":
        yield Advice(found=f"the run stopped: {report.ended.reason}", remedy="Do what it says, then run the same command again")
    if report.ended.state == "interrupted":
        yield Advice(
            found=f"the run was interrupted after {report.asked} of {report.settings.sample} clips",
            remedy="Run the same command again to continue",
        )


def _checks(report: PilotReport) -> Iterator[Advice]:
    """Old or missing programs, a wrong clock, a full disk."""
    for finding in report.checks:
        if finding.state != "ok":
            yield Advice(found=f"check {finding.check}: {finding.found}", remedy=finding.remedy)


def _rate(report: PilotReport) -> Iterator[Advice]:
    times = _refusals(report, "rate.")
    if times:
        usual = max(report.settings.sleep_s)
        yield Advice(
            found=f"the site limited the rate {_times(times)} in {report.extractions} requests, "
            f"with {usual:g} s between the requests of a lane",
            remedy=f"Use a slower rate, such as --sleep {max(1.5 * usual, 15):g}, and more lanes (--lanes) for more speed",
        )


def _blocked(report: PilotReport) -> Iterator[Advice]:
    if times := _refusals(report, "block."):
        yield Advice(
            found=f"the site refused this address {_times(times)}: it asked for a sign-in or a captcha, or blocked it",
            remedy="Wait a few hours or use another network address (--lanes); a slower rate (--sleep) prevents it; "
            f"{OTHER_CLIENT}",
        )


def _cookies(report: PilotReport) -> Iterator[Advice]:
    aged = _clips(report, "creds.age") + _clips(report, "creds.login")
    if aged:
        yield Advice(found=f"{_share(report, aged)} are limited by age or need a login", remedy=COOKIES)
    if times := _refusals(report, "creds."):
        yield Advice(found=f"the cookies were refused {_times(times)}", remedy="Export the cookies again")


def _environment(report: PilotReport) -> Iterator[Advice]:
    clips, times = _clips(report, "env."), _refusals(report, "env.")
    if clips or times:
        codes = {reason.code for reason in report.reasons} | {refusal.code for refusal in report.refusals}
        yield Advice(
            found=f"{_share(report, clips)} failed and the run stopped {_times(times)} for faults of the installation: "
            f"{', '.join(sorted(code for code in codes if code.startswith('env.')))}",
            remedy=f"{UPGRADE}; {OTHER_CLIENT}",
        )


def _transfers(report: PilotReport) -> Iterator[Advice]:
    broken, network = _clips(report, "bytes."), _clips(report, "net.") + _refusals(report, "net.")
    if broken > MANY * report.asked:
        yield Advice(
            found=f"the transfer failed for {_share(report, broken)}",
            remedy=f"{UPGRADE}; {OTHER_CLIENT}; extraction and media must use the same address",
        )
    if network > MANY * report.asked:
        yield Advice(found=f"{network} requests failed in the network", remedy="Check the network and any proxy of the lanes")


def _region(report: PilotReport) -> Iterator[Advice]:
    if (clips := _clips(report, "region.")) > MANY * report.asked:
        yield Advice(
            found=f"{_share(report, clips)} are blocked in this country", remedy="Add a lane in another country (--lanes)"
        )


def _unavailable(report: PilotReport) -> Iterator[Advice]:
    if (clips := _clips(report, "confirm.unavailable")) > SUSPICIOUS * report.asked:
        yield Advice(
            found=f'{_share(report, clips)} were "unavailable", more than are likely to be gone',
            remedy="The site may refuse this address without saying so: run the same command again a day later or over "
            "another address, and compare",
        )


def _retries(report: PilotReport) -> Iterator[Advice]:
    if report.due_later and report.due_from:
        yield Advice(
            found=f"{_share(report, report.due_later)} are due for a retry",
            remedy=f"Run the same command again after {report.due_from:%Y-%m-%d %H:%M} UTC, and later, for a final answer",
        )


def _whole_files(report: PilotReport) -> Iterator[Advice]:
    whole = sum(chosen.whole for chosen in report.chosen)
    if whole > MANY * max(report.there, 1):
        yield Advice(
            found=f"{whole} of {report.there} clips were fetched as whole files, not by byte ranges",
            remedy="Attach this report to an issue: it lists the formats that were offered and chosen",
        )


def _unknown(report: PilotReport) -> Iterator[Advice]:
    if clips := _clips(report, UNKNOWN):
        yield Advice(
            found=f"{_share(report, clips)} failed for a reason that mbt does not know", remedy="Attach this report to an issue"
        )


def _packing(report: PilotReport) -> Iterator[Advice]:
    failed = sum(reason.clips for reason in report.pack_failures)
    if failed > MANY * max(report.there, 1):
        yield Advice(
            found=f"{failed} of {report.there} fetched clips could not be packed", remedy="Attach this report to an issue"
        )


def _long_run(report: PilotReport) -> Iterator[Advice]:
    forecast = report.forecast
    if forecast is None:
        return
    if forecast.hours.expected > LONG_HOURS:
        yield Advice(
            found=f"AS-500K would take {forecast.hours.expected / 24:,.0f} days with {forecast.lanes} network "
            f"address{'es' * (forecast.lanes != 1)}",
            remedy="Add lanes (--lanes) or workers (--rank, --world), each with its own address; the time is divided by them",
        )
    if forecast.disk_bytes.high > report.free_bytes:
        yield Advice(
            found=f"AS-500K needs {format_bytes(forecast.disk_bytes.expected)} on disk "
            f"({format_bytes(forecast.disk_bytes_without_raw.expected)} with --no-keep-raw), "
            f"and {format_bytes(report.free_bytes)} are free",
            remedy="Choose an --out on a larger disk, upload finished shards (--to URL), or use --no-keep-raw",
        )


RULES: tuple[Callable[[PilotReport], Iterator[Advice]], ...] = (
    _stopped,
    _checks,
    _rate,
    _blocked,
    _cookies,
    _environment,
    _transfers,
    _region,
    _unavailable,
    _retries,
    _whole_files,
    _unknown,
    _packing,
    _long_run,
)


def _clips(report: PilotReport, prefix: str) -> int:
    return sum(reason.clips for reason in report.reasons if reason.code.startswith(prefix))


def _refusals(report: PilotReport, prefix: str) -> int:
    return sum(refusal.times for refusal in report.refusals if refusal.code.startswith(prefix))


def _share(report: PilotReport, clips: int) -> str:
    return f"{clips} of {report.asked} clips ({clips / max(report.asked, 1):.0%})"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
