"""The four models of `mbt demo`, trained side by side."""

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click

from mbt.manifests.errors import ConfigError
from mbt.manifests.progress import progress

POLL_S = 0.1


@dataclass(frozen=True)
class Variant:
    """A model to compare: its name, and the recipe fields that it sets."""

    name: str
    settings: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Name of its run directory."""
        return self.name.replace(" ", "-")


VARIANTS = (
    Variant("video only", ('model.modalities=["rgb"]',)),
    Variant("audio only", ('model.modalities=["spec"]',)),
    Variant("late fusion", ("model.fusion_layer=4",)),
    Variant("bottleneck fusion", ()),
)
BOTTLENECK = VARIANTS[-1]


def train_variants(shards: Path, runs: Path, seed: int, cores: int) -> None:
    """Run `mbt train` for each model, one process per core at a time; a finished or interrupted run is resumed.

    The output of a process goes to `runs`/NAME.log.

    Raises:
        ConfigError: a training failed.
    """
    runs.mkdir(parents=True, exist_ok=True)
    jobs = min(cores, len(VARIANTS))
    environment = {**os.environ, "OMP_NUM_THREADS": str(cores // jobs)}
    commands = {variant: _command(variant, shards, runs, seed) for variant in VARIANTS}
    for words in commands.values():
        click.echo(f"$ mbt {shlex.join(words)}")
    click.echo(f"demo: these run {jobs} at a time; logs in {runs}/*.log")
    waiting, running = list(VARIANTS), dict[Variant, subprocess.Popen[bytes]]()
    with progress(len(VARIANTS), "train", "model") as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    variant = waiting.pop()
                    running[variant] = _start(commands[variant], _log(runs, variant), environment)
                for variant in [variant for variant, process in running.items() if process.poll() is not None]:
                    _check(variant, running.pop(variant).returncode, _log(runs, variant))
                    bar.update()
                time.sleep(POLL_S)
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()


def _command(variant: Variant, shards: Path, runs: Path, seed: int) -> list[str]:
    settings = [part for setting in (*variant.settings, f"train.seed={seed}") for part in ("--set", setting)]
    return [
        "train",
        "--data",
        str(shards),
        "--recipe",
        "demo",
        *settings,
        "--out",
        str(runs / variant.folder),
        "--resume",
        "auto",
    ]


def _start(words: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mbt", *words]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)


def _log(runs: Path, variant: Variant) -> Path:
    return runs / f"{variant.folder}.log"


def _check(variant: Variant, code: int, log: Path) -> None:
    if code:
        last = log.read_text(errors="replace").strip().rpartition("\n")[2]
        raise ConfigError(f"training of {variant.name} exited with {code}: {last}", f"See {log}; then run mbt demo again")
