"""`mbt doctor --pilot`: run the pipeline on a random sample of AudioSet, and report what it took, however the run ends."""

import hashlib
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

from mbt.manifests.atomic import nearest_existing, write_text
from mbt.manifests.balance import Balance, balanced_rows
from mbt.manifests.errors import InputError, MbtError
from mbt.manifests.lists.audioset import audioset_labels
from mbt.manifests.lists.datasets import AUDIOSET, audioset_clips, find_subset
from mbt.prep.doctor import Check, Finding, examine, media_checks
from mbt.prep.fetch.lanes import make_lanes
from mbt.prep.fetch.options import FetchOptions
from mbt.prep.media.ffmpeg import ffmpeg_version
from mbt.prep.pack.options import PackOptions
from mbt.prep.pilot.advice import advise
from mbt.prep.pilot.forecast import make_forecast
from mbt.prep.pilot.measure import Measured
from mbt.prep.pilot.model import Ended, PilotReport, Settings
from mbt.prep.pilot.page import lines, page
from mbt.prep.pilot.redact import Redactor, is_youtube, option_names, private_values
from mbt.prep.plan.options import PlanOptions
from mbt.prep.plan.plan import PLAN_FILE, Plan, read_plan
from mbt.prep.report.counts import make_report
from mbt.prep.run import PrepOptions, Stage, prepare
from mbt.prep.sources.ytdlp import find_deno

PAGE_FILE = "pilot.html"
REPORT_FILE = "pilot.json"
SEED = 0
"""Of the sample. It is always the same, so that the reports of two people are about the same clips."""
FREE_TEXTS = frozenset({"check", "found", "remedy", "reason", "example"})
"""Fields whose texts come from outside, and may hold what is private."""


@dataclass(frozen=True)
class PilotOptions:
    """What to try, and where it is kept.

    Attributes:
        clips: number of clips.
        subset: AudioSet subset that they are sampled from.
        out: dataset folder to write; a later run continues in it.
        canary: URL or YouTube id of a video to request first.
        fetch: where clips are fetched from, and how fast.
    """

    clips: int
    subset: str
    out: Path
    canary: str | None
    fetch: FetchOptions

    @classmethod
    def from_command_line(
        cls,
        clips: int,
        out: Path,
        canary: str | None,
        subset: str | None,
        source: str | None,
        sleep: float | None,
        **fetch: Any,
    ) -> "PilotOptions":
        """The options of a command line; None means the default. The pilot is always fetched by one worker."""
        given: dict[str, Any] = {name: value for name, value in {"source": source, "sleep": sleep}.items() if value is not None}
        return cls(clips, subset or "eval", out, canary, FetchOptions(**given, **fetch, rank=0, world=1))

    @property
    def checks(self) -> list[Check]:
        """The checks of what fetching and packing need."""
        if self.canary is None:
            return media_checks(self.out)
        return media_checks(self.out, self.canary, self.fetch.lanes, self.fetch.ytdlp)


def run_pilot(options: PilotOptions, as_json: bool) -> bool:
    """Run the checks, then fetch and pack a random sample; write pilot.html and pilot.json, also if the run is stopped.

    If a check fails, nothing is requested.

    Args:
        options: what to try.
        as_json: print pilot.json instead of the main numbers.

    Returns:
        Whether all checks passed and nothing stopped the run.

    Raises:
        InputError: an option is wrong, or the folder holds another dataset.
        StorageError: the folder cannot be written.
        KeyboardInterrupt: after Ctrl-C, once the report is written.
    """
    if not options.fetch.is_remote:
        what = f"--pilot fetches from a URL, but --source {options.fetch.source} is a folder"
        raise InputError(what, "Run mbt prep audioset --source FOLDER --limit 200 instead")
    sleeps = tuple(lane.sleep_s for lane in make_lanes(options.out.resolve(), options.fetch))
    sample, population = random_sample(options.subset, options.clips)
    _check_folder(options.out, sample)
    findings = []
    ended = Ended(state="stopped", reason="a check failed")
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        for finding in examine(options.checks):
            findings.append(finding)
            click.echo(finding)
        _prepare(options, sample, "plan")
        try:
            if all(finding.state != "fail" for finding in findings):
                ended = _fetch_and_pack(options, sample)
        except BaseException as error:
            ended = Ended(state="interrupted") if isinstance(error, KeyboardInterrupt) else _crashed(error)
            raise
        finally:
            settings = Settings(
                subset=options.subset,
                population=population,
                sample=sample.num_rows,
                source="youtube" if is_youtube(options.fetch.source) else "another site",
                sleep_s=sleeps,
                options=tuple(option_names(options.fetch)),
            )
            report = make_pilot_report(options, settings, ended, findings)
            _write(options.out, report)
            for line in lines(report):
                click.echo(line)
            click.echo(f"written to {options.out / PAGE_FILE} and {options.out / REPORT_FILE}; attach them to a bug report")
    if as_json:
        click.echo(report.model_dump_json(indent=2))
    return ended.state == "complete"


def random_sample(subset: str, size: int) -> tuple[pa.Table, int]:
    """A random sample of a subset's clips, and the size of the subset; a larger sample contains a smaller one.

    Raises:
        InputError: there is no such subset, or its list cannot be downloaded.
    """
    cap = find_subset(AUDIOSET, subset).cap
    clips = audioset_clips(subset, None)
    if cap is not None:
        clips = clips.take(pa.array(balanced_rows(clips, Balance(cap), len(audioset_labels()))))
    digests = [hashlib.sha256(f"{SEED}:{key}".encode()).digest() for key in clips["key"].to_pylist()]
    rows = sorted(range(len(digests)), key=digests.__getitem__)[:size]
    return clips.take(pa.array(rows)), clips.num_rows


def _check_folder(folder: Path, sample: pa.Table) -> None:
    """Check that a folder holds no other clips than those of the sample, if it holds a plan."""
    if (folder / PLAN_FILE).exists():
        planned = set(read_plan(folder)[2]["key"].to_pylist())
        if not planned <= set(sample["key"].to_pylist()):
            raise InputError(f"{folder} holds other clips than this pilot's", "Choose another --out")


def _prepare(options: PilotOptions, sample: pa.Table, stage: Stage) -> None:
    """Run one stage of the pipeline on the sample."""
    chosen = PrepOptions(out=options.out, stage=stage, plan=PlanOptions(), fetch=options.fetch, pack=PackOptions())
    prepare(Plan(dataset=AUDIOSET.name, task=AUDIOSET.task), audioset_labels, lambda _: sample, chosen)


def _fetch_and_pack(options: PilotOptions, sample: pa.Table) -> Ended:
    """Fetch, and pack what came, also if the source stopped the fetching."""
    ended = _ended(lambda: _prepare(options, sample, "fetch"))
    if not any(split.there for split in make_report(options.out.resolve(), time.time()).splits.values()):
        return ended
    packed = _ended(lambda: _prepare(options, sample, "pack"))
    return packed if ended.state == "complete" else ended


def _ended(work: Callable[[], None]) -> Ended:
    try:
        work()
    except MbtError as error:
        click.echo(f"error: {error}", err=True)
        return Ended(state="stopped", reason=str(error))
    return Ended(state="complete")


def _crashed(error: BaseException) -> Ended:
    return Ended(state="stopped", reason=f"{type(error).__name__}: {error}")


def make_pilot_report(options: PilotOptions, settings: Settings, ended: Ended, findings: Iterable[Finding]) -> PilotReport:
    """What a pilot's folder holds now, without anything private."""
    folder = options.out.resolve()
    now = time.time()
    report, measured = make_report(folder, now), Measured.of(folder)
    [split] = report.splits.values()
    costs, lanes = measured.costs(), measured.lanes(report.lanes)
    made = PilotReport(
        time=datetime.fromtimestamp(now, UTC),
        versions=dict(_versions()),
        settings=settings,
        ended=ended,
        checks=tuple(findings),
        asked=split.asked,
        there=split.there,
        not_there=split.not_there,
        to_ask=split.to_ask,
        due_later=split.due_later,
        due_from=split.due_from,
        packed=split.packed,
        alive=split.alive,
        reasons=split.reasons,
        pack_failures=split.pack_failures,
        refusals=report.refusals,
        offered=measured.offered(),
        chosen=measured.chosen(),
        extractions=measured.extractions,
        costs=costs,
        lanes=lanes,
        free_bytes=shutil.disk_usage(nearest_existing(folder)).free,
        forecast=make_forecast(split.alive, costs, lanes, split.due_later / max(split.asked, 1)),
        advice=(),
    )
    redact = Redactor([str(options.out), str(folder), *private_values(options.fetch)])
    made = PilotReport.model_validate(_redacted(made.model_dump(mode="json"), redact))
    return made.model_copy(update={"advice": advise(made)})


def _redacted(value: Any, redact: Redactor, name: str = "") -> Any:
    """The report's content, with the texts in FREE_TEXTS redacted."""
    if isinstance(value, dict):
        return {key: _redacted(part, redact, key) for key, part in value.items()}
    if isinstance(value, list):
        return [_redacted(part, redact, name) for part in value]
    return redact(value) if name in FREE_TEXTS and isinstance(value, str) else value


def _versions() -> Iterator[tuple[str, str]]:
    for package in ("mbt", "yt-dlp", "yt-dlp-ejs"):
        yield package, metadata.version(package)
    deno = find_deno()
    yield "deno", deno.version if deno else "none"
    try:
        yield "ffmpeg", ffmpeg_version()
    except InputError:
        yield "ffmpeg", "none"
    yield "Python", platform.python_version()
    yield "platform", platform.platform()


def _write(folder: Path, report: PilotReport) -> None:
    write_text(folder / REPORT_FILE, report.model_dump_json(indent=2) + "\n")
    write_text(folder / PAGE_FILE, page(report))
