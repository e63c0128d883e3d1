"""Fetching: every clip of the plan gets its media file, or a reason in the ledger."""

import hashlib
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from mbt.manifests.clips import Clip, iter_clips, table_clips
from mbt.manifests.errors import SourceError
from mbt.manifests.progress import progress
from mbt.prep.fetch.breaker import Breaker, Stop
from mbt.prep.fetch.byte_ranges import RawClip
from mbt.prep.fetch.clip_states import Books
from mbt.prep.fetch.lanes import Lane, LanePool, remember
from mbt.prep.fetch.local_folder import LocalFolder
from mbt.prep.fetch.options import FetchOptions
from mbt.prep.fetch.worker_share import Share
from mbt.prep.fetch.ytdlp import Answer
from mbt.prep.state.failure_codes import UNKNOWN, Action, Verdict
from mbt.prep.state.ledger import Attempt, LedgerWriter
from mbt.prep.workers.interrupt import gentle_interrupts

LOCAL_BATCH = 1000
AHEAD = 8
"""Videos a lane that are asked for before it is known whether those before them take their room."""
AHEAD_OF_OTHERS = 256
"""The same for a worker, where others fetch too."""
PATIENCE_S = 0.5
DEFAULTS = FetchOptions()


@dataclass(frozen=True)
class Fetched:
    """How many of the clips that are wanted have their media file, and how many have not."""

    there: int
    missing: int


def find(folder: Path, source: LocalFolder, options: FetchOptions = DEFAULTS) -> Fetched:
    """Look in a folder for every clip of the plan that is not there yet.

    Args:
        folder: the dataset folder.
        source: where the media lie.
        options: options of the fetch stage.

    Raises:
        StorageError: no space left.
    """
    books = Books(folder, source.name, options.removed)
    total = books.table.num_rows
    with LedgerWriter(folder, "fetch-0") as writer, progress(total, "fetch", "clip") as bar:
        for batch in (table_clips(books.table.slice(i, LOCAL_BATCH)) for i in range(0, total, LOCAL_BATCH)):
            attempts = [_found(clip, source) for clip in batch if books.is_wanted(clip, time.time())]
            writer.append(attempts)
            books.note(attempts)
            for clip in batch:
                books.settle(clip)
            bar.update(len(batch))
    return Fetched(books.there, books.missing)


def _found(clip: Clip, source: LocalFolder) -> Attempt:
    now = time.time()
    if file := source.find(clip):
        size = file.path.stat().st_size
        return Attempt(key=clip.key, source=source.name, path=str(file.path), size=size, offset_ms=file.offset_ms, time=now)
    message = f"no file named {clip.key} or {clip.video_id} in {source.folder}"
    return Attempt(key=clip.key, source=source.name, code="local.missing", message=message, time=now)


def fetch(folder: Path, lanes: Sequence[Lane], options: FetchOptions = DEFAULTS) -> Fetched:
    """Ask for every clip of the plan that is not there yet, not known to be gone, and not asked for just now.

    The order is pseudo-random, so that what is there at any time is a fair sample. Of a plan with caps it is the order of the
    offer, and a clip is asked for only if it can still be taken. Clips of one video share one extraction. What was fetched
    stays: stop and run again at any time.

    Args:
        folder: the dataset folder.
        lanes: the network addresses to ask from; a lane whose rate is limited or that is blocked rests, and the others go on.
        options: options of the fetch stage.

    Raises:
        SourceError: the source serves nobody here (blocked, no network, wrong installation).
        StorageError: no space left.
        KeyboardInterrupt: after an interrupt from the keyboard, when what was in flight has come.
    """
    share = options.share
    books = Books(folder, lanes[0].source.name, options.removed)
    remember(lanes, folder)
    total = sum(share.has(video_id) for video_id in books.table["video_id"].to_pylist())
    with (
        gentle_interrupts() as stopping,
        LedgerWriter(folder, f"fetch-{share.rank}") as writer,
        progress(total, "fetch", "clip") as bar,
        LanePool[_Video](lanes) as pool,
    ):
        run = _Run(folder, books, pool, writer, share, stopping, bar)
        run.through(_videos(books, options.seed, share))
    return Fetched(books.there, books.missing)


def _videos(books: Books, seed: int, share: Share) -> "Iterator[_Video]":
    """The clips of each video, in the order in which they are asked for; those of others only where they count."""
    table = books.table
    if not books.capped:
        ids = (f"{seed}:{video_id}" for video_id in table["video_id"].to_pylist())
        places = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in ids]
        table = table.take(pa.array(np.argsort(np.array(places, np.uint64), kind="stable")))
    for video_id, group in groupby(iter_clips(table), lambda clip: clip.video_id):
        own = share.has(video_id)
        if own or books.capped:
            yield _Video(video_id, list(group), own)


@dataclass(eq=False)
class _Video:
    """Clips of one video.

    Attributes:
        video_id: of the video.
        clips: of the plan, side by side in its order.
        own: this worker asks for them.
        wanted: those of the clips that are to be asked for, or are just being.
        before: state of the first of these before.
    """

    video_id: str
    clips: list[Clip]
    own: bool
    wanted: list[Clip] = field(default_factory=list)
    before: Attempt | None = None


@dataclass
class _Run:
    """One go through the plan: videos are asked for ahead of the one up to which all is settled."""

    folder: Path
    books: Books
    pool: LanePool[_Video]
    writer: LedgerWriter
    share: Share
    stopping: threading.Event
    bar: "tqdm[None]"

    def __post_init__(self) -> None:
        self._breaker = Breaker(len(self.pool.lanes))
        self._unknown: set[str] = set()
        self._waited_for: set[int] = set()
        self._stop: Stop | None = None
        self._ahead: deque[_Video] = deque()
        self._to_ask: deque[_Video] = deque()
        self._window = AHEAD_OF_OTHERS if self.share.world > 1 else AHEAD * len(self.pool.lanes)

    def through(self, videos: Iterator[_Video]) -> None:
        """Ask for these videos until all are settled, or something stops it."""
        more = True
        while True:
            while more and len(self._ahead) < self._window:
                video = next(videos, None)
                if video is None:
                    more = False
                else:
                    self._take_up(video)
                self._settle()
            ending = self._stop is not None or self.stopping.is_set()
            if not ending:
                self._hand_out()
            if not self.pool.busy and (ending or not (more or self._to_ask)):
                break
            if not (self.pool.busy or self._to_ask):
                self._tell_whom_it_waits_for(self._ahead[0])
            for lane, video, answers in self.pool.answers(PATIENCE_S, bool(self._to_ask) and not ending):
                self._take_in(lane, video, answers)
            self._settle()
        if self._stop:
            raise SourceError(f"{self.pool.lanes[0].source.name} {self._stop.reason}", self._stop.remedy)
        self._settle_all()

    def _tell_whom_it_waits_for(self, video: _Video) -> None:
        """Print it once for each worker."""
        owner = self.share.owner(video.video_id)
        if owner not in self._waited_for:
            self._waited_for.add(owner)
            tqdm.write(f"fetch: waits for what worker {owner} fetches, such as {video.video_id}", file=sys.stderr)

    def _hand_out(self) -> None:
        """Give each lane that may ask a video; no two of them the same."""
        while (lane := self.pool.free()) is not None:
            asked = {video.video_id for _, video in self.pool.busy.values()}
            video = next((video for video in self._to_ask if video.video_id not in asked), None)
            if video is None:
                return
            self._to_ask.remove(video)
            video.wanted = [clip for clip in video.wanted if self.books.is_open(clip)]
            if video.wanted:
                self.pool.ask(lane, video, video.wanted)

    def _take_up(self, video: _Video) -> None:
        self._ahead.append(video)
        wanted = [clip for clip in video.clips if self.books.is_wanted(clip, time.time())]
        if wanted and video.own:
            video.before = self.books.state(wanted[0])
            video.wanted = wanted
            self._to_ask.append(video)

    def _settle(self) -> None:
        """Settle videos from the first on, as far as their outcome is known."""
        while self._ahead and self._is_known(self._ahead[0]):
            self._settle_first()

    def _settle_all(self) -> None:
        """What others have still to fetch before the last of this worker's videos is left to them."""
        while self._ahead:
            self._settle_first()

    def _settle_first(self) -> None:
        video = self._ahead.popleft()
        for clip in video.clips:
            self.books.settle(clip, video.own)
        self.bar.update(len(video.clips) * video.own)

    def _is_known(self, video: _Video) -> bool:
        if video.own:
            return not video.wanted
        unknown = [clip for clip in video.clips if self.books.is_open(clip) and self.books.state(clip) is None]
        if unknown:
            self.books.note_others()
        return all(self.books.state(clip) is not None for clip in unknown)

    def _take_in(self, lane: int, video: _Video, answers: list[Answer]) -> None:
        """Record what came of a video; clips that the lane was refused are asked for again."""
        results = [answer.result for answer in answers]
        ended = (result for result in results if not _is_the_clips_own(result))
        self._watch(lane, next(ended, results[0]), video.before)
        attempts = [self._attempt(clip, lane, result) for clip, result in zip(video.wanted, results, strict=True)]
        self.writer.append(zip(attempts, (answer.effort for answer in answers), strict=True))
        self.books.note(attempts)
        video.wanted = [clip for clip, result in zip(video.wanted, results, strict=True) if not _is_the_clips_own(result)]
        if video.wanted:
            self._to_ask.appendleft(video)

    def _watch(self, lane: int, result: RawClip | Verdict, before: Attempt | None) -> None:
        """Stop when failures are the source's or the lane's, and print each text that the taxonomy does not know once."""
        verdict = result if isinstance(result, Verdict) else None
        if verdict and verdict.code == UNKNOWN and verdict.message not in self._unknown:
            self._unknown.add(verdict.message)
            tqdm.write(f"fetch: a failure that mbt does not know, to be tried again: {verdict.message}", file=sys.stderr)
        if verdict and before and verdict.code == before.code and verdict.action is not Action.NETWORK:
            return
        stop = self._breaker.add(verdict, time.time(), lane)
        if stop and stop.scope == "run":
            self._stop = self._stop or stop
        elif stop and verdict:
            self._rest(lane, verdict)

    def _rest(self, lane: int, verdict: Verdict) -> None:
        chosen = self.pool.lanes[lane]
        chosen.rest(verdict.action.label)
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(chosen.rests_until))
        tqdm.write(f"fetch: {chosen.name} rests until {until} ({verdict.code}): {verdict.message}", file=sys.stderr)

    def _attempt(self, clip: Clip, lane: int, result: RawClip | Verdict) -> Attempt:
        now = time.time()
        chosen = self.pool.lanes[lane]
        name = chosen.source.name
        if isinstance(result, RawClip):
            chosen.rests = 0
            path = str(result.path.relative_to(self.folder))
            return Attempt(
                key=clip.key,
                source=name,
                lane=chosen.name,
                path=path,
                size=result.size,
                offset_ms=result.offset_ms,
                time=now,
            )
        return Attempt(
            key=clip.key,
            source=name,
            lane=chosen.name,
            code=result.code,
            action=result.action.label,
            message=result.message,
            final=result.retry_after_s is None,
            not_before=chosen.rests_until if result.action.ends == "lane" else now + (result.retry_after_s or 0.0),
            time=now,
        )


def _is_the_clips_own(result: RawClip | Verdict) -> bool:
    return isinstance(result, RawClip) or not result.action.ends
