"""Count the clips of a dataset folder by reason, split and class, and measure how fast they are fetched."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from mbt.manifests.clips import Clip, table_clips
from mbt.manifests.labels import LabelSet
from mbt.prep.plan.choose import ALIVE
from mbt.prep.plan.plan import Plan, read_plan
from mbt.prep.report.lanes import SAME_VIDEO_S, lane_reports, read_rows
from mbt.prep.report.model import ClassReport, Pace, Reason, Refusal, Report, Share, Span, SplitReport
from mbt.prep.state.failure_codes import HOUR_S, Action
from mbt.prep.state.ledger import LOST, NO_OUTCOME_ACTIONS, Attempt, states
from mbt.prep.state.selection import Selection, finished_here, frozen_clips, read_assignment
from mbt.prep.state.shard_record import Failure, ShardRecord

Z_95 = 1.959964
SPANS = 200
"""Intervals of the plot of attempts over time."""


def make_report(folder: Path, now: float) -> Report:
    """Count what is on disk now. Nothing is locked or written, so a run may be in progress.

    Args:
        folder: dataset folder with a plan.
        now: Unix time in seconds.

    Raises:
        InputError: the folder has no plan, or the plan is damaged.
    """
    plan, labels, table = read_plan(folder)
    clips = table_clips(table)
    rows, media = read_rows(folder)
    attempts = [row for row in rows if row.action not in NO_OUTCOME_ACTIONS]
    records = read_records(folder)
    sampled = {row["key"] for record in records for row in record.rows}
    failures = (failed for record in records for failed in record.failures)
    unpackable = {failed.key: failed for failed in failures if failed.stage == "pack" and failed.key not in sampled}
    ledger = _states(folder, attempts, sampled | unpackable.keys())
    available = {key for key, attempt in ledger.items() if attempt.path is not None} | sampled | unpackable.keys()
    by_split = _by_split(clips)
    survival = {split: _survival(own, ledger, available) for split, own in by_split.items()}
    to_fetch, due = _clips_to_fetch(plan, labels, folder, clips, ledger, available, survival, now)
    splits = {
        split: _split(own, ledger, available, survival[split], to_fetch[split], due[split], sampled, unpackable)
        for split, own in by_split.items()
    }
    sizes = {ledger[clip.key].path: ledger[clip.key].size for clip in clips if clip.key in ledger and clip.key in available}
    return Report(
        dataset=plan.dataset,
        time=_utc(now),
        splits=splits,
        refusals=_refusals(rows),
        classes=_classes(clips, labels, ledger, available),
        pace=_pace(attempts, sum(to_fetch.values()), now),
        lanes=lane_reports(rows, media, Counter(ledger[key].lane for key in available & ledger.keys()), now),
        raw_bytes=sum(sizes.values()),
        packed_bytes=sum(file.size for record in records for file in record.files),
    )


def read_records(folder: Path) -> list[ShardRecord]:
    """The records of a folder's finished shards."""
    records = (finished_here(folder, name) for name in read_assignment(folder))
    return [record for record in records if record is not None]


def _states(folder: Path, attempts: Iterable[Attempt], packed: Collection[str]) -> dict[str, Attempt]:
    """The state of each requested clip; the media of packed clips may have been deleted."""
    return {key: state if key in packed else state.checked(folder) for key, state in states(attempts).items()}


def _by_split(clips: Iterable[Clip]) -> dict[str, list[Clip]]:
    splits = defaultdict(list)
    for clip in clips:
        splits[clip.split].append(clip)
    return dict(sorted(splits.items()))


def _is_known(clip: Clip, ledger: Mapping[str, Attempt], available: Collection[str]) -> bool:
    """Whether the clip's outcome is known; a failure that will be retried says nothing, unless the clip is unavailable."""
    attempt = ledger.get(clip.key)
    if clip.key in available or attempt is None:
        return clip.key in available
    if not attempt.action:
        return attempt.code != LOST
    return attempt.final or (attempt.action == Action.CONFIRM.label and not attempt.code.startswith("env."))


def _survival(clips: Iterable[Clip], ledger: Mapping[str, Attempt], available: Collection[str]) -> Share | None:
    known = [clip.key in available for clip in clips if _is_known(clip, ledger, available)]
    return wilson(sum(known), len(known)) if known else None


def wilson(hits: int, total: int) -> Share:
    """`hits` / `total` with its 95% Wilson score interval; `total` must not be 0."""
    share = hits / total
    weight = Z_95**2 / total
    center = (share + weight / 2) / (1 + weight)
    half = Z_95 * math.sqrt(share * (1 - share) / total + weight / (4 * total)) / (1 + weight)
    return Share(of=total, share=share, low=max(0.0, center - half), high=min(1.0, center + half))


def _clips_to_fetch(
    plan: Plan,
    labels: LabelSet,
    folder: Path,
    clips: Sequence[Clip],
    ledger: Mapping[str, Attempt],
    available: Collection[str],
    survival: Mapping[str, Share | None],
    now: float,
) -> tuple[Counter[str], Mapping[str, list[float]]]:
    """By split, the number of clips to fetch now, and the times at which others are due for a retry.

    The order is that of `prep.fetch`, with a guess at unknown outcomes.
    """
    selection = Selection(plan.caps, len(labels), frozen_clips(folder, clips))
    chance = np.random.default_rng(0)
    to_fetch: Counter[str] = Counter()
    due: defaultdict[str, list[float]] = defaultdict(list)
    for clip in clips:
        if not selection.has_room(clip):
            continue
        attempt = ledger.get(clip.key)
        if clip.key in available:
            selection.take(clip)
        elif attempt is not None and attempt.is_absent:
            continue  # There is nothing to request; a later run looks for the file again.
        elif attempt is None or not (attempt.final or attempt.not_before > now):
            to_fetch[clip.split] += 1
            share = survival[clip.split]
            if selection.is_capped(clip) and chance.random() < (share.share if share else ALIVE):
                selection.take(clip)
        elif not attempt.final:
            due[clip.split].append(attempt.not_before)
    return to_fetch, due


def _split(
    clips: Sequence[Clip],
    ledger: Mapping[str, Attempt],
    available: Collection[str],
    survival: Share | None,
    to_fetch: int,
    due: Sequence[float],
    sampled: Collection[str],
    unpackable: Mapping[str, Failure],
) -> SplitReport:
    missing = [ledger[clip.key] for clip in clips if clip.key in ledger and clip.key not in available]
    failed = [unpackable[clip.key] for clip in clips if clip.key in unpackable]
    found = sum(clip.key in available for clip in clips)
    return SplitReport(
        planned=len(clips),
        asked=found + len(missing),
        there=found,
        not_there=len(missing),
        alive=survival,
        reasons=_reasons(missing),
        to_ask=to_fetch,
        due_later=len(due),
        due_from=_utc(min(due)) if due else None,
        due_until=_utc(max(due)) if due else None,
        packed=sum(clip.key in sampled for clip in clips),
        pack_failures=_reasons(_as_attempt(failure) for failure in failed),
    )


def _as_attempt(failure: Failure) -> Attempt:
    return Attempt(key=failure.key, source="", code=failure.code, message=failure.message, final=True)


def _reasons(failures: Iterable[Attempt]) -> tuple[Reason, ...]:
    by_reason: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
    for failure in failures:
        by_reason[failure.code, failure.action].append(failure)
    rows = []
    for (code, action), own in by_reason.items():
        retries = [failure.not_before for failure in own if not failure.final]
        retry_from = _utc(min(retries)) if retries else None
        final, first = len(own) - len(retries), own[0]
        rows.append(
            Reason(
                code=code,
                action=action,
                clips=len(own),
                final=final,
                retry_from=retry_from,
                example_key=first.key,
                example=first.message,
            )
        )
    return tuple(sorted(rows, key=lambda reason: (-reason.clips, reason.code, reason.action)))


def _refusals(rows: Iterable[Attempt]) -> tuple[Refusal, ...]:
    """The rows that speak of a lane, the run or the network, not of a clip; those of one video were written together."""
    by_reason: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
    for row in rows:
        if row.action in NO_OUTCOME_ACTIONS:
            by_reason[row.code, row.action].append(row)
    found = [
        Refusal(code=code, action=action, times=_bursts(own), example=own[-1].message)
        for (code, action), own in by_reason.items()
    ]
    return tuple(sorted(found, key=lambda refusal: (-refusal.times, refusal.code)))


def _bursts(rows: Sequence[Attempt]) -> int:
    """The number of videos whose rows these are: one lane writes those of a video within SAME_VIDEO_S."""
    lanes: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        lanes[row.lane].append(row.time)
    return sum(1 + int((np.diff(times) > SAME_VIDEO_S).sum()) for times in lanes.values())


def _classes(
    clips: Iterable[Clip], labels: LabelSet, ledger: Mapping[str, Attempt], available: Collection[str]
) -> tuple[ClassReport, ...]:
    planned: Counter[int] = Counter()
    answered: Counter[int] = Counter()
    found: Counter[int] = Counter()
    for clip in clips:
        planned.update(clip.labels)
        if _is_known(clip, ledger, available):
            answered.update(clip.labels)
        if clip.key in available:
            found.update(clip.labels)
    return tuple(
        ClassReport(
            index=i,
            id=label.id,
            name=label.display_name,
            planned=planned[i],
            answered=answered[i],
            there=found[i],
            share=found[i] / answered[i] if answered[i] else None,
        )
        for i, label in enumerate(labels.labels)
    )


def _pace(attempts: Sequence[Attempt], to_fetch: int, now: float) -> Pace:
    """The pace of attempts in order of time; those with the first time stamp do not count, since they began before it."""
    if not attempts:
        return Pace(attempts=0, first=None, last=None, last_hour=None, overall=None, eta_hours=None, spans=())
    times = np.array([attempt.time for attempt in attempts])
    first, last = float(times[0]), float(times[-1])
    since = max(first, now - HOUR_S)
    last_hour = _per_hour(int((times > since).sum()), now - since)
    overall = _per_hour(int((times > first).sum()), last - first)
    rate = last_hour or overall
    return Pace(
        attempts=len(attempts),
        first=_utc(first),
        last=_utc(last),
        last_hour=last_hour,
        overall=overall,
        eta_hours=to_fetch / rate if rate else None,
        spans=_spans(times - first, np.array([attempt.path is not None for attempt in attempts])),
    )


def _per_hour(count: int, seconds: float) -> float | None:
    return count / seconds * HOUR_S if seconds > 0 else None


def _spans(seconds: np.ndarray, succeeded: np.ndarray) -> tuple[Span, ...]:
    edges = np.linspace(0.0, max(float(seconds[-1]), 1.0), SPANS + 1)
    counts = (np.histogram(seconds[chosen], edges)[0].tolist() for chosen in (succeeded, ~succeeded))
    return tuple(
        Span(start_s=start, there=good, not_there=bad) for start, good, bad in zip(edges[:-1].tolist(), *counts, strict=True)
    )


def _utc(time: float) -> datetime:
    return datetime.fromtimestamp(time, UTC)
