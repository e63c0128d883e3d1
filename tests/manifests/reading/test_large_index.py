"""Opening an index of 500,000 clips takes less than 2 s, and less than half a kilobyte of memory per clip."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mbt.manifests.shards import DatasetInfo, MediaFormat, MelStatistics, ShardFile, SplitInfo

CLIPS, CLIPS_PER_SHARD, CLASSES, LABELS = 500_000, 512, 527, 3
OPEN = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from mbt.manifests.reading.reader import ShardReader

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

before, begin = resident(), time.perf_counter()
reader = ShardReader(Path(sys.argv[1]), "train")
opened = time.perf_counter() - begin
rows = np.array([499_999, 0, 123_456])
targets = reader.targets(rows)
print(json.dumps({
    "opened": opened, "kept": resident() - before, "clips": len(reader), "keys": [reader.key(row) for row in rows],
    "shards": [reader.shard(row) for row in rows], "labels": [row.nonzero()[0].tolist() for row in targets],
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with a complete index and empty tars."""
    folder = tmp_path_factory.mktemp("large")
    random, place = np.random.default_rng(0), np.arange(CLIPS)
    numbers = pa.array(place).cast(pa.string())
    keys = pa.compute.binary_join_element_wise(pa.scalar("video"), numbers, "_")
    sizes = random.integers(3_000_000, 5_000_000, CLIPS)
    labels = np.sort(np.stack([place % 500, 500 + place % 20, 520 + place % 7], axis=1), axis=1).astype(np.int32)
    names = [f"train-{number:06d}.tar" for number in range(-(-CLIPS // CLIPS_PER_SHARD))]
    values = {
        "key": keys,
        "video_id": keys,
        "shard": pa.DictionaryArray.from_arrays(place // CLIPS_PER_SHARD, names).cast(pa.string()),
        "split": pa.repeat("train", CLIPS),
        "flags": pa.ListArray.from_arrays(np.zeros(CLIPS + 1, np.int32), pa.array([], pa.string())),
        "labels": pa.ListArray.from_arrays(np.arange(CLIPS + 1, dtype=np.int32) * LABELS, labels.ravel()),
    }
    schema = MediaFormat().index_schema
    columns = [values.get(field.name, pa.array(sizes % 2**31)).cast(field.type) for field in schema]
    with pq.ParquetWriter(folder / "train.parquet", schema, compression="zstd") as writer:
        for batch in pa.table(columns, schema=schema).to_batches(1 << 14):
            writer.write_batch(batch)
    for name in names:
        (folder / name).write_bytes(b"")
    DatasetInfo(
        dataset="large",
        task="multilabel",
        num_classes=CLASSES,
        media=MediaFormat(),
        log_mel_statistics=MelStatistics(split="train", mean=0.0, std=1.0),
        splits={
            "train": SplitInfo(
                samples=CLIPS,
                failures=0,
                seconds=10.0 * CLIPS,
                shards=tuple(ShardFile(name=name, samples=CLIPS_PER_SHARD, size=0, sha256="") for name in names),
            )
        },
        code_version="0",
        ffmpeg_version="0",
        config_digest=MediaFormat().digest(),
    ).write(folder)
    rows = "".join(f"{number},c{number},Class {number}\n" for number in range(CLASSES))
    (folder / "labels.csv").write_text("index,id,display_name\n" + rows)
    return folder


def test_opening_is_quick_and_small(folder: Path) -> None:
    found = json.loads(subprocess.run([sys.executable, "-c", OPEN, folder], check=True, capture_output=True).stdout)
    assert found["clips"] == CLIPS
    assert found["keys"] == ["video_499999", "video_0", "video_123456"]
    assert found["shards"] == ["train-000976.tar", "train-000000.tar", "train-000241.tar"]
    assert found["labels"] == [[n % 500, 500 + n % 20, 520 + n % 7] for n in (499_999, 0, 123_456)]
    assert found["opened"] < 2
    assert found["kept"] / CLIPS < 500
