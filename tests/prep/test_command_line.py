"""The options of `mbt prep` and the sections of its --help."""

from dataclasses import fields

import pytest
from click.exceptions import Abort

from mbt.cli import SETTINGS, cli
from mbt.prep.command_line import SECTIONS
from mbt.prep.fetch.options import FetchOptions
from mbt.prep.pack.options import PackOptions
from mbt.prep.plan.options import PlanOptions
from mbt.prep.run import PrepOptions
from tests.conftest import Door

GROUPS = (PlanOptions, FetchOptions, PackOptions, PrepOptions)
DATASETS = cli.commands["prep"].commands  # type: ignore[attr-defined]
OWN = {"audioset": {"subset", "list_path"}, "custom": {"list_path", "labels_path", "name", "task"}}
"""Options that describe the dataset and belong to no stage."""


REQUIRED = {
    "audioset": ["--subset", "eval"],
    "custom": ["--list", "clips.csv", "--labels", "labels.csv", "--source", "media", "--out", "set"],
}


@pytest.mark.parametrize("dataset", OWN)
def test_options_have_the_names_and_defaults_of_the_stages(dataset: str) -> None:
    given = DATASETS[dataset].make_context(dataset, list(REQUIRED[dataset]), **SETTINGS).params
    groups = {field.name: field.default for group in GROUPS for field in fields(group)}
    assert given.keys() - OWN[dataset] == groups.keys() - {"plan", "fetch", "pack"}
    for name in given.keys() - OWN[dataset] - {"source", "removed", "recheck", "out"}:
        assert given[name] == groups[name], name


@pytest.mark.parametrize("dataset", OWN)
def test_help_lists_every_option_in_one_of_the_sections(mbt: Door, dataset: str) -> None:
    done = mbt("prep", dataset, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: mbt prep {dataset} [OPTIONS]\n")
    heads = [line.removesuffix(":") for line in done.out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert heads == list(SECTIONS)
    for parameter in DATASETS[dataset].params:
        assert done.out.count(f"\n  {parameter.opts[0]} ") == 1, parameter.name
    assert done.out.split("Where it goes:")[1].count("\n  --out ") == 1
    assert done.out.split("Other options:")[1].count("\n  -h, --help ") == 1


def test_help_of_doctor_lists_the_sections_that_have_options(mbt: Door) -> None:
    done = mbt("doctor", "--help")
    assert done.code == 0, done.err
    sections = ["What to take", "Where it comes from", "How fast", "Where it goes", "Other options"]
    assert [line[:-1] for line in done.out.splitlines() if line.endswith(":") and not line.startswith(" ")] == sections
    assert "\n  --pilot N " in done.out


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("1500000000", 1_500_000_000),
        ("1.5GB", 1_500_000_000),
        ("500MB", 500_000_000),
        ("2 kB", 2000),
        ("200KB", 200_000),
        ("1KiB", 1024),
        ("1GiB", 1 << 30),
    ],
)
def test_sizes(size: str, count: int) -> None:
    [option] = [parameter for parameter in DATASETS["custom"].params if parameter.name == "shard_bytes"]
    assert option.type.convert(size, None, None) == count


@pytest.mark.parametrize(("command", "again"), [("prep", "again to continue"), ("train", "again with --resume to continue")])
def test_an_interrupted_command_says_how_it_continues(
    mbt: Door, monkeypatch: pytest.MonkeyPatch, command: str, again: str
) -> None:
    def interrupted(**_: object) -> None:
        raise Abort

    monkeypatch.setattr(cli, "main", interrupted)
    done = mbt(command, "audioset")
    assert (done.code, done.err) == (130, f"interrupted: finished work is kept; run the same command {again}\n")


@pytest.mark.parametrize("option", ["--sleep=-5", "--clip-timeout=0", "--clip-memory=-1"])
def test_negative_values_are_refused(mbt: Door, option: str) -> None:
    done = mbt("prep", "audioset", "--subset", "eval", option)
    name, _, value = option.partition("=")
    assert (done.code, done.out) == (2, "")
    assert f"Invalid value for '{name}': {float(value)} is not in the range x>" in done.err


@pytest.mark.parametrize("size", ["", "GB", "1XB", "0", "-1", "1.2.3MB"])
def test_what_is_not_a_size(mbt: Door, size: str) -> None:
    done = mbt("prep", "audioset", "--subset", "eval", "--shard-bytes", size)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == f"Error: Invalid value for '--shard-bytes': '{size}' is not a size (try 1GB)."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--order", "random"], "--order random requires --cap. Add --cap N, or drop the option."),
        (["--balance", "list"], "--balance list requires --cap. Add --cap N, or drop the option."),
    ],
)
def test_options_that_contradict_each_other(mbt: Door, options: list[str], message: str) -> None:
    done = mbt("prep", "audioset", "--subset", "eval", *options)
    assert (done.code, done.out, done.err) == (2, "", f"error: {message}\n")
