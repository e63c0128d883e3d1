"""The documentation builds without warnings, loads nothing from the network, and its commands and links exist."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest
import yaml

from mbt.cli import cli
from mbt.train.recipes.loading import load_recipe, recipe_names
from mbt.train.recipes.schema import Recipe

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
RESOURCE = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?https?://|<link\b[^>]*rel=["']?stylesheet[^>]*https?://|@import"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr
    return folder


@pytest.mark.slow
def test_the_site_has_every_page_and_loads_nothing_from_the_network(site: Path) -> None:
    assert {page.stem for page in site.glob("*.html")} - {"404"} == {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert {str(page): found[0] for page in site.rglob("*.html") if (found := RESOURCE.search(page.read_text()))} == {}
    assert not list(site.rglob("*.py"))


@pytest.mark.slow
def test_the_site_describes_every_recipe_and_every_field(site: Path) -> None:
    text = (site / "recipes.html").read_text()
    fields = {f"{section}.{field}" for section, values in Recipe() for field in type(values).model_fields}
    assert len(fields) > 50
    assert {field for field in fields if f"<td><code>{field}</code></td>" not in text} == set()
    assert {name for name in recipe_names() if f'<h3 id="{name}">' not in text} == set()


@pytest.mark.slow
def test_the_site_describes_the_public_names(site: Path) -> None:
    text = (site / "api.html").read_text()
    names = (
        "model.MBT.forward",
        "config.MBTConfig",
        "manifests.reading.reader.ShardReader",
        "manifests.reading.split.Sample.frames",
    )
    for name in (*names, "rollout.attention_rollout", "weights.scenic.from_scenic"):
        assert f'id="mbt.{name}"' in text


def mbt_commands(page: Path) -> Iterator[list[str]]:
    """Words of each `mbt` command in the code blocks of a page."""
    for line in page.read_text().splitlines():
        match = re.match(r"(?:    |\$ )(?:(?:srun|torchrun|deepspeed)\b.*?\s)?mbt ((?:[a-z]).*)", line)
        if match:
            yield [word for word in shlex.split(match[1].replace("/* ", " "), comments=True) if word != "..."]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_options_that_the_page_shows(page: Path) -> None:
    for words in mbt_commands(page):
        if words[0] == "NAME" or words[1:2] == ["NAME"]:
            continue
        command: click.Command = cli
        rest = words
        while isinstance(command, click.Group):
            assert rest, words
            assert rest[0] in command.commands, f"mbt {shlex.join(words)}"
            command, rest = command.commands[rest[0]], rest[1:]
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.partition("=")[0] for word in rest if word.startswith("--") and " " not in word}
        assert used - options - {"--help"} == set(), f"mbt {shlex.join(words)}"
        settings = [after for word, after in pairwise(rest) if word == "--set"]
        if command.name == "train":
            recipe = next((after for word, after in pairwise(rest) if word == "--recipe"), "mbt_paper")
            load_recipe(recipe, settings)


def test_the_pages_show_many_commands() -> None:
    shown = [words for page in PAGES for words in mbt_commands(page)]
    assert len(shown) > 60
    assert {"prep", "shards", "train", "eval", "predict", "explain", "flops", "doctor"} <= {words[0] for words in shown}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_pages_at_the_root_exist(name: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text())
    missing = {link for link in links if not link.startswith("https://") and not (ROOT / link).exists()}
    assert missing == set()


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"version {citation['version']}" in (ROOT / "CHANGELOG.md").read_text()
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Nagrani", "Yang", "Arnab", "Jansen", "Schmid", "Sun"]


def test_the_workflow_runs_the_same_script_as_every_ci() -> None:
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_replay_puts_what_commands_print_into_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '```python title="say.py"\nprint("one\\ntwo\\nthree\\nfour")\n```\n\n'
        "```console\n$ python say.py\nold\n...\nold\n\n$ pwd\n```\n\n```toml\na = 1\n```\n"
    )
    program = ROOT / "docs" / "replay.py"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run([sys.executable, program, page, "--folder", tmp_path], check=True, capture_output=True, env=environment)
    expected = "```console\n$ python say.py\none\n...\nfour\n\n$ pwd\n/home/me\n```\n\n```toml\na = 1\n```\n"
    assert page.read_text().endswith(expected)
