"""Shards behind URLs, one sample after the other as they stand in the tars."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from mbt.manifests.errors import MbtError
from mbt.manifests.reading.remote import Remote, RemoteFile
from mbt.manifests.reading.split import Sample, Split
from mbt.manifests.shards import DATASET_FILE, LABELS_FILE, index_file, read_dataset


class ShardStream(Split):
    """One split of a dataset folder behind a URL. Its index is fetched first; then threads may walk along its tars.

    Args:
        url: the folder; see `manifests.remote.Remote`.
        split: which.

    Raises:
        ShardError: dataset.json or index cannot be read, is damaged, or of another version; or there is no such split.
        InputError: the URL is of no known kind.
    """

    def __init__(self, url: str, split: str) -> None:
        self.remote = Remote(url)
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            try:
                for name in (DATASET_FILE, LABELS_FILE):
                    self.remote.fetch(name, folder)
                if split in read_dataset(folder).splits:
                    self.remote.fetch(index_file(split), folder)
                super().__init__(folder, split, self.remote.shown)
            except MbtError as error:
                raise type(error)(error.what.replace(temporary, self.remote.shown), error.fix) from error

    def __enter__(self) -> "ShardStream":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def walk(self, rows: np.ndarray | None = None) -> Iterator[Sample]:
        """The samples of these rows, in this order; each is read whole, in one go.

        Cheap where the rows of a tar follow each other in ascending order: it is read forwards then.

        Args:
            rows: int64, of the index; None: all.

        Raises:
            ShardError: a tar cannot be read.
        """
        for shard, run in groupby(range(len(self)) if rows is None else rows.tolist(), key=lambda row: int(self.shard_of[row])):
            with RemoteFile(self.remote, self.shards[shard]) as tar:
                for row in run:
                    start, end = self._bounds(row)
                    yield Sample(self, row, _Held(start, tar.read(start, end - start)))

    def _bounds(self, row: int) -> tuple[int, int]:
        """First byte of a sample's data in its tar, and the one behind its last."""
        members = [(int(offsets[row]), int(sizes[row])) for offsets, sizes in self.spans.values()]
        return min(offset for offset, _ in members), max(offset + size for offset, size in members)


class _Held:
    """A part of a tar in memory, to be read by offsets in the tar."""

    def __init__(self, start: int, data: bytes) -> None:
        self._start, self._data = start, data

    def __call__(self, offset: int, size: int) -> bytes:
        return self._data[offset - self._start : offset - self._start + size]
