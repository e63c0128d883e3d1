"""`mbt shards verify`: read everything in a dataset folder and check it against checksums and the specification."""

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

from mbt.manifests.clips import KEY_PATTERN
from mbt.manifests.errors import MbtError, ShardError
from mbt.manifests.labels import COLUMNS, read_labels
from mbt.manifests.progress import progress
from mbt.manifests.reading.split import read_index
from mbt.manifests.shards import (
    FAILURE_SCHEMA,
    FAILURES_FILE,
    FORMAT,
    LABELS_FILE,
    MEL_RATE,
    DatasetInfo,
    Frozen,
    index_file,
    read_dataset,
)
from mbt.prep.media.mel_sums import MelSums
from mbt.prep.plan.removed import read_removed, unmatched
from mbt.prep.shards.check_sample import Rules
from mbt.prep.shards.check_shard import Fault, ShardJob, check_shard
from mbt.prep.state.shard_record import idx_file
from mbt.prep.workers.processes import cores, in_processes

TOLERANCE = 1e-6
"""Maximum difference from the recorded log-mel statistics that rounding can cause."""


SHARD_NAME = re.compile(rf"{KEY_PATTERN.pattern}-\d{{6}}(-\d+)?\.(tar|idx)")
"""A tar of a shard, or its DALI index."""


class Report(Frozen):
    """The result of verifying a folder.

    Attributes:
        whole: no fault was found.
        shards: number of tars in dataset.json.
        samples: number of samples found in them.
        size: bytes read.
        seconds: time taken.
        decoded: whether every frame was decoded too.
        statistics_checked: whether the log-mel statistics were recomputed; False if a log-mel cannot be read.
        faults: all faults.
        unmatched: a sentence about the entries of the removal list that match neither a sample nor a failed clip; may be empty.
    """

    whole: bool
    shards: int
    samples: int
    size: int
    seconds: float
    decoded: bool
    statistics_checked: bool
    faults: tuple[Fault, ...]
    unmatched: str

    def summary(self) -> str:
        """One line without the individual faults, and one about the removal list if it has unknown entries."""
        damaged = len({(fault.shard, fault.key) for fault in self.faults if fault.key is not None})
        codes = ", ".join(f"{count} {code}" for code, count in Counter(fault.code for fault in self.faults).most_common())
        faults = f"DAMAGED: {_several(len(self.faults), 'fault')}, {_several(damaged, 'damaged sample')} ({codes})"
        read = f"{_several(self.shards, 'shard')}, {_several(self.samples, 'sample')}, {self.size / 1e9:.3f} GB"
        line = f"{read} in {self.seconds:.1f} s: {'no faults' if self.whole else faults}"
        return "\n".join(filter(None, (self.unmatched, line)))


def _several(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def verify(
    folder: Path,
    workers: int | None = None,
    decode: bool = False,
    removed: Path | None = None,
    on_fault: Callable[[Fault], None] = lambda fault: None,
) -> Report:
    """Check a dataset folder, and continue after every fault.

    Args:
        folder: the dataset folder.
        workers: shards to check at a time, each in a process of its own; default: one per core.
        decode: also decode every frame and the audio; about ten times slower.
        removed: removal list with one key or video id per line, whose samples must not be in the folder; `#` begins a comment.
        on_fault: called with each fault as it is found.

    Raises:
        ShardError: dataset.json is missing or cannot be read, so there is nothing to verify against.
        InputError: the removal list cannot be read.
    """
    start = time.monotonic()
    verification = _Verification(
        folder, read_dataset(folder), decode, read_removed(removed) if removed else frozenset(), on_fault
    )
    return verification.run(workers, start)


class _Verification:
    """The state of verifying a folder."""

    def __init__(
        self, folder: Path, info: DatasetInfo, decode: bool, removed: frozenset[str], on_fault: Callable[[Fault], None]
    ) -> None:
        self.folder = folder
        self.info = info
        self.on_fault = on_fault
        self.faults: list[Fault] = []
        self.size = 0
        label_ids = self._check_labels()
        self.rules = Rules(info.media, info.task, info.num_classes, label_ids, removed, decode)

    def run(self, workers: int | None, start: float) -> Report:
        """Check everything.

        Args:
            workers: shards to check at a time.
            start: monotonic time at which the verification began, seconds.
        """
        splits = self.info.splits
        self._check_dataset()
        keys: dict[str, pa.Array] = {}
        sums: dict[str, MelSums | None] = dict.fromkeys(splits, MelSums())
        shards = [(name, shard) for name, split in splits.items() for shard in split.shards]
        with progress(sum(shard.samples for _, shard in shards), "verify", "sample") as bar:
            reports = in_processes(check_shard, self._jobs(), min(workers or cores(), max(len(shards), 1)))
            for (name, shard), report in zip(shards, reports, strict=True):
                self._report(*report.faults)
                self.size += report.size
                keys[shard.name] = pa.array(report.keys, pa.string())
                before = sums[name]
                sums[name] = before + report.mel if before is not None and report.mel is not None else None
                bar.update(shard.samples)
        self._check_keys(keys)
        self._check_failures(keys)
        statistics_checked = self._check_statistics(sums)
        return Report(
            whole=not self.faults,
            shards=len(shards),
            samples=sum(map(len, keys.values())),
            size=self.size,
            seconds=time.monotonic() - start,
            decoded=self.rules.decode,
            statistics_checked=statistics_checked,
            faults=tuple(self.faults),
            unmatched=self._unmatched(keys),
        )

    def _report(self, *faults: Fault) -> None:
        self.faults += faults
        for fault in faults:
            self.on_fault(fault)

    def _fault(self, code: str, what: str, shard: str | None = None, key: str | None = None) -> None:
        self._report(Fault(code=code, what=what, shard=shard, key=key))

    def _check_labels(self) -> tuple[str, ...] | None:
        """Ids of the classes in labels.csv; None if it cannot be used."""
        path = self.folder / LABELS_FILE
        try:
            ids = tuple(label.id for label in read_labels(path).labels)
        except MbtError as error:
            self._fault("labels.damaged", error.what)
            return None
        if not path.read_bytes().startswith(f"{','.join(COLUMNS)}\n".encode()):
            self._fault("labels.damaged", f"the first line of {path} is not {','.join(COLUMNS)}")
        if len(ids) != self.info.num_classes:
            self._fault("labels.count", f"{LABELS_FILE} has {len(ids)} classes; dataset.json says {self.info.num_classes}")
            return None
        return ids

    def _check_dataset(self) -> None:
        """Check dataset.json, on its own and against the names of the files."""
        if self.info.config_digest != (digest := self.info.media.digest()):
            self._fault("dataset.digest", f"config_digest is {self.info.config_digest}; the digest of media is {digest}")
        for name, split in self.info.splits.items():
            if sum(shard.samples for shard in split.shards) != split.samples:
                self._fault("dataset.count", f"{name}: samples is {split.samples}, which is not the sum over its shards")
        listed = {shard.name for split in self.info.splits.values() for shard in split.shards}
        known = {*listed, *map(idx_file, listed), *map(index_file, self.info.splits)}
        for path in sorted(self.folder.iterdir()):
            if path.name not in known and (SHARD_NAME.fullmatch(path.name) or _is_index(path)):
                self._fault("shard.unlisted", "dataset.json does not list it", path.name)

    def _jobs(self) -> Iterator[ShardJob]:
        """Each shard with its rows of the index; only one index is in memory at a time."""
        for name, split in self.info.splits.items():
            index = self._check_index(name)
            found = index["shard"].combine_chunks().dictionary_encode() if index is not None else None
            for shard in split.shards:
                rows: list[dict[str, Any]] | None = None
                if index is not None and found is not None:
                    number = found.dictionary.index(shard.name).as_py()
                    rows = index.take(np.flatnonzero(found.indices.to_numpy() == number)).to_pylist()
                yield ShardJob(self.folder, name, shard, rows, self.rules)

    def _check_index(self, name: str) -> pa.Table | None:
        """Check the index of a split as a whole, and return it if it can be read."""
        split = self.info.splits[name]
        try:
            index = read_index(self.folder / index_file(name), self.info.media)
            index.validate(full=True)
        except (ShardError, pa.ArrowException) as error:
            self._fault("index.damaged", getattr(error, "what", f"{index_file(name)}: {error}"))
            return None
        if index.num_rows != split.samples:
            self._fault("dataset.count", f"{index_file(name)} has {index.num_rows} rows; dataset.json says {split.samples}")
        seconds = (pc.sum(index["num_mel_rows"]).as_py() or 0) / MEL_RATE
        if abs(seconds - split.seconds) > 1 / MEL_RATE:
            self._fault("dataset.seconds", f"{name}: its index adds up to {seconds} s; dataset.json says {split.seconds} s")
        for key, times in _repeated(index["key"]):
            self._fault("key.twice", f"it appears {times} times in {index_file(name)}", key=key)
        listed = [shard.name for shard in split.shards]
        found = [shard for shard, _ in groupby(index["shard"].to_pylist())]
        unlisted = index.filter(pc.invert(pc.is_in(index["shard"], value_set=pa.array(listed, pa.string()))))
        for row in unlisted.select(["key", "shard"]).to_pylist():
            self._fault("index.shard", f"{index_file(name)} has it in a shard that dataset.json does not list", **row)
        if not unlisted.num_rows and found != [shard for shard in listed if shard in found]:
            self._fault("index.order", f"the rows of {index_file(name)} are not in the order of the shards")
        return index

    def _check_keys(self, keys: dict[str, pa.Array]) -> None:
        """Check that no key is in two shards."""
        for key, _ in _repeated(pa.chunked_array(list(keys.values()), pa.string())):
            shards = [shard for shard, present in keys.items() if pc.index(present, key).as_py() >= 0]
            self._fault("key.twice", f"it is in {' and in '.join(shards)}", shards[-1], key)

    def _check_failures(self, keys: dict[str, pa.Array]) -> None:
        """Check failures.parquet if it exists; a copy of the folder does not need it."""
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
                self._fault("failures.count", f"{name}: {FAILURES_FILE} has {count} rows; dataset.json says {split.failures}")
        for key, times in _repeated(table["key"]):
            self._fault("key.twice", f"it appears {times} times in {FAILURES_FILE}", key=key)
        for shard, present in keys.items():
            for key in present.filter(pc.is_in(present, value_set=table["key"].combine_chunks())).to_pylist():
                self._fault("failures.packed", f"it is also in {FAILURES_FILE}", shard, key)

    def _unmatched(self, keys: dict[str, pa.Array]) -> str:
        """What to say about entries of the removal list that match no clip."""
        names = {key for present in keys.values() for key in present.to_pylist()}
        for file in (*map(index_file, self.info.splits), FAILURES_FILE):
            try:
                table = pq.read_table(self.folder / file, columns=["key", "video_id"])
            except (OSError, pa.ArrowException):
                continue  # It is missing or damaged, and was reported.
            names.update(table["key"].to_pylist(), table["video_id"].to_pylist())
        return unmatched(self.rules.removed, names, "dataset")

    def _check_statistics(self, sums: dict[str, MelSums | None]) -> bool:
        """Check mean and standard deviation of the log-mel; False if they cannot be computed."""
        recorded = self.info.log_mel_statistics
        if recorded.split not in sums or ("train" in sums and recorded.split != "train"):
            self._fault("statistics.split", f"log_mel_statistics are for the split {recorded.split}")
        mel = sums.get(recorded.split)
        if mel is None or not mel.count:
            return False
        for name, value, expected in (("mean", mel.mean, recorded.mean), ("std", mel.std, recorded.std)):
            if not abs(value - expected) <= TOLERANCE:
                self._fault(
                    f"statistics.{name}",
                    f"the {name} of the log-mel of {recorded.split} is {value}; dataset.json says {expected}",
                )
        return True


def _is_index(path: Path) -> bool:
    """Whether a file is the index of a split, as its metadata say."""
    try:
        return path.suffix == ".parquet" and (pq.read_schema(path).metadata or {}).get(b"format") == FORMAT.encode()
    except (OSError, pa.ArrowException):
        return False


def _repeated(keys: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
    """Values that occur more than once, and how often."""
    counts = pc.value_counts(keys)
    for pair in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist():
        yield pair["values"], pair["counts"]
