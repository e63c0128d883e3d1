"""The tar of an unfinished shard, and a journal of its complete samples, so that packing can resume inside a shard."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from mbt.manifests.atomic import sync_folder, write_text
from mbt.manifests.checksums import crc32
from mbt.manifests.shards import Frozen, MediaFormat
from mbt.prep.media.mel_sums import MelSums
from mbt.prep.pack.sample import Sample
from mbt.prep.pack.tar import append_member, archive_size
from mbt.prep.state.shard_record import Failure


class Entry(Frozen):
    """The result of one clip: a line of the journal.

    Attributes:
        key: key of the clip.
        end: size of the tar once this clip is written.
        failure: why the clip is not in the tar; None for a sample.
        row: index row of the sample, without the name of the shard.
        mel: sums over the sample's log-mel.
    """

    key: str
    end: int
    failure: Failure | None = None
    row: dict[str, Any] | None = None
    mel: MelSums = MelSums()


class GrowingTar:
    """The tar of a shard until it is finished; its bytes depend on its samples only.

    Args:
        path: the unfinished tar; its journal is next to it.
        keys: the shard's clips.
        media: how the samples are stored.
        is_valid: whether a result of an earlier attempt may stay; those after the first that may not are dropped too.

    Attributes:
        path: the unfinished tar.
        entries: results so far; at first, those of an earlier attempt that are complete on disk.
    """

    def __init__(
        self, path: Path, keys: Sequence[str], media: MediaFormat, is_valid: Callable[[Entry], bool] = lambda entry: True
    ) -> None:
        self.path = path
        self._members = media.members
        self._is_valid = is_valid
        self._journal_path = path.with_name(f"{path.name}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.entries = self._complete_entries(keys)
        os.truncate(path, self.entries[-1].end if self.entries else 0)
        write_text(self._journal_path, "".join(entry.model_dump_json() + "\n" for entry in self.entries))
        self._file = path.open("ab")
        self._journal = self._journal_path.open("a", encoding="utf-8")

    def __enter__(self) -> "GrowingTar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._journal, self._file:
            pass

    def add(self, key: str, result: Sample | Failure) -> None:
        """Append a sample, or record a failure."""
        if isinstance(result, Failure):
            entry = Entry(key=key, end=self._file.tell(), failure=result)
        else:
            row = dict(result.row)
            for member, column in self._members.items():
                data = result.members[member]
                row[f"{column}_offset"] = append_member(self._file, f"{key}.{member}", data)
                row[f"{column}_size"] = len(data)
            row["crc32"] = crc32(result.members[member] for member in self._members)
            self._file.flush()
            entry = Entry(key=key, end=self._file.tell(), row=row, mel=result.mel)
        self.entries.append(entry)
        self._journal.write(entry.model_dump_json() + "\n")
        self._journal.flush()

    def finish(self) -> None:
        """Write the end of archive, and wait until everything is on disk."""
        end = self._file.tell()
        self._file.write(bytes(archive_size(end) - end))
        for file in (self._file, self._journal):
            file.flush()
            os.fsync(file.fileno())

    def publish(self, tar: Path | None) -> None:
        """Rename the finished tar to `tar`, or delete it if None; call it after the shard's record is written."""
        if tar is not None:
            self.path.replace(tar)
            sync_folder(tar.parent)
        else:
            self.path.unlink()
        self._journal_path.unlink()

    def _complete_entries(self, keys: Sequence[str]) -> list[Entry]:
        """The journal's entries up to the first one that is torn, is not valid, or does not match the clips or the tar."""
        complete: list[Entry] = []
        journal = self._journal_path
        lines = journal.read_text(encoding="utf-8", errors="replace").splitlines() if journal.exists() else []
        with self.path.open("rb") as file:
            for line, key in zip(lines, keys, strict=False):
                try:
                    entry = Entry.model_validate_json(line)
                except ValidationError:
                    break
                if entry.key != key or not self._is_valid(entry):
                    break
                if entry.row is not None and self._crc32(file.fileno(), entry.row) != entry.row["crc32"]:
                    break
                complete.append(entry)
        return complete

    def _crc32(self, descriptor: int, row: dict[str, Any]) -> int:
        """CRC-32 of the tar's bytes at the places that the row gives."""
        columns = self._members.values()
        return crc32(os.pread(descriptor, row[f"{column}_size"], row[f"{column}_offset"]) for column in columns)
