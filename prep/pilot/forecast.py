"""What AS-500K would take from here, from what a sample took."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from mbt.manifests.clips import Clip, clip_table
from mbt.manifests.shards import MediaFormat
from mbt.prep.pilot.model import Costs, Forecast, Interval, PilotLane, Spread
from mbt.prep.plan.estimate import Estimate, estimate
from mbt.prep.report.counts import Z_95
from mbt.prep.report.model import Share
from mbt.prep.state.failure_codes import HOUR_S

AS500K_REQUESTS = {
    0.05: 2_041_789,
    0.2: 2_040_759,
    0.3: 1_375_086,
    0.4: 1_043_477,
    0.5: 843_414,
    0.6: 708_657,
    0.7: 643_676,
    0.8: 607_896,
    0.9: 580_065,
    1.0: 557_794,
}
"""Requested clips by the share that is alive: fewer survivors leave room under the cap for more clips of the list."""
CLIP_MS = 10_000
ENDS = ("low", "expected", "high")


def spread(values: Iterable[float]) -> Spread | None:
    """The distribution of the values and the mean's confidence interval (normal approximation); None without values."""
    array = np.array(list(values), dtype=float)
    if not len(array):
        return None
    mean = float(array.mean())
    half = Z_95 * float(array.std(ddof=1)) / len(array) ** 0.5 if len(array) > 1 else 0.0
    return Spread(
        of=len(array),
        mean=Interval(low=max(mean - half, 0.0), expected=mean, high=mean + half),
        median=float(np.median(array)),
        p90=float(np.quantile(array, 0.9, method="higher")),
        max=float(array.max()),
    )


def as500k_requests(alive: float) -> float:
    """Clips that must be requested for AS-500K if this share of all clips is alive; interpolated."""
    return float(np.interp(alive, list(AS500K_REQUESTS), list(AS500K_REQUESTS.values())))


def make_forecast(alive: Share | None, costs: Costs, lanes: Sequence[PilotLane], retried: float) -> Forecast | None:
    """What AS-500K would take. The ends of an interval are those of everything that it depends on, so it is on the wide side.

    Args:
        alive: share of the sampled clips that are alive.
        costs: what a clip took.
        lanes: the lanes; their rates add up.
        retried: clips that must be requested again, as a share of the requested ones.

    Returns:
        None if fewer than two clips were fetched, or no lane has a rate.
    """
    rates = [lane.per_hour for lane in lanes if lane.per_hour]
    raw, network, media = costs.raw_bytes, costs.transferred, costs.requests
    if alive is None or raw is None or raw.of < 2 or network is None or media is None or not rates:
        return None
    requests = _interval(as500k_requests(share) * (1 + retried) for share in (alive.high, alive.share, alive.low))
    clips = _interval(as500k_requests(share) * share for share in (alive.low, alive.share, alive.high))
    slow, usual, fast = (sum(getattr(rate, end) for rate in rates) for end in ENDS)
    hours = Interval(low=requests.low / fast, expected=requests.expected / usual, high=requests.high / slow)
    shards = _product(clips, costs.shard_bytes.mean) if costs.shard_bytes else _usual_shard_bytes(clips)
    estimates = [
        Estimate(
            clips=round(getattr(clips, end)),
            videos=round(getattr(requests, end)),
            lanes=len(lanes),
            hours=getattr(hours, end),
            raw_bytes=round(getattr(_product(clips, raw.mean), end)),
            shard_bytes=round(getattr(shards, end)),
            keep_raw=True,
            uploads=False,
        )
        for end in ENDS
    ]
    return Forecast(
        lanes=len(lanes),
        requests=requests,
        clips=clips,
        hours=hours,
        media_requests=_product(clips, media.mean),
        network_bytes=_product(clips, network.mean),
        disk_bytes=_interval(each.disk_bytes for each in estimates),
        disk_bytes_without_raw=_interval(replace(each, keep_raw=False).disk_bytes for each in estimates),
        core_hours=_scaled(_product(clips, costs.decode_s.mean), 1 / HOUR_S) if costs.decode_s else None,
    )


def _interval(ends: Iterable[float]) -> Interval:
    low, expected, high = ends
    return Interval(low=low, expected=expected, high=high)


def _product(first: Interval, second: Interval) -> Interval:
    return _interval(getattr(first, end) * getattr(second, end) for end in ENDS)


def _scaled(interval: Interval, factor: float) -> Interval:
    return _interval(getattr(interval, end) * factor for end in ENDS)


def _usual_shard_bytes(clips: Interval) -> Interval:
    """The bytes of the clips' samples by the estimate of `mbt prep --dry-run`."""
    one = estimate(clip_table([Clip("key", "video", 0, CLIP_MS, "train", ())]), MediaFormat(), ())
    return _scaled(clips, one.shard_bytes)
