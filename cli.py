"""The command line: each command is a few lines that call one function."""

import sys
from pathlib import Path
from typing import Any

import click

from mbt.prep.command_line import (
    COUNT,
    FILE,
    FOLDER,
    Command,
    Location,
    audioset_options,
    custom_options,
    doctor_options,
    removed_option,
)

RUNS = Path("runs")
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}
dataset_argument = click.argument("folder", metavar="DIR", type=FOLDER)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
shard_workers_option = click.option(
    "--workers", type=COUNT, metavar="N", help="Shards read at the same time; one per core by default."
)
data_option = click.option(
    "--data", type=Location(), default="audioset", help="Dataset folder written by `mbt prep`, or its URL to stream from."
)
checkpoint_option = click.option(
    "--checkpoint", type=FOLDER, help="Run directory (for its best model) or model folder; the newest run in runs/ by default."
)
model_settings_option = click.option(
    "--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Set a field of the model, e.g. fusion_layer=8; repeatable."
)
start_option = click.option("--start", type=click.FloatRange(min=0), metavar="SECONDS", default=0.0, help="Start of the span.")
seconds_option = click.option(
    "--seconds", type=click.FloatRange(min=0.04), metavar="SECONDS", default=10.0, help="Length of the span."
)
crops_option = click.option("--crops", type=COUNT, metavar="N", default=4, help="Temporal views per clip.")


@click.group(context_settings=SETTINGS)
@click.version_option(package_name="mbt")
def cli() -> None:
    """Prepare audio-visual datasets, and train, evaluate and use MBT, the Multimodal Bottleneck Transformer."""


@cli.group()
def prep() -> None:
    """Turn media into shards: plan, fetch and pack a dataset."""


@prep.command(cls=Command)
@audioset_options
def audioset(subset: str, list_path: Path | None, source: str | None, **options: Any) -> None:
    """Prepare AudioSet, from YouTube or from local files.

    AudioSet has 527 classes; a clip may have several. Interrupt the command at any time and run it again to continue.
    """
    from mbt.manifests.lists.audioset import audioset_labels
    from mbt.manifests.lists.datasets import AUDIOSET, audioset_clips, find_subset
    from mbt.prep.config_file import config_text
    from mbt.prep.plan.plan import Plan
    from mbt.prep.run import PrepOptions, prepare

    options |= {"source": source or AUDIOSET.url_template, "cap": options["cap"] or find_subset(AUDIOSET, subset).cap}
    plan = Plan(dataset=AUDIOSET.name, task=AUDIOSET.task)
    chosen = PrepOptions.from_command_line(**options)
    config = config_text(click.get_current_context())
    if code := prepare(plan, audioset_labels, lambda _: audioset_clips(subset, list_path), chosen, config):
        sys.exit(code)


@prep.command(cls=Command)
@custom_options
def custom(list_path: Path, labels_path: Path, name: str, task: Any, **options: Any) -> None:
    """Prepare your own clips from two CSV files and a folder.

    Interrupt the command at any time and run it again to continue.
    """
    from mbt.manifests.labels import read_labels
    from mbt.manifests.lists.custom import custom_clips
    from mbt.prep.config_file import config_text
    from mbt.prep.plan.plan import Plan
    from mbt.prep.run import PrepOptions, prepare

    chosen = PrepOptions.from_command_line(**options)
    sources = lambda: read_labels(labels_path), lambda labels: custom_clips(list_path, labels, task)
    if code := prepare(Plan(dataset=name, task=task), *sources, chosen, config_text(click.get_current_context())):
        sys.exit(code)


@prep.command()
@dataset_argument
@click.option("--out", type=FOLDER, help="Folder for report.html and report.json; DIR by default.")
def report(folder: Path, out: Path | None) -> None:
    """Report what is fetched, missing and packed, and the time left.

    Counts by split, class and reason. Works while a run is in progress.
    """
    from mbt.prep.report.write import table, write_report

    target = out or folder
    click.echo(f"{table(write_report(folder, target))}\n\nwritten to {target / 'report.html'} and {target / 'report.json'}")


@cli.group()
def shards() -> None:
    """Check, view, count and rewrite finished shards."""


@shards.command()
@dataset_argument
@click.option("--decode", is_flag=True, help="Also decode every frame; much slower.")
@removed_option
@shard_workers_option
@json_option
def verify(folder: Path, decode: bool, removed: Path | None, workers: int | None, as_json: bool) -> None:
    """Check every sample against checksums and the format.

    Prints each damaged sample, and each sample that --removed lists; exits with 1 if it finds any.
    """
    from tqdm import tqdm

    from mbt.prep.shards.verify import verify as run_verification

    on_fault = (lambda fault: None) if as_json else (lambda fault: tqdm.write(str(fault), file=sys.stdout))
    report = run_verification(folder, workers, decode, removed, on_fault)
    click.echo(report.model_dump_json(indent=2) if as_json else report.summary())
    sys.exit(not report.whole)


@shards.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@dataset_argument
@click.argument("key")
@click.option("--out", type=FILE, help="PNG file to write; KEY.png by default.")
def show(folder: Path, key: str, out: Path | None) -> None:
    """Draw one sample: frames, spectrogram and labels.

    KEY is the key of a clip, or SPLIT:ROW, a row of the split's index.
    """
    from mbt.prep.shards.show import show as run_show

    click.echo(f"written to {run_show(folder, key, out)}")


@shards.command()
@dataset_argument
@json_option
def stats(folder: Path, as_json: bool) -> None:
    """Count samples, hours, bytes, flags, failures and labels.

    With --json, every class is listed.
    """
    from mbt.prep.shards.stats import dataset_stats, table

    counted = dataset_stats(folder)
    click.echo(counted.model_dump_json(indent=2) if as_json else table(counted))


@shards.command()
@dataset_argument
@click.argument("out", type=FOLDER)
@shard_workers_option
def explode(folder: Path, out: Path, workers: int | None) -> None:
    """Copy shards, with one .jpg file per frame.

    OUT is the folder to write, for tools that expect one .jpg member per frame in a tar.
    """
    from mbt.prep.shards.explode import explode as run_explode

    made = run_explode(folder, out, workers).values()
    frames, samples, size = (sum(getattr(tar, field) for tar in made) for field in ("frames", "samples", "size"))
    click.echo(f"{len(made):,} tars in {out}: {samples:,} samples, {frames:,} frames, {size / 1e9:.3f} GB")


@cli.command()
@data_option
@click.option("--recipe", default="mbt_paper", metavar="NAME|FILE", help="Name of a recipe, or a TOML file.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.FIELD=VALUE", help="Set a field of the recipe; repeatable.")
@click.option("--out", type=FOLDER, help="Run directory; runs/RECIPE by default.")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="always",
    type=click.Choice(["always", "auto"]),
    help="Continue from the newest checkpoint in the run directory; `--resume auto` starts a new run if there is none.",
)
@click.option(
    "--gpus", type=COUNT, metavar="N", help="Start this many processes on this machine, one per GPU; on CPUs if it has none."
)
@click.option("--deepspeed", is_flag=True, help="Train with DeepSpeed (ZeRO).")
@click.option("--zero-stage", type=click.IntRange(0, 3), metavar="N", help="ZeRO stage, with --deepspeed; 1 by default.")
@click.option("--deepspeed-config", type=FILE, help="JSON file that overrides DeepSpeed settings, with --deepspeed.")
def train(
    data: Path | str,
    recipe: str,
    settings: tuple[str, ...],
    out: Path | None,
    resume: str | None,
    gpus: int | None,
    deepspeed: bool,
    zero_stage: int | None,
    deepspeed_config: Path | None,
) -> None:
    """Train a model on shards.

    Use --gpus on one machine; on several, start the command with torchrun, srun or the DeepSpeed launcher.
    """
    if not deepspeed and (zero_stage is not None or deepspeed_config is not None):
        raise click.UsageError(f"--{'deepspeed-config' if zero_stage is None else 'zero-stage'} requires --deepspeed.")
    from mbt.train.distributed.launcher import is_started_here, start_ranks

    if gpus is not None and not is_started_here():
        sys.exit(start_ranks(gpus, sys.argv[1:]))
    from mbt.manifests.errors import ConfigError
    from mbt.train.engine.zero_config import Zero
    from mbt.train.recipes.loading import load_recipe
    from mbt.train.run_dir import RECIPE
    from mbt.train.trainer import train as run_training

    folder = out or RUNS / Path(recipe).stem
    if resume == "always" and not (folder / RECIPE).exists():
        raise ConfigError(
            f"--resume: no run in {folder}", "Give the run directory with --out, or start a new run with --resume auto"
        )
    zero = Zero(zero_stage, deepspeed_config) if deepspeed else None
    run_training(data, folder, load_recipe(recipe, settings), zero=zero, resume=resume is not None)


@cli.command("eval")
@checkpoint_option
@data_option
@click.option("--split", default="eval", metavar="NAME", help="Split to score.")
@crops_option
@click.option("--batch-size", type=COUNT, metavar="N", default=32, help="Views per batch.")
@click.option("--out", type=FILE, help="JSON report to write; CHECKPOINT/eval-SPLIT.json by default.")
@json_option
def evaluate(
    checkpoint: Path | None, data: Path | str, split: str, crops: int, batch_size: int, out: Path | None, as_json: bool
) -> None:
    """Score a model on a split: mAP, overall and per class.

    The logits of a clip are averaged over its views.
    """
    import json

    from mbt.manifests.atomic import write_text
    from mbt.train.evaluation.evaluate import evaluate as run_evaluation
    from mbt.train.evaluation.evaluate import table
    from mbt.train.run_dir import newest_run

    checkpoint = checkpoint or newest_run(RUNS)
    report = run_evaluation(checkpoint, data, split, crops, batch_size)
    text = json.dumps(report, indent=2)
    path = out or checkpoint / f"eval-{split}.json"
    write_text(path, text + "\n")
    click.echo(text if as_json else f"{table(report)}\n\nwritten to {path}")


@cli.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@checkpoint_option
@start_option
@seconds_option
@crops_option
@click.option("--top", type=COUNT, metavar="N", default=5, help="Labels to print.")
@json_option
def predict(
    files: tuple[Path, ...], checkpoint: Path | None, start: float, seconds: float, crops: int, top: int, as_json: bool
) -> None:
    """Label what is seen and heard in media files.

    With --json, prints one line of JSON per file.
    """
    import json
    from dataclasses import asdict

    from mbt.train.inference.predict import predict as run_prediction
    from mbt.train.run_dir import newest_run

    predictions = run_prediction(checkpoint or newest_run(RUNS), files, start, seconds, crops, top)
    for file, labels in zip(files, predictions, strict=True):
        if as_json:
            click.echo(json.dumps({"file": str(file), "labels": [asdict(label) for label in labels]}))
        else:
            click.echo("\n".join([str(file), *(f"  {label.probability:6.3f}  {label.name}" for label in labels)]))


@cli.command()
@click.argument("file", type=FILE)
@checkpoint_option
@start_option
@seconds_option
@click.option("--out", type=FILE, default=Path("explain.png"), help="PNG file to write.")
def explain(file: Path, checkpoint: Path | None, start: float, seconds: float, out: Path) -> None:
    """Draw where a model looks and listens in a media file.

    The picture shows the attention rollout of the span's middle view.
    """
    from mbt.train.inference.explain import explain as run_explanation
    from mbt.train.run_dir import newest_run

    labels = run_explanation(checkpoint or newest_run(RUNS), file, start, seconds, out)
    click.echo("\n".join([*(f"{label.probability:6.3f}  {label.name}" for label in labels), f"\nwritten to {out}"]))


@cli.command()
@click.option(
    "--model", default="B/16", metavar="NAME|FILE", help="Size and patch of a ViT, e.g. B/16, or a model's config.json."
)
@model_settings_option
@click.option("--sweep", type=click.Choice(["fusion-layer"]), help="Compare all fusion layers for each kind of fusion.")
@click.option("--out", type=FILE, default=Path("flops.png"), help="PNG file to write, with --sweep.")
@json_option
def flops(model: str, settings: tuple[str, ...], sweep: str | None, out: Path, as_json: bool) -> None:
    """Count the FLOPs of a forward pass.

    The unit is GFLOP, or FLOP with --json. --sweep draws the paper's Figure 3 (right).
    """
    from mbt.train.flops import cost, sweep_fusion_layer

    click.echo(sweep_fusion_layer(model, settings, out, as_json) if sweep else cost(model, settings, as_json))


@cli.command("import-scenic")
@click.argument("file", type=FILE)
@click.argument("out", type=FOLDER)
@model_settings_option
@click.option("--data", type=FOLDER, help="Dataset folder to evaluate the model on; its inputs and labels are adopted.")
@click.option(
    "--rgb-seconds", type=float, metavar="SECONDS", help="Span of the frames, if it differs from the audio's; with --data."
)
def import_scenic(file: Path, out: Path, settings: tuple[str, ...], data: Path | None, rgb_seconds: float | None) -> None:
    """Convert the authors' checkpoint (Scenic, Flax).

    Writes model.safetensors and config.json to OUT. Use --set for fields that the shapes in FILE do not determine.
    """
    from mbt.train.models.import_scenic import import_scenic as run_import

    config = run_import(file, out, settings, data, rgb_seconds)
    click.echo(f"{config.to_json()}written to {out}; check the fields above, since shapes do not determine all of them")


@cli.command(cls=Command)
@doctor_options
def doctor(out: Path | None, canary: str | None, pilot: int | None, as_json: bool, **options: Any) -> None:
    """Check that this machine is ready for the other commands.

    With --lanes, --canary is requested over each lane. With --pilot, only what fetching and packing need is checked. Exits with
    1 if a check fails, or if something stops the pilot.
    """
    if pilot is not None:
        from mbt.prep.pilot.run import PilotOptions, run_pilot

        sys.exit(not run_pilot(PilotOptions.from_command_line(pilot, out or Path("pilot"), canary, **options), as_json))
    if needless := next((name for name in ("subset", "source", "sleep") if options[name] is not None), None):
        raise click.UsageError(f"--{needless} requires --pilot.")
    from mbt.prep.doctor import media_checks, report
    from mbt.train.doctor import TRAINING_CHECKS

    checks = media_checks(out or Path("audioset"), canary, options["lanes"], options["ytdlp"])
    sys.exit(not report([*checks, *TRAINING_CHECKS], as_json))


@cli.command()
@click.option("--out", type=FOLDER, default=Path("mbt-demo"), help="Folder for all files of the demo.")
@click.option("--seed", metavar="N", default=0, help="Seed of the clips and of the training runs.")
def demo(out: Path, seed: int) -> None:
    """Try everything in minutes on rendered clips.

    Renders a small dataset, packs it, trains four models and compares them. Needs no download and no GPU.
    """
    from mbt.demo.run import run_demo

    run_demo(cli, out, seed)


def main() -> None:
    """Run the command line; an error that the user can fix is one line, with exit code 2."""
    from mbt.manifests.errors import MbtError

    try:
        cli.main(prog_name="mbt", standalone_mode=False)
    except click.exceptions.Abort as abort:
        again = "again with --resume" if sys.argv[1:2] == ["train"] else "again"
        click.echo(f"interrupted: finished work is kept; run the same command {again} to continue", err=True)
        sys.exit(getattr(abort.__cause__, "exit_code", 130))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MbtError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
