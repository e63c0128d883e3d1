"""Shards uploaded to a URL: a real S3 server on loopback, and fsspec's own file systems."""

import hashlib
import json
from pathlib import Path

import boto3
import pytest

from mbt.manifests.errors import InputError, StorageError
from mbt.prep.state.store import Store
from tests.conftest import Collection, Door

pytestmark = pytest.mark.slow


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that readers of a dataset folder use."""
    paths = [
        path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".") and path.name != "clips.parquet"
    ]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_shards_on_s3_equal_those_in_a_folder(
    packed: Path,
    collection: Collection,
    bucket: "boto3.resources.base.ServiceResource",
    tmp_path: Path,
    mbt: Door,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    arguments = [*collection.arguments(out), "--to", "s3://shards/deep/set"]
    done = mbt(*arguments)
    assert done.code == 0, done.err
    for item in bucket.objects.all():
        assert item.key.startswith("deep/set/")
        (tmp_path / "back" / item.key).parent.mkdir(parents=True, exist_ok=True)
        bucket.download_file(item.key, str(tmp_path / "back" / item.key))
    assert digests(tmp_path / "back/deep/set") == digests(packed)
    assert mbt("shards", "verify", tmp_path / "back/deep/set").code == 0
    assert not list(out.glob("*.tar"))
    assert not list(out.glob("*.idx"))

    written = {item.key: item.last_modified for item in bucket.objects.all() if item.key.endswith(".tar")}

    def no_decoding(*_: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr("mbt.prep.pack.pack_shard.decode_clip", no_decoding)
        assert mbt(*arguments).code == 0
    assert {item.key: item.last_modified for item in bucket.objects.all() if item.key.endswith(".tar")} == written
    assert mbt("prep", "report", out).code == 0
    sizes = [item.size for item in bucket.objects.all() if item.key.endswith(".tar")]
    assert json.loads((out / "report.json").read_text())["packed_bytes"] == sum(sizes)

    bucket.Object("deep/set/train-000001.tar").delete()
    assert mbt(*arguments).code == 0
    assert bucket.Object("deep/set/train-000001.tar").content_length == (packed / "train-000001.tar").stat().st_size
    moved = mbt(*collection.arguments(out), "--to", "s3://shards/elsewhere")
    assert moved.code == 2
    assert "packed with other settings: --to s3://shards/deep/set, not s3://shards/elsewhere (see " in moved.err


def test_packed_but_not_uploaded_shards_are_uploaded_without_decoding(
    collection: Collection,
    bucket: "boto3.resources.base.ServiceResource",
    tmp_path: Path,
    mbt: Door,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that goes away midway gives a one-line error; resuming repeats no work."""
    arguments = [*collection.arguments(tmp_path / "out"), "--to", "s3://shards/set"]
    put = Store.put

    def server_stops(self: Store, name: str) -> None:
        if name == "train-000001.tar":
            monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
            self._files.clear_instance_cache()
            self = Store(self.folder, self.url)
        put(self, name)

    with monkeypatch.context() as patch:
        patch.setattr("s3fs.S3FileSystem.retries", 1)
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setattr(Store, "put", server_stops)
        done = mbt(*arguments)
    assert done.code == 2
    assert "error: cannot reach s3://shards/set: " in done.err.splitlines()[-1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.meta.client.meta.endpoint_url)
    Store(tmp_path, "s3://x")._files.clear_instance_cache()
    decoded = []

    def record(path: Path, *more: object) -> object:
        decoded.append(path.stem)
        return decode(path, *more)  # type: ignore[arg-type]

    from mbt.prep.pack import pack_shard

    decode = pack_shard.decode_clip
    monkeypatch.setattr("mbt.prep.pack.pack_shard.decode_clip", record)
    assert mbt(*arguments).code == 0
    assignment = json.loads((tmp_path / "out/work/assignment.json").read_text())
    after = list(assignment)[list(assignment).index("train-000001.tar") + 1 :]
    assert 0 < len(decoded) <= sum(len(assignment[name]) for name in after)
    names = {Path(item.key).name for item in bucket.objects.all()}
    assert {"dataset.json", "train-000000.tar", "train-000001.tar", "train-000001.idx"} <= names


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_any_file_system(protocol: str, tmp_path: Path) -> None:
    url = f"{protocol}://{tmp_path}/remote"
    store = Store(tmp_path / "local", url)
    (tmp_path / "local").mkdir()
    (tmp_path / "local/a.tar").write_bytes(b"12345")
    assert store.size("a.tar") is None
    store.put("a.tar")
    assert (store.size("a.tar"), (tmp_path / "local/a.tar").exists()) == (5, True)
    store.release("a.tar")
    assert (Store(tmp_path / "local", url).size("a.tar"), (tmp_path / "local/a.tar").exists()) == (5, False)
    store.remove("a.tar")
    store.remove("a.tar")
    assert Store(tmp_path / "local", url).size("a.tar") is None


def test_urls_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        Store(tmp_path, "nowhere://a/b")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot reach"):
        Store(tmp_path, f"file://{tmp_path}/file/deeper").put("file")
