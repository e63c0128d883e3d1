"""Counting for a report of a dataset folder: survival by reason, split and class, and how fast fetching goes."""

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
from mbt.prep.report.lanes import lane_reports, read_rows
from mbt.prep.report.model import ClassReport, Pace, Reason, Report, Share, Span, SplitReport
from mbt.prep.state.failure_codes import HOUR_S, Action
from mbt.prep.state.ledger import LOST, STOPPING_ACTIONS, Attempt, states
from mbt.prep.state.selection import Selection, frozen_clips, read_assignment
from mbt.prep.state.settings import open_store
from mbt.prep.state.shard_record import Failure, ShardRecord, finished_shard

Z_95 = 1.959964
SPANS = 200
"""Points of the curve of attempts over time."""


def make_report(folder: Path, now: float) -> Report:
    """Count what is on disk now; nothing is locked or written, so a run may go on meanwhile.

    Args:
        folder: dataset folder, planned.
        now: Unix time in seconds.

    Raises:
        InputError: there is no plan in the folder, or it is damaged.
    """
    plan, labels, table = read_plan(folder)
    clips = table_clips(table)
    rows, media = read_rows(folder)
    attempts = [row for row in rows if row.action not in STOPPING_ACTIONS]
    records = _read_records(folder)
    sampled = {row["key"] for record in records for row in record.rows}
    unpackable = {failed.key: failed for record in records for failed in record.failures if failed.stage == "pack"}
    ledger = _states(folder, attempts, sampled | unpackable.keys())
    there = {key for key, attempt in ledger.items() if attempt.path is not None} | sampled | unpackable.keys()
    by_split = _by_split(clips)
    alive = {split: _alive(own, ledger, there) for split, own in by_split.items()}
    to_ask, later = _still_to_ask(plan, labels, folder, clips, ledger, there, alive, now)
    splits = {
        split: _split(own, ledger, there, alive[split], to_ask[split], later[split], sampled, unpackable)
        for split, own in by_split.items()
    }
    sizes = {ledger[clip.key].path: ledger[clip.key].size for clip in clips if clip.key in ledger and clip.key in there}
    return Report(
        dataset=plan.dataset,
        time=_moment(now),
        splits=splits,
        classes=_classes(clips, labels, ledger, there),
        pace=_pace(attempts, sum(to_ask.values()), now),
        lanes=lane_reports(rows, media, Counter(ledger[key].lane for key in there & ledger.keys()), now),
        raw_bytes=sum(sizes.values()),
        packed_bytes=sum(file.size for record in records for file in record.files),
    )


def _read_records(folder: Path) -> list[ShardRecord]:
    store = open_store(folder)
    records = (finished_shard(store, name) for name in read_assignment(folder))
    return [record for record in records if record is not None]


def _states(folder: Path, attempts: Iterable[Attempt], done: Collection[str]) -> dict[str, Attempt]:
    """The state of each clip that was asked for; the media of those that are done may be gone."""
    return {key: state if key in done else state.checked(folder) for key, state in states(attempts).items()}


def _by_split(clips: Iterable[Clip]) -> dict[str, list[Clip]]:
    splits = defaultdict(list)
    for clip in clips:
        splits[clip.split].append(clip)
    return dict(sorted(splits.items()))


def _answered(clip: Clip, ledger: Mapping[str, Attempt], there: Collection[str]) -> bool:
    """Whether a source gave the clip or refused it."""
    attempt = ledger.get(clip.key)
    return clip.key in there or (attempt is not None and attempt.code != LOST and attempt.action != Action.NETWORK.label)


def _alive(clips: Iterable[Clip], ledger: Mapping[str, Attempt], there: Collection[str]) -> Share | None:
    answered = [clip.key in there for clip in clips if _answered(clip, ledger, there)]
    return wilson(sum(answered), len(answered)) if answered else None


def wilson(hits: int, of: int) -> Share:
    """`hits` / `of` with Wilson's score interval at 95 %; `of` is not 0."""
    share = hits / of
    weight = Z_95**2 / of
    centre = (share + weight / 2) / (1 + weight)
    half = Z_95 * math.sqrt(share * (1 - share) / of + weight / (4 * of)) / (1 + weight)
    return Share(of=of, share=share, low=max(0.0, centre - half), high=min(1.0, centre + half))


def _still_to_ask(
    plan: Plan,
    labels: LabelSet,
    folder: Path,
    clips: Sequence[Clip],
    ledger: Mapping[str, Attempt],
    there: Collection[str],
    alive: Mapping[str, Share | None],
    now: float,
) -> tuple[Counter[str], Counter[str]]:
    """Clips to be asked for, and those after a wait, by split: the walk of `prep.fetch`, with a guess at what is unknown."""
    selection = Selection(plan.caps, len(labels), frozen_clips(folder, clips))
    chance = np.random.default_rng(0)
    to_ask: Counter[str] = Counter()
    later: Counter[str] = Counter()
    for clip in clips:
        if not selection.has_room(clip):
            continue
        attempt = ledger.get(clip.key)
        if clip.key in there:
            selection.take(clip)
        elif attempt is None or not (attempt.final or attempt.not_before > now):
            to_ask[clip.split] += 1
            share = alive[clip.split]
            if selection.is_capped(clip) and chance.random() < (share.share if share else ALIVE):
                selection.take(clip)
        elif not attempt.final:
            later[clip.split] += 1
    return to_ask, later


def _split(
    clips: Sequence[Clip],
    ledger: Mapping[str, Attempt],
    there: Collection[str],
    alive: Share | None,
    to_ask: int,
    later: int,
    sampled: Collection[str],
    unpackable: Mapping[str, Failure],
) -> SplitReport:
    missing = [ledger[clip.key] for clip in clips if clip.key in ledger and clip.key not in there]
    failed = [unpackable[clip.key] for clip in clips if clip.key in unpackable]
    here = sum(clip.key in there for clip in clips)
    return SplitReport(
        planned=len(clips),
        asked=here + len(missing),
        there=here,
        not_there=len(missing),
        alive=alive,
        reasons=_reasons([(attempt.code, attempt.action, attempt.message, attempt.final) for attempt in missing]),
        to_ask=to_ask,
        due_later=later,
        packed=sum(clip.key in sampled for clip in clips),
        pack_failures=_reasons([(failure.code, "", failure.message, True) for failure in failed]),
    )


def _reasons(failures: Iterable[tuple[str, str, str, bool]]) -> tuple[Reason, ...]:
    """From code, action, message and finality of each failure."""
    reasons: dict[tuple[str, str], list[tuple[str, bool]]] = defaultdict(list)
    for code, action, message, final in failures:
        reasons[code, action].append((message, final))
    rows = [
        Reason(code=code, action=action, clips=len(own), final=sum(final for _, final in own), example=own[0][0])
        for (code, action), own in reasons.items()
    ]
    return tuple(sorted(rows, key=lambda reason: (-reason.clips, reason.code, reason.action)))


def _classes(
    clips: Iterable[Clip], labels: LabelSet, ledger: Mapping[str, Attempt], there: Collection[str]
) -> tuple[ClassReport, ...]:
    planned: Counter[int] = Counter()
    answered: Counter[int] = Counter()
    here: Counter[int] = Counter()
    for clip in clips:
        planned.update(clip.labels)
        if _answered(clip, ledger, there):
            answered.update(clip.labels)
        if clip.key in there:
            here.update(clip.labels)
    return tuple(
        ClassReport(
            index=i,
            id=label.id,
            name=label.display_name,
            planned=planned[i],
            answered=answered[i],
            there=here[i],
            share=here[i] / answered[i] if answered[i] else None,
        )
        for i, label in enumerate(labels.labels)
    )


def _pace(attempts: Sequence[Attempt], to_ask: int, now: float) -> Pace:
    """The pace, from attempts in order of time; those at the very first time stamp took their time before it."""
    if not attempts:
        return Pace(attempts=0, first=None, last=None, last_hour=None, overall=None, eta_hours=None, spans=())
    times = np.array([attempt.time for attempt in attempts])
    first, last = float(times[0]), float(times[-1])
    since = max(first, now - HOUR_S)
    last_hour = _an_hour(int((times > since).sum()), now - since)
    overall = _an_hour(int((times > first).sum()), last - first)
    rate = last_hour or overall
    return Pace(
        attempts=len(attempts),
        first=_moment(first),
        last=_moment(last),
        last_hour=last_hour,
        overall=overall,
        eta_hours=to_ask / rate if rate else None,
        spans=_spans(times - first, np.array([attempt.path is not None for attempt in attempts])),
    )


def _an_hour(count: int, seconds: float) -> float | None:
    return count / seconds * HOUR_S if seconds > 0 else None


def _spans(seconds: np.ndarray, there: np.ndarray) -> tuple[Span, ...]:
    edges = np.linspace(0.0, max(float(seconds[-1]), 1.0), SPANS + 1)
    counts = (np.histogram(seconds[chosen], edges)[0].tolist() for chosen in (there, ~there))
    return tuple(
        Span(start_s=start, there=good, not_there=bad) for start, good, bad in zip(edges[:-1].tolist(), *counts, strict=True)
    )


def _moment(time: float) -> datetime:
    return datetime.fromtimestamp(time, UTC)
