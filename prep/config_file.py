"""Options of `mbt prep` in a TOML file: read for --config, and written for every run."""

import difflib
import json
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import click

from mbt.manifests.errors import InputError
from mbt.prep.sources.ytdlp import parse_ytdlp

NOT_WRITTEN = {"stage", "dry_run", "replan", "rank", "world"}
"""Options of a single command."""
SECRET = re.compile(r"://[^/\s]*@|pass|token|secret|header|auth|twofactor|username|(^|\s)-[pu2]", re.IGNORECASE)
"""What may be a password, or announce one, in an option of yt-dlp."""


def read_config(context: click.Context, path: Path) -> None:
    """Take the options in a TOML file as defaults: those of the command line override them.

    Names are those of the command line, with dashes or underscores; an option that can be repeated takes a list.

    Raises:
        InputError: the file cannot be read, names an unknown option, or has a value that the option does not take.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}", "Write one NAME = VALUE per line, such as short-side = 224") from None
    options = {_name(option): option for option in context.command.params if isinstance(option, click.Option)}
    del options["config"]
    context.default_map = {}
    for written, value in content.items():
        name = written.replace("_", "-")
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1)
            fix = f"Did you mean {near[0]}?" if near else f"{context.command_path} --help lists the options"
            raise InputError(f"{path}: there is no option {written!r}", fix)
        context.default_map[options[name].name or name] = _checked(context, options[name], value, f"{path}: {written}")


def _checked(context: click.Context, option: click.Option, value: Any, where: str) -> Any:
    """The value as text, as on the command line, if the option takes it."""
    fix = f"Give it as on the command line: {'true or false' if option.is_flag else option.make_metavar(context)}"
    if isinstance(value, dict) or (isinstance(value, list) and not option.multiple):
        raise InputError(f"{where}: a {'section' if isinstance(value, dict) else 'list'} is not a value of this option", fix)
    values = [
        str(each).lower() if isinstance(each, bool) else str(each) for each in (value if isinstance(value, list) else [value])
    ]
    if option.name == "ytdlp":
        parse_ytdlp(values, where)
    text = values if option.multiple else values[0]
    try:
        option.type_cast_value(context, text)
    except click.BadParameter as error:
        raise InputError(f"{where}: {error.message.rstrip('.')}", fix) from None
    return text


def config_text(context: click.Context) -> str:
    """The options of a command as a file for --config, without passwords and tokens; paths are absolute."""
    lines, incomplete = [], []
    for option in context.command.params:
        name = option.name or ""
        value = context.params.get(name)
        if not isinstance(option, click.Option) or name in NOT_WRITTEN or value is None or value == ():
            continue
        safe = _without_secrets(name, value)
        if safe != value:
            incomplete.append(_name(option))
        lines.append(f"{_name(option)} = {_toml(_absolute(name, safe))}")
    head = [f"# mbt {' '.join(context.command_path.split()[1:])} --config FILE"]
    if incomplete:
        head.append(f"# Passwords and tokens are left out of: {', '.join(incomplete)}")
    return "\n".join([*head, *lines]) + "\n"


def _name(option: click.Option) -> str:
    """An option's name in the file: its long name on the command line, without the leading dashes."""
    return next(name for name in option.opts if name.startswith("--")).removeprefix("--")


def _without_secrets(name: str, value: Any) -> Any:
    if name == "ytdlp":
        return tuple(text for text in value if not SECRET.search(text))
    if name not in ("to", "source") or "://" not in value:
        return value
    parts = urlsplit(value)
    query = "&".join(field for field in parts.query.split("&") if "{video_id}" in field)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query))


def _absolute(name: str, value: Any) -> Any:
    """A path that is valid in every working directory."""
    is_path = isinstance(value, Path) or (name == "source" and "://" not in value)
    return str(Path(value).absolute()) if is_path else value


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower()
