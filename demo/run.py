"""`mbt demo`: the whole road in small, by the ordinary commands on rendered clips."""

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mbt.demo.clips import render

KINDS = ("seen", "heard", "matched")
NUM_TRAIN, NUM_EVAL = 504, 144
SHORT_SIDE = 64


@dataclass(frozen=True)
class Variant:
    """One of the models that are compared: its name, and what it sets in the recipe."""

    name: str
    settings: tuple[str, ...]


VARIANTS = (
    Variant("video only", ('model.modalities=["rgb"]',)),
    Variant("audio only", ('model.modalities=["spec"]',)),
    Variant("late fusion", ("model.fusion_layer=4",)),
    Variant("bottleneck fusion", ()),
)


def run_demo(command: click.Command, out: Path, seed: int) -> None:
    """Render clips, pack them, train and evaluate four models by `command`, and print one table.

    What an earlier, interrupted call finished is kept.

    Args:
        command: the command line itself.
        out: folder for everything.
        seed: of clips and trainings.

    Raises:
        MbtError: as the commands do.
    """
    start = time.monotonic()
    workers = len(os.sched_getaffinity(0))
    clips, shards = out / "clips", out / "shards"
    rendered = render(clips, seed, NUM_TRAIN, NUM_EVAL, workers)
    click.echo(f"demo: {NUM_TRAIN + NUM_EVAL} clips of what is seen and heard in {clips} ({rendered} rendered now)")
    lists = ["--list", clips / "clips.csv", "--labels", clips / "labels.csv", "--source", clips / "media"]
    _run(command, "prep", "custom", "--name", "demo", *lists, "--short-side", SHORT_SIDE, "--out", shards)
    reports = {variant.name: _train_and_evaluate(command, variant, shards, out / "runs", seed) for variant in VARIANTS}
    click.echo(f"\n{_table(reports)}\n\ndemo: done in {time.monotonic() - start:.0f} s\n\n{_next(out)}")


def _train_and_evaluate(command: click.Command, variant: Variant, shards: Path, runs: Path, seed: int) -> dict[str, Any]:
    run = runs / variant.name.replace(" ", "-")
    settings = [part for setting in (*variant.settings, f"train.seed={seed}") for part in ("--set", setting)]
    _run(command, "train", "--data", shards, "--recipe", "demo", *settings, "--out", run, "--resume", "auto")
    report = run / "eval.json"
    _run(command, "eval", "--checkpoint", run, "--data", shards, "--crops", 4, "--out", report)
    return json.loads(report.read_bytes())


def _run(command: click.Command, *arguments: object) -> None:
    words = [str(argument) for argument in arguments]
    click.echo(f"\n$ mbt {shlex.join(words)}")
    command.main(words, prog_name="mbt", standalone_mode=False)


def _table(reports: dict[str, dict[str, Any]]) -> str:
    lines = ["mAP on held-out clips", "", f"{'model':<18}{'all':>9}" + "".join(f"{kind:>9}" for kind in KINDS)]
    for name, report in reports.items():
        scores = [report["mAP"], *(kind_map(report, kind) for kind in KINDS)]
        lines.append(f"{name:<18}" + "".join(f"{score:9.3f}" for score in scores))
    return "\n".join(lines)


def kind_map(report: dict[str, Any], kind: str) -> float:
    """Mean average precision over the labels of a kind: `seen`, `heard` or `matched`."""
    scores: Sequence[float] = [c["average_precision"] for c in report["classes"] if c["id"].startswith(f"{kind}:")]
    return sum(scores) / len(scores)


def _next(out: Path) -> str:
    mbt = "mbt" if shutil.which("mbt") else sys.argv[0]
    return f"""A matched label holds for certain pairs of a colour and a sound: neither stream alone, nor a sum of their scores,
can tell it; the bottleneck tokens can. Next:

  {mbt} predict {out}/clips/media/eval-0000.mp4 --checkpoint {out}/runs/bottleneck-fusion
  {Path(mbt).with_name("tensorboard")} --logdir {out}/runs
  {mbt} prep audioset --subset balanced --limit 100 --out audioset
  {mbt} prep custom --help          # your own clips
"""
