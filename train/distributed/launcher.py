"""`mbt train --gpus N`: the ranks of one machine, started and watched here by torch's elastic launcher."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mbt.manifests.errors import ConfigError
from mbt.train.distributed.signals import RESUME_ME, SIGNALS

RUN_ID = "mbt"
MENDABLE = 2
"""Exit code of an error that a rank has explained in one line."""
STOP_S = 0.1
"""Seconds between two looks at the ranks."""


def is_started_here() -> bool:
    """Whether this process is a rank that `start_ranks` has started."""
    return os.environ.get("TORCHELASTIC_RUN_ID") == RUN_ID


def start_ranks(ranks: int, arguments: Sequence[str]) -> int:
    """Run `mbt ARGUMENTS` in so many processes, and stop all when one fails.

    Rank 0 writes to this process's output; of another the last line on stderr is shown if it is the one that failed.

    Args:
        ranks: processes; each has a GPU, or a share of the cores where the machine has no GPU.
        arguments: of the command line.

    Returns:
        The exit code: 0, or that of the rank that failed, 1 if a signal killed it; 128 + N if signal N stopped this one.

    Raises:
        ConfigError: there are fewer GPUs, or another launcher has started this process.
    """
    if "RANK" in os.environ:
        raise ConfigError("--gpus starts ranks, and a launcher has started this one", "Leave out --gpus")
    if torch.cuda.is_available() and ranks > torch.cuda.device_count():
        raise ConfigError(f"--gpus {ranks}: this machine has {torch.cuda.device_count()}", "Ask for as many at the most")
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // ranks, 1)))
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    for number in SIGNALS:
        signal.signal(number, _pass_on)
    with tempfile.TemporaryDirectory(prefix="mbt-ranks-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=ranks,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=RUN_ID,
            max_restarts=0,
            monitor_interval=STOP_S,
            signals_to_handle="SIGINT,SIGHUP,SIGQUIT",
            logs_specs=DefaultLogsSpecs(logs, redirects=dict.fromkeys(range(1, ranks), Std.ALL)),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "mbt", *arguments)
        except ChildFailedError as failed:
            return _explained(failed, ranks, Path(logs))
        except SignalException as stopped:
            return 128 + stopped.sigval
    return 0


def _explained(failed: ChildFailedError, ranks: int, logs: Path) -> int:
    rank, failure = min(failed.failures.items(), key=lambda item: (_is_consequence(item[1].exitcode), item[0]))
    if failure.exitcode == RESUME_ME or (rank == 0 and failure.exitcode == MENDABLE):
        return failure.exitcode
    said = [line for path in logs.glob(f"*/attempt_0/{rank}/stderr.log") for line in path.read_text().splitlines() if line]
    if failure.exitcode == MENDABLE:
        click.echo("\n".join(said[-1:]), err=True, nl=bool(said))
        return MENDABLE
    how = (
        f"was killed by {signal.Signals(-failure.exitcode).name}" if failure.exitcode < 0 else f"exited with {failure.exitcode}"
    )
    last = f": {said[-1]}" if said else ""
    click.echo(f"error: rank {rank} of {ranks} {how}{last}. Go on after the last checkpoint by --resume.", err=True)
    return max(failure.exitcode, 1)


def _is_consequence(exit_code: int) -> int:
    """How likely a rank's end follows from that of another: ranks that lost one explain it, and the rest is stopped."""
    if exit_code == -signal.SIGTERM:
        return 2
    return int(exit_code in (MENDABLE, RESUME_ME))


def _pass_on(number: int, frame: object) -> None:
    """Hand a signal to the ranks, which write a checkpoint and stop, in the time that takes."""
    for task in Path("/proc/self/task").iterdir():
        for rank in (task / "children").read_text().split():
            os.kill(int(rank), number)
