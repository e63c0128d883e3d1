"""Fetched media files: each is deleted when no planned clip needs it any longer."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from mbt.manifests.clips import Clip
from mbt.prep.pack.options import PackOptions
from mbt.prep.plan.removed import is_removed
from mbt.prep.state.ledger import Attempt


class RawFiles:
    """The media files in a dataset folder, and the planned clips that need them; a file may hold clips of several shards.

    Without `keep_raw`, a file is deleted when its last clip is done; with it, when all of its clips are on the removal list.
    A run that is killed leaves files that the next run deletes. Files outside of the folder are never deleted.

    Args:
        folder: the dataset folder.
        options: `keep_raw` and `removed`.
    """

    def __init__(self, folder: Path, options: PackOptions) -> None:
        self._folder = folder
        self._options = options
        self._paths: dict[str, str] = {}
        self._needed_by: dict[str, set[str]] = {}

    def add(self, clips: Iterable[Clip], ledger: Mapping[str, Attempt]) -> None:
        """Note which of these clips have a media file in the folder. Clips on the removal list do not need theirs.

        Args:
            clips: planned clips.
            ledger: state of each clip, by key.
        """
        unneeded = set()
        for clip in clips:
            path = ledger[clip.key].path if clip.key in ledger else None
            if path is None or Path(path).is_absolute():
                continue
            self._paths[clip.key] = path
            needed_by = self._needed_by.setdefault(path, set())
            if is_removed(clip, self._options.removed):
                unneeded.add(path)
            else:
                needed_by.add(clip.key)
        self._delete(path for path in unneeded if not self._needed_by[path])

    def release(self, keys: Iterable[str]) -> None:
        """Delete the files that are no longer needed, now that these clips are done.

        Args:
            keys: keys of clips that are packed, or can never be packed.
        """
        if self._options.keep_raw:
            return
        for key in keys:
            if (path := self._paths.pop(key, None)) is not None:
                self._needed_by[path].discard(key)
                if not self._needed_by[path]:
                    del self._needed_by[path]
                    self._delete([path])

    def _delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            (self._folder / path).unlink(missing_ok=True)
