"""Shards that are packed while fetching goes on: each as soon as all of its clips are settled."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import pyarrow as pa
import pyarrow.compute as pc

from mbt.manifests.clips import Clip, clip_table
from mbt.prep.pack.assign import Assignment
from mbt.prep.pack.pack_shard import PackedShard, Packing, ShardTask
from mbt.prep.pack.raw_files import RawFiles
from mbt.prep.plan.removed import is_removed
from mbt.prep.state.ledger import Attempt
from mbt.prep.state.shard_record import finished_shard

Submit = Callable[[ShardTask], "Future[PackedShard]"]
Settled = tuple[Clip, Attempt]


class ReadyShards:
    """Fixes which clips a shard holds when they are settled, and submits it.

    A new shard is the next `shard_samples` clips of its split that came on time, in the order of the plan; the last clips of a
    split, and those that come late, are left to `pack`. A shard that an earlier run has fixed is submitted when all of its
    clips are settled again. So a shard's clips depend on what arrived, never on when.

    Args:
        packing: what all shards share.
        table: clip table of the plan.
        submit: starts packing a shard.
    """

    def __init__(self, packing: Packing, table: pa.Table, submit: Submit) -> None:
        settings = packing.options.settings
        self._size = settings.shard_samples
        self._submit_task = submit
        self._assignment = Assignment(packing.folder, settings)
        unfinished = [name for name in self._assignment.shards if finished_shard(packing.store, name) is None]
        self._shard_of = {key: name for name in unfinished for key in self._assignment.shards[name]}
        self._settled: dict[str, dict[str, Settled]] = {name: {} for name in unfinished}
        self._waiting: dict[str, dict[str, Settled]] = {}
        self._removed = packing.options.removed
        self._frees_media = not packing.options.keep_raw
        self._raw_files = RawFiles(packing.folder, packing.options)
        self._unsettled = _clips_of_shared_videos(table)
        self._left_to_pack: set[str] = set()
        self._packed: dict[str, list[str]] = {}
        self._in_progress: deque[tuple[Future[PackedShard], Sequence[Clip]]] = deque()

    def settle(self, clip: Clip, attempt: Attempt | None) -> None:
        """Take the next clip of the plan, whose outcome is known; `attempt` is None if it has none or came late."""
        removed = is_removed(clip, self._removed)
        if attempt is not None and self._frees_media and not removed:
            self._raw_files.add([clip], {clip.key: attempt})
        self._settle_video(clip, None if removed else attempt)
        if name := self._shard_of.get(clip.key):
            self._gather(name, clip, attempt)
        elif attempt is not None and attempt.path is not None and clip.key not in self._assignment:
            waiting = self._waiting.setdefault(clip.split, {})
            waiting[clip.key] = clip, attempt
            if len(waiting) == self._size:
                name = self._assignment.add(clip.split, waiting)
                self._assignment.save()
                self._submit(name, self._waiting.pop(clip.split))

    def _gather(self, name: str, clip: Clip, attempt: Attempt | None) -> None:
        """Take a clip of a shard that an earlier run has fixed; a shard that lacks one is left to `pack`."""
        if name not in self._settled:
            return
        if attempt is None or attempt.path is None:
            del self._settled[name]
            return
        self._settled[name][clip.key] = clip, attempt
        if len(self._settled[name]) == len(self._assignment.shards[name]):
            self._submit(name, self._settled.pop(name))

    def collect(self) -> None:
        """Delete the media of shards that have been packed since the last call.

        Raises:
            MbtError: a shard could not be packed.
        """
        while self._in_progress and self._in_progress[0][0].done():
            future, clips = self._in_progress.popleft()
            done = set(future.result().done)
            for clip in clips:
                if clip.key in done:
                    self._release(clip)

    def _submit(self, name: str, settled: dict[str, Settled]) -> None:
        clips, attempts = zip(*(settled[key] for key in self._assignment.shards[name]), strict=True)
        task = ShardTask(name, clip_table(clips), {attempt.key: attempt for attempt in attempts})
        self._in_progress.append((self._submit_task(task), clips))

    def _settle_video(self, clip: Clip, attempt: Attempt | None) -> None:
        """Count a clip of a video with several; after the last one, delete the media that its packed clips shared.

        If one of them may come later, was not requested or is removed, that is left to `pack`.
        """
        video_id = clip.video_id
        if video_id not in self._unsettled:
            return
        if attempt is None or not (attempt.path or attempt.final):
            self._left_to_pack.add(video_id)
        self._unsettled[video_id] -= 1
        if not self._unsettled[video_id]:
            del self._unsettled[video_id]
            packed = self._packed.pop(video_id, ())
            if video_id not in self._left_to_pack:
                self._raw_files.release(packed)

    def _release(self, clip: Clip) -> None:
        if clip.video_id in self._unsettled:
            self._packed.setdefault(clip.video_id, []).append(clip.key)
        elif clip.video_id not in self._left_to_pack:
            self._raw_files.release([clip.key])


def _clips_of_shared_videos(table: pa.Table) -> Counter[str]:
    """Number of planned clips of each video that has several."""
    counts = pc.value_counts(table["video_id"])
    several = counts.filter(pc.greater(counts.field("counts"), 1))
    return Counter(dict(zip(several.field("values").to_pylist(), several.field("counts").to_pylist(), strict=True)))
