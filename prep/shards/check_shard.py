"""Checks of one shard: its checksum, its tar, its DALI index, and each sample against the index of the split."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from mbt.manifests.checksums import crc32
from mbt.manifests.clips import KEY_PATTERN
from mbt.manifests.reading.split import MEL_ROW
from mbt.manifests.shards import Frozen, ShardFile
from mbt.prep.media.mel_sums import MelSums
from mbt.prep.pack.tar import BLOCK, CHUNK, Member, TarError, members
from mbt.prep.shards.check_sample import (
    MEL_ROWS_PER_FRAME,
    Description,
    Found,
    Rules,
    check_description,
    check_frames,
    check_log_mel,
    read_description,
)
from mbt.prep.shards.check_sound import check_decoded_flac, check_flac


class Fault(Frozen):
    """Something that differs from its record or violates docs/shards.md.

    Attributes:
        code: stable name of the kind of fault.
        what: description of the fault.
        shard: file name of the tar; None for a fault of the folder.
        key: key of the sample; None for a fault of the tar as a whole.
    """

    code: str
    what: str
    shard: str | None = None
    key: str | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.shard, self.key, self.code, self.what) if part is not None)


@dataclass(frozen=True)
class ShardJob:
    """A shard to check.

    Attributes:
        folder: the dataset folder.
        split: name of its split.
        shard: its entry in dataset.json.
        rows: its rows of the index; None if the index of the split cannot be read.
        rules: what its samples are checked against.
    """

    folder: Path
    split: str
    shard: ShardFile
    rows: Sequence[dict[str, Any]] | None
    rules: Rules


@dataclass(frozen=True)
class ShardReport:
    """The result of checking a shard.

    Attributes:
        faults: the faults, in the order of the tar.
        keys: keys of the samples in the tar.
        size: bytes read.
        mel: sums over the log-mels; None if one could not be read.
    """

    faults: tuple[Fault, ...]
    keys: tuple[str, ...]
    size: int
    mel: MelSums | None


def check_shard(job: ShardJob) -> ShardReport:
    """Check a shard in one pass from its first byte to its last, with one sample in memory at a time."""
    try:
        descriptor = os.open(job.folder / job.shard.name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        missing = [Fault(code="sample.missing", what="its shard is missing", key=row["key"]) for row in job.rows or ()]
        faults = [Fault(code="shard.missing", what=f"it cannot be opened: {error.strerror}"), *missing]
        return ShardReport(tuple(fault.model_copy(update={"shard": job.shard.name}) for fault in faults), (), 0, None)
    try:
        return _Check(job, descriptor).report()
    finally:
        os.close(descriptor)


class _Check:
    """The state of checking one shard."""

    def __init__(self, job: ShardJob, descriptor: int) -> None:
        self.job = job
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self.members = job.rules.media.members
        self.rows = {row["key"]: row for row in job.rows or ()}
        self.faults: list[Fault] = []
        self.broken: set[str] = set()
        self.samples: dict[str, list[Member]] = {}
        self.mel: MelSums | None = MelSums()
        self.sha256 = hashlib.sha256()
        self.hashed = 0

    def report(self) -> ShardReport:
        """Read the whole shard."""
        for key, group in groupby(self._walk(), key=lambda member: member.key if member else None):
            parts = [member for member in group if member]
            if key is not None and key not in self.broken:
                self._check_sample(key, parts)
            if parts:
                self._hash_to(parts[-1].end)
        for key in self.rows:
            if key not in self.samples and key not in self.broken:
                self._fault("sample.missing", "it is in the index but not in the tar", key)
        self._hash_to(self.size)
        self._check_totals()
        self._check_dali_index()
        complete = not self.broken and len(self.samples) == self.job.shard.samples
        return ShardReport(tuple(self.faults), tuple(self.samples), self.size, self.mel if complete else None)

    def _fault(self, code: str, what: str, key: str | None = None) -> None:
        self.faults.append(Fault(code=code, what=what, shard=self.job.shard.name, key=key))

    def _walk(self) -> Iterator[Member | None]:
        """The members; where the tar cannot be read further, None, and then the members from the next sample in the index."""
        starts = sorted(row["json_offset"] - BLOCK for row in self.rows.values())
        start: int | None = 0
        while start is not None:
            try:
                yield from members(self.descriptor, start)
                return
            except TarError as damage:
                key = next((key for key, row in self.rows.items() if self._contains(row, damage.position)), None)
                self._fault(damage.code, damage.what, key)
                if key is not None:
                    self.broken.add(key)
                yield None
                start = next((start for start in starts if damage.position < start < self.size), None)

    def _hash_to(self, end: int) -> None:
        """Hash the bytes up to `end` while they are still in the page cache."""
        while self.hashed < min(end, self.size):
            data = os.pread(self.descriptor, min(CHUNK, end - self.hashed), self.hashed)
            self.sha256.update(data)
            self.hashed += len(data)

    def _check_sample(self, key: str, parts: list[Member]) -> None:
        if not KEY_PATTERN.fullmatch(key):
            self._fault("key.malformed", "a key must have 1 to 80 characters of A-Z, a-z, 0-9, _ and -", key)
        if key in self.samples:
            self._fault("key.twice", "it is in this tar more than once, or its members are not next to each other", key)
            return
        self.samples[key] = parts
        for part in parts:
            for violation in part.violations:
                self._fault("tar.format", f"{part.name} {violation}", key)
        row = self.rows.get(key)
        if row is None and self.job.rows is not None:
            self._fault("index.missing", "it is not in the index, or listed under another shard", key)
        names = [part.extension for part in parts]
        if missing := [extension for extension in self.members if extension not in names]:
            self._fault("members.missing", f"it has no member {' and no member '.join(missing)}", key)
            self.mel = None
            return
        if names[: len(self.members)] != list(self.members) or len(set(names)) < len(names):
            self._fault("members.order", f"its members are {', '.join(names)}, not {', '.join(self.members)}", key)
        self._check_contents(key, {part.extension: part for part in parts if part.extension in self.members}, row)

    def _check_contents(self, key: str, parts: dict[str, Member], row: dict[str, Any] | None) -> None:
        for extension, column in self.members.items():
            span = parts[extension].offset, parts[extension].size
            if row is not None and (listed := (row[f"{column}_offset"], row[f"{column}_size"])) != span:
                what = "{} has {} bytes at byte {}; the index says {} bytes at byte {}".format(
                    extension, *span[::-1], *listed[::-1]
                )
                self._fault("index.offset", what, key)
        data = {extension: parts[extension].read(self.descriptor) for extension in self.members}
        description: Description | None = None
        found: list[Found] = []
        if row is not None and (crc := crc32(data.values())) != row["crc32"]:
            found.append(("sample.crc32", f"its CRC-32 is {crc:08x}; the index says {row['crc32']:08x}"))
        try:
            description = read_description(data["json"])
        except ValueError as error:
            found.append(("json.damaged", str(error)))
        else:
            found += check_description(description, key, self.job.split, row, self.job.rules)
            found += check_frames(data["mjpg"], description, self.job.rules.decode)
        num_frames = description.num_frames if description else row["num_frames"] if row else None
        sums = None
        if num_frames is not None:
            wrong, sums = check_log_mel(data["mel.npy"], num_frames, self.job.rules.media)
            found += wrong
            found += self._check_sound(data, num_frames, valid_log_mel=sums is not None)
        self.mel = self.mel + sums if self.mel is not None and sums is not None else None
        names = {key, row["video_id"] if row else key, description.video_id if description else key}
        if removed := names & self.job.rules.removed:
            found.append(("removed.listed", f"{min(removed)} is on the removal list"))
        for code, what in found:
            self._fault(code, what, key)

    def _check_sound(self, data: dict[str, bytes], num_frames: int, valid_log_mel: bool) -> list[Found]:
        """Faults of the audio, if it is stored; it is compared with the log-mel if that is valid."""
        media = self.job.rules.media
        if not media.flac:
            return []
        found = list(check_flac(data["flac"], num_frames))
        if self.job.rules.decode and valid_log_mel and not found:
            values = np.frombuffer(data["mel.npy"][-MEL_ROW.itemsize * MEL_ROWS_PER_FRAME * num_frames :], MEL_ROW)
            found += check_decoded_flac(data["flac"], num_frames, values, media.log_mel)
        return found

    def _check_totals(self) -> None:
        """Compare the whole tar with dataset.json and the index."""
        shard = self.job.shard
        if self.size != shard.size:
            self._fault("shard.size", f"it has {self.size} bytes; dataset.json says {shard.size}")
        elif self.sha256.hexdigest() != shard.sha256:
            named = any(fault.key is not None for fault in self.faults)
            every = self.rows.keys() >= self.samples.keys()
            hint = "its samples are intact, the bytes between them are not" if every else "any of its samples may be damaged"
            self._fault("shard.sha256", f"its SHA-256 is not the one in dataset.json{'' if named else f'; {hint}'}")
        if len(self.samples) != shard.samples:
            self._fault("shard.count", f"it has {len(self.samples)} samples; dataset.json says {shard.samples}")
        listed = [key for key in self.rows if key in self.samples]
        for key, expected in zip((key for key in self.samples if key in self.rows), listed, strict=True):
            if key != expected:
                self._fault("index.order", f"it is where the index has {expected}", key)
                break

    def _check_dali_index(self) -> None:
        path = (self.job.folder / self.job.shard.name).with_suffix(".idx")
        try:
            first, *lines = path.read_text(encoding="ascii").splitlines()
        except (OSError, ValueError) as error:
            self._fault("idx.missing", f"{path.name} cannot be read: {error}")
            return
        found = {line.rpartition(" ")[2].partition(".")[0]: line for line in lines}
        for key, parts in self.samples.items():
            line = " ".join(f"{part.extension} {part.offset} {part.size} {part.name}" for part in parts)
            if key not in found:
                self._fault("idx.entry", f"it is not in {path.name}", key)
            elif found[key] != line:
                self._fault("idx.entry", f"{path.name} has {found[key]!r}; it must be {line!r}", key)
        if first != f"v1.2 {len(lines)}" or (not self.broken and list(found) != list(self.samples)):
            self._fault(
                "idx.samples",
                f"{path.name} starts with {first!r} and lists {len(lines)} samples; the tar has {len(self.samples)}",
            )

    def _contains(self, row: dict[str, Any], position: int) -> bool:
        """Whether the sample of this row spans this byte of the tar."""
        first, *_, last = self.members.values()
        return bool(row[f"{first}_offset"] - BLOCK <= position < row[f"{last}_offset"] + row[f"{last}_size"])
