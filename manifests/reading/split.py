"""A split of a dataset: its samples, where their bytes are, and how to read them."""

import json
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mbt.manifests.errors import ShardError
from mbt.manifests.labels import LabelSet, read_labels
from mbt.manifests.reading.jpeg import jpeg_fault
from mbt.manifests.shards import FORMAT_VERSION, LABELS_FILE, DatasetInfo, MediaFormat, index_file, read_dataset

MEL_ROW = np.dtype(("<f2", 128))
NPY_MAGIC = b"\x93NUMPY\x01\x00"


class Split:
    """The metadata of one split; subclasses read the tars.

    Args:
        folder: folder with dataset.json, the label list and the index.
        split: name of the split.
        place: path or URL of the tars' folder, for messages.

    Attributes:
        place: path or URL of the tars' folder, for messages.
        info: content of dataset.json.
        labels: the label set.
        index: the index columns that reading needs, one row per sample; about 0.1 kB of memory per row.

    Raises:
        ShardError: dataset.json or the index is missing, damaged, or has another format version; or no such split exists.
    """

    def __init__(self, folder: Path, split: str, place: str) -> None:
        self.place = place
        self.info: DatasetInfo = read_dataset(folder)
        if split not in self.info.splits:
            have = ", ".join(self.info.splits)
            raise ShardError(f"{place} has no split {split!r}", f"Choose one of: {have}")
        self.labels: LabelSet = read_labels(folder / LABELS_FILE)
        members = self.info.media.members.values()
        spans = [f"{member}_{field}" for member in members for field in ("offset", "size")]
        numbers = ["num_frames", "num_mel_rows", "width", "height"]
        wanted = ["key", "shard", *spans, *numbers, "labels"]
        self.index = read_index(folder / index_file(split), self.info.media, wanted).combine_chunks()
        pa.default_memory_pool().release_unused()
        columns = {name: self.index[name].to_numpy() for name in (*spans, *numbers)}
        self.spans = {member: (columns[f"{member}_offset"], columns[f"{member}_size"]) for member in members}
        self._num_frames, self.num_mel_rows = columns["num_frames"], columns["num_mel_rows"]
        self.width, self.height = columns["width"], columns["height"]
        shards = _combined(self.index["shard"])
        self.shard_of: np.ndarray = shards.indices.to_numpy()
        self.shards: list[str] = shards.dictionary.to_pylist()

    def __len__(self) -> int:
        return self.index.num_rows

    def key(self, row: int) -> str:
        """Key of the sample in this row of the index."""
        return self.index["key"][row].as_py()

    def shard(self, row: int) -> str:
        """File name of the tar that holds the sample."""
        return self.shards[int(self.shard_of[row])]

    def num_frames(self, row: int) -> int:
        """Number of frames of the sample; its log-mel has four times as many rows."""
        return int(self._num_frames[row])

    def targets(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Multi-hot labels of these rows of the index (None: all rows), float32 (samples, classes)."""
        labels = _combined(self.index["labels"] if rows is None else self.index["labels"].take(pa.array(rows)))
        targets = np.zeros((len(labels), len(self.labels)), np.float32)
        targets[labels.value_parent_indices().to_numpy(), labels.flatten().to_numpy()] = 1
        return targets

    def damage_error(self, row: int, what: str) -> ShardError:
        """A ShardError about the tar of this sample: `what` is wrong, and how to repack it."""
        name = self.shard(row)
        return ShardError(
            f"{self.place}/{name}: {what}", f"Delete {name} and run the same `mbt prep` command again to repack it"
        )


class Sample:
    """One sample; any part of it can be read without the rest.

    Args:
        split: the split that the sample belongs to.
        row: its row in the index.
        read: reads `size` bytes of the sample's tar at `offset`: `read(offset, size)`; fewer only at the end of the tar.
    """

    def __init__(self, split: Split, row: int, read: Callable[[int, int], bytes]) -> None:
        self.split, self.row = split, row
        self._read_tar = read

    @property
    def key(self) -> str:
        """Key of the sample."""
        return self.split.key(self.row)

    @property
    def num_frames(self) -> int:
        """Number of frames; the log-mel has four times as many rows."""
        return self.split.num_frames(self.row)

    def description(self) -> dict[str, Any]:
        """The content of `KEY.json`.

        Raises:
            ShardError: it is not JSON, or cannot be read.
        """
        try:
            return json.loads(self._read("json"))
        except ValueError:
            raise self._damaged(f"{self.key}.json is not valid JSON") from None

    def frames(self, numbers: Sequence[int]) -> list[bytes]:
        """JPEG bytes of these frames (25 per second, the first is 0); no other byte of the stream is read.

        Consecutive frames are read in one go.

        Raises:
            ShardError: a frame number is out of range, or its bytes are not a JPEG that decoders accept.
        """
        sizes = self.description().get("frame_bytes", ())
        if len(sizes) != self.num_frames or sum(sizes) != self.split.spans["mjpg"][1][self.row]:
            raise self._damaged(f"the frames in {self.key}.json do not match the index")
        width, height = int(self.split.width[self.row]), int(self.split.height[self.row])
        for number in numbers:
            if not 0 <= number < len(sizes):
                raise ShardError(f"{self.key} has {len(sizes)} frames, no frame {number}", "Choose a frame within the sample")
        ends = list(accumulate(sizes))
        frames = []
        for first, stop in _runs(numbers):
            start = ends[first] - sizes[first]
            stream = self._read("mjpg", start, ends[stop - 1] - start)
            for number in range(first, stop):
                jpeg = stream[ends[number] - sizes[number] - start : ends[number] - start]
                if fault := jpeg_fault(jpeg, width, height):
                    raise self._damaged(f"frame {number} of {self.key} is not a valid JPEG: {fault}")
                frames.append(jpeg)
        return frames

    def log_mel(self, start: int, stop: int) -> np.ndarray:
        """Log-mel rows [start, stop), float16 (stop - start, 128); no other row is read.

        Raises:
            ShardError: the range is outside the sample, or the member is too short for an NPY 1.0 array of float16 (rows, 128).
        """
        rows = int(self.split.num_mel_rows[self.row])
        if not 0 <= start <= stop <= rows:
            raise ShardError(f"{self.key} has {rows} log-mel rows, not [{start}, {stop})", "Choose rows within the sample")
        header = int(self.split.spans["mel"][1][self.row]) - rows * MEL_ROW.itemsize
        if header < len(NPY_MAGIC):
            raise self._damaged(f"the log-mel of {self.key} is shorter than the index says")
        return np.frombuffer(self._read("mel", header + start * MEL_ROW.itemsize, (stop - start) * MEL_ROW.itemsize), MEL_ROW)

    def flac(self) -> bytes:
        """The sound as a FLAC file: 16 kHz, mono, 16 bit, 640 samples per video frame.

        Raises:
            ShardError: the dataset was packed without sound.
        """
        if not self.split.info.media.flac:
            raise ShardError(f"the samples of {self.split.place} have no sound", "Pack them with `mbt prep ... --flac`")
        return self._read("flac")

    def _read(self, member: str, start: int = 0, size: int | None = None) -> bytes:
        offsets, sizes = self.split.spans[member]
        if size is None:
            size = int(sizes[self.row])
        try:
            data = self._read_tar(int(offsets[self.row]) + start, size)
        except OSError as error:
            raise self._damaged(f"{self.key} cannot be read: {error}") from None
        if len(data) < size:
            raise self._damaged("the tar is truncated")
        return data

    def _damaged(self, what: str) -> ShardError:
        return self.split.damage_error(self.row, what)


def read_index(path: Path, media: MediaFormat, columns: Sequence[str] | None = None) -> pa.Table:
    """Read and check a split's index.

    Args:
        path: the Parquet file.
        media: media format of the samples, which determines the columns.
        columns: names of the columns to read, with `shard` as a dictionary; None means all columns, with the index's own types.

    Raises:
        ShardError: it is missing, damaged, or has another format version.
    """
    try:
        schema = pq.read_schema(path, memory_map=True)
        version = (schema.metadata or {}).get(b"format_version", b"none").decode(errors="replace")
        if version != str(FORMAT_VERSION):
            raise ShardError(
                f"the index {path} has format version {version}; this program reads version {FORMAT_VERSION}",
                "Use the version of mbt that wrote it, or pack the clips again",
            )
        if not schema.equals(media.index_schema):
            raise ShardError(f"the index {path} has wrong columns", "Run the same `mbt prep` command again")
        dictionary = None if columns is None else ["shard"]
        return pq.read_table(path, memory_map=True, columns=columns, read_dictionary=dictionary)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(
            f"cannot read the index {path}: {error}", "Run the same `mbt prep` command again to rewrite it"
        ) from None


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """The numbers as ranges [start, stop) of consecutive numbers, in order."""
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and number == spans[-1][1]:
            spans[-1] = (spans[-1][0], number + 1)
        else:
            spans.append((number, number + 1))
    return spans


def _combined(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array, with one dictionary."""
    return column.unify_dictionaries().combine_chunks() if pa.types.is_dictionary(column.type) else column.combine_chunks()
