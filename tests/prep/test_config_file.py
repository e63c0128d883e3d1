"""Options of `mbt prep` from a TOML file, and the file that every run writes."""

import tomllib
from pathlib import Path

import click
import pytest

from mbt.cli import SETTINGS, cli
from mbt.prep.config_file import config_text
from mbt.prep.fetch.lanes import make_lanes
from mbt.prep.run import PrepOptions
from mbt.prep.sources.ytdlp import parse_ytdlp
from tests.conftest import Collection, Door

AUDIOSET, CUSTOM = (cli.commands["prep"].commands[name] for name in ("audioset", "custom"))  # type: ignore[attr-defined]


def context(command: click.Command, *arguments: object) -> click.Context:
    return command.make_context(f"mbt prep {command.name}", list(map(str, arguments)), **SETTINGS)


def config(folder: Path, text: str) -> Path:
    path = folder / "prep.toml"
    path.write_text(text)
    return path


def test_values_come_from_the_file_and_the_command_line_wins(tmp_path: Path) -> None:
    file = config(
        tmp_path,
        """
        subset = "balanced"
        list = "some.csv"
        short-side = 224
        shard_bytes = "1GB"
        keep-raw = false
        flac = true
        sleep = 2
        clip-memory = 1.5
        ytdlp = ["--extractor-retries 7", "--socket-timeout 5"]
        """,
    )
    given = context(AUDIOSET, "--config", file).params
    expected = {"subset": "balanced", "list_path": Path("some.csv"), "short_side": 224, "shard_bytes": 10**9}
    expected |= {"keep_raw": False, "flac": True, "sleep": 2.0, "clip_memory": 1.5}
    expected |= {"ytdlp": ("--extractor-retries 7", "--socket-timeout 5"), "jpeg_qscale": 3, "limit": None}
    assert {name: given[name] for name in expected} == expected
    options = PrepOptions.from_command_line(**{**given, "source": "https://example.org/{video_id}"})
    [lane] = make_lanes(tmp_path, options.fetch)
    assert (lane.sleep_s, options.pack.clip_memory, options.pack.keep_raw) == (2.0, 1.5, False)
    flags = parse_ytdlp(given["ytdlp"])
    assert (int(flags["extractor_retries"]), flags["socket_timeout"]) == (7, 5)
    override = ["--subset", "eval", "--keep-raw", "--short-side", 96, "--ytdlp", "--extractor-retries 1"]
    given = context(AUDIOSET, *override, "--config", file).params
    assert (given["subset"], given["keep_raw"], given["short_side"], given["ytdlp"]) == (
        "eval",
        True,
        96,
        ("--extractor-retries 1",),
    )
    assert (given["flac"], given["sleep"]) == (True, 2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("short-sid = 3", "there is no option 'short-sid'. Did you mean short-side?"),
        ("list_path = 'a'", "there is no option 'list_path'. Did you mean list?"),
        ("config = 'a'", "there is no option 'config'"),
        ("qqq = 1", "there is no option 'qqq'. mbt prep audioset --help lists the options."),
        ("short-side = 'wide'", "short-side: 'wide' is not a valid integer range. Give it as on the command line: PIXELS."),
        ("short-side = 2.5", "short-side: '2.5' is not a valid integer range"),
        ("short_side = true", "short_side: 'true' is not a valid integer range"),
        ("short-side = 3", "short-side: 3 is not in the range x>=16"),
        ("short-side = [3]", "short-side: a list is not a value of this option"),
        ("[pack]\nshort-side = 3", "there is no option 'pack'"),
        (
            "[flac]\nshort-side = 3",
            "flac: a section is not a value of this option. Give it as on the command line: true or false.",
        ),
        ("flac = 'perhaps'", "flac: 'perhaps' is not a valid boolean"),
        ("stage = 'cook'", "stage: 'cook' is not one of 'plan', 'fetch', 'pack'"),
        ("shard-bytes = 'big'", "shard-bytes: 'big' is not a size (try 1GB)"),
        ("ytdlp = ['retries=3']", "ytdlp: 'retries' is not a flag. Give yt-dlp's flags, such as --cookies"),
        ("ytdlp = '--sokket-timeout 3'", "ytdlp: no such option: --sokket-timeout"),
        ("flac = yes", "cannot read {file}: "),
    ],
)
def test_what_an_option_does_not_take_is_refused(tmp_path: Path, mbt: Door, text: str, message: str) -> None:
    file = config(tmp_path, text)
    done = mbt("prep", "audioset", "--subset", "eval", "--out", tmp_path / "set", "--config", file)
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    start = "" if "{file}" in message else f"{file}: "
    assert done.err.startswith(f"error: {start}{message.format(file=file)}")
    assert not (tmp_path / "set").exists()


def test_a_missing_file_is_refused(tmp_path: Path, mbt: Door) -> None:
    done = mbt("prep", "audioset", "--config", tmp_path / "none.toml")
    assert (done.code, f"cannot read {tmp_path}/none.toml: " in done.err) == (2, True)


def test_a_run_writes_its_options_and_reads_them_again(
    collection: Collection, tmp_path: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.chdir(collection.source.parent)
    run = ["prep", "custom", "--list", "clips.csv", "--labels", "labels.csv", "--source", "media", "--out", out]
    assert (
        mbt(
            *run, "--short-side", 32, "--flac", "--shard-bytes", "1GB", "--limit", 2, "--name", 'a "b"\\', "--stage", "plan"
        ).code
        == 0
    )
    written = out / "work" / "config.toml"
    content = tomllib.loads(written.read_text())
    assert content.items() >= {"short-side": 32, "flac": True, "shard-bytes": 10**9, "limit": 2, "name": 'a "b"\\'}.items()
    assert content["list"] == str(collection.clips)
    assert not content.keys() & {"stage", "config", "cap"}
    monkeypatch.chdir(tmp_path)
    first = written.read_bytes()
    done = mbt("prep", "custom", "--config", written)
    assert done.code == 0, done.err
    assert "pack: train: 2 samples in 1 shard" in done.out
    assert written.read_bytes() == first


def test_the_file_holds_no_secrets() -> None:
    given = context(
        AUDIOSET,
        *("--subset", "eval", "--to", "ftp://me:hunter2@host/set?token=abc"),
        *("--source", "https://me:hunter2@host/watch?v={video_id}&key=abc"),
        *("--ytdlp", "retries=3", "--ytdlp", "proxy=http://me:hunter2@host:1", "--ytdlp", "--video-password hunter2"),
    )
    text = config_text(given)
    assert not [secret for secret in ("hunter2", "abc", "me:") if secret in text]
    assert text.splitlines()[1] == "# Passwords and tokens are left out of: source, ytdlp, to"
    content = tomllib.loads(text)
    assert (content["to"], content["source"]) == ("ftp://host/set", "https://host/watch?v={video_id}")
    assert content["ytdlp"] == ["retries=3"]


@pytest.mark.parametrize(
    ("command", "more"),
    [(AUDIOSET, ["--subset", "eval"]), (CUSTOM, ["--list", "a", "--labels", "b", "--source", "c", "--out", "d"])],
)
def test_defaults_survive_the_round_trip(command: click.Command, more: list[str], tmp_path: Path) -> None:
    given = context(command, *more)
    again = context(command, "--config", config(tmp_path, config_text(given)))
    paths = {"list_path", "labels_path", "source", "out"}
    assert {name: value for name, value in again.params.items() if name not in paths} == {
        name: value for name, value in given.params.items() if name not in paths
    }
    assert {name: again.params[name] and Path(again.params[name]) for name in paths & again.params.keys()} == {
        name: given.params[name] and Path(given.params[name]).absolute() for name in paths & given.params.keys()
    }
