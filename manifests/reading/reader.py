"""Random access to local shards: any frames and any log-mel rows of a sample, by byte range."""

import os
import threading
from functools import partial
from pathlib import Path

from mbt.manifests.errors import ShardError
from mbt.manifests.reading.split import Sample, Split


class ShardReader(Split):
    """One split of a local dataset folder; `reader[row]` is a sample. Thread-safe.

    Args:
        folder: the dataset folder.
        split: name of the split.

    Raises:
        ShardError: dataset.json, the index or a tar is missing, truncated, or has another format version.
    """

    def __init__(self, folder: Path, split: str) -> None:
        super().__init__(folder, split, str(folder))
        self._paths = [folder / name for name in self.shards]
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()
        self._check_sizes()

    def __getitem__(self, row: int) -> Sample:
        return Sample(self, row, partial(self._read, int(self.shard_of[row])))

    def close(self) -> None:
        """Close the tars."""
        with self._lock:
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files.clear()

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        return os.pread(self._file(shard), size, offset)

    def _file(self, shard: int) -> int:
        with self._lock:
            if shard not in self._files:
                self._files[shard] = os.open(self._paths[shard], os.O_RDONLY | os.O_CLOEXEC)
            return self._files[shard]

    def _check_sizes(self) -> None:
        sizes = self.info.sizes()
        for path in self._paths:
            try:
                size = path.stat().st_size
            except OSError:
                raise ShardError(
                    f"the shard {path} is missing", "Copy it here, or run the same `mbt prep` command again"
                ) from None
            if size != sizes.get(path.name):
                raise ShardError(
                    f"{path} has {size} bytes, expected {sizes.get(path.name)}",
                    f"Delete {path.name} and run the same `mbt prep` command again to repack it",
                )
