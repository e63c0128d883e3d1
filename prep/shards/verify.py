"""`mbt shards verify`: everything in a dataset folder read again, against checksums and specification."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mbt.manifests.errors import MbtError, ShardError
from mbt.manifests.labels import COLUMNS, read_labels
from mbt.manifests.progress import progress
from mbt.manifests.reading.split import read_index
from mbt.manifests.shards import (
    FAILURE_SCHEMA,
    FAILURES_FILE,
    LABELS_FILE,
    MEL_RATE,
    DatasetInfo,
    Frozen,
    index_file,
    read_dataset,
)
from mbt.prep.media.mel_sums import MelSums
from mbt.prep.plan.removed import read_removed
from mbt.prep.shards.check_sample import Rules
from mbt.prep.shards.check_shard import Fault, ShardJob, check_shard
from mbt.prep.workers.processes import cores, in_processes

TOLERANCE = 1e-6
"""Difference from the recorded statistics of the log-mel that rounding may make."""


class Report(Frozen):
    """What came of verifying a folder.

    Attributes:
        whole: there is no fault.
        shards: tars that dataset.json lists.
        samples: samples found in them.
        size: bytes read.
        seconds: time it took.
        decoded: every frame was decoded too.
        statistics_checked: the statistics of the log-mel were computed again; False where a log-mel cannot be read.
        faults: all of them.
    """

    whole: bool
    shards: int
    samples: int
    size: int
    seconds: float
    decoded: bool
    statistics_checked: bool
    faults: tuple[Fault, ...]

    def summary(self) -> str:
        """The report in a few lines, without the faults."""
        damaged = len({(fault.shard, fault.key) for fault in self.faults if fault.key is not None})
        codes = ", ".join(f"{count} {code}" for code, count in Counter(fault.code for fault in self.faults).most_common())
        faults = f"NOT WHOLE: {_several(len(self.faults), 'fault')}, {_several(damaged, 'damaged sample')} ({codes})"
        read = f"{_several(self.shards, 'shard')}, {_several(self.samples, 'sample')}, {self.size / 1e9:.3f} GB"
        return f"{read} in {self.seconds:.1f} s: {'whole' if self.whole else faults}"


def _several(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def verify(
    folder: Path,
    workers: int | None = None,
    decode: bool = False,
    removed: Path | None = None,
    tell: Callable[[Fault], None] = lambda fault: None,
) -> Report:
    """Read a dataset folder again; go on after every fault.

    Args:
        folder: the dataset folder.
        workers: shards read at a time, each by a process; default: one a core.
        decode: decode every frame too; about ten times as slow.
        removed: a file with a key or a video id a line, of samples that must not be here; `#` begins a comment.
        tell: called with each fault as it is found.

    Raises:
        ShardError: no dataset.json, or one that cannot be read: there is nothing to verify against.
        InputError: the removal list cannot be read.
    """
    began = time.monotonic()
    checking = _Verification(folder, read_dataset(folder), decode, read_removed(removed) if removed else frozenset(), tell)
    return checking.run(workers, began)


class _Verification:
    """A folder that is being verified."""

    def __init__(
        self, folder: Path, info: DatasetInfo, decode: bool, removed: frozenset[str], tell: Callable[[Fault], None]
    ) -> None:
        self.folder = folder
        self.info = info
        self.tell = tell
        self.faults: list[Fault] = []
        self.size = 0
        label_ids = self._label_ids()
        self.rules = Rules(info.media, info.task, info.num_classes, label_ids, removed, decode)

    def run(self, workers: int | None, began: float) -> Report:
        splits = self.info.splits
        self._description()
        keys: dict[str, pa.Array] = {}
        sums: dict[str, MelSums | None] = dict.fromkeys(splits, MelSums())
        shards = [(name, shard) for name, split in splits.items() for shard in split.shards]
        with progress(sum(shard.samples for _, shard in shards), "verify", "sample") as bar:
            reports = in_processes(check_shard, self._jobs(), min(workers or cores(), max(len(shards), 1)))
            for (name, shard), report in zip(shards, reports, strict=True):
                self._found(*report.faults)
                self.size += report.size
                keys[shard.name] = pa.array(report.keys, pa.string())
                before = sums[name]
                sums[name] = before + report.mel if before is not None and report.mel is not None else None
                bar.update(shard.samples)
        self._keys(keys)
        self._failures(keys)
        checked = self._statistics(sums)
        return Report(
            whole=not self.faults,
            shards=len(shards),
            samples=sum(map(len, keys.values())),
            size=self.size,
            seconds=time.monotonic() - began,
            decoded=self.rules.decode,
            statistics_checked=checked,
            faults=tuple(self.faults),
        )

    def _found(self, *faults: Fault) -> None:
        self.faults += faults
        for fault in faults:
            self.tell(fault)

    def _fault(self, code: str, what: str, shard: str | None = None, key: str | None = None) -> None:
        self._found(Fault(code=code, what=what, shard=shard, key=key))

    def _label_ids(self) -> tuple[str, ...] | None:
        path = self.folder / LABELS_FILE
        try:
            ids = tuple(label.id for label in read_labels(path).labels)
        except MbtError as error:
            self._fault("labels.damaged", error.what)
            return None
        if not path.read_bytes().startswith(f"{','.join(COLUMNS)}\n".encode()):
            self._fault("labels.damaged", f"{path} does not begin with the line {','.join(COLUMNS)}")
        if len(ids) != self.info.num_classes:
            self._fault("labels.count", f"{len(ids)} classes in {LABELS_FILE}, {self.info.num_classes} in dataset.json")
            return None
        return ids

    def _description(self) -> None:
        """dataset.json by itself and against the names of the files."""
        if self.info.config_digest != (digest := self.info.media.digest()):
            self._fault("dataset.digest", f"config_digest is {self.info.config_digest}; that of media is {digest}")
        listed = {shard.name for split in self.info.splits.values() for shard in split.shards}
        for name, split in self.info.splits.items():
            if sum(shard.samples for shard in split.shards) != split.samples:
                self._fault("dataset.count", f"{name}: {split.samples} samples, but another sum over its shards")
            for path in sorted(self.folder.glob(f"{name}-*.tar")):
                if re.fullmatch(rf"{re.escape(name)}-\d{{6}}\.tar", path.name) and path.name not in listed:
                    self._fault("shard.unlisted", "dataset.json does not list it", path.name)

    def _jobs(self) -> Iterator[ShardJob]:
        """Each shard with its rows of the index, one index in memory at a time."""
        for name, split in self.info.splits.items():
            index = self._index(name)
            found = index["shard"].combine_chunks().dictionary_encode() if index is not None else None
            for shard in split.shards:
                rows: list[dict[str, Any]] | None = None
                if index is not None and found is not None:
                    number = found.dictionary.index(shard.name).as_py()
                    rows = index.take(np.flatnonzero(found.indices.to_numpy() == number)).to_pylist()
                yield ShardJob(self.folder, name, shard, rows, self.rules)

    def _index(self, name: str) -> pa.Table | None:
        """The index of a split, if it can be read; its faults as a whole."""
        split = self.info.splits[name]
        try:
            index = read_index(self.folder / index_file(name), self.info.media)
            index.validate(full=True)
        except (ShardError, pa.ArrowException) as error:
            self._fault("index.damaged", getattr(error, "what", f"{index_file(name)}: {error}"))
            return None
        if index.num_rows != split.samples:
            self._fault(
                "dataset.count", f"{index.num_rows} rows in {index_file(name)}, {split.samples} samples in dataset.json"
            )
        seconds = (pc.sum(index["num_mel_rows"]).as_py() or 0) / MEL_RATE
        if abs(seconds - split.seconds) > 1 / MEL_RATE:
            self._fault("dataset.seconds", f"{name}: {seconds} s in its index, {split.seconds} s in dataset.json")
        for key, times in _repeated(index["key"]):
            self._fault("key.twice", f"{index_file(name)} has it {times} times", key=key)
        listed = [shard.name for shard in split.shards]
        found = [shard for shard, _ in groupby(index["shard"].to_pylist())]
        strangers = index.filter(pc.invert(pc.is_in(index["shard"], value_set=pa.array(listed, pa.string()))))
        for row in strangers.select(["key", "shard"]).to_pylist():
            self._fault("index.shard", f"{index_file(name)} has it in a shard that dataset.json does not list", **row)
        if not strangers.num_rows and found != [shard for shard in listed if shard in found]:
            self._fault("index.order", f"the rows of {index_file(name)} are not in the order of the shards")
        return index

    def _keys(self, keys: dict[str, pa.Array]) -> None:
        """No key in two shards."""
        for key, _ in _repeated(pa.chunked_array(list(keys.values()), pa.string())):
            shards = [shard for shard, own in keys.items() if pc.index(own, key).as_py() >= 0]
            self._fault("key.twice", f"it is in {' and in '.join(shards)}", shards[-1], key)

    def _failures(self, keys: dict[str, pa.Array]) -> None:
        """failures.parquet, where it is: a copy of the folder does not need it."""
        path = self.folder / FAILURES_FILE
        if not path.exists():
            return
        try:
            table = pq.read_table(path)
            table.validate(full=True)
        except (OSError, pa.ArrowException) as error:
            self._fault("failures.damaged", f"cannot read {path}: {error}")
            return
        if not table.schema.equals(FAILURE_SCHEMA):
            self._fault("failures.damaged", f"{path} does not have the columns of the format")
            return
        for name, split in self.info.splits.items():
            count = pc.sum(pc.equal(table["split"], name)).as_py() or 0
            if count != split.failures:
                self._fault("failures.count", f"{name}: {count} in {FAILURES_FILE}, {split.failures} in dataset.json")
        for key, times in _repeated(table["key"]):
            self._fault("key.twice", f"{FAILURES_FILE} has it {times} times", key=key)
        for shard, own in keys.items():
            for key in own.filter(pc.is_in(own, value_set=table["key"].combine_chunks())).to_pylist():
                self._fault("failures.packed", f"it is in {FAILURES_FILE} too", shard, key)

    def _statistics(self, sums: dict[str, MelSums | None]) -> bool:
        """Mean and standard deviation of the log-mel; False where they cannot be computed."""
        recorded = self.info.log_mel_statistics
        if recorded.split not in sums or ("train" in sums and recorded.split != "train"):
            self._fault("statistics.split", f"log_mel_statistics are of the split {recorded.split}")
        own = sums.get(recorded.split)
        if own is None or not own.count:
            return False
        for name, value, there in (("mean", own.mean, recorded.mean), ("std", own.std, recorded.std)):
            if not abs(value - there) <= TOLERANCE:
                self._fault(f"statistics.{name}", f"the {name} of the log-mel of {recorded.split} is {value}, not {there}")
        return True


def _repeated(keys: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
    """Values that stand more than once, and how often."""
    counts = pc.value_counts(keys)
    for pair in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist():
        yield pair["values"], pair["counts"]
