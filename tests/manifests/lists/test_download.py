"""Downloads from a real server that misbehaves."""

import hashlib
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from mbt.manifests.clips import table_clips
from mbt.manifests.errors import InputError, StorageError
from mbt.manifests.lists import datasets
from mbt.manifests.lists.datasets import PublishedFile, Subset, audioset_clips
from mbt.manifests.lists.download import download
from tests.conftest import LoopbackServer

BODY = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)


def serving(body: bytes = BODY, *, ranges: bool = True, cut_first_at: int | None = None) -> Callable[..., None]:
    """An answer that serves `body`; the first one is cut off after `cut_first_at` bytes."""
    cuts = [cut_first_at]

    def answer(request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and ranges else 0
        if start >= len(body):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        cut = cuts.pop() if cuts else None
        request.wfile.write(body[start:cut])

    return answer


def fetch(server: LoopbackServer, path: Path) -> None:
    download(f"{server.url}/list.csv", path, len(BODY), DIGEST)


def test_file_is_downloaded_once(server: LoopbackServer, tmp_path: Path) -> None:
    server.answer = serving()
    fetch(server, tmp_path / "cache" / "list.csv")
    assert (tmp_path / "cache" / "list.csv").read_bytes() == BODY
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["list.csv"]
    fetch(server, tmp_path / "cache" / "list.csv")
    assert server.requests == [("/list.csv", None)]


def test_broken_connection_is_resumed(server: LoopbackServer, tmp_path: Path) -> None:
    server.answer = serving(cut_first_at=300_000)
    fetch(server, tmp_path / "list.csv")
    assert (tmp_path / "list.csv").read_bytes() == BODY
    assert [wanted for _, wanted in server.requests] == [None, "bytes=300000-"]


def test_partial_file_of_an_earlier_call_is_resumed(server: LoopbackServer, tmp_path: Path) -> None:
    (tmp_path / "list.csv.part").write_bytes(BODY[:12_345])
    server.answer = serving()
    fetch(server, tmp_path / "list.csv")
    assert (tmp_path / "list.csv").read_bytes() == BODY
    assert server.requests == [("/list.csv", "bytes=12345-")]


def test_server_that_ignores_ranges_is_read_from_the_start(server: LoopbackServer, tmp_path: Path) -> None:
    server.answer = serving(ranges=False, cut_first_at=300_000)
    fetch(server, tmp_path / "list.csv")
    assert (tmp_path / "list.csv").read_bytes() == BODY
    assert len(server.requests) == 2


@pytest.mark.parametrize("body", [BODY[:-1] + b"x", BODY + b"x"], ids=["other bytes", "too long"])
def test_other_content_is_refused_and_removed(server: LoopbackServer, tmp_path: Path, body: bytes) -> None:
    server.answer = serving(body)
    with pytest.raises(InputError, match="does not have the recorded size and SHA-256"):
        fetch(server, tmp_path / "list.csv")
    assert not list(tmp_path.iterdir())


def test_file_that_stays_too_short_is_refused(server: LoopbackServer, tmp_path: Path) -> None:
    server.answer = serving(BODY[:1000])
    with pytest.raises(InputError, match="cannot download"):
        fetch(server, tmp_path / "list.csv")
    assert not (tmp_path / "list.csv").exists()


def test_server_that_refuses_every_range_is_an_error(server: LoopbackServer, tmp_path: Path) -> None:
    server.answer = lambda request: request.send_error(416)
    (tmp_path / "list.csv.part").write_bytes(BODY[:1000])
    with pytest.raises(InputError, match="cannot download"):
        fetch(server, tmp_path / "list.csv")
    assert [wanted for _, wanted in server.requests] == ["bytes=1000-", None, None, None, None]


def test_404_is_not_retried(server: LoopbackServer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="404"):
        fetch(server, tmp_path / "list.csv")
    assert len(server.requests) == 1


def test_server_error_is_retried(server: LoopbackServer, tmp_path: Path) -> None:
    def busy_once(request: BaseHTTPRequestHandler) -> None:
        server.answer = serving()
        request.send_error(503)

    server.answer = busy_once
    fetch(server, tmp_path / "list.csv")
    assert len(server.requests) == 2


def test_unreachable_server_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot download"):
        download("http://127.0.0.1:9/list.csv", tmp_path / "list.csv", 1, DIGEST)


def test_cache_that_is_not_writable_is_a_storage_error(server: LoopbackServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        fetch(server, tmp_path / "file" / "list.csv")


def test_unbalanced_list_is_cached(server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b'# three\n# comment\n# lines\nabcdefghijk, 30.000, 40.000, "/m/04rlf,/m/09x0r"\n'
    published = PublishedFile(f"{server.url}/v1/unbalanced.csv", len(body), hashlib.sha256(body).hexdigest())
    monkeypatch.setitem(datasets.AUDIOSET.subsets, "unbalanced", Subset("train", published))
    monkeypatch.setenv("MBT_CACHE", str(tmp_path))
    server.answer = serving(body)
    for _ in range(2):
        (clip,) = table_clips(audioset_clips("unbalanced", None))
        assert (clip.key, clip.end_ms, clip.labels, clip.split) == ("abcdefghijk_30000", 40_000, (0, 137), "train")
    assert server.requests == [("/v1/unbalanced.csv", None)]
    assert (tmp_path / "audioset" / "unbalanced.csv").read_bytes() == body


def test_unknown_subset_is_refused() -> None:
    with pytest.raises(InputError, match=r"no subset 'train'.* balanced, eval, unbalanced"):
        audioset_clips("train", None)
