"""`mbt demo`: from rendered clips to trained models and a page of results, with the ordinary commands."""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import click
from matplotlib.figure import Figure

from mbt.demo.clips import media_file, render
from mbt.demo.examples import CROPS, predict_examples, shown_clips
from mbt.demo.page import demo_page
from mbt.demo.pictures import png, score_chart, shrink
from mbt.demo.scores import score_table, scores_by_kind
from mbt.demo.variants import BOTTLENECK, VARIANTS, train_variants
from mbt.manifests.atomic import write_bytes, write_text
from mbt.prep.workers.processes import cores

NUM_TRAIN, NUM_EVAL = 288, 72
SHORT_SIDE = 64


def run_demo(command: click.Command, out: Path, seed: int) -> None:
    """Render clips, pack them, train and evaluate four models with `command`, and write a page that compares them.

    Results of an earlier call that was interrupted are kept.

    Args:
        command: the command line itself.
        out: folder for all files; the page is `out`/report.html.
        seed: random seed of the clips and of the training runs.

    Raises:
        MbtError: a command failed.
    """
    start = time.monotonic()
    workers = cores()
    clips, shards, runs = out / "clips", out / "shards", out / "runs"
    rendered = render(clips, seed, NUM_TRAIN, NUM_EVAL, workers)
    click.echo(f"demo: {NUM_TRAIN + NUM_EVAL} labeled clips in {clips} ({rendered} rendered now)")
    lists = ["--list", clips / "clips.csv", "--labels", clips / "labels.csv", "--source", clips / "media"]
    _run(command, "prep", "custom", "--name", "demo", *lists, "--short-side", SHORT_SIDE, "--out", shards)
    click.echo()
    train_variants(shards, runs, seed, workers)
    scores = {}
    for variant in VARIANTS:
        run = runs / variant.folder
        report = run / "eval.json"
        _run(command, "eval", "--checkpoint", run, "--data", shards, "--crops", CROPS, "--out", report)
        scores[variant.name] = scores_by_kind(json.loads(report.read_bytes()))
    page = out / "report.html"
    _write_pictures(command, out, score_chart(scores))
    commands = next_commands(out)
    write_text(page, demo_page(scores, predict_examples(clips, runs), commands))
    click.echo(f"\n{score_table(scores)}\n\n{_conclusion(page, commands)}\n\ndemo: done in {time.monotonic() - start:.0f} s")


def _run(command: click.Command, *arguments: object) -> None:
    words = [str(argument) for argument in arguments]
    click.echo(f"\n$ mbt {shlex.join(words)}")
    command.main(words, prog_name="mbt", standalone_mode=False)


def _write_pictures(command: click.Command, out: Path, chart: Figure) -> None:
    """Write the chart, a contact sheet of a clip and the attention to it into `out`/pictures."""
    clip, pictures = shown_clips()["matched"][0], out / "pictures"
    pictures.mkdir(exist_ok=True)
    write_bytes(pictures / "demo.png", png(chart))
    _run(command, "shards", "show", out / "shards", f"{clip.video_id}_0", "--out", pictures / "samples.png")
    checkpoint = ["--checkpoint", out / "runs" / BOTTLENECK.folder]
    _run(command, "explain", media_file(out / "clips", clip), *checkpoint, "--out", pictures / "attention.png")
    shrink(pictures / "attention.png")


def next_commands(out: Path) -> dict[str, str]:
    """What to do after the demo: a command for each purpose."""
    clip, run = out / "clips" / "media" / "eval-0000.mp4", out / "runs" / BOTTLENECK.folder
    mbt = _mbt()
    tensorboard = "tensorboard" if mbt == ["mbt"] else str(Path(sys.executable).with_name("tensorboard"))
    commands: dict[str, list[object]] = {
        "Label a clip with the trained model": [*mbt, "predict", clip, "--checkpoint", run],
        "Draw where the model looks and listens": [*mbt, "explain", clip, "--checkpoint", run],
        "Compare the training curves": [tensorboard, "--logdir", out / "runs"],
        "Prepare the first 100 clips of AudioSet (downloads from YouTube)": [
            *(*mbt, "prep", "audioset", "--subset", "balanced", "--limit", "100", "--out", "audioset")
        ],
        "Prepare your own clips": [*mbt, "prep", "custom", "--help"],
    }
    return {purpose: shlex.join(map(str, words)) for purpose, words in commands.items()}


def _mbt() -> list[str]:
    """The words that start mbt in this environment."""
    if shutil.which("mbt"):
        return ["mbt"]
    return [sys.argv[0]] if Path(sys.argv[0]).name == "mbt" else [sys.executable, "-m", "mbt"]


def _conclusion(page: Path, commands: Mapping[str, str]) -> str:
    listed = "\n".join(f"  {command}\n      {purpose}" for purpose, command in commands.items())
    return f"""A matched label depends on a color and a sound together. No single stream can predict it, and no sum of the
scores of two streams can either; a few bottleneck tokens that both streams share can.

Open {page} in a browser: the scores as a chart, with predictions and attention for six held-out clips.

Next:

{listed}"""
