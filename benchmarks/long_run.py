"""Two weeks of fetching, simulated: `python -m benchmarks.long_run` prints one table.

Two workers with three lanes each fetch a list like AudioSet's under the cap of AS-500K, from a site that exists in simulated
time only: it has a quota per address, loses and restores videos, and asks lanes to prove that they are no robots; networks
fail, and workers are killed and restarted. Everything else is the real code: the plan, `fetch`, the ledger, the breaker. Each
worker is a process of its own. A conductor keeps their clocks together.
"""

import json
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from benchmarks.simulated_site import (
    BOT,
    LIMITED,
    OFFLINE,
    RAW_BYTES,
    RAW_FILE,
    REQUEST,
    SERVED,
    START,
    Incident,
    Site,
    SiteLane,
    World,
    create_videos,
    verdict,
)
from benchmarks.simulated_time import (
    CRASHED,
    FINISHED,
    INTERRUPTED,
    KILLED,
    STOPPED,
    Life,
    SimulatedClock,
    SimulatedLanes,
    conduct,
    processes,
)
from mbt.manifests.clips import SCHEMA
from mbt.manifests.errors import SourceError
from mbt.manifests.lists.audioset import audioset_labels
from mbt.manifests.shards import MediaFormat
from mbt.prep.fetch.fetch import fetch
from mbt.prep.fetch.lanes import Lane
from mbt.prep.fetch.options import FetchOptions
from mbt.prep.plan.choose import choose, fetch_caps, likely_clips
from mbt.prep.plan.estimate import Estimate, estimate
from mbt.prep.plan.options import PlanOptions
from mbt.prep.plan.plan import Plan, write_plan
from mbt.prep.state.failure_codes import HOUR_S
from mbt.prep.state.ledger import LEDGER_FOLDER

CLIPS = 2_041_789
CAP = 200_000
ALIVE = 0.9125
SPEECH, MUSIC = 0, 137
SHARES = (0.175, 0.330, 0.330, 0.165)
"""Share of AudioSet's clips with neither Speech nor Music, with Speech, with Music, and with both."""
TWO_WEEKS_H = 14 * 24.0
TARGET_USED, TARGET_ERROR, TARGET_BYTES = 0.97, 0.05, 1_000_000_000
DOWN_S = {STOPPED: 6 * HOUR_S, KILLED: 600.0, INTERRUPTED: 1800.0}
"""Seconds until someone starts a worker again, by how it ended; proportionally shorter in a shorter run."""
SHARED_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""The ledger is written to disk after each request, which takes no simulated time but real one."""
PAUSE_S = {LIMITED: (HOUR_S, 2 * HOUR_S, 4 * HOUR_S), BOT: (6 * HOUR_S,)}
"""Documented pauses of a lane, in a row."""


def audioset_like(count: int, seed: int) -> pa.Table:
    """A clip table with the size and the frequencies of Speech and Music of AudioSet's unbalanced list; one clip per video."""
    draw = np.random.default_rng((seed, 0))
    kind = draw.choice(4, count, p=SHARES)
    others = np.setdiff1d(np.arange(len(audioset_labels())), [SPEECH, MUSIC])
    rarity = 1 / (np.arange(len(others)) + 10)
    drawn = draw.choice(others, (2, count), p=rarity / rarity.sum())
    everyone = np.arange(count)
    has_other = (kind == 0) | (draw.random(count) < 0.5)
    pairs = [(everyone, kind % 2 == 1, SPEECH), (everyone, kind >= 2, MUSIC), (everyone, has_other, drawn[0])]
    pairs.append((everyone, draw.random(count) < 0.3, drawn[1]))
    codes = np.unique(np.concatenate([(rows * len(audioset_labels()) + label)[has] for rows, has, label in pairs]))
    owners, labels = np.divmod(codes, len(audioset_labels()))
    offsets = np.searchsorted(owners, np.arange(count + 1))
    video_ids = pc.utf8_lpad(pa.array(everyone).cast(pa.string()), 11, "0")
    columns = {
        "key": pc.binary_join_element_wise(video_ids, "30000", "_"),
        "video_id": video_ids,
        "start_ms": pa.repeat(30_000, count),
        "end_ms": pa.repeat(40_000, count),
        "split": pa.repeat("train", count),
        "labels": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(labels, pa.int32())),
    }
    return pa.table(columns).cast(SCHEMA)


def draw_incidents(world: World, hours: float) -> tuple[Incident, ...]:
    """What goes wrong within this many hours: as much as in two weeks, in proportionally shorter incidents."""
    draw = np.random.default_rng((world.seed, 2))
    day_s = 24 * HOUR_S * hours / TWO_WEEKS_H
    incidents: list[Incident] = []

    def add(kind: Any, length_s: float, at: float, worker: int, lane: int) -> None:
        start = START + at * hours * HOUR_S
        incidents.append(Incident(kind, worker % world.workers, lane % world.lanes, start, start + length_s))

    for number, at in enumerate((0.1, 0.3, 0.6, 0.6001)):
        add("bot", day_s, at, number // 2 + 1, number)
    for number, at in enumerate(sorted(draw.uniform(0.0, 0.9, 8))):
        add("quota", day_s / 8, at, number, number // 2)
    for number, (at, length_s) in enumerate([(0.2, day_s / 72), (0.45, day_s / 12), (0.8, day_s / 4)]):
        add("offline", length_s, at, number, 0)
    for number, at in enumerate(sorted(draw.uniform(0.02, 0.9, 4))):
        add("kill" if number % 2 else "interrupt", 0.0, at, number // 2, 0)
    return tuple(incidents)


def make_plan(world: World, clips: int, cap: int) -> Estimate:
    """Write the plan, and return its prediction."""
    options = PlanOptions(cap=cap, seed=world.seed)
    labels = audioset_labels()
    table = choose(audioset_like(clips, world.seed), options, len(labels))
    caps = fetch_caps(table, options)
    plan = Plan(dataset="audioset", task="multilabel", caps=caps, seed=world.seed)
    write_plan(world.dataset, plan, labels, table)
    rates = [HOUR_S / world.sleep_s] * (world.workers * world.lanes)
    return estimate(likely_clips(table, caps, len(labels), world.seed), MediaFormat(), rates)


def run_worker(world: World, conductor: "Connection[Any, Any]", now: float, rank: int) -> None:
    """Fetch as one worker until the run ends, one way or another."""
    with (world.folder / f"worker-{rank}.log").open("ab") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    tqdm.set_lock(threading.RLock())  # Its own lock between processes would be left behind by one that is killed.
    random.seed(f"{world.seed}:{rank}:{now}")
    clock = SimulatedClock(conductor, now)
    site = Site(world, rank, clock)
    strikes = {"kill": partial(_kill, world, site, clock), "interrupt": partial(signal.raise_signal, signal.SIGINT)}
    for incident in world.incidents:
        if incident.worker == rank and incident.kind in strikes:
            clock.set_alarm(incident.start, strikes[incident.kind])
    lanes = [Lane(f"{rank}.lane-{lane}", SiteLane(site, lane), world.sleep_s) for lane in range(world.lanes)]
    options = FetchOptions(rank=rank, world=world.workers, until_done=True)
    try:
        fetch(world.dataset, lanes, options, clock=clock, make_pool=SimulatedLanes)
    except SourceError as error:
        clock.end(STOPPED, str(error))
    except KeyboardInterrupt:
        clock.end(INTERRUPTED)
    except Exception:
        clock.end(CRASHED, traceback.format_exc())
    else:
        clock.end(FINISHED)


def _kill(world: World, site: Site, clock: SimulatedClock) -> None:
    """End this process as a power cut would: answers in flight are lost, and a line of the ledger is cut off."""
    site.forget_in_flight()
    with (world.dataset / LEDGER_FOLDER / f"fetch-{site.worker}.jsonl").open("a") as ledger:
        ledger.write('{"key": "00000000000_30000", "source": "www.you')
    clock.end(KILLED)
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Report:
    """What was predicted, and what happened.

    Attributes:
        predicted_requests: requests by the plan's prediction.
        predicted_hours: hours by the plan's prediction.
        requests: requests that reached the site.
        hours: hours in which all lanes could request, until every clip had been requested, plus the time of later requests at
            the lanes' rates.
        used: share of the requests that the lanes' rates allowed in that time, while no lane was refused, the network worked
            and the worker ran.
        videos: distinct videos that were requested.
        refused: requests that were answered for the address, not for the video.
        lost: requests whose answer was lost when a worker was killed.
        retries: other requests for a video that had been requested before.
        early: requests that should not have been made: of served or final videos, or before a retry was due.
        days: simulated days until every clip had been requested, and until the last retry.
        lives: runs, by how they ended.
        answers: answers by code.
        ledger_bytes: size of the ledger.
        plan_bytes: peak memory of planning.
        peak_bytes: peak memory of a worker.
        speed: simulated hours per second.
    """

    predicted_requests: int
    predicted_hours: float
    requests: int
    hours: float
    used: float
    videos: int
    refused: int
    lost: int
    retries: int
    early: int
    days: tuple[float, float]
    lives: dict[str, int]
    answers: dict[str, int]
    ledger_bytes: int
    plan_bytes: int
    peak_bytes: int
    speed: float


def simulate(world: World, clips: int, cap: int) -> Report:
    """Plan, draw what goes wrong, and fetch."""
    begin = time.perf_counter()
    (world.dataset / RAW_FILE).parent.mkdir(parents=True)
    os.truncate(os.open(world.dataset / RAW_FILE, os.O_CREAT | os.O_RDWR), RAW_BYTES)
    with ProcessPoolExecutor(1, processes()) as alone:
        prediction = alone.submit(make_plan, world, clips, cap).result()
        plan_bytes = alone.submit(peak_bytes).result()
        alone.submit(create_videos, world, clips, ALIVE, prediction.hours).result()
    world = replace(world, incidents=draw_incidents(world, prediction.hours))
    down_s = {how: seconds * prediction.hours / TWO_WEEKS_H for how, seconds in DOWN_S.items()}
    lives = conduct(partial(run_worker, world), world.workers, START, down_s)
    return report(world, prediction, lives, plan_bytes, time.perf_counter() - begin)


def peak_bytes() -> int:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def report(world: World, prediction: Estimate, lives: Sequence[Life], plan_bytes: int, wall_s: float) -> Report:
    """The site's logs, in numbers."""
    logs = [np.fromfile(world.log_file(worker), REQUEST) for worker in range(world.workers)]
    usable, later, asked_by = 0.0, 0, []
    made = 0
    for worker, log in enumerate(logs):
        seen = log[log["answer"] != OFFLINE]
        _, firsts = np.unique(seen["video"], return_index=True)
        until = float(seen["time"][firsts].max())
        asked_by.append(until)
        own = [life for life in lives if life.worker == worker]
        usable += sum(usable_s(world, worker, seen[seen["lane"] == lane], own, until) for lane in range(world.lanes))
        made += int((seen["time"] <= until).sum())
        later += int((seen["time"] > until).sum())
    rows = np.concatenate(logs)
    seen = rows[rows["answer"] != OFFLINE]
    refused = int(np.isin(seen["answer"], (LIMITED, BOT)).sum())
    videos = len(np.unique(seen["video"]))
    lost = sum(_lost(world, worker, log, lives) for worker, log in enumerate(logs))
    codes = Counter("ok" if answer == SERVED else verdict(answer).code for answer in rows["answer"].tolist())
    end = max(life.end for life in lives)
    return Report(
        predicted_requests=prediction.requests,
        predicted_hours=prediction.hours,
        requests=len(seen),
        hours=(usable + later * world.sleep_s) / (world.workers * world.lanes) / HOUR_S,
        used=made * world.sleep_s / usable,
        videos=videos,
        refused=refused,
        lost=lost,
        retries=len(seen) - refused - lost - videos,
        early=int(rows["early"].sum()),
        days=((max(asked_by) - START) / 24 / HOUR_S, (end - START) / 24 / HOUR_S),
        lives=dict(Counter(life.how for life in lives)),
        answers=dict(codes.most_common()),
        ledger_bytes=sum(path.stat().st_size for path in (world.dataset / LEDGER_FOLDER).iterdir()),
        plan_bytes=plan_bytes,
        peak_bytes=max(life.peak_bytes for life in lives),
        speed=(end - START) / HOUR_S / wall_s,
    )


def _lost(world: World, worker: int, log: npt.NDArray[Any], lives: Sequence[Life]) -> int:
    """Requests that were in flight when the worker was killed."""
    kills = [life.end for life in lives if life.worker == worker and life.how == KILLED]
    return sum(int(((log["time"] <= kill) & (log["end"] > kill) & (log["answer"] != OFFLINE)).sum()) for kill in kills)


def usable_s(world: World, worker: int, log: npt.NDArray[Any], lives: Sequence[Life], until: float) -> float:
    """Seconds in which a lane could request: its worker ran, its network worked, and it was not in a pause after a refusal.

    Args:
        world: the world.
        worker: rank of the worker.
        log: the requests of the lane.
        lives: the lives of the worker.
        until: Unix time in seconds at which the count ends.
    """
    blocked = [(one.start, one.end) for one in world.incidents if one.kind == "offline" and one.worker == worker]
    in_a_row = 0
    for row, following in zip(log, [*log["time"][1:].tolist(), until], strict=True):
        answer = int(row["answer"])
        if answer in PAUSE_S:
            pauses = PAUSE_S[answer]
            pause_s = pauses[min(in_a_row, len(pauses) - 1)]
            blocked.append((float(row["end"]), min(float(row["end"]) + pause_s, following)))
        in_a_row = in_a_row + 1 if answer in PAUSE_S else 0 if answer == SERVED else in_a_row
    ran = [(life.start, min(life.end, until)) for life in lives if life.start < until]
    total, last = 0.0, START
    for start, end in sorted([*blocked, *_gaps(ran, until)]):
        total += max(min(start, until) - last, 0.0)
        last = max(last, end)
    return total + max(until - last, 0.0)


def _gaps(ran: Sequence[tuple[float, float]], until: float) -> list[tuple[float, float]]:
    """The times between the lives of a worker."""
    starts = [start for start, _ in ran[1:]]
    return list(zip([end for _, end in ran], [*starts, until], strict=True))


def table(result: Report) -> str:
    """The results as text."""

    def rate(name: str, value: str, target: str = "") -> str:
        return f"{name:<44}{value:>16}  {target}".rstrip()

    def error(happened: float, predicted: float) -> str:
        return f"{happened / predicted - 1:+.1%} of the prediction; target within {TARGET_ERROR:.0%}"

    asked, last = result.days
    lines = [
        rate("share of the allowed rate used", f"{result.used:.1%}", f"target >= {TARGET_USED:.0%}"),
        rate("requests predicted", f"{result.predicted_requests:,}"),
        rate("requests made", f"{result.requests:,}", error(result.requests, result.predicted_requests)),
        rate("hours predicted", f"{result.predicted_hours:,.1f}"),
        rate("hours at work", f"{result.hours:,.1f}", error(result.hours, result.predicted_hours)),
        rate("days until every clip was requested", f"{asked:.1f}"),
        rate("days until the last retry", f"{last:.1f}"),
        rate("videos requested", f"{result.videos:,}"),
        rate("requests refused for the address", f"{result.refused:,}"),
        rate("answers lost when a worker was killed", f"{result.lost:,}"),
        rate("due retries", f"{result.retries:,}"),
        rate("requests that should not have been made", f"{result.early:,}", "target 0"),
        rate("runs", f"{sum(result.lives.values())}", ", ".join(f"{count} {how}" for how, count in result.lives.items())),
        rate("ledger", f"{result.ledger_bytes / 1e6:,.0f} MB"),
        rate("peak memory of a worker", f"{result.peak_bytes / 1e6:,.0f} MB", f"target <= {TARGET_BYTES / 1e6:,.0f} MB"),
        rate("peak memory of planning", f"{result.plan_bytes / 1e6:,.0f} MB"),
        rate("simulated hours per second", f"{result.speed:,.1f}"),
        "",
        *(rate(f"answers {code}", f"{count:,}") for code, count in result.answers.items()),
    ]
    return "\n".join(lines)


@click.command(context_settings={"show_default": True})
@click.option("--scale", default=1.0, type=click.FloatRange(0.0001, 1), help="Share of AudioSet's clips.")
@click.option("--sleep", default=12.0, type=click.FloatRange(min=1), help="Seconds between two requests of a lane.")
@click.option("--seed", default=0, help="Seed of the simulated world.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(scale: float, sleep: float, seed: int, as_json: bool) -> None:
    """Simulate weeks of fetching, and compare what happens with what the plan predicted."""
    with tempfile.TemporaryDirectory(prefix="mbt-long-run-", dir=SHARED_MEMORY) as name:
        folder = Path(name)
        world = World(folder, folder / "set", sleep_s=sleep, quota=1.1 * HOUR_S / sleep, seed=seed)
        result = simulate(world, round(CLIPS * scale), round(CAP * scale))
    click.echo(json.dumps(asdict(result), indent=2) if as_json else table(result))


if __name__ == "__main__":
    main()
