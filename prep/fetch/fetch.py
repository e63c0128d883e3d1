"""Fetching: every clip of the plan gets its media file, or a reason in the ledger."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from mbt.manifests.clips import Clip
from mbt.manifests.errors import SourceError
from mbt.manifests.progress import progress
from mbt.prep.fetch.clip_states import ClipStates, Fetched
from mbt.prep.fetch.lane_pool import LanePool, ThreadedLanes
from mbt.prep.fetch.lanes import Lane, restore_pauses
from mbt.prep.fetch.live_line import LiveLine
from mbt.prep.fetch.options import FetchOptions
from mbt.prep.fetch.request_loop import QUEUED_PER_LANE, RequestLoop, local_time
from mbt.prep.fetch.video_window import FirstPass, Pass, Settled, Video, planned_videos, videos_of
from mbt.prep.state.ledger import LedgerWriter
from mbt.prep.workers.clock import Clock
from mbt.prep.workers.interrupt import graceful_interrupts

OPEN_PER_LANE = QUEUED_PER_LANE
"""Videos per lane that are open although they may not fit under a cap, where one worker fetches the plan."""
OPEN_PER_WORKER = 256
"""Videos that are open although they may not fit under a cap, where several workers fetch the plan."""
SWEEP_EVERY_S = 600.0
"""Minimum seconds from the beginning of one sweep over due retries to the next."""
DEFAULTS = FetchOptions()
REAL_TIME = Clock()


def fetch(
    folder: Path,
    lanes: Sequence[Lane],
    options: FetchOptions = DEFAULTS,
    *,
    settled: Settled | None = None,
    may_request: Callable[[], bool] = lambda: True,
    note: Callable[[], str] = str,
    clock: Clock = REAL_TIME,
    make_pool: Callable[[Sequence[Lane], Clock], LanePool[Video]] = ThreadedLanes,
) -> Fetched:
    """Request the clips of the plan that have no media file: first the new ones, then those whose retry is due.

    Both passes go in the order of the plan, in which the clips fetched so far are always a fair sample. Where a split has a
    cap, a clip is requested only while it can still fit under it. The clips of one video share one extraction. Fetched clips
    are kept: the run can be stopped and restarted at any time.

    Args:
        folder: the dataset folder.
        lanes: the network addresses to fetch from; a rate-limited or blocked lane pauses while the others continue.
        options: options of the fetch stage.
        settled: called with each clip of the plan, in its order, once the clip's outcome of the first pass is known, and with
            its state; that is None if the clip was never requested, or failed at first and came later.
        may_request: asked before each request; while it returns False, none is started.
        note: returns more text for the live line, such as "packed 1,024".
        clock: the time.
        make_pool: returns the pool in which the lanes work.

    Raises:
        SourceError: the source does not serve us at all (blocked, no network, wrong installation).
        StorageError: no space left.
        KeyboardInterrupt: after Ctrl-C, once the requests in flight have ended.
    """
    share = options.share
    states = ClipStates(folder, lanes[0].source.name, options.removed, share, options.recheck)
    restore_pauses(lanes, folder)
    videos = planned_videos(states, share)
    with (
        graceful_interrupts() as stop_requested,
        LedgerWriter(folder, share.worker) as ledger,
        progress(states.num_own, "fetch", "clip") as bar,
        make_pool(lanes, clock) as pool,
    ):

        def count(clip: Clip) -> None:
            bar.update(share.owns(clip.video_id))

        size = OPEN_PER_WORKER if share.world > 1 else OPEN_PER_LANE * len(lanes)
        live = LiveLine(bar, states, states.num_likely(), lanes, clock, note)
        loop = RequestLoop(folder, states, pool, ledger, share, stop_requested, may_request, live)
        loop.run(FirstPass(videos, states, size, count, settled))
        while not loop.is_stopping:
            began = clock.time()
            loop.run(Pass(videos_of(states.due(began)), states))
            if not options.until_done or (due := states.next_due()) is None:
                break
            until = max(due, began + SWEEP_EVERY_S)
            if not loop.is_stopping and until > clock.time():
                tqdm.write(f"fetch: waiting until {local_time(until)} for clips that are due later", file=sys.stderr)
            loop.wait(until)
    if loop.stop:
        raise SourceError(f"{lanes[0].source.name} {loop.stop.reason}", loop.stop.remedy)
    return states.counts
