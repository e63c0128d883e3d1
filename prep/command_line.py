"""The options of `mbt prep` on the command line, and a --help that lists them by section."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
COUNT = click.IntRange(min=1)
POSITIVE = click.FloatRange(min=0, min_open=True)
SECTIONS = ("What to take", "Where it comes from", "How fast", "What is stored", "Where it goes", "Other options")
CHOOSE, SOURCE, SPEED, STORE, TARGET, OTHER = SECTIONS
NAME_WIDTH = 30
"""Characters; the text of a longer option begins on the next line."""
UNITS = {"": 1} | {
    f"{k}{i}": (1024 if i else 1000) ** n
    for n, letters in enumerate(("kK", "M", "G", "T"), 1)
    for k in letters
    for i in ("", "i")
}


class Bytes(click.ParamType[int]):
    """A size in bytes: `1500000000`, `1.5GB`, `500MB`, `1GiB`."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes; text that is not a size is a usage error."""
        text = str(value).removesuffix("B").strip()
        unit = text.lstrip("0123456789.")
        try:
            count = round(float(text.removesuffix(unit)) * UNITS[unit.strip()])
        except (KeyError, ValueError):
            count = 0
        if count < 1:
            self.fail(f"{value!r} is not a size (try 1GB).", param, ctx)
        return count


class Location(click.ParamType["Path | str"]):
    """A local folder, or the URL of a remote one."""

    name = "folder|url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """A path, or the URL unchanged."""
        from mbt.manifests.reading.remote import is_url

        return str(value) if is_url(str(value)) else FOLDER.convert(value, param, ctx)


class Option(click.Option):
    """An option that --help lists under a heading."""

    def __init__(self, *names: Any, section: str, **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self.section = section


class Command(click.Command):
    """A command whose --help lists its options by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list of options per section; all texts begin in the same column."""
        lists: dict[str, list[tuple[str, str]]] = {section: [] for section in SECTIONS}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                name, text = record
                lists[getattr(parameter, "section", OTHER)].append((name.ljust(NAME_WIDTH), text))
        for section, records in lists.items():
            if records:
                with formatter.section(section):
                    formatter.write_dl(records)


def _read_config(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Take the options in a file as defaults."""
    from mbt.prep.config_file import read_config

    if path is not None:
        read_config(context, path)


def option(section: str, *names: str, **attributes: Any) -> Callable[[Any], Any]:
    """`click.option` under a heading of --help."""
    return click.option(*names, cls=Option, section=section, **attributes)


def together(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """One decorator for several options, in this order."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


removed_option = option(
    CHOOSE, "--removed", type=FILE, help="File of clip keys or video ids, one per line, that must not be in the dataset."
)
lanes_option = option(
    SOURCE, "--lanes", type=FILE, help="TOML file of network addresses (lanes) to fetch from, each at its own rate."
)
ytdlp_option = option(
    SOURCE,
    "--ytdlp",
    multiple=True,
    metavar='"FLAGS"',
    help='yt-dlp\'s own flags, e.g. "--cookies FILE --proxy URL"; repeatable.',
)
prep_options = together(
    option(CHOOSE, "--limit", type=COUNT, metavar="N", help="Take only the first N clips of each split."),
    option(
        CHOOSE,
        "--keys",
        type=click.Path(path_type=Path),
        help="Take only the clips whose keys are in this Parquet file, e.g. another dataset's train.parquet.",
    ),
    option(CHOOSE, "--cap", type=COUNT, metavar="N", help="Balance the classes: take at most N clips of each."),
    option(
        CHOOSE,
        "--balance",
        type=click.Choice(["survivors", "list"]),
        help="Clips that count toward --cap: those that could be fetched (default), or all in the list.",
    ),
    option(
        CHOOSE,
        "--order",
        type=click.Choice(["common-first", "rare-first", "list", "random"]),
        help="Order in which clips are considered for --cap; common-first by default.",
    ),
    removed_option,
    option(
        CHOOSE,
        "--replan",
        is_flag=True,
        help="Replace an earlier plan, although clips leave it; those fetched or packed must stay.",
    ),
    lanes_option,
    ytdlp_option,
    option(
        SPEED,
        "--sleep",
        metavar="SECONDS",
        type=click.FloatRange(min=0),
        default=15.0,
        help="Pause between requests. YouTube allows guests about 300 per hour.",
    ),
    option(
        SPEED,
        "--rank",
        type=click.IntRange(min=0),
        metavar="N",
        help="Number of this worker, from 0: fetch only its share of the videos; from Slurm by default.",
    ),
    option(SPEED, "--world", type=COUNT, metavar="N", help="Number of workers that share the fetching; from Slurm by default."),
    option(
        SPEED,
        "--recheck",
        metavar="CODE[,CODE]",
        default="",
        help="Ask again for clips that failed with these codes, or with codes that begin so, such as creds.",
    ),
    option(SPEED, "--until-done", is_flag=True, help="Wait for retries that are due later, until there is none left."),
    option(SPEED, "--workers", type=COUNT, metavar="N", help="Clips decoded at the same time; one per core by default."),
    option(SPEED, "--ray", metavar="ADDRESS", help="Pack on a Ray cluster that shares --out: auto, or HOST:PORT."),
    option(SPEED, "--clip-timeout", type=POSITIVE, metavar="SECONDS", default=60.0, help="Time limit for decoding a clip."),
    option(SPEED, "--clip-memory", type=POSITIVE, metavar="GIB", default=3.0, help="Address space limit for decoding a clip."),
    option(
        STORE, "--short-side", type=click.IntRange(min=16), metavar="PIXELS", default=256, help="Shorter side of the frames."
    ),
    option(
        STORE,
        "--jpeg-qscale",
        type=click.IntRange(2, 31),
        metavar="N",
        default=3,
        help="JPEG quality: 2 is best, 31 is smallest.",
    ),
    option(STORE, "--flac", is_flag=True, help="Also store the sound as FLAC, 16 kHz mono: 0.2 MB per 10 s."),
    option(STORE, "--shard-samples", type=COUNT, metavar="N", default=512, help="Maximum samples per shard."),
    option(STORE, "--shard-bytes", type=Bytes(), help="Maximum size of a tar file, e.g. 1GB."),
    option(STORE, "--seed", metavar="N", default=0, help="Seed of the order of samples, of requests, and of --order random."),
    option(
        TARGET, "--to", metavar="URL", help="Upload finished files to this fsspec URL, e.g. s3://...; --out keeps the rest."
    ),
    option(
        TARGET, "--keep-raw/--no-keep-raw", default=True, help="Keep fetched media, to pack again without another download."
    ),
    click.option("--stage", type=click.Choice(["plan", "fetch", "pack"]), help="Run only this stage."),
    click.option("--dry-run", is_flag=True, help="Print the requests, hours and disk space needed, and exit."),
    click.option(
        "--config",
        type=FILE,
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help="TOML file with options, e.g. short-side = 224; the command line overrides it.",
    ),
    click.option("--strict", is_flag=True, help="Exit with 3 if any clip is missing in the end."),
    click.option("--ignore-disk", is_flag=True, help="Start even if the disk is too small for the plan."),
    click.option(
        "--min-free", type=Bytes(), default="1GB", help="Pause fetching while less of the disk is free; packing goes on."
    ),
)
audioset_options = together(
    option(
        CHOOSE,
        "--subset",
        metavar="NAME",
        required=True,
        help="balanced, eval, unbalanced, or as500k (--cap 200000, as in the paper).",
    ),
    option(CHOOSE, "--list", "list_path", type=FILE, help="Segment list (CSV) to use instead of the subset's official one."),
    option(
        SOURCE,
        "--source",
        metavar="PLACE|URL",
        help="Folder or archive of media files, or URL with {video_id}; YouTube by default.",
    ),
    option(TARGET, "--out", type=FOLDER, default=Path("audioset"), help="Dataset folder to write."),
    prep_options,
)
custom_options = together(
    option(CHOOSE, "--list", "list_path", type=FILE, required=True, help="CSV of clips: video_id,start,end,split,labels."),
    option(CHOOSE, "--labels", "labels_path", type=FILE, required=True, help="CSV of labels: id,display_name."),
    option(
        SOURCE, "--source", metavar="PLACE|URL", required=True, help="Folder or archive of media files, or URL with {video_id}."
    ),
    option(STORE, "--name", metavar="NAME", default="custom", help="Name of the dataset."),
    option(
        STORE,
        "--task",
        type=click.Choice(["multilabel", "multiclass"]),
        default="multilabel",
        help="multilabel: a clip may have several labels; multiclass: it has one.",
    ),
    option(TARGET, "--out", type=FOLDER, required=True, help="Dataset folder to write."),
    prep_options,
)
doctor_options = together(
    option(TARGET, "--out", type=FOLDER, help="Folder for the dataset: ./audioset by default, or ./pilot with --pilot."),
    click.option("--canary", metavar="URL|ID", help="Also request this video over the network, without downloading it."),
    click.option(
        "--pilot",
        type=COUNT,
        metavar="N",
        help="Fetch and pack a random sample of N clips into --out, and write a report there: pilot.html and pilot.json.",
    ),
    option(CHOOSE, "--subset", metavar="NAME", help="With --pilot: balanced, eval, unbalanced, or as500k; eval by default."),
    option(SOURCE, "--source", metavar="URL", help="With --pilot: URL with {video_id}; YouTube by default."),
    lanes_option,
    ytdlp_option,
    option(
        SPEED,
        "--sleep",
        type=click.FloatRange(min=0),
        metavar="SECONDS",
        help="With --pilot: pause between requests; 15 by default.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)
