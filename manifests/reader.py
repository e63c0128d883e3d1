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
from manifests.jpeg import jpeg_fault
from manifests.labels import LabelSet, read_labels
from manifests.shards import FORMAT_VERSION, LABELS_FILE, DatasetInfo, MediaFormat, index_file, read_dataset

MEL_ROW = np.dtype(("<f2", 128))
NPY_MAGIC = b"\x93NUMPY\x01\x00"


class ShardReader:
    """One split of a dataset folder; safe to use from many threads.

    Attributes:
        info: dataset.json.
        labels: the label set.
        index: the columns of the split's index that reading takes, one row a sample: 0.2 KB of memory each.

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
        members = self.info.media.members.values()
        spans = [f"{member}_{field}" for member in members for field in ("offset", "size")]
        numbers = ["num_frames", "num_mel_rows", "width", "height"]
        wanted = ["key", "shard", *spans, *numbers, "labels"]
        self.index = read_index(folder / index_file(split), self.info.media, wanted).combine_chunks()
        columns = {name: self.index[name].to_numpy() for name in (*spans, *numbers)}
        self._spans = {member: (columns[f"{member}_offset"], columns[f"{member}_size"]) for member in members}
        self._num_frames, self._num_mel_rows = columns["num_frames"], columns["num_mel_rows"]
        self._width, self._height = columns["width"], columns["height"]
        shards = _chunk(self.index["shard"])
        self._shard_of = shards.indices.to_numpy()
        self._shards = [folder / name for name in shards.dictionary.to_pylist()]
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

    def shard(self, row: int) -> str:
        """File name of the tar that the sample is in."""
        return self._shards[int(self._shard_of[row])].name

    def num_frames(self, row: int) -> int:
        """Frames of the sample; its log-mel has four times as many rows."""
        return int(self._num_frames[row])

    def sample(self, row: int) -> dict[str, Any]:
        """The sample's `KEY.json`.

        Raises:
            ShardError: it is damaged.
        """
        try:
            return json.loads(self._read(row, "json"))
        except ValueError:
            raise self.damaged(row, f"{self.key(row)}.json is no JSON") from None

    def frames(self, row: int, numbers: Sequence[int]) -> list[bytes]:
        """JPEG bytes of these frames (0 is the first, 25 a second), reading no other byte of the stream.

        Frames that follow each other are read at once.

        Raises:
            ShardError: a frame is outside the sample, or its bytes are no JPEG that decoders take.
        """
        sizes = self.sample(row).get("frame_bytes", ())
        if len(sizes) != self.num_frames(row) or sum(sizes) != self._spans["mjpg"][1][row]:
            raise self.damaged(row, f"{self.key(row)}.json gives other frames than the index has")
        width, height = int(self._width[row]), int(self._height[row])
        for number in numbers:
            if not 0 <= number < len(sizes):
                raise ShardError(f"{self.key(row)} has {len(sizes)} frames, not frame {number}", "Ask for a frame inside it")
        ends = list(accumulate(sizes))
        frames = []
        for first, stop in _runs(numbers):
            start = ends[first] - sizes[first]
            stream = self._read(row, "mjpg", start, ends[stop - 1] - start)
            for number in range(first, stop):
                jpeg = stream[ends[number] - sizes[number] - start : ends[number] - start]
                if fault := jpeg_fault(jpeg, width, height):
                    raise self.damaged(row, f"frame {number} of {self.key(row)} is no JPEG of the format: {fault}")
                frames.append(jpeg)
        return frames

    def log_mel(self, row: int, start: int, stop: int) -> np.ndarray:
        """Log-mel rows [start, stop), float16 (stop - start, 128), reading no other row.

        Raises:
            ShardError: the range is outside the sample, or the member is no NPY 1.0 array of float16 (rows, 128).
        """
        rows = int(self._num_mel_rows[row])
        if not 0 <= start <= stop <= rows:
            raise ShardError(f"{self.key(row)} has {rows} log-mel rows, not [{start}, {stop})", "Ask for rows inside it")
        header = int(self._spans["mel"][1][row]) - rows * MEL_ROW.itemsize
        if header < len(NPY_MAGIC):
            raise self.damaged(row, f"the log-mel of {self.key(row)} is shorter than its index row says")
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

    def targets(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Multi-hot labels, float32 (samples, classes), of these rows of the index, or of all."""
        labels = _chunk(self.index["labels"] if rows is None else self.index["labels"].take(pa.array(rows)))
        targets = np.zeros((len(labels), len(self.labels)), np.float32)
        targets[labels.value_parent_indices().to_numpy(), labels.flatten().to_numpy()] = 1
        return targets

    def damaged(self, row: int, what: str) -> ShardError:
        """The error that says what is wrong with the sample's bytes."""
        shard = self._shards[int(self._shard_of[row])]
        return ShardError(
            f"{shard}: {what}", f"Delete {shard.name} and run the same `mbt prep` command again: it packs it anew"
        )

    def _read(self, row: int, member: str, start: int = 0, size: int | None = None) -> bytes:
        offsets, sizes = self._spans[member]
        if size is None:
            size = int(sizes[row])
        try:
            data = os.pread(self._file(int(self._shard_of[row])), size, int(offsets[row]) + start)
        except OSError as error:
            raise self.damaged(row, f"{self.key(row)} cannot be read: {error}") from None
        if len(data) < size:
            raise self.damaged(row, "the tar is cut short")
        return data

    def _file(self, shard: int) -> int:
        with self._lock:
            if shard not in self._files:
                self._files[shard] = os.open(self._shards[shard], os.O_RDONLY | os.O_CLOEXEC)
            return self._files[shard]

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


def read_index(path: Path, media: MediaFormat, columns: Sequence[str] | None = None) -> pa.Table:
    """Read and check an index of samples of this format.

    Args:
        path: the Parquet file.
        media: the format.
        columns: those that are wanted, the names of shards as a dictionary; None: all, as the format has them.

    Raises:
        ShardError: it is missing, damaged, or of another format version.
    """
    try:
        schema = pq.read_schema(path, memory_map=True)
        version = (schema.metadata or {}).get(b"format_version", b"none").decode(errors="replace")
        if version != str(FORMAT_VERSION):
            raise ShardError(
                f"the index {path} has format version {version}; this program reads version {FORMAT_VERSION}",
                "Use the release of mbt that wrote it, or pack the clips again",
            )
        if not schema.equals(media.index_schema):
            raise ShardError(f"the index {path} lacks columns of the format", "Run the same `mbt prep` command again")
        dictionary = None if columns is None else ["shard"]
        return pq.read_table(path, memory_map=True, columns=columns, read_dictionary=dictionary)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(
            f"cannot read the index {path}: {error}", "Run the same `mbt prep` command again: it writes it anew"
        ) from None


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Spans [from, to) of numbers that follow each other, in order."""
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and number == spans[-1][1]:
            spans[-1] = (spans[-1][0], number + 1)
        else:
            spans.append((number, number + 1))
    return spans


def _chunk(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array, with one dictionary."""
    return column.unify_dictionaries().combine_chunks() if pa.types.is_dictionary(column.type) else column.combine_chunks()
