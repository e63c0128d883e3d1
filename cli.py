"""The command line: each command is a few lines that call one function."""

import sys
from pathlib import Path
from typing import Any

import click

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)


UNITS = {"": 1} | {f"{k}{i}": (1024 if i else 1000) ** n for n, k in enumerate("kMGT", 1) for i in ("", "i")}


class Bytes(click.ParamType[int]):
    """A number of bytes: `1500000000`, `1.5GB`, `500MB`, `1GiB`."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number, or an error of the command line."""
        text = str(value).removesuffix("B").strip()
        unit = text.lstrip("0123456789.")
        try:
            count = round(float(text.removesuffix(unit)) * UNITS[unit.strip()])
        except (KeyError, ValueError):
            count = 0
        if count < 1:
            self.fail(f"{value!r} is no number of bytes, such as 1GB", param, ctx)
        return count


class Place(click.ParamType["Path | str"]):
    """A folder of this machine, or the URL of one."""

    name = "folder|url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """A path, or a URL as it is."""
        from mbt.manifests.reading.remote import is_url

        return str(value) if is_url(str(value)) else FOLDER.convert(value, param, ctx)


BYTES = Bytes()
RUNS = Path("runs")
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}


@click.group(context_settings=SETTINGS)
@click.version_option(package_name="mbt")
def cli() -> None:
    """Turn public audio-visual datasets into shards, and train, evaluate and use MBT on them."""


@cli.group()
def prep() -> None:
    """Media in, shards out: plan, fetch and pack a dataset."""


def prep_options(command: Any) -> Any:
    """Options that every dataset shares."""
    options = (
        click.option("--limit", type=COUNT, help="Take the first N clips of each split."),
        click.option(
            "--keys", type=FILE, help="Take the clips of this Parquet file's column key, such as another's train.parquet."
        ),
        click.option("--cap", type=COUNT, help="Balance greedily: so many clips of a class at the most; as500k: 200,000."),
        click.option(
            "--balance", type=click.Choice(["survivors", "list"]), help="Clips that the cap counts; survivors by default."
        ),
        click.option(
            "--order",
            type=click.Choice(["common-first", "rare-first", "list", "random"]),
            help="In which clips are offered to the cap; common-first by default.",
        ),
        click.option("--dry-run", is_flag=True, help="Print what it will take, and do nothing."),
        click.option("--keep-raw/--no-keep-raw", default=True, help="Keep what was fetched, to pack again without a request."),
        click.option("--removed", type=FILE, help="File of keys or video ids, one a line, that are to be left or taken out."),
        click.option("--ignore-disk", is_flag=True, help="Start even if the disk cannot hold it."),
        click.option("--stage", type=click.Choice(["plan", "fetch", "pack"]), help="Run this stage alone."),
        click.option("--short-side", type=click.IntRange(min=16), default=256, help="Shorter side of the frames, pixels."),
        click.option("--jpeg-qscale", type=click.IntRange(2, 31), default=3, help="Quality of the JPEGs: 2 best, 31 smallest."),
        click.option("--flac", is_flag=True, help="Store the sound too, as FLAC, 16 kHz mono: 0.2 MB for 10 s."),
        click.option("--shard-samples", type=COUNT, default=512, help="Samples in a tar at the most."),
        click.option("--shard-bytes", type=BYTES, help="Bytes of a tar at the most, such as 1GB."),
        click.option(
            "--to", metavar="URL", help="Put what is finished there (any fsspec URL: s3://...); --out keeps the rest."
        ),
        click.option("--ray", metavar="ADDRESS", help="Pack on a Ray cluster whose nodes share --out: auto, HOST:PORT."),
        click.option("--seed", default=0, help="Order of the samples in the shards, and of --order random."),
        click.option("--workers", type=COUNT, help="Clips decoded at a time; one a core by default."),
        click.option("--clip-timeout", default=60.0, help="Seconds that decoding a clip may take."),
        click.option("--clip-memory", default=3.0, help="GiB of address space that decoding a clip may take."),
        click.option(
            "--sleep", default=15.0, help="Seconds from one request to the next; YouTube allows guests about 300 an hour."
        ),
        click.option("--lanes", type=FILE, help="TOML file of network addresses to fetch from, each at its own rate."),
        click.option("--rank", type=click.IntRange(min=0), help="Fetch as this worker of --world; by default Slurm's."),
        click.option("--world", type=COUNT, help="Workers that fetch one plan, each its own videos."),
        click.option("--ytdlp", multiple=True, metavar="OPTION=VALUE", help="Of yt-dlp's API: proxy=..., cookiefile=..., ..."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@prep.command()
@click.option("--subset", required=True, help="balanced, eval, unbalanced or as500k.")
@click.option("--list", "list_path", type=FILE, help="Official segment list to take instead of the subset's own.")
@click.option("--source", help="Folder of media files, or a URL with {video_id}; YouTube by default.")
@click.option("--out", type=FOLDER, default=Path("audioset"), help="Dataset folder to write.")
@prep_options
def audioset(subset: str, list_path: Path | None, source: str | None, **options: Any) -> None:
    """AudioSet (527 classes, multi-label) from YouTube or from local files."""
    from mbt.manifests.lists.audioset import audioset_labels
    from mbt.manifests.lists.datasets import AUDIOSET, audioset_clips, find_subset
    from mbt.prep.plan.plan import Plan
    from mbt.prep.run import PrepOptions, prepare

    plan = Plan(dataset=AUDIOSET.name, task=AUDIOSET.task)
    media = source or AUDIOSET.url_template
    options["cap"] = options["cap"] or find_subset(AUDIOSET, subset).cap
    prepare(plan, audioset_labels, lambda _: audioset_clips(subset, list_path), media, PrepOptions(**options))


@prep.command()
@click.option("--list", "list_path", type=FILE, required=True, help="CSV: video_id,start,end,split,labels.")
@click.option("--labels", "labels_path", type=FILE, required=True, help="CSV: id,display_name.")
@click.option("--source", required=True, help="Folder of media files, or a URL with {video_id}.")
@click.option("--name", default="custom", help="Name of the dataset.")
@click.option("--task", type=click.Choice(["multilabel", "multiclass"]), default="multilabel")
@click.option("--out", type=FOLDER, required=True, help="Dataset folder to write.")
@prep_options
def custom(list_path: Path, labels_path: Path, source: str, name: str, task: Any, **options: Any) -> None:
    """Your own clips: a CSV of clips, a CSV of labels, and a folder of media files."""
    from mbt.manifests.labels import read_labels
    from mbt.manifests.lists.custom import custom_clips
    from mbt.prep.plan.plan import Plan
    from mbt.prep.run import PrepOptions, prepare

    plan = Plan(dataset=name, task=task)
    shared = PrepOptions(**options)
    prepare(plan, lambda: read_labels(labels_path), lambda labels: custom_clips(list_path, labels), source, shared)


@cli.group()
def shards() -> None:
    """Shards that are there: check them, look at them, count them, rewrite them."""


dataset_argument = click.argument("folder", metavar="DIR", type=FOLDER)
workers_option = click.option("--workers", type=COUNT, help="Shards worked on at a time; one a core by default.")


@shards.command()
@dataset_argument
@click.option("--decode", is_flag=True, help="Decode every frame too: far slower.")
@click.option("--removed", type=FILE, help="File of keys or video ids, one a line, that must not be here.")
@workers_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify(folder: Path, decode: bool, removed: Path | None, workers: int | None, as_json: bool) -> None:
    """Read everything again, against checksums and specification; exit with 1 and name each damaged sample if any is."""
    from tqdm import tqdm

    from mbt.prep.shards.verify import verify as run_verification

    tell = (lambda fault: None) if as_json else (lambda fault: tqdm.write(str(fault), file=sys.stdout))
    report = run_verification(folder, workers, decode, removed, tell)
    click.echo(report.model_dump_json(indent=2) if as_json else report.summary())
    sys.exit(not report.whole)


@shards.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@dataset_argument
@click.argument("key")
@click.option("--out", type=FILE, help="Picture to write; KEY.png by default.")
def show(folder: Path, key: str, out: Path | None) -> None:
    """Draw one sample: frames, spectrogram, labels. KEY may also be SPLIT:ROW, a row of the split's index."""
    from mbt.prep.shards.show import show as run_show

    click.echo(f"written to {run_show(folder, key, out)}")


@shards.command()
@dataset_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every class.")
def stats(folder: Path, as_json: bool) -> None:
    """Count samples, hours, bytes, frame sizes, flags, failures and labels."""
    from mbt.prep.shards.stats import dataset_stats, table

    counted = dataset_stats(folder)
    click.echo(counted.model_dump_json(indent=2) if as_json else table(counted))


@shards.command()
@dataset_argument
@click.argument("out", type=FOLDER)
@workers_option
def explode(folder: Path, out: Path, workers: int | None) -> None:
    """Rewrite the shards of DIR into OUT with one .jpg member a frame, for tools that want that."""
    from mbt.prep.shards.explode import explode as run_explode

    made = run_explode(folder, out, workers).values()
    frames, samples, size = (sum(getattr(tar, field) for tar in made) for field in ("frames", "samples", "size"))
    click.echo(f"{len(made):,} tars in {out}: {samples:,} samples, {frames:,} frames, {size / 1e9:.3f} GB")


@prep.command()
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FOLDER, help="Where to write report.html and report.json; FOLDER by default.")
def report(folder: Path, out: Path | None) -> None:
    """Say what is there and why not, by split and class, and how long it will take; also while a run goes on."""
    from mbt.prep.report.write import table, write_report

    target = out or folder
    click.echo(f"{table(write_report(folder, target))}\n\nwritten to {target / 'report.html'} and {target / 'report.json'}")


data_option = click.option(
    "--data", type=Place(), default="audioset", help="Dataset folder that `mbt prep` wrote, or the URL of one, to be streamed."
)
checkpoint_option = click.option(
    "--checkpoint", type=FOLDER, help="Run directory (its best model) or model folder; the newest below runs/ by default."
)


@cli.command()
@data_option
@click.option("--recipe", default="mbt_paper", help="Name of a recipe, or a TOML file.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.FIELD=VALUE", help="Set a field of the recipe.")
@click.option("--out", type=FOLDER, help="Run directory; runs/RECIPE by default.")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="always",
    type=click.Choice(["always", "auto"]),
    help="Go on after the newest checkpoint of the run directory; auto: or begin, where there is none.",
)
@click.option("--gpus", type=COUNT, help="Train with so many processes on this machine, one a GPU; on CPUs where it has none.")
@click.option("--deepspeed", is_flag=True, help="Train through DeepSpeed (ZeRO).")
@click.option("--zero-stage", type=click.IntRange(0, 3), help="With --deepspeed: stage of ZeRO; 1 by default.")
@click.option("--deepspeed-config", type=FILE, help="With --deepspeed: JSON to merge over its configuration.")
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
    """Train a model on shards; also as one rank of many, under torchrun, srun or the DeepSpeed launcher."""
    if not deepspeed and (zero_stage is not None or deepspeed_config is not None):
        raise click.UsageError("--zero-stage and --deepspeed-config need --deepspeed")
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
        raise ConfigError(f"{folder} holds no run to go on with", "Name one by --out, or begin: --resume auto does either")
    zero = Zero(zero_stage, deepspeed_config) if deepspeed else None
    run_training(data, folder, load_recipe(recipe, settings), zero=zero, resume=resume is not None)


@cli.command("eval")
@checkpoint_option
@data_option
@click.option("--split", default="eval")
@click.option("--crops", type=COUNT, default=4, help="Temporal views of each clip.")
@click.option("--batch-size", type=COUNT, default=32, help="Views at a time.")
@click.option("--out", type=FILE, help="Where to write the report; CHECKPOINT/eval-SPLIT.json by default.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table.")
def evaluate(
    checkpoint: Path | None, data: Path | str, split: str, crops: int, batch_size: int, out: Path | None, as_json: bool
) -> None:
    """Score a model: mean of the logits over the views, mAP overall and per class."""
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
@click.option("--start", type=click.FloatRange(min=0), default=0.0, help="Where the span to label begins, seconds.")
@click.option("--seconds", type=click.FloatRange(min=0.04), default=10.0, help="Length of the span.")
@click.option("--crops", type=COUNT, default=4, help="Temporal views of the span.")
@click.option("--top", type=COUNT, default=5, help="Labels to print.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a file.")
def predict(
    files: tuple[Path, ...], checkpoint: Path | None, start: float, seconds: float, crops: int, top: int, as_json: bool
) -> None:
    """Name what is seen and heard in media files."""
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
@click.option("--start", type=click.FloatRange(min=0), default=0.0, help="Where the span begins, seconds.")
@click.option("--seconds", type=click.FloatRange(min=0.04), default=10.0, help="Length of the span; its middle view is shown.")
@click.option("--out", type=FILE, default=Path("explain.png"), help="Picture to write.")
def explain(file: Path, checkpoint: Path | None, start: float, seconds: float, out: Path) -> None:
    """Show where a model looks and listens in a media file: attention rollout, as a picture."""
    from mbt.train.inference.explain import explain as run_explanation
    from mbt.train.run_dir import newest_run

    labels = run_explanation(checkpoint or newest_run(RUNS), file, start, seconds, out)
    click.echo("\n".join([*(f"{label.probability:6.3f}  {label.name}" for label in labels), f"\nwritten to {out}"]))


@cli.command()
@click.option("--model", default="B/16", help="Size and patch of a ViT, or a model's config.json.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Set a field of the model's configuration.")
@click.option("--sweep", type=click.Choice(["fusion-layer"]), help="Every fusion layer, each way of fusion, and a picture.")
@click.option("--out", type=FILE, default=Path("flops.png"), help="Picture of the sweep.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, in FLOP.")
def flops(model: str, settings: tuple[str, ...], sweep: str | None, out: Path, as_json: bool) -> None:
    """Count the work of a forward pass, or compare ways of fusion as in the paper's Figure 3."""
    from mbt.train.flops import cost, sweep_fusion_layer

    click.echo(sweep_fusion_layer(model, settings, out, as_json) if sweep else cost(model, settings, as_json))


@cli.command("import-scenic")
@click.argument("file", type=FILE)
@click.argument("out", type=FOLDER)
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="What the shapes do not tell: fusion_layer=8.")
@click.option("--data", type=FOLDER, help="Dataset folder whose inputs and labels the model takes, to be evaluated on it.")
@click.option("--rgb-seconds", type=float, help="With --data: span of the frames, where it is not that of the sound.")
def import_scenic(file: Path, out: Path, settings: tuple[str, ...], data: Path | None, rgb_seconds: float | None) -> None:
    """Convert a released checkpoint (Scenic, Flax) to model.safetensors and config.json."""
    from mbt.train.models.import_scenic import import_scenic as run_import

    config = run_import(file, out, settings, data, rgb_seconds)
    click.echo(f"{config.to_json()}written to {out}; check the fields above: shapes do not tell all of them")


@cli.command()
@click.option("--out", type=FOLDER, default=Path("audioset"), help="Folder whose disk a dataset will be written to.")
@click.option("--canary", metavar="URL|ID", help="Ask for this video over the network, without downloading it.")
@click.option("--lanes", type=FILE, help="Ask for it over each network address of this TOML file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(out: Path, canary: str | None, lanes: Path | None, as_json: bool) -> None:
    """Check what the other commands need; exit with 1 if something fails."""
    from mbt.prep.doctor import media_checks, report
    from mbt.train.doctor import TRAINING_CHECKS

    sys.exit(not report([*media_checks(out, canary, lanes), *TRAINING_CHECKS], as_json))


@cli.command()
@click.option("--out", type=FOLDER, default=Path("demo"), help="Folder for everything.")
@click.option("--seed", default=0, help="Of the clips and of the trainings.")
def demo(out: Path, seed: int) -> None:
    """Render a small data set, pack it, train four models and compare them: minutes on any machine, no download."""
    from mbt.demo.run import run_demo

    run_demo(cli, out, seed)


def main() -> None:
    """Run the command line; errors that the user can mend are one line and exit code 2."""
    from mbt.manifests.errors import MbtError

    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo(
            "interrupted: what is finished is kept; run the same command again to go on (train: with --resume)", err=True
        )
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MbtError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
