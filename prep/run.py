"""`mbt prep`: plan, fetch and pack a dataset, or run one of these stages."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
import pyarrow as pa
import pyarrow.parquet as pq

from mbt.manifests.atomic import exclusive_writer, shared_writer, write_text
from mbt.manifests.errors import InputError
from mbt.manifests.labels import LabelSet
from mbt.manifests.shards import DATASET_FILE, FAILURES_CSV, FAILURES_FILE
from mbt.prep.fetch.clip_states import Fetched
from mbt.prep.fetch.fetch import fetch
from mbt.prep.fetch.lanes import make_lanes
from mbt.prep.fetch.local import find_local_clips
from mbt.prep.fetch.options import FetchOptions
from mbt.prep.fetch.worker_share import WorkerShare
from mbt.prep.pack.options import PackOptions
from mbt.prep.pack.pack import pack
from mbt.prep.plan.changes import change_plan, check_seed
from mbt.prep.plan.choose import OrderedBy, choose, fetch_caps, fetch_orders, likely_clips
from mbt.prep.plan.estimate import Estimate, check_disk, estimate
from mbt.prep.plan.options import PlanOptions
from mbt.prep.plan.plan import CLIPS_FILE, Plan, check_is_ours, read_header, read_plan
from mbt.prep.plan.removed import read_removed, unmatched
from mbt.prep.side_by_side import fetch_and_pack
from mbt.prep.sources.local_folder import LocalFolder
from mbt.prep.state.failure_codes import recheck_codes
from mbt.prep.state.selection import read_assignment
from mbt.prep.state.settings import CONFIG_FILE, check_settings, freeze_settings
from mbt.prep.state.store import Store

Stage = Literal["plan", "fetch", "pack"]
Work = Callable[[], int]
"""A stage; it returns the number of clips that are missing."""
CLIPS_MISSING = 3
"""Exit code with --strict if clips are missing."""
SHOWN_FAILURES = 10


@dataclass(frozen=True, kw_only=True)
class PrepOptions:
    """Options of `mbt prep`: one group per stage, and options of the whole run.

    Attributes:
        out: the dataset folder.
        stage: run this stage only; None: all of them.
        dry_run: only print what the run will need.
        strict: exit with an error code if clips are missing in the end.
        ignore_disk: start even if the disk is too small for the plan.
        min_free: bytes of free disk below which fetching pauses while clips are packed.
        plan: which clips to take.
        fetch: where clips are fetched from, and how fast.
        pack: what is stored, where, and how it is decoded.

    Raises:
        InputError: several workers share a stage that only one of them may run.
    """

    out: Path
    stage: Stage | None = None
    dry_run: bool = False
    strict: bool = False
    ignore_disk: bool = False
    min_free: int = 10**9
    plan: PlanOptions
    fetch: FetchOptions
    pack: PackOptions

    def __post_init__(self) -> None:
        share = self.share
        if share.world > 1 and not self.dry_run and (self.stage is None or not self.fetch.is_remote):
            raise InputError(
                f"this is worker {share.rank} of {share.world}, but workers can share only the fetch stage, from a URL",
                "Run --stage plan once, then --stage fetch with every worker, then --stage pack once",
            )

    @classmethod
    def from_command_line(cls, removed: Path | None, **values: Any) -> "PrepOptions":
        """The options of a command line, by name.

        Args:
            removed: removal list; read here, so that an error stops the run before it writes anything.
            values: all other options.

        Raises:
            InputError: the removal list cannot be read, or two options contradict each other.
        """
        values["removed"] = frozenset() if removed is None else read_removed(removed)
        values["recheck"] = recheck_codes(values["recheck"])
        for name, group in {"plan": PlanOptions, "fetch": FetchOptions, "pack": PackOptions}.items():
            values[name] = _make(group, values)
        made: PrepOptions = _make(cls, values)
        return made

    @property
    def plans(self) -> bool:
        """Whether this run includes the plan stage."""
        return self.stage in (None, "plan")

    @property
    def packs_while_fetching(self) -> bool:
        """Whether shards are packed while fetching goes on: with all stages, clips from a URL, and on this machine."""
        return self.stage is None and self.fetch.is_remote and self.pack.ray is None

    @property
    def ordered_by(self) -> OrderedBy:
        """The column that determines the order of the plan: the clips of a video share one request."""
        return "video_id" if self.fetch.is_remote else "key"

    @property
    def share(self) -> WorkerShare:
        """The part of the fetch stage that this worker does; everything in the other stages, and of a folder of media."""
        is_given = self.fetch.rank is not None or self.fetch.world is not None
        is_shared = self.stage in (None, "fetch") and (self.fetch.is_remote or is_given)
        return self.fetch.share if is_shared else WorkerShare()


def _make(group: Any, values: Mapping[str, Any]) -> Any:
    return group(**{field.name: values[field.name] for field in fields(group)})


def prepare(
    plan: Plan,
    read_labels: Callable[[], LabelSet],
    read_clips: Callable[[LabelSet], pa.Table],
    options: PrepOptions,
    config: str | None = None,
) -> int:
    """Run the stages of `mbt prep` and print the result of each; return the exit code.

    Args:
        plan: dataset and task.
        read_labels: returns the label set.
        read_clips: returns the clip table.
        options: the options of the command line.
        config: the same as the text of a TOML file, which is written to the folder; None: none is written.

    Raises:
        MbtError: anything that the user can fix.
    """
    out = options.out.resolve()
    if options.dry_run:
        _fetch(out, options)  # Only its checks: the work is not done.
        labels = read_labels()
        clips = choose(read_clips(labels), options.plan, len(labels), options.ordered_by)
        caps = fetch_caps(clips, options.plan)
        click.echo("\n".join(_estimate(clips, caps, len(labels), options).lines()))
        return 0
    _check_folder(out, options)
    stages: dict[Stage, Callable[[], Work]] = {
        "plan": lambda: _plan(out, plan, read_labels, read_clips, options),
        "fetch": lambda: _fetch(out, options),
        "pack": lambda: _pack(out, options.pack),
    }
    ready = [check() for stage, check in stages.items() if options.stage in (None, stage)]
    with _lock(out, options.share):
        if config is not None and options.share.world == 1:
            write_text(out / CONFIG_FILE, config)
        if options.plans:
            missing = ready.pop(0)()
        _report_unmatched(out, options.pack.removed)
        while ready:
            missing = ready.pop(0)()  # The plan stage's table is freed when the stage is done.
    return CLIPS_MISSING if options.strict and missing else 0


def _check_folder(out: Path, options: PrepOptions) -> None:
    """Check that the options do not contradict what the folder holds."""
    check_is_ours(out)
    if options.plans and not read_assignment(out):
        return
    if not options.plans:
        check_seed(out, read_header(out), options.plan.seed)
    check_settings(out, options.pack.settings, packed=bool(read_assignment(out)))


def _report_unmatched(out: Path, removed: frozenset[str]) -> None:
    """Print how many entries of the removal list are not in the plan."""
    if removed:
        clips = read_plan(out)[2]
        if line := unmatched(removed, {*clips["key"].to_pylist(), *clips["video_id"].to_pylist()}, "plan"):
            click.echo(line)


def _lock(out: Path, share: WorkerShare) -> AbstractContextManager[None]:
    return exclusive_writer(out) if share.world == 1 else shared_writer(out, f"fetch-{share.rank}")


def _check_disk(out: Path, clips: pa.Table, caps: Mapping[str, int], num_classes: int, options: PrepOptions) -> None:
    if not options.ignore_disk:
        check_disk(out, _estimate(clips, caps, num_classes, options).disk_bytes)


def _estimate(clips: pa.Table, caps: Mapping[str, int], num_classes: int, options: PrepOptions) -> Estimate:
    lanes = make_lanes(options.out.resolve(), options.fetch) if options.fetch.is_remote else []
    requests_per_hour = [3600 / max(lane.sleep_s, 1.0) for lane in lanes]
    likely = likely_clips(clips, caps, num_classes, options.plan.seed)
    return estimate(likely, options.pack.media, requests_per_hour, options.pack.keep_raw, options.pack.to is not None)


# Each of the next three functions checks its options before anything is written, and returns the work to do.


def _plan(
    out: Path,
    plan: Plan,
    read_labels: Callable[[], LabelSet],
    read_clips: Callable[[LabelSet], pa.Table],
    options: PrepOptions,
) -> Work:
    labels = read_labels()
    clips = choose(read_clips(labels), options.plan, len(labels), options.ordered_by)
    caps, orders = fetch_caps(clips, options.plan), fetch_orders(clips, options.plan)
    wanted = plan.model_copy(update={"caps": caps, "orders": orders, "seed": options.plan.seed})
    change = change_plan(out, wanted, labels, clips, options.plan.replan)
    if options.stage is None:
        _check_disk(out, change.clips, change.plan.caps, len(labels), options)

    def work() -> int:
        change.save(out)
        freeze_settings(out, options.pack.settings, replace=not read_assignment(out))
        click.echo(f"plan: {_count(change.clips.num_rows, 'clip')} in {out / CLIPS_FILE}")
        return 0

    return work


def _fetch(out: Path, options: PrepOptions) -> Work:
    share = options.share
    run: Callable[[], Fetched]
    if options.packs_while_fetching:
        lanes = make_lanes(out, options.fetch)
        run = partial(fetch_and_pack, out, lanes, options.fetch, options.pack, options.min_free)
    elif options.fetch.is_remote:
        run = partial(fetch, out, make_lanes(out, options.fetch), options.fetch)
    else:
        run = partial(find_local_clips, out, LocalFolder(options.fetch.source, out), options.fetch)

    def work() -> int:
        if options.stage is not None:  # Otherwise the plan stage has checked the disk.
            plan, labels, clips = read_plan(out)
            _check_disk(out, clips, plan.caps, len(labels), options)
        fetched = run()
        worker = f" (worker {share.rank} of {share.world})" if share.world > 1 else ""
        click.echo(f"fetch: {_count(fetched.found, 'clip')} found, {fetched.missing:,} missing{worker}")
        if options.fetch.until_done and fetched.reasons:
            click.echo(f"fetch: missing clips: {', '.join(f'{count:,} {code}' for code, count in fetched.reasons.items())}")
        return fetched.missing

    return work


def _pack(out: Path, options: PackOptions) -> Work:
    Store(out, options.to).size(DATASET_FILE)  # Fails if the URL cannot be reached.

    def work() -> int:
        info = pack(out, options)
        for name, split in info.splits.items():
            samples, shards = _count(split.samples, "sample"), _count(len(split.shards), "shard")
            click.echo(f"pack: {name}: {samples} in {shards}, {_count(split.failures, 'clip')} failed")
        return _report_failures(out)

    return work


def _report_failures(out: Path) -> int:
    """Print the failed clips by reason, and the first of them; return their number."""
    failures = pq.read_table(out / FAILURES_FILE, columns=["key", "code", "message"])
    if failures.num_rows:
        codes = Counter(failures["code"].to_pylist()).most_common()
        click.echo(f"pack: failed clips: {', '.join(f'{count:,} {code}' for code, count in codes)}")
        for row in failures.slice(0, SHOWN_FAILURES).to_pylist():
            click.echo(f"  {row['key']}: {row['code']}: {row['message']}")
        more = failures.num_rows - SHOWN_FAILURES
        click.echo(f"  {f'and {more:,} more' if more > 0 else 'listed'} in {out / FAILURES_CSV}")
    return failures.num_rows


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
