"""A video site and machines that exist in simulated time only, for `benchmarks.long_run`.

The site keeps its own account of every video, by rules that are written down here again: it finds requests that should not
have been made. It lives in files, which outlast the processes of the workers.
"""

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mbt.manifests.clips import Clip
from mbt.prep.sources.byte_ranges import RawClip
from mbt.prep.sources.ytdlp import Answer, Offer
from mbt.prep.state.failure_codes import HOUR_S, Problem, Verdict, classify
from mbt.prep.state.ledger import Effort
from mbt.prep.workers.clock import Clock

START = 1_800_000_000.0
"""Unix time in seconds at which a simulation begins."""
QUOTA_WINDOW_S = HOUR_S
RAW_FILE, RAW_BYTES = "raw/clip.mkv", 1_200_000
"""The media file of all clips: what matters here is that a file is looked up for each."""

SERVED = 0
SITE = (
    ("Video unavailable", 0.35),
    ("Private video. Sign in if you've been granted access to this video", 0.24),
    ("Video unavailable. This video is no longer available because the YouTube account has been terminated", 0.15),
    ("Video unavailable. This video has been removed by the uploader", 0.10),
    ("Video unavailable. This video is no longer available due to a copyright claim by X", 0.08),
    ("Sign in to confirm your age. This video may be inappropriate for some users", 0.05),
    ("The uploader has not made this video available in your country", 0.03),
)
"""What the site says about videos that it does not serve, with the share of each: an assumption."""
UNAVAILABLE = 1
LIMITED, BOT, TIMEOUT, FORBIDDEN, SHORT, OFFLINE = range(len(SITE) + 1, len(SITE) + 7)
PROBLEMS = {
    **{number: Problem(text) for number, (text, _) in enumerate(SITE, 1)},
    LIMITED: Problem("Unable to download API page: HTTP Error 429: Too Many Requests", status=429),
    BOT: Problem("Sign in to confirm you're not a bot. Use --cookies for the authentication"),
    TIMEOUT: Problem("Unable to download API page: The read operation timed out", frozenset({"TransportError"})),
    FORBIDDEN: Problem("HTTP Error 403: Forbidden", status=403, url_is_media=True),
    SHORT: Problem("content too short: 65536 bytes of 1048576", url_is_media=True),
    OFFLINE: Problem("Failed to resolve 'www.youtube.com': Temporary failure in name resolution", frozenset({"gaierror"})),
}
CHANCES = ((TIMEOUT, 0.003), (FORBIDDEN, 0.003), (SHORT, 0.001))
"""Failures that have nothing to do with the video, with the share of requests that meet them: an assumption."""
WAITS_S = (1 * HOUR_S, 6 * HOUR_S, 24 * HOUR_S, 72 * HOUR_S, 72 * HOUR_S)
"""Minimum waits after the first, second, ... failure of a video, as documented; there is no seventh request. A request that
the site did not answer in time is none, and the first of two 403 in a row may be repeated at once."""
DAY_S = 24 * HOUR_S

NOTES = [(name, "u1") for name in ("before", "after", "failed", "forbidden")]
VIDEO = np.dtype([*NOTES, *((name, "f8") for name in ("turn", "due", "missing_since"))])
"""A video: the site's answer before and after the time `turn`; its failures so far, and whether the last was a 403; since when
it is known to be unavailable; when it may be requested again."""
REQUEST = np.dtype([("time", "f8"), ("end", "f8"), ("video", "u4"), ("lane", "u1"), ("answer", "u1"), ("early", "?")])
"""A request in a worker's log; `early`: it should not have been made."""


@dataclass(frozen=True)
class Incident:
    """Something that goes wrong.

    Attributes:
        kind: a lane is asked to prove that it is no robot, or gets a third of its quota; a worker is without network, is killed
            or gets Ctrl-C.
        worker: whose.
        lane: which of its lanes.
        start: Unix time in seconds.
        end: Unix time in seconds.
    """

    kind: Literal["bot", "quota", "offline", "kill", "interrupt"]
    worker: int
    lane: int
    start: float
    end: float


@dataclass(frozen=True)
class World:
    """The simulated world.

    Attributes:
        folder: where the site keeps its files.
        dataset: the dataset folder.
        workers: number of workers.
        lanes: lanes per worker.
        sleep_s: seconds from one request of a lane to the next.
        quota: requests per hour that the site allows an address.
        incidents: what goes wrong.
        seed: seed of everything that is drawn.
    """

    folder: Path
    dataset: Path
    workers: int = 2
    lanes: int = 3
    sleep_s: float = 12.0
    quota: float = 330.0
    incidents: tuple[Incident, ...] = ()
    seed: int = 0

    def during(self, kind: str, worker: int, lane: int, now: float) -> bool:
        """Whether an incident of this kind is going on."""
        return any(
            incident.start <= now < incident.end
            for incident in self.incidents
            if (incident.kind, incident.worker, incident.lane) == (kind, worker, lane)
        )

    def log_file(self, worker: int) -> Path:
        """The site's log of a worker's requests: rows of `REQUEST`."""
        return self.folder / f"requests-{worker}"

    def videos(self) -> npt.NDArray[Any]:
        """The videos, on disk."""
        return np.memmap(self.folder / "videos", VIDEO, "r+")


def video_number(video_id: str) -> int:
    """The number of a video."""
    return int(video_id)


def create_videos(world: World, count: int, alive: float, hours: float) -> None:
    """Create the videos of a site: some are gone, some die within `hours`, and some come back.

    Args:
        world: the world.
        count: number of videos.
        alive: share of the videos that are available at the start.
        hours: hours in which 0.5% of the videos die, and another 0.5%, unavailable at first, come back.
    """
    draw = np.random.default_rng((world.seed, 1))
    videos = np.zeros(count, VIDEO)
    dead = draw.choice(np.arange(1, len(SITE) + 1), count, p=[share for _, share in SITE])
    is_dead = draw.random(count) >= alive
    videos["before"] = videos["after"] = np.where(is_dead, dead, SERVED)
    videos["turn"] = START + draw.random(count) * hours * HOUR_S
    lot = draw.random(count)
    videos["after"][lot < 0.005] = dead[lot < 0.005]
    returning = (lot >= 0.005) & (lot < 0.01)
    videos["before"][returning], videos["after"][returning] = UNAVAILABLE, SERVED
    videos.tofile(world.folder / "videos")


@dataclass
class Site:
    """The site, as one worker's lanes see it.

    Attributes:
        world: the world.
        worker: rank of the worker.
        clock: the worker's clock.
    """

    world: World
    worker: int
    clock: Clock
    _in_flight: dict[int, tuple[float, int, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._videos = self.world.videos()
        self._log = self.world.log_file(self.worker)
        log = np.fromfile(self._log, REQUEST) if self._log.exists() else np.empty(0, REQUEST)
        self._random = random.Random(f"{self.world.seed}:{self.worker}:{len(log)}")
        seen = log[(log["answer"] != OFFLINE) & (log["time"] > self.clock.time() - QUOTA_WINDOW_S)]
        self._recent = [deque(seen["time"][seen["lane"] == lane]) for lane in range(self.world.lanes)]

    def answer(self, lane: int, video: int) -> tuple[int, float, float]:
        """The answer to a request, and the seconds that extraction and transfer take."""
        now, row = self.clock.time(), self._videos[video]
        early = bool(now < row["due"] - 0.001)
        answer = self._answer(lane, row, now)
        extract_s, transfer_s = self._seconds(answer)
        end = now + extract_s + transfer_s
        self._in_flight[lane] = (end, video, row.copy())
        if answer not in (OFFLINE, LIMITED, BOT):
            self._keep_account(row, answer, end)
        with self._log.open("ab") as log:
            log.write(np.array((now, end, video, lane, answer, early), REQUEST).tobytes())
        return answer, extract_s, transfer_s

    def forget_in_flight(self) -> None:
        """The worker is killed: it never learns the answers in flight, and may make these requests again."""
        for end, video, before in self._in_flight.values():
            if end > self.clock.time():
                self._videos[video] = before

    def _answer(self, lane: int, row: Any, now: float) -> int:
        if self.world.during("offline", self.worker, 0, now):
            return OFFLINE
        recent = self._recent[lane]
        recent.append(now)
        while recent[0] <= now - QUOTA_WINDOW_S:
            recent.popleft()
        if self.world.during("bot", self.worker, lane, now):
            return BOT
        if len(recent) > self.world.quota / (3 if self.world.during("quota", self.worker, lane, now) else 1):
            return LIMITED
        lot = self._random.random()
        for answer, share in CHANCES:
            if lot < share:
                return answer
            lot -= share
        return int(row["before"] if now < row["turn"] else row["after"])

    def _seconds(self, answer: int) -> tuple[float, float]:
        """Seconds of extraction and of transfer; the site demands a wait of six seconds before a transfer."""
        draw = self._random
        extract_s = draw.uniform(2, 4)
        if answer == TIMEOUT:
            return extract_s + 30, 0.0
        if answer not in (SERVED, FORBIDDEN, SHORT):
            return extract_s, 0.0
        return extract_s, 6 + draw.uniform(0.5, 1.5) + (draw.expovariate(1 / 20) if draw.random() < 0.02 else 0.0)

    @staticmethod
    def _keep_account(row: Any, answer: int, end: float) -> None:
        """Note when a video may be requested again, by the documented rules."""
        failed, was_forbidden = int(row["failed"]), bool(row["forbidden"])
        row["forbidden"] = answer == FORBIDDEN
        if answer == TIMEOUT or (answer == FORBIDDEN and not was_forbidden):
            return
        row["failed"] = failed + 1
        row["due"] = math.inf
        if answer == UNAVAILABLE:
            row["missing_since"] = since = float(row["missing_since"]) or end
            if end - since < DAY_S and failed < len(WAITS_S):
                row["due"] = end + max(DAY_S, WAITS_S[failed])
        elif answer in (SHORT, FORBIDDEN) and failed < len(WAITS_S):
            row["due"] = end + WAITS_S[failed]


@dataclass
class SiteLane:
    """The site as a source of videos, over one lane."""

    site: Site
    lane: int
    name: str = "www.youtube.com"

    def fetch(self, video_id: str, clips: Sequence[Clip]) -> list[Answer]:
        """The result of each clip of a video."""
        answer, extract_s, transfer_s = self.site.answer(self.lane, video_number(video_id))
        effort = Effort(extract_s=extract_s, transfer_s=transfer_s, versions="yt-dlp 2026.10.26, ejs 0.8.0, deno 2.9.8")
        if answer != SERVED:
            return [Answer(verdict(answer), effort)] * len(clips)
        served = Effort(
            formats="134+140",
            requests=4,
            transferred=RAW_BYTES,
            extract_s=extract_s,
            transfer_s=transfer_s,
            versions=effort.versions,
        )
        raw = self.site.world.dataset / RAW_FILE
        return [Answer(RawClip(raw, RAW_BYTES, max(clip.start_ms - 5000, 0)), served) for clip in clips]

    def probe(self, video_id: str) -> Offer | Verdict:
        """Not simulated."""
        raise NotImplementedError


@cache
def verdict(answer: int) -> Verdict:
    """What mbt makes of an answer."""
    return classify(PROBLEMS[answer])
