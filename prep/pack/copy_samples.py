"""The samples of a finished shard, read back from its tars: to rewrite it without some of them, nothing is decoded."""

import io
from collections.abc import Collection, Generator, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from mbt.manifests.checksums import crc32
from mbt.manifests.errors import ShardError
from mbt.manifests.shards import MediaFormat
from mbt.prep.media.mel_sums import MelSums
from mbt.prep.pack.sample import Sample
from mbt.prep.plan.removed import REMOVED
from mbt.prep.state.shard_record import Failure, ShardRecord
from mbt.prep.state.store import Store


def removed_failure(key: str) -> Failure:
    """The failure of a clip on the removal list."""
    return Failure(key=key, stage="pack", code=REMOVED, message="on the removal list")


def surviving_samples(
    store: Store, record: ShardRecord, keys: Sequence[str], removed: Collection[str], media: MediaFormat
) -> Generator[Sample | Failure, None, None]:
    """The results of these clips: the samples of a finished shard that stay, and failures.

    Args:
        store: where the shard is.
        record: its record.
        keys: clips of the shard, in order.
        removed: keys of the clips that do not stay.
        media: how the samples are stored.

    Raises:
        StorageError: a tar cannot be read.
        ShardError: a sample is damaged.
    """
    wanted = {*keys} - {*removed}
    samples = _samples(store, [row for row in record.rows if row["key"] in wanted], media)
    stored = {row["key"] for row in record.rows}
    failures = {failure.key: failure for failure in record.failures}
    for key in keys:
        if key in removed:
            yield removed_failure(key)
        elif key in stored:
            yield next(samples)
        else:
            yield failures[key]


def _samples(store: Store, rows: Sequence[dict[str, Any]], media: MediaFormat) -> Iterator[Sample]:
    """The samples with these index rows."""
    columns = media.members.values()
    for tar, group in groupby(rows, lambda row: row["shard"]):
        rows_of_tar = list(group)
        spans = [(row[f"{column}_offset"], row[f"{column}_size"]) for row in rows_of_tar for column in columns]
        parts = store.read(tar, spans)
        for row in rows_of_tar:
            members = {member: next(parts) for member in media.members}
            if crc32(members.values()) != row["crc32"]:
                fix = "Delete this tar and run the same command again: its clips are packed anew from their media"
                raise ShardError(f"{tar}: the sample {row['key']} is damaged", fix)
            mel = np.load(io.BytesIO(members["mel.npy"]), allow_pickle=False)
            yield Sample(members, row, MelSums.of(mel))
