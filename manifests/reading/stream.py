"""Sequential reading of shards behind URLs, sample by sample in tar order."""

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
    """One split of a dataset folder behind a URL. The index is downloaded first; then several threads may call `walk`.

    Args:
        url: the folder; see `mbt.manifests.reading.remote.Remote`.
        split: name of the split.

    Raises:
        ShardError: dataset.json or the index is unreadable, damaged, or has another format version; or no such split exists.
        InputError: this kind of URL is not supported.
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
                super().__init__(folder, split, self.remote.display_url)
            except MbtError as error:
                raise type(error)(error.what.replace(temporary, self.remote.display_url), error.fix) from error

    def __enter__(self) -> "ShardStream":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def walk(self, rows: np.ndarray | None = None) -> Iterator[Sample]:
        """Yield the samples of these rows, in this order; each sample is read completely, with one read.

        Fast if the rows of a tar are consecutive and ascending, because the tar is then read forward.

        Args:
            rows: rows of the index, int64; None means all.

        Raises:
            ShardError: a tar cannot be read.
        """
        for shard, run in groupby(range(len(self)) if rows is None else rows.tolist(), key=lambda row: int(self.shard_of[row])):
            with RemoteFile(self.remote, self.shards[shard]) as tar:
                for row in run:
                    start, end = self._bounds(row)
                    yield Sample(self, row, _TarRange(start, tar.read(start, end - start)))

    def _bounds(self, row: int) -> tuple[int, int]:
        """Byte range [start, end) of a sample's data in its tar."""
        members = [(int(offsets[row]), int(sizes[row])) for offsets, sizes in self.spans.values()]
        return min(offset for offset, _ in members), max(offset + size for offset, size in members)


class _TarRange:
    """A byte range of a tar in memory; reads take offsets in the tar."""

    def __init__(self, start: int, data: bytes) -> None:
        self._start, self._data = start, data

    def __call__(self, offset: int, size: int) -> bytes:
        return self._data[offset - self._start : offset - self._start + size]
