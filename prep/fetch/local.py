"""Fetching from local files: every clip of the plan gets its media file, or a reason in the ledger."""

import sys
import time
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from mbt.manifests.clips import Clip, table_clips
from mbt.manifests.errors import InputError
from mbt.manifests.progress import progress
from mbt.prep.fetch.clip_states import ClipStates, Fetched
from mbt.prep.fetch.options import FetchOptions
from mbt.prep.fetch.worker_share import WorkerShare
from mbt.prep.media.duration import duration_s
from mbt.prep.media.ffmpeg import ClipError
from mbt.prep.sources.archives import COPIES_FOLDER, Archive, copy_members
from mbt.prep.sources.local_folder import AMBIGUOUS, MISSING, SHOWN, FoundFile, LocalFolder, printable
from mbt.prep.sources.media_names import PICTURE_SUFFIXES, YOUTUBE_ID, base_names, names_of, split_media_name, stem_bases
from mbt.prep.state.ledger import Attempt, LedgerWriter
from mbt.prep.workers.processes import cores

BATCH = 1000
MAX_DIFFERENCE_S = 1.0
"""A file that lasts as long as a clip, give or take this, is the clip itself."""
DEFAULTS = FetchOptions()


def find_local_clips(folder: Path, source: LocalFolder, options: FetchOptions = DEFAULTS) -> Fetched:
    """Find the media file of every clip in the plan that has none yet, among local files.

    Archives are read only for clips that have no file outside of them; what these need is copied to the dataset folder.

    Args:
        folder: the dataset folder.
        source: the folder of media files.
        options: options of the fetch stage.

    Raises:
        InputError: the files of some clips are ambiguous; all others are found all the same.
        StorageError: no space left.
    """
    states = ClipStates(folder, source.name, options.removed, WorkerShare())
    for unread in source.unread:
        _report(f"cannot read {unread}")
    search = _Search(source, states.table, _copy_from_archives(folder, source, states))
    ambiguous: list[Attempt] = []
    total = states.table.num_rows
    with (
        LedgerWriter(folder, WorkerShare().worker) as ledger,
        progress(total, "fetch", "clip") as bar,
        ThreadPoolExecutor(cores()) as pool,
    ):
        for start in range(0, total, BATCH):
            clips = table_clips(states.table.slice(start, BATCH))
            wanted = [clip for clip in clips if states.lacks_media(clip)]
            attempts = list(pool.map(lambda clip: search.attempt(clip, folder), wanted))
            ledger.append(attempts)
            states.update(attempts)
            ambiguous += [attempt for attempt in attempts if attempt.code == AMBIGUOUS]
            for clip in clips:
                states.settle(clip)
            bar.update(len(clips))
    states.settle_late()
    if not states.found and source.example:
        _report(
            f"no file in {source.place} is named after a clip; {source.example} is one of them, "
            f"{states.table['key'][0].as_py()} a clip (docs/datasets.md, Local files, lists the names)"
        )
    if ambiguous:
        raise _refusal(ambiguous)
    return states.counts


@dataclass(frozen=True)
class _Search:
    """Finds the files of a plan's clips.

    Attributes:
        source: the folder of media files.
        table: the clip table of the plan.
        sounds: by key of a clip, a file in an archive that has its name, but no pictures.
    """

    source: LocalFolder
    table: pa.Table
    sounds: Mapping[str, str]

    def attempt(self, clip: Clip, folder: Path) -> Attempt:
        """The ledger row of a clip. Copies of archive members get relative paths: packing may delete only those."""
        attempt = Attempt(key=clip.key, source=self.source.name, time=time.time())
        try:
            file = self.source.find(clip, self._own_names)
            path = file.path.relative_to(folder) if file.path.is_relative_to(folder / COPIES_FOLDER) else file.path
            return replace(attempt, path=str(path), size=file.size, offset_ms=self._offset_ms(clip, file))
        except ClipError as error:
            if error.code == MISSING and clip.key in self.sounds:
                return replace(attempt, code="clip.no_video", message=f"{self.sounds[clip.key]} has sound only")
            return replace(attempt, code=error.code, message=error.message)

    @cached_property
    def _own_names(self) -> Container[str]:
        """Video ids that are not YouTube's, without media suffix."""
        ids = pc.unique(self.table["video_id"])
        own = ids.filter(pc.invert(pc.match_substring_regex(ids, f"^{YOUTUBE_ID.pattern}$"))).to_pylist()
        return frozenset(name.removesuffix(_suffix(name)) for name in own)

    @cached_property
    def _ids_of_several_clips(self) -> Container[str]:
        counts = pc.value_counts(self.table["video_id"])
        return frozenset(counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist())

    def _offset_ms(self, clip: Clip, file: FoundFile) -> int:
        """Time in the video at which the file begins.

        Downloaders of AudioSet also name a clip, already cut, after its video only. Such a file lasts as long as the clip.
        """
        if file.is_cut:
            return clip.start_ms
        name = clip.video_id.rpartition("/")[2]
        if not clip.start_ms or not YOUTUBE_ID.fullmatch(name) or clip.video_id in self._ids_of_several_clips:
            return 0
        most = min(MAX_DIFFERENCE_S, clip.start_ms / 2000)
        return clip.start_ms if abs(duration_s(file.path) - clip.duration_ms / 1000) <= most else 0


def _suffix(name: str) -> str:
    parts = split_media_name(name.rpartition("/")[2])
    return parts[1] if parts else ""


def _copy_from_archives(folder: Path, source: LocalFolder, states: ClipStates) -> dict[str, str]:
    """Copy the videos of clips that have none outside of archives, and add them to the source.

    Returns:
        By key of a clip, a sound file in an archive that has its name.
    """
    rows = _rows_without_video(source, states) if source.archives else {}
    sounds: dict[str, str] = {}
    if not rows:
        return sounds
    with progress(len(source.archives), "read", "archive") as bar:
        for archive in sorted(source.archives, key=lambda archive: archive.path):

            def is_wanted(member: str, archive: Archive = archive) -> bool:
                inner, _, name = member.rpartition("/")
                stem, suffix = split_media_name(name) or ("", "")
                place = "/".join(filter(None, (archive.folder, inner)))
                found = {row for base in stem_bases(stem) for row in rows.get(base, ())}
                clips = table_clips(states.table.take(pa.array(sorted(found), pa.int64()))) if found else []
                fitting = [clip for clip in clips if any(names.fit(stem, place, suffix) for names in names_of(clip))]
                if suffix.lower() in PICTURE_SUFFIXES:
                    return bool(fitting)
                sounds.update({clip.key: printable(f"{archive.path}: {member}") for clip in fitting})
                return False

            copies, problem = copy_members(archive, folder, is_wanted)
            if problem:
                _report(f"cannot read all of {printable(str(archive.path))}: {printable(problem)}")
            source.add_copies(archive, copies)
            bar.update()
    return sounds


def _rows_without_video(source: LocalFolder, states: ClipStates) -> dict[str, list[int]]:
    """Rows of the wanted clips that have no video file, by the names in `base_names`."""
    rows: dict[str, list[int]] = defaultdict(list)
    for start in range(0, states.table.num_rows, BATCH):
        for row, clip in enumerate(table_clips(states.table.slice(start, BATCH)), start):
            if states.lacks_media(clip) and not source.has_pictures(clip):
                for name in base_names(clip):
                    rows[name].append(row)
    return rows


def _refusal(ambiguous: Sequence[Attempt]) -> InputError:
    messages = "; ".join(attempt.message for attempt in ambiguous[:SHOWN])
    count = "1 clip is" if len(ambiguous) == 1 else f"{len(ambiguous):,} clips are"
    more = f"; and {len(ambiguous) - SHOWN:,} more" if len(ambiguous) > SHOWN else ""
    return InputError(
        f"{count} ambiguous: {messages}{more}",
        "Keep one file of each, or list them by their paths relative to --source; --stage pack leaves these clips out",
    )


def _report(text: str) -> None:
    tqdm.write(f"fetch: {text}", file=sys.stderr)
