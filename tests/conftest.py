"""Fixtures for manifests and prep: rendered media, a packed dataset, HTTP and S3 servers, the command line."""

import contextlib
import io
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.media import Spec, render

SHARED = Path(__file__).parents[2] / "shared"
LISTS, CLIPS = SHARED / "data", SHARED / "clips"


@pytest.fixture(scope="session")
def official_lists() -> Path:
    """The folder of complete official lists."""
    if not (LISTS / "audioset").is_dir():
        pytest.skip(f"no official lists in {LISTS}")
    return LISTS


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """The folder of real clips."""
    if not (CLIPS / "README.md").is_file():
        pytest.skip(f"no real clips in {CLIPS}")
    return CLIPS


def each_real_clip(parameters: Iterable[Any]) -> list[Any]:
    """Parameters of a test on real clips; only the first if there are no clips, so that the test is skipped once."""
    found = list(parameters)
    return found if (CLIPS / "README.md").is_file() else found[:1]


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Spec], Path]:
    """A function that renders a spec, once per session."""
    folder = tmp_path_factory.mktemp("media")
    return cache(lambda spec: render(folder, spec))


@dataclass
class Outcome:
    """The result of one command line."""

    code: int
    out: str
    err: str


Door = Callable[..., Outcome]


@pytest.fixture(scope="session")
def mbt() -> Door:
    """A function that runs a command line in this process, through `cli.main`."""
    from mbt import cli

    def run(*arguments: object) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        argv, sys.argv = sys.argv, ["mbt", *map(str, arguments)]
        code = 0
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.argv = argv
        return Outcome(code, out.getvalue(), err.getvalue())

    return run


@dataclass
class LoopbackServer:
    """An HTTP server on 127.0.0.1; `answer` responds to requests, `requests` lists the path and Range header of each."""

    url: str
    answer: Callable[[BaseHTTPRequestHandler], None]
    requests: list[tuple[str, str | None]] = field(default_factory=list)


def refuse(request: BaseHTTPRequestHandler) -> None:
    """Answer 404."""
    request.send_error(404)


def serving(files: dict[str, bytes], codes: dict[str, int] | None = None) -> Callable[[BaseHTTPRequestHandler], None]:
    """A handler that serves `files` by path, and answers other paths with their status in `codes`, or 404."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path not in files:
            request.send_error((codes or {}).get(request.path, 404))
            return
        body = files[request.path]
        request.send_response(200)
        request.send_header("Content-Type", "video/mp4")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    return answer


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    """A loopback server that answers 404 until a test sets its `answer`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append((self.path, self.headers.get("Range")))
            state.answer(self)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = LoopbackServer(f"http://127.0.0.1:{http.server_port}", refuse)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 server; one per session, since fsspec caches its connections."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator["boto3.resources.base.ServiceResource"]:
    """An empty bucket `shards` on the S3 server, to which this process's S3 settings point."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3").create_bucket(Bucket="shards")
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()


@dataclass(frozen=True)
class Collection:
    """A folder of media with the lists that `mbt prep custom` takes.

    Attributes:
        source: the media files.
        clips: the list of clips.
        labels: the list of labels.
        content: for each key that can be packed, the rendered file's spec and the start of the clip in the file, in seconds.
    """

    source: Path
    clips: Path
    labels: Path
    content: dict[str, tuple[Spec, float]]

    def arguments(self, out: Path, *more: object) -> list[object]:
        """Arguments of `mbt` that pack the collection into `out`, with two samples per shard."""
        lists = ["--list", self.clips, "--labels", self.labels, "--source", self.source]
        return ["prep", "custom", *lists, "--out", out, "--shard-samples", 2, "--workers", 2, *more]


LISTED = (
    "whole,0,2,train,b;a",
    "whole,3.3,5.3,train,a",
    "-dash,0.5,2.5,train,c",
    "_under,1.5,3.5,eval,b",
    "vgg,12,14,eval,",
    "tall,0,2,train,a;b;c",
    "early,0,4,train,b",
    "half,0,4,train,b",
    "silent,0,2,train,a",
    "broken,0,2,eval,a",
    "absent,0,2,eval,c",
)
SPECS = {
    "whole": Spec("whole.mp4", fps="30", seconds=6, gop=300),
    "-dash": Spec("-dash.mkv", fps="30000/1001", seconds=3, channels=(0.4, 0.4)),
    "_under": Spec("_under_1500.mp4", fps="25/2", seconds=2.4),
    "vgg": Spec("below/vgg_000012.mp4", seconds=2),
    "tall": Spec("tall.mp4", seconds=2, width=180, height=320),
    "early": Spec("early.mp4", seconds=3.68),
    "half": Spec("half.mp4", seconds=3),
    "silent": Spec("silent.mp4", seconds=2, audio=False),
}


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Eight clips that can be packed, with every supported form of file name, and three that cannot."""
    folder = tmp_path_factory.mktemp("collection")
    for spec in SPECS.values():
        render(folder / "media", spec)
    (folder / "media" / "broken.mp4").write_bytes(b"no media at all" * 100)
    (folder / "clips.csv").write_text("\n".join(["video_id,start,end,split,labels", *LISTED]) + "\n")
    (folder / "labels.csv").write_text('id,display_name\na,Alpha\nb,"Beta, the second"\nc,Gamma\n')
    content = {
        "whole_0": (SPECS["whole"], 0.0),
        "whole_3300": (SPECS["whole"], 3.3),
        "-dash_500": (SPECS["-dash"], 0.5),
        "_under_1500": (SPECS["_under"], 0.0),
        "vgg_12000": (SPECS["vgg"], 0.0),
        "tall_0": (SPECS["tall"], 0.0),
        "early_0": (SPECS["early"], 0.0),
        "half_0": (SPECS["half"], 0.0),
    }
    return Collection(folder / "media", folder / "clips.csv", folder / "labels.csv", content)


@pytest.fixture(scope="session")
def packed(collection: Collection, mbt: Door, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection as a packed dataset folder, which tests must not change."""
    out = tmp_path_factory.mktemp("packed") / "dataset"
    outcome = mbt(*collection.arguments(out))
    assert outcome.code == 0, outcome.err
    return out
