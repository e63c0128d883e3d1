"""Starting ranks: with `--gpus`, from srun's variables, on two hosts; and what happens when one dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mbt.manifests.errors import ConfigError
from mbt.train.distributed.launcher import start_ranks
from mbt.train.distributed.signals import RESUMABLE
from mbt.train.trainer import train
from tests.tiny import TINY, tiny

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
STEPS = 60
SETTINGS = (
    *TINY,
    f"train.max_steps={STEPS}",
    "train.epochs=30",
    "train.checkpoint_every=10",
    "eval.split=none",
    "train.precision=float32",
)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def arguments(shards: Path, run: Path) -> list[str]:
    """Arguments of `mbt` for a run on CPUs."""
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return ["train", "--data", str(shards), "--recipe", "demo", "--out", str(run), *settings]


@pytest.fixture(scope="module")
def whole_run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in a single process."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(shards, run, tiny(*SETTINGS))
    return run


def rank_of(pid: str) -> str:
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((v.decode().removeprefix("RANK=") for v in variables if v.startswith(b"RANK=")), "")


def started(command: list[str], run: Path, checkpoint: int) -> tuple[subprocess.Popen[str], dict[str, int]]:
    """Start a run and wait until it has written a checkpoint; returns its launcher and the process of each rank."""
    launcher = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not (run / f"checkpoints/step-{checkpoint}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return launcher, {rank_of(pid): int(pid) for pid in children}


def test_a_run_resumes_after_a_rank_died_and_after_a_signal(shards: Path, whole_run: Path, tmp_path: Path) -> None:
    """A rank that dies stops the other; a signal to the launcher reaches both; a single process finishes the run."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "mbt", *arguments(shards, run), "--gpus", "2"]
    launcher, ranks = started(command, run, 10)
    os.kill(ranks["1"], signal.SIGKILL)
    killed = time.monotonic()
    _, err = launcher.communicate(timeout=60)
    assert time.monotonic() - killed < 35
    assert launcher.returncode == 1
    assert err.splitlines()[-1] == "error: rank 1 of 2 was killed by SIGKILL. Resume from the last checkpoint with --resume."
    assert not [pid for pid in ranks.values() if Path(f"/proc/{pid}").exists()]
    assert len(losses(run)) < STEPS
    launcher, _ = started([*command, "--resume"], run, 40)
    launcher.send_signal(signal.SIGTERM)
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == RESUMABLE, err
    assert 40 <= len(losses(run)) < STEPS
    train(shards, run, tiny(*SETTINGS), resume=True)
    assert losses(run) == pytest.approx(losses(whole_run), rel=1e-5)


def test_an_error_of_all_ranks_is_printed_once(tmp_path: Path) -> None:
    script = "import sys; from mbt.train.distributed.launcher import start_ranks; sys.exit(start_ranks(2, sys.argv[1:]))"
    command = [sys.executable, "-c", script, "shards", "stats", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_no_more_ranks_than_cores_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"--gpus 99: this machine has 3 CPU cores\. Use --gpus 3 or fewer"):
        start_ranks(99, ["train"])


def test_every_rank_has_a_thread_where_there_are_more_gpus_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    started = lambda *given: lambda *words: threads.append(os.environ["OMP_NUM_THREADS"])  # noqa: E731
    monkeypatch.setattr("mbt.train.distributed.launcher.elastic_launch", started)
    assert start_ranks(8, ["train"]) == 0
    assert threads == ["1"]


def test_a_rank_cannot_start_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="a launcher already started this process"):
        start_ranks(2, ["train"])


@pytest.fixture
def hosts() -> Iterator[list[tuple[list[str], str]]]:
    """Two network namespaces connected only to each other: a command prefix to run in each, and its address."""
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    names = [f"mbt{os.getpid()}{side}" for side in "ab"]
    addresses = ["10.177.0.1", "10.177.0.2"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted: {error.stderr.decode().strip()}")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", "eth-mbt", "netns", names[0], "type", "veth", "peer", "name", "eth-mbt", "netns", names[1])
        for name, address in zip(names, addresses, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth-mbt")
            ip("-n", name, "link", "set", "eth-mbt", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [(["ip", "netns", "exec", name], address) for name, address in zip(names, addresses, strict=True)]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_two_hosts_train_one_model(hosts: list[tuple[list[str], str]], shards: Path, whole_run: Path, tmp_path: Path) -> None:
    """One rank each, through torchrun's rendezvous, with a shared run directory."""
    meeting = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={hosts[0][1]}:29400"]
    training = ["-m", "mbt", *arguments(shards, tmp_path / "run")]
    launcher = [sys.executable, "-m", "torch.distributed.run", *meeting]
    ranks = [
        subprocess.Popen(
            [*host, *launcher, f"--local-addr={address}", f"--rdzv-conf=is_host={int(address == hosts[0][1])}", *training],
            cwd=ROOT,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "eth-mbt"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host, address in hosts
    ]
    try:
        for rank in ranks:
            _, err = rank.communicate(timeout=120)
            assert rank.returncode == 0, err[-3000:]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert losses(tmp_path / "run") == pytest.approx(losses(whole_run), rel=1e-5)
