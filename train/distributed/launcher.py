"""`mbt train --gpus N`: starts and watches the ranks of one machine with torch's elastic launcher."""

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
from mbt.train.distributed.signals import RESUMABLE, SIGNALS

RUN_ID = "mbt"
USER_ERROR = 2
"""Exit code of an error that a rank explained in one line."""
POLL_S = 0.1
"""Seconds between checks of the ranks."""


def is_started_here() -> bool:
    """Whether this process is a rank started by `start_ranks`."""
    return os.environ.get("TORCHELASTIC_RUN_ID") == RUN_ID


def start_ranks(ranks: int, arguments: Sequence[str]) -> int:
    """Run `mbt ARGUMENTS` in `ranks` processes, and stop all of them when one fails.

    Rank 0 writes to this process's output. The output of other ranks is hidden; if one fails, its last line on stderr is shown.

    Args:
        ranks: number of processes; each gets one GPU, or an equal share of the cores if the machine has no GPU.
        arguments: command-line arguments of `mbt`.

    Returns:
        The exit code: 0; or that of the rank that failed, 1 if a signal killed it; or 128 + N if signal N stopped this process.

    Raises:
        ConfigError: this machine has fewer GPUs, or without GPUs fewer cores; or another launcher started this process.
    """
    if "RANK" in os.environ:
        raise ConfigError("--gpus starts ranks, but a launcher already started this process as one", "Drop --gpus")
    unit, available = ("GPUs", torch.cuda.device_count()) if torch.cuda.is_available() else ("CPU cores", _num_cores())
    if ranks > available:
        raise ConfigError(f"--gpus {ranks}: this machine has {available} {unit}", f"Use --gpus {available} or fewer")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(_num_cores() // ranks, 1)))
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    for number in SIGNALS:
        signal.signal(number, _forward)
    with tempfile.TemporaryDirectory(prefix="mbt-ranks-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=ranks,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=RUN_ID,
            max_restarts=0,
            monitor_interval=POLL_S,
            signals_to_handle="SIGINT,SIGHUP,SIGQUIT",
            logs_specs=DefaultLogsSpecs(logs, redirects=dict.fromkeys(range(1, ranks), Std.ALL)),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "mbt", *arguments)
        except ChildFailedError as failed:
            return _report(failed, ranks, Path(logs))
        except SignalException as stopped:
            return 128 + stopped.sigval
    return 0


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))


def _report(failed: ChildFailedError, ranks: int, logs: Path) -> int:
    rank, failure = min(failed.failures.items(), key=lambda item: (_is_consequence(item[1].exitcode), item[0]))
    if failure.exitcode == RESUMABLE or (rank == 0 and failure.exitcode == USER_ERROR):
        return failure.exitcode
    stderr = [line for path in logs.glob(f"*/attempt_0/{rank}/stderr.log") for line in path.read_text().splitlines() if line]
    if failure.exitcode == USER_ERROR:
        click.echo("\n".join(stderr[-1:]), err=True, nl=bool(stderr))
        return USER_ERROR
    end = (
        f"was killed by {signal.Signals(-failure.exitcode).name}" if failure.exitcode < 0 else f"exited with {failure.exitcode}"
    )
    last = f": {stderr[-1]}" if stderr else ""
    click.echo(f"error: rank {rank} of {ranks} {end}{last}. Resume from the last checkpoint with --resume.", err=True)
    return max(failure.exitcode, 1)


def _is_consequence(exit_code: int) -> int:
    """Sort key for exit codes, likely causes first. A rank that lost a peer exits with an explanation; the rest are stopped."""
    if exit_code == -signal.SIGTERM:
        return 2
    return int(exit_code in (USER_ERROR, RESUMABLE))


def _forward(number: int, frame: object) -> None:
    """Forward a signal to the ranks, which write a checkpoint and stop; there is no time limit."""
    for task in Path("/proc/self/task").iterdir():
        for rank in (task / "children").read_text().split():
            os.kill(int(rank), number)
