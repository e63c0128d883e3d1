"""Random access to shards: any frames and any log-mel rows of a sample, by their bytes."""

import json
import os
import threading
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.errors import ShardError
from manifests.labels import LabelSet, read_labels
from manifests.shards import FORMAT_VERSION, LABELS_FILE, DatasetInfo, MediaFormat, index_file, read_dataset

MEL_ROW = np.dtype(("<f2", 128))
NPY_MAGIC = b"\x93NUMPY\x01\x00"


class ShardReader:
    """One split of a dataset folder; safe to use from many threads.

    Attributes:
        info: dataset.json.
        labels: the label set.
        index: the split's index (`MediaFormat.index_schema`), one row a sample, memory-mapped where Parquet allows.

    Raises:
        ShardError: dataset.json, index or a tar is missing, cut short, or of another version.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder
        self.info: DatasetInfo = read_dataset(folder)
        if split not in self.info.splits:
            have = ", ".join(self.info.splits)
            raise ShardError(f"{folder} has no split {split!r}", f"It has: {have}. Choose one of them")
        self.labels: LabelSet = read_labels(folder / LABELS_FILE)
        self.index = read_index(folder / index_file(split), self.info.media)
        self._spans = {
            member: (self.index[f"{member}_offset"].to_numpy(), self.index[f"{member}_size"].to_numpy())
            for member in self.info.media.members.values()
        }
        shards = self.index["shard"].combine_chunks().dictionary_encode()
        self._shard_of = shards.indices.to_numpy()
        self._shards = [folder / name for name in shards.dictionary.to_pylist()]
        self._num_frames = self.index["num_frames"].to_numpy()
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()
        self._check_sizes()

    def __len__(self) -> int:
        return self.index.num_rows

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

    def key(self, row: int) -> str:
        """Key of the sample at this row of the index."""
        return self.index["key"][row].as_py()

    def num_frames(self, row: int) -> int:
        """Frames of the sample; its log-mel has four times as many rows."""
        return int(self._num_frames[row])

    def sample(self, row: int) -> dict[str, Any]:
        """The sample's `KEY.json`."""
        return json.loads(self._read(row, "json"))

    def frames(self, row: int, numbers: Sequence[int]) -> list[bytes]:
        """JPEG bytes of these frames (0 is the first, 25 a second), reading no other byte of the stream.

        Raises:
            ShardError: a frame is outside the sample, or its bytes are no JPEG.
        """
        sizes = self.sample(row)["frame_bytes"]
        starts = [0, *accumulate(sizes)]
        frames = []
        for number in numbers:
            if not 0 <= number < len(sizes):
                raise ShardError(f"{self.key(row)} has {len(sizes)} frames, not frame {number}", "Ask for a frame inside it")
            jpeg = self._read(row, "mjpg", starts[number], sizes[number])
            if not (jpeg.startswith(b"\xff\xd8") and jpeg.endswith(b"\xff\xd9")):
                raise self._damaged(row, f"frame {number} of {self.key(row)} is no JPEG")
            frames.append(jpeg)
        return frames

    def log_mel(self, row: int, start: int, stop: int) -> np.ndarray:
        """Log-mel rows [start, stop), float16 (stop - start, 128), reading no other row.

        Raises:
            ShardError: the range is outside the sample, or the member is no NPY 1.0 array of float16 (rows, 128).
        """
        rows = self.index["num_mel_rows"][row].as_py()
        if not 0 <= start <= stop <= rows:
            raise ShardError(f"{self.key(row)} has {rows} log-mel rows, not [{start}, {stop})", "Ask for rows inside it")
        header = int(self._spans["mel"][1][row]) - rows * MEL_ROW.itemsize
        if header < len(NPY_MAGIC):
            raise self._damaged(row, f"the log-mel of {self.key(row)} is shorter than its index row says")
        data = self._read(row, "mel", header + start * MEL_ROW.itemsize, (stop - start) * MEL_ROW.itemsize)
        return np.frombuffer(data, MEL_ROW)

    def flac(self, row: int) -> bytes:
        """The sample's sound as a FLAC file: 16 kHz, mono, 16 bit, 640 samples a frame.

        Raises:
            ShardError: the dataset was packed without it.
        """
        if not self.info.media.flac:
            raise ShardError(f"the samples of {self.folder} have no sound", "Pack it with `mbt prep ... --flac`")
        return self._read(row, "flac")

    def targets(self) -> np.ndarray:
        """Multi-hot labels of all samples, float32 (samples, classes)."""
        labels = self.index["labels"].combine_chunks()
        targets = np.zeros((len(self), len(self.labels)), np.float32)
        targets[labels.value_parent_indices().to_numpy(), labels.flatten().to_numpy()] = 1
        return targets

    def _read(self, row: int, member: str, start: int = 0, size: int | None = None) -> bytes:
        offsets, sizes = self._spans[member]
        if size is None:
            size = int(sizes[row])
        data = os.pread(self._file(int(self._shard_of[row])), size, int(offsets[row]) + start)
        if len(data) < size:
            raise self._damaged(row, "the tar is cut short")
        return data

    def _file(self, shard: int) -> int:
        with self._lock:
            if shard not in self._files:
                self._files[shard] = os.open(self._shards[shard], os.O_RDONLY | os.O_CLOEXEC)
            return self._files[shard]

    def _damaged(self, row: int, what: str) -> ShardError:
        shard = self._shards[int(self._shard_of[row])]
        return ShardError(
            f"{shard}: {what}", f"Delete {shard.name} and run the same `mbt prep` command again: it packs it anew"
        )

    def _check_sizes(self) -> None:
        sizes = {shard.name: shard.size for split in self.info.splits.values() for shard in split.shards}
        for path in self._shards:
            try:
                size = path.stat().st_size
            except OSError:
                raise ShardError(
                    f"the shard {path} is missing", "Copy it here, or run the same `mbt prep` command again"
                ) from None
            if size != sizes.get(path.name):
                raise ShardError(
                    f"{path} has {size} bytes where {sizes.get(path.name)} are recorded",
                    f"Delete {path.name} and run the same `mbt prep` command again: it packs it anew",
                )


def read_index(path: Path, media: MediaFormat) -> pa.Table:
    """Read and check an index of samples of this format.

    Raises:
        ShardError: it is missing, damaged, or of another format version.
    """
    try:
        table = pq.read_table(path, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(
            f"cannot read the index {path}: {error}", "Run the same `mbt prep` command again: it writes it anew"
        ) from None
    version = (table.schema.metadata or {}).get(b"format_version", b"none").decode(errors="replace")
    if version != str(FORMAT_VERSION):
        raise ShardError(
            f"the index {path} has format version {version}; this program reads version {FORMAT_VERSION}",
            "Use the release of mbt that wrote it, or pack the clips again",
        )
    if not table.schema.equals(media.index_schema):
        raise ShardError(f"the index {path} lacks columns of the format", "Run the same `mbt prep` command again")
    return table
