"""One shard read again: its bytes, its archive, its DALI index, and each of its samples against the index of the split."""

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
from mbt.prep.shards.tar import BLOCK, CHUNK, Member, TarError, members


class Fault(Frozen):
    """Something that is not as it was recorded or as docs/shards.md says.

    Attributes:
        code: stable name of the kind.
        what: what is wrong.
        shard: the tar; None for a fault of the folder.
        key: the sample; None for a fault of the tar as a whole.
    """

    code: str
    what: str
    shard: str | None = None
    key: str | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.shard, self.key, self.code, self.what) if part is not None)


@dataclass(frozen=True)
class ShardJob:
    """A shard to read again.

    Attributes:
        folder: the dataset folder.
        split: its split.
        shard: what dataset.json records of it.
        rows: its rows of the index; None where the index of the split cannot be read.
        rules: what its samples are held against.
    """

    folder: Path
    split: str
    shard: ShardFile
    rows: Sequence[dict[str, Any]] | None
    rules: Rules


@dataclass(frozen=True)
class ShardReport:
    """What came of reading a shard.

    Attributes:
        faults: in the order in which they stand in the tar.
        keys: the samples that are in the tar.
        size: bytes read.
        mel: sums over the log-mels; None where one could not be read.
    """

    faults: tuple[Fault, ...]
    keys: tuple[str, ...]
    size: int
    mel: MelSums | None


def check_shard(job: ShardJob) -> ShardReport:
    """Read a shard once, from its first byte to its last, one sample in memory at a time."""
    try:
        descriptor = os.open(job.folder / job.shard.name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        absent = [Fault(code="sample.missing", what="its shard is missing", key=row["key"]) for row in job.rows or ()]
        faults = [Fault(code="shard.missing", what=f"cannot be opened: {error.strerror}"), *absent]
        return ShardReport(tuple(fault.model_copy(update={"shard": job.shard.name}) for fault in faults), (), 0, None)
    try:
        return _Reading(job, descriptor).report()
    finally:
        os.close(descriptor)


class _Reading:
    """The state of reading one shard."""

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
        """Read everything."""
        for key, group in groupby(self._walk(), key=lambda member: member.key if member else None):
            parts = [member for member in group if member]
            if key is not None and key not in self.broken:
                self._sample(key, parts)
            if parts:
                self._hash_to(parts[-1].end)
        for key in self.rows:
            if key not in self.samples and key not in self.broken:
                self._fault("sample.missing", "it is in the index and not in the tar", key)
        self._hash_to(self.size)
        self._whole()
        self._dali_index()
        complete = not self.broken and len(self.samples) == self.job.shard.samples
        return ShardReport(tuple(self.faults), tuple(self.samples), self.size, self.mel if complete else None)

    def _fault(self, code: str, what: str, key: str | None = None) -> None:
        self.faults.append(Fault(code=code, what=what, shard=self.job.shard.name, key=key))

    def _walk(self) -> Iterator[Member | None]:
        """The members; where the tar cannot be followed None, and then those from the next sample of the index on."""
        starts = sorted(row["json_offset"] - BLOCK for row in self.rows.values())
        start: int | None = 0
        while start is not None:
            try:
                yield from members(self.descriptor, start)
                return
            except TarError as damage:
                key = next((key for key, row in self.rows.items() if self._spans(row, damage.place)), None)
                self._fault(damage.code, damage.what, key)
                if key is not None:
                    self.broken.add(key)
                yield None
                start = next((place for place in starts if damage.place < place < self.size), None)

    def _hash_to(self, end: int) -> None:
        """Hash what lies behind, while it is still in memory."""
        while self.hashed < min(end, self.size):
            data = os.pread(self.descriptor, min(CHUNK, end - self.hashed), self.hashed)
            self.sha256.update(data)
            self.hashed += len(data)

    def _sample(self, key: str, parts: list[Member]) -> None:
        if not KEY_PATTERN.fullmatch(key):
            self._fault("key.malformed", "keys are 1 to 80 characters of A-Z, a-z, 0-9, _ and -", key)
        if key in self.samples:
            self._fault("key.twice", "it is in this tar more than once, or its members do not stand together", key)
            return
        self.samples[key] = parts
        for part in parts:
            for oddity in part.oddities:
                self._fault("tar.format", f"{part.name} {oddity}", key)
        row = self.rows.get(key)
        if row is None and self.job.rows is not None:
            self._fault("index.missing", "it is not in the index, or under another shard", key)
        names = [part.extension for part in parts]
        if missing := [extension for extension in self.members if extension not in names]:
            self._fault("members.missing", f"it has no {' and no '.join(missing)}", key)
            self.mel = None
            return
        if names[: len(self.members)] != list(self.members) or len(set(names)) < len(names):
            self._fault("members.order", f"its members are {', '.join(names)}", key)
        self._contents(key, {part.extension: part for part in parts if part.extension in self.members}, row)

    def _contents(self, key: str, parts: dict[str, Member], row: dict[str, Any] | None) -> None:
        for extension, column in self.members.items():
            here = parts[extension].offset, parts[extension].size
            if row is not None and (there := (row[f"{column}_offset"], row[f"{column}_size"])) != here:
                what = "{} is at byte {} with {} bytes; the index says {} with {}".format(extension, *here, *there)
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
            found += self._sound(data, num_frames, whole=sums is not None)
        self.mel = self.mel + sums if self.mel is not None and sums is not None else None
        names = {key, row["video_id"] if row else key, description.video_id if description else key}
        if listed := names & self.job.rules.removed:
            found.append(("removed.listed", f"{min(listed)} is on the removal list"))
        for code, what in found:
            self._fault(code, what, key)

    def _sound(self, data: dict[str, bytes], num_frames: int, whole: bool) -> list[Found]:
        """Faults of the sound, where there is one; with a whole log-mel it can be held against that."""
        media = self.job.rules.media
        if not media.flac:
            return []
        found = list(check_flac(data["flac"], num_frames))
        if self.job.rules.decode and whole and not found:
            values = np.frombuffer(data["mel.npy"][-MEL_ROW.itemsize * MEL_ROWS_PER_FRAME * num_frames :], MEL_ROW)
            found += check_decoded_flac(data["flac"], num_frames, values, media.log_mel)
        return found

    def _whole(self) -> None:
        """The tar as a whole against dataset.json and the index."""
        shard = self.job.shard
        if self.size != shard.size:
            self._fault("shard.size", f"{self.size} bytes; {shard.size} are recorded")
        elif self.sha256.hexdigest() != shard.sha256:
            named = any(fault.key is not None for fault in self.faults)
            every = self.rows.keys() >= self.samples.keys()
            hint = "its samples are whole, what is between them is not" if every else "any of its samples may be damaged"
            self._fault("shard.sha256", f"its SHA-256 is not the recorded one{'' if named else f'; {hint}'}")
        if len(self.samples) != shard.samples:
            self._fault("shard.count", f"{len(self.samples)} samples; {shard.samples} are recorded")
        listed = [key for key in self.rows if key in self.samples]
        for key, expected in zip((key for key in self.samples if key in self.rows), listed, strict=True):
            if key != expected:
                self._fault("index.order", f"it stands where the index has {expected}", key)
                break

    def _dali_index(self) -> None:
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
                self._fault("idx.entry", f"{path.name} has {found[key]!r} for {line!r}", key)
        if first != f"v1.2 {len(lines)}" or (not self.broken and list(found) != list(self.samples)):
            self._fault(
                "idx.samples",
                f"{path.name} begins with {first!r} and lists {len(lines)} samples, the tar has {len(self.samples)}",
            )

    def _spans(self, row: dict[str, Any], place: int) -> bool:
        first, *_, last = self.members.values()
        return bool(row[f"{first}_offset"] - BLOCK <= place < row[f"{last}_offset"] + row[f"{last}_size"])
