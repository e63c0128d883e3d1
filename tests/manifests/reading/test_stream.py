"""A stream yields the samples of the folder, over every kind of URL and over connections that break."""

import shlex
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest

from mbt.manifests.errors import InputError, ShardError
from mbt.manifests.reading.reader import ShardReader
from mbt.manifests.reading.remote import Remote
from mbt.manifests.reading.split import Sample
from mbt.manifests.reading.stream import ShardStream
from mbt.manifests.shards import read_dataset
from tests.conftest import LoopbackServer, refuse, serving
from tests.mediaserver import MediaServer, Reset, ServedFile, Short, Status, media_server

CAT = shlex.join(["pipe:" + sys.executable, "-c", "import sys; sys.stdout.buffer.write(open(sys.argv[1], 'rb').read())"])


@pytest.fixture
def served(packed: Path) -> Iterator[MediaServer]:
    """The folder at /set/ on a server that supports ranges."""
    with media_server() as server:
        server.files |= {f"/set/{path.name}": ServedFile(path.read_bytes()) for path in packed.iterdir() if path.is_file()}
        yield server


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits take no time; their lengths in seconds are recorded."""
    waits: list[float] = []
    monkeypatch.setattr("mbt.manifests.reading.remote.time.sleep", waits.append)
    return waits


def content(sample: Sample) -> tuple[str, list[bytes], bytes, dict[str, object]]:
    """Everything in a sample."""
    frames = sample.frames(list(range(sample.num_frames)))
    return sample.key, frames, sample.log_mel(0, 4 * sample.num_frames).tobytes(), sample.description()


def check(url: str, packed: Path) -> None:
    """Assert that both splits behind the URL equal those of the folder."""
    for split in ("train", "eval"):
        with ShardStream(url, split) as stream, ShardReader(packed, split) as reader:
            assert stream.info == reader.info
            assert stream.place == url
            np.testing.assert_array_equal(stream.targets(), reader.targets())
            found = list(stream.walk())
            assert [content(sample) for sample in found] == [content(reader[row]) for row in range(len(reader))]


def test_http_with_ranges(packed: Path, served: MediaServer) -> None:
    check(f"{served.url}/set", packed)
    tars = {f"/set/{shard.name}" for split in read_dataset(packed).splits.values() for shard in split.shards}
    asked = [request for request in served.requests if request.path in tars]
    assert sorted(request.path for request in asked) == sorted(tars)
    assert {request.status for request in asked} == {206}


def test_http_without_ranges(packed: Path, server: LoopbackServer) -> None:
    files = {f"/a/set/{path.name}": path.read_bytes() for path in packed.iterdir() if path.is_file()}
    server.answer = serving(files)
    check(f"{server.url}/a/set/", packed)


def test_files_and_caches_of_fsspec(packed: Path) -> None:
    check(f"file://{packed}", packed)
    check(f"simplecache::file://{packed}", packed)


def test_output_of_a_command(packed: Path) -> None:
    check(f"{CAT} {shlex.quote(str(packed))}/{{}}", packed)
    check(f"pipe:cat {shlex.quote(str(packed))}/{{}}", packed)


def test_s3(packed: Path, bucket: "boto3.resources.base.ServiceResource") -> None:
    for path in packed.iterdir():
        if path.is_file():
            bucket.upload_file(str(path), f"below/{path.name}")
    check("s3://shards/below", packed)


def test_samples_come_in_the_requested_order(packed: Path) -> None:
    with ShardStream(f"file://{packed}", "train") as stream, ShardReader(packed, "train") as reader:
        rows = np.array([4, 5, 0, 3, 1])
        assert [content(sample) for sample in stream.walk(rows)] == [content(reader[row]) for row in rows.tolist()]


def test_samples_can_be_skipped_in_a_pipe(packed: Path) -> None:
    with ShardStream(f"pipe:cat {packed}/{{}}", "train") as stream, ShardReader(packed, "train") as reader:
        assert [content(sample) for sample in stream.walk(np.array([1, 3, 5]))] == [content(reader[row]) for row in (1, 3, 5)]


def test_broken_connections_are_resumed(
    packed: Path, served: MediaServer, patient: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    tar = served.files["/set/train-000000.tar"]
    tar.faults = [Reset(after=None), Status(503), Reset(after=100_000), Short(after=9_999)]
    check(f"{served.url}/set", packed)
    assert not tar.faults
    assert patient == [0.5, 1.0, 2.0, 4.0]
    assert "train-000000.tar" in capfd.readouterr().err


def test_broken_connections_of_a_server_without_ranges_are_resumed(
    packed: Path, served: MediaServer, server: LoopbackServer, patient: list[float]
) -> None:
    """The second connection starts at byte 0; the first half of the tar is read again and discarded."""
    files = {f"/{path.name}": path.read_bytes() for path in packed.iterdir() if path.is_file()}
    breaks = ["/train-000000.tar"]

    def answer(request: object) -> None:
        path = request.path  # type: ignore[attr-defined]
        if path in breaks and request.command == "GET":  # type: ignore[attr-defined]
            breaks.remove(path)
            size = len(files[path])
            request.send_response(200)  # type: ignore[attr-defined]
            request.send_header("Content-Length", str(size))  # type: ignore[attr-defined]
            request.end_headers()  # type: ignore[attr-defined]
            request.wfile.write(files[path][: size // 2])  # type: ignore[attr-defined]
            request.close_connection = True  # type: ignore[attr-defined]
        else:
            serving(files)(request)  # type: ignore[arg-type]

    server.answer = answer
    check(server.url, packed)
    assert not breaks
    assert len(patient) == 1


def test_a_server_that_stays_down_is_one_error(packed: Path, served: MediaServer, patient: list[float]) -> None:
    served.files["/set/train-000001.tar"].always = Status(503)
    with ShardStream(f"{served.url}/set", "train") as stream:
        rows = np.flatnonzero(stream.shard_of == stream.shards.index("train-000001.tar"))
        with pytest.raises(ShardError, match=r"cannot read train-000001\.tar from http://.*/set: .*503.* Check the address"):
            list(stream.walk(rows))
    assert len(patient) == 7


def test_missing_files_are_not_retried(packed: Path, served: MediaServer, patient: list[float]) -> None:
    with pytest.raises(ShardError, match=r"cannot read dataset\.json from http://.*/other"):
        ShardStream(f"{served.url}/other", "train")
    with pytest.raises(ShardError, match=r"http://.*/set has no split 'test'\. Choose one of: "):
        ShardStream(f"{served.url}/set", "test")
    del served.files["/set/train-000001.tar"]
    with ShardStream(f"{served.url}/set", "train") as stream, pytest.raises(ShardError, match=r"cannot read train-000001\.tar"):
        list(stream.walk())
    assert patient == []


def test_a_truncated_file_is_named(packed: Path, served: MediaServer, patient: list[float]) -> None:
    tar = served.files["/set/train-000000.tar"]
    tar.content = tar.content[: len(tar.content) // 2]
    too_early = r"train-000000\.tar from .*: it ends (before byte [\d,]+|[\d,]+ bytes too early)\."
    with ShardStream(f"{served.url}/set", "train") as stream, pytest.raises(ShardError, match=too_early):
        list(stream.walk())


def test_a_damaged_dataset_is_named_with_its_url(packed: Path, served: MediaServer) -> None:
    served.files["/set/dataset.json"].content = b"{}"
    with pytest.raises(ShardError, match=r"^http://[^ ]*/set/dataset\.json has format version None"):
        ShardStream(f"{served.url}/set", "train")


def test_a_failed_command_is_named(packed: Path, patient: list[float]) -> None:
    with pytest.raises(ShardError, match=r"cannot read dataset\.json from pipe:cat .*: cat .* exited with status 1"):
        ShardStream(f"pipe:cat {packed}/no/{{}}", "train")
    with pytest.raises(ShardError, match=r"No such file or directory: 'no-such-command'"):
        ShardStream("pipe:no-such-command {}", "train")


def test_closing_a_stream_ends_its_command(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading stops in the middle of an endless output; the command must not be left running."""
    with ShardStream(f"pipe:cat {packed}/{{}}", "train") as stream:
        stream.remote = Remote("pipe:sh -c 'trap : TERM PIPE; yes mbt-endless # {}'")
        monkeypatch.setattr("mbt.manifests.reading.remote.STOP_S", 0.1)
        next(stream.walk(np.array([0])))
    assert subprocess.run(["pgrep", "-f", "yes mbt-endless"], capture_output=True).stdout == b""


@pytest.mark.parametrize("name", ["../secret", "a b", "$(id)", "-rf", "", "x;y"])
def test_names_that_no_dataset_has_are_refused(name: str, packed: Path) -> None:
    for url in (f"file://{packed}", f"pipe:cat {packed}/{{}}"):
        with pytest.raises(ShardError, match="is not the name of a file"):
            Remote(url).fetch(name, packed)


def test_query_and_password_are_sent_but_not_shown(packed: Path, server: LoopbackServer) -> None:
    files = {f"/set/{path.name}?sig=secret": path.read_bytes() for path in packed.iterdir() if path.is_file()}
    server.answer = serving(files)
    with ShardStream(f"{server.url}/set?sig=secret", "eval") as stream, ShardReader(packed, "eval") as reader:
        assert [content(sample) for sample in stream.walk()] == [content(reader[row]) for row in range(len(reader))]
        assert stream.place == f"{server.url}/set"
    with pytest.raises(ShardError, match="cannot read") as refused:
        ShardStream(f"{server.url}/other?sig=secret", "eval")
    assert "secret" not in str(refused.value)
    server.answer = lambda request: seen.append(request.headers.get("Authorization")) or refuse(request)  # type: ignore[func-returns-value]
    seen: list[str | None] = []
    with pytest.raises(ShardError, match=r"from http://127\.0\.0\.1:\d+/set: HTTP Error 404"):
        ShardStream(f"{server.url.replace('//', '//user:p%40ss@')}/set", "eval")
    assert seen == [f"Basic {b64encode(b'user:p@ss').decode()}"]
    assert Remote("memory://user:password@host/set?key=1").display_url == "memory://host/set"


def test_unsupported_urls_are_refused() -> None:
    with pytest.raises(InputError, match="cannot read from nothing://set"):
        Remote("nothing://set")
    with pytest.raises(InputError, match=r"has no {} for the file name"):
        Remote("pipe:cat /shards")
    with pytest.raises(InputError, match="is not a valid command: No closing quotation"):
        Remote("pipe:cat '{}")
