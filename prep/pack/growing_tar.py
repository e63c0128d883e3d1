"""The unfinished shard: a tar that grows, and a journal of what is whole in it, so that an interrupted shard goes on."""

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import webdataset
from pydantic import ValidationError

from mbt.manifests.atomic import sync_folder, write_text
from mbt.manifests.checksums import crc32
from mbt.manifests.shards import Frozen, MediaFormat
from mbt.prep.media.mel_sums import MelSums
from mbt.prep.pack.sample import Sample
from mbt.prep.state.shard_record import Failure


class Entry(Frozen):
    """What became of a clip: a line of the journal.

    Attributes:
        key: the clip.
        end: bytes of the tar up to which everything is whole.
        failure: why the clip is not in the tar; None for a sample.
        row: the sample's index row, but for the shard's name.
        mel: sums over the sample's log-mel.
    """

    key: str
    end: int
    failure: Failure | None = None
    row: dict[str, Any] | None = None
    mel: MelSums = MelSums()


class GrowingTar:
    """The tar of a shard until it is finished; its bytes depend on the samples only: USTAR, time and owner zero.

    Args:
        path: the unfinished tar; the journal stands beside it.
        keys: the shard's clips. What is whole of an earlier attempt at them is in `entries`; the rest is to be added.
        media: how the samples are stored.
    """

    def __init__(self, path: Path, keys: Sequence[str], media: MediaFormat) -> None:
        self.path = path
        self._members = media.members
        self._journal_path = path.with_name(f"{path.name}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.entries = self._whole(keys)
        end = self.entries[-1].end if self.entries else 0
        os.truncate(path, end)
        write_text(self._journal_path, "".join(entry.model_dump_json() + "\n" for entry in self.entries))
        self._file = path.open("ab")
        self._journal = self._journal_path.open("a", encoding="utf-8")
        self._writer = webdataset.TarWriter(self._file, user="", group="", mode=0o444, mtime=0, encoder=False)
        self._writer.tarstream.offset = end

    def __enter__(self) -> "GrowingTar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._journal, self._file:
            self._writer.close()

    def add(self, key: str, outcome: Sample | Failure) -> None:
        """Append a sample, or note a failure."""
        if isinstance(outcome, Failure):
            entry = Entry(key=key, end=self._writer.tarstream.offset, failure=outcome)
        else:
            spans = self._spans(self._writer.tarstream.offset, outcome)
            row = {**outcome.row, **spans, "crc32": crc32(outcome.members[member] for member in self._members)}
            for member in self._members:
                self._writer.write({"__key__": key, member: outcome.members[member]})
            entry = Entry(key=key, end=self._writer.tarstream.offset, row=row, mel=outcome.mel)
        self.entries.append(entry)
        self._journal.write(entry.model_dump_json() + "\n")
        self._journal.flush()

    def end(self) -> None:
        """End the archive; nothing can be added any more."""
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())

    def publish(self, tar: Path | None) -> None:
        """Give the ended archive its name, once it is on record; without a name it vanishes."""
        if tar is not None:
            self.path.replace(tar)
            sync_folder(tar.parent)
        else:
            self.path.unlink()
        self._journal_path.unlink()

    def _whole(self, keys: Sequence[str]) -> list[Entry]:
        """The journal's entries up to the first that is torn, of another clip, or not in the tar as it was written."""
        whole: list[Entry] = []
        journal = self._journal_path
        lines = journal.read_text(encoding="utf-8", errors="replace").splitlines() if journal.exists() else []
        with self.path.open("rb") as file:
            for line, key in zip(lines, keys, strict=False):
                try:
                    entry = Entry.model_validate_json(line)
                except ValidationError:
                    break
                if entry.key != key or (entry.row is not None and self._crc32(file.fileno(), entry.row) != entry.row["crc32"]):
                    break
                whole.append(entry)
        return whole

    def _crc32(self, descriptor: int, row: dict[str, Any]) -> int:
        """CRC-32 of what stands where the sample of this row should."""
        columns = self._members.values()
        return crc32(os.pread(descriptor, row[f"{column}_size"], row[f"{column}_offset"]) for column in columns)

    def _spans(self, offset: int, sample: Sample) -> dict[str, int]:
        """Where each member's data will stand when the sample is written at `offset`."""
        spans = {}
        for member, column in self._members.items():
            size = len(sample.members[member])
            spans[f"{column}_offset"] = offset + tarfile.BLOCKSIZE
            spans[f"{column}_size"] = size
            offset += tarfile.BLOCKSIZE + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return spans
