"""Run the commands of a page and put what they print into it: `python docs/replay.py PAGE --folder FOLDER`.

A page's `console` blocks hold commands (`$ mbt ...`), each followed by its output. A line `...` shortens an output: as many
lines before and after it are kept as the page has there. Blocks with a title (`python title="make_lists.py"`) are written as
files first.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r'^```(?P<kind>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<body>.*?)^```$', re.DOTALL | re.MULTILINE)
CUT = "..."
HOME = "/home/me"
"""Stands for the folder in the page."""


def replay(page: Path, folder: Path) -> str:
    """The page with fresh outputs; its commands are run in the folder, in their order.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    return BLOCK.sub(lambda block: _block(block, folder), page.read_text(encoding="utf-8"))


def _block(block: re.Match[str], folder: Path) -> str:
    if block["title"]:
        (folder / block["title"]).write_text(block["body"], encoding="utf-8")
    if block["kind"] != "console":
        return block[0]
    _, *parts = re.split(r"^\$ ", block["body"], flags=re.MULTILINE)
    lines = [line for part in parts for line in _command(part, folder)]
    return "\n".join(["```console", *lines, "```"])


def _command(part: str, folder: Path) -> list[str]:
    command, *shown = part.strip("\n").split("\n")
    print(f"$ {command}", file=sys.stderr)
    run = subprocess.run(["bash", "-c", command], cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    printed = run.stdout.strip("\n").replace(str(folder.resolve()), HOME)
    lines = _shortened(printed.split("\n"), shown) if printed else []
    return [f"$ {command}", *lines, *([""] if part.endswith("\n\n") else [])]


def _shortened(printed: list[str], shown: list[str]) -> list[str]:
    if CUT not in shown:
        return printed
    before, after = shown.index(CUT), len(shown) - 1 - shown.index(CUT)
    return [*printed[:before], CUT, *(printed[-after:] if after else [])]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(), help="where the commands run")
    arguments = parser.parse_args()
    arguments.page.write_text(replay(arguments.page, arguments.folder), encoding="utf-8")
