"""The reader returns what tarfile, NumPy and json find in the tars, reads nothing else, and rejects damaged folders."""

import io
import json
import os
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mbt.manifests.errors import ShardError
from mbt.manifests.reading.reader import ShardReader
from mbt.manifests.reading.split import read_index
from mbt.manifests.shards import MediaFormat, VideoFormat, read_dataset


def members(folder: Path) -> dict[str, dict[str, bytes]]:
    """Bytes of each member according to tarfile, by key and extension."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                found.setdefault(key, {})[extension] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


@pytest.fixture(scope="module")
def expected(packed: Path) -> dict[str, dict[str, bytes]]:
    return members(packed)


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def test_samples_match_the_tars(packed: Path, expected: dict[str, dict[str, bytes]]) -> None:
    keys = []
    for split in ("train", "eval"):
        with ShardReader(packed, split) as reader:
            for row in range(len(reader)):
                sample = expected[reader.key(row)]
                description = json.loads(sample["json"])
                assert reader[row].description() == description
                assert (description["key"], description["split"]) == (reader.key(row), split)
                assert reader.num_frames(row) == len(description["frame_bytes"])
                keys.append(reader.key(row))
    assert sorted(keys) == sorted(expected)


def test_frames_match_the_stream(packed: Path, expected: dict[str, dict[str, bytes]]) -> None:
    with ShardReader(packed, "train") as reader:
        for row in range(len(reader)):
            sizes = json.loads(expected[reader.key(row)]["json"])["frame_bytes"]
            stream = expected[reader.key(row)]["mjpg"]
            ends = np.cumsum(sizes)
            assert ends[-1] == len(stream)
            numbers = [len(sizes) - 1, 0, 7, 7, 24]
            assert reader[row].frames(numbers) == [stream[ends[n] - sizes[n] : ends[n]] for n in numbers]


def test_log_mel_rows_match_the_array(packed: Path, expected: dict[str, dict[str, bytes]]) -> None:
    with ShardReader(packed, "train") as reader:
        for row in range(len(reader)):
            array = np.load(io.BytesIO(expected[reader.key(row)]["mel.npy"]))
            assert array.dtype == np.float16
            assert array.shape == (4 * reader.num_frames(row), 128)
            for start, stop in [(0, len(array)), (0, 1), (33, 133), (len(array) - 1, len(array)), (5, 5)]:
                np.testing.assert_array_equal(reader[row].log_mel(start, stop), array[start:stop])


def test_targets_match_the_labels(packed: Path, expected: dict[str, dict[str, bytes]]) -> None:
    ids = ["a", "b", "c"]
    for split in ("train", "eval"):
        with ShardReader(packed, split) as reader:
            wanted = [
                [float(i in json.loads(expected[reader.key(row)]["json"])["label_ids"]) for i in ids]
                for row in range(len(reader))
            ]
            assert reader.targets().tolist() == wanted
            assert reader.targets().dtype == np.float32
            assert [label.id for label in reader.labels.labels] == ids


def test_only_needed_bytes_are_read(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes_read: list[int] = []
    pread = os.pread

    def counting(descriptor: int, size: int, offset: int) -> bytes:
        sizes_read.append(size)
        return pread(descriptor, size, offset)

    with ShardReader(packed, "train") as reader:
        sizes = reader[0].description()["frame_bytes"]
        json_size = reader.index["json_size"][0].as_py()
        monkeypatch.setattr(os, "pread", counting)
        reader[0].frames([3, 20])
        assert sizes_read == [json_size, sizes[3], sizes[20]]
        sizes_read.clear()
        reader[0].frames([5, 6, 7, 2])
        assert sizes_read == [json_size, sum(sizes[5:8]), sizes[2]], "consecutive frames with one read"
        sizes_read.clear()
        reader[0].log_mel(40, 65)
        assert sizes_read == [25 * 128 * 2]


def test_threads_read_the_same_frames(packed: Path) -> None:
    with ShardReader(packed, "train") as reader, ThreadPoolExecutor(8) as pool:
        expected = [reader[row].frames([1]) for row in range(len(reader))] * 20
        assert list(pool.map(lambda row: reader[row].frames([1]), list(range(len(reader))) * 20)) == expected


def test_closing_closes_the_tars(copy: Path) -> None:
    def open_tars() -> int:
        links = (os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())
        return sum(name.startswith(str(copy)) and name.endswith(".tar") for name in links)

    with ShardReader(copy, "train") as reader:
        for row in range(len(reader)):
            reader[row].description()
        assert open_tars() > 0
    assert open_tars() == 0


@pytest.mark.parametrize("number", [-1, 50, 10_000])
def test_frames_outside_the_sample_are_refused(packed: Path, number: int) -> None:
    with ShardReader(packed, "eval") as reader, pytest.raises(ShardError, match=f"has 50 frames, no frame {number}"):
        reader[0].frames([0, number])


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4), (0, 201)])
def test_rows_outside_the_sample_are_refused(packed: Path, start: int, stop: int) -> None:
    with ShardReader(packed, "eval") as reader, pytest.raises(ShardError, match="has 200 log-mel rows"):
        reader[0].log_mel(start, stop)


def test_unknown_split_is_refused(packed: Path) -> None:
    with pytest.raises(ShardError, match=r"no split 'test'\. Choose one of: eval, train\."):
        ShardReader(packed, "test")


@pytest.mark.parametrize("keep", [0, 1000, -1])
def test_truncated_tar_is_refused_on_opening(copy: Path, keep: int) -> None:
    tar = copy / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:keep])
    with pytest.raises(ShardError, match=r"train-000001.tar has \d+ bytes, expected \d+.*mbt prep"):
        ShardReader(copy, "train")


def test_missing_tar_is_refused_on_opening(copy: Path) -> None:
    (copy / "train-000000.tar").unlink()
    with pytest.raises(ShardError, match=r"the shard .*train-000000.tar is missing"):
        ShardReader(copy, "train")
    with ShardReader(copy, "eval") as reader:
        assert len(reader) == 2


def test_tar_truncated_after_opening_is_an_error(copy: Path) -> None:
    with ShardReader(copy, "eval") as reader:
        os.truncate(copy / "eval-000000.tar", 700)
        with pytest.raises(ShardError, match="the tar is truncated"):
            reader[1].frames([0])


def test_bytes_that_are_not_a_jpeg_are_an_error(copy: Path) -> None:
    with ShardReader(copy, "eval") as reader:
        with (copy / "eval-000000.tar").open("r+b") as tar:
            tar.seek(reader.index["mjpg_offset"][0].as_py())
            tar.write(b"\x00\x00")
        with pytest.raises(ShardError, match=r"frame 0 of .* is not a valid JPEG"):
            reader[0].frames([0])
        assert len(reader[0].frames([1])) == 1


def test_dataset_of_another_version_is_refused(copy: Path) -> None:
    content = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**content, "format_version": 2}))
    with pytest.raises(ShardError, match="format version 2; this program reads version 1"):
        ShardReader(copy, "train")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "is damaged"), ("[]", "format version None"), ('{"format_version": 1}', "is invalid at"), ("", "is damaged")],
)
def test_damaged_dataset_is_refused(copy: Path, text: str, reason: str) -> None:
    (copy / "dataset.json").write_text(text)
    with pytest.raises(ShardError, match=reason):
        read_dataset(copy)


def test_dataset_with_unknown_fields_is_refused(copy: Path) -> None:
    content = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**content, "later": 1}))
    with pytest.raises(ShardError, match="is invalid at later"):
        read_dataset(copy)


def test_folder_without_a_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"has no dataset\.json"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("version", [b"2", b"none", b"\xff"])
def test_index_of_another_version_is_refused(copy: Path, version: bytes) -> None:
    table = pq.read_table(copy / "train.parquet")
    metadata = {b"format": b"mbt-shards", b"format_version": version} if version != b"none" else {}
    pq.write_table(table.replace_schema_metadata(metadata), copy / "train.parquet")
    with pytest.raises(ShardError, match=f"format version {version.decode(errors='replace')}; this program reads version 1"):
        ShardReader(copy, "train")


def test_index_without_a_column_is_refused(copy: Path) -> None:
    table = pq.read_table(copy / "train.parquet")
    pq.write_table(table.drop_columns(["mel_size"]), copy / "train.parquet")
    with pytest.raises(ShardError, match="has wrong columns"):
        ShardReader(copy, "train")


def test_missing_or_damaged_index_is_refused(copy: Path) -> None:
    (copy / "eval.parquet").write_bytes(b"PAR1")
    (copy / "train.parquet").unlink()
    for split in ("train", "eval"):
        with pytest.raises(ShardError, match="cannot read the index"):
            ShardReader(copy, split)


def test_every_error_of_pyarrow_means_a_damaged_index(copy: Path) -> None:
    """Flip one bit in each byte of the Arrow schema in the footer; some of them give types that Arrow does not have."""
    path = copy / "train.parquet"
    content = path.read_bytes()
    reasons = set()
    for place in range(content.index(b"ARROW:schema"), len(content) - 8):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            read_index(path, MediaFormat())
        except ShardError as error:
            reasons.add(type(error.__context__))
    assert {OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError} <= reasons


def test_digest_depends_on_the_media_format() -> None:
    digests = {MediaFormat(video=VideoFormat(short_side=side)).digest() for side in (128, 256, 256)}
    assert len(digests) == 2
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)
