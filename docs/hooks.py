"""MkDocs hook: generates the pages about recipes, and includes pages from the root of the repository.

A page requests generated content with a comment on a line of its own, such as `<!-- recipe fields -->`.
"""

import inspect
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mbt.train.recipes.schema import Recipe

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "train" / "recipes"
FACTS = ("Command", "Hardware", "Expected")
KINDS = {int: "integer", float: "number", bool: "true or false", str: "text", types.NoneType: "none"}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the comments of a page by the content they request; MkDocs calls this for every page."""
    pieces = {
        "<!-- recipe fields -->": recipe_fields,
        "<!-- recipes -->": shipped_recipes,
        "<!-- CONTRIBUTING.md -->": lambda: root_page("CONTRIBUTING.md"),
        "<!-- CHANGELOG.md -->": lambda: root_page("CHANGELOG.md"),
    }
    for comment, piece in pieces.items():
        if comment in markdown.splitlines():
            markdown = markdown.replace(comment, piece())
    return markdown


def root_page(name: str) -> str:
    """A page from the root of the repository, with links relative to docs/."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


def recipe_fields() -> str:
    """A heading and a table for each section of a recipe, from the schema and its docstrings.

    Raises:
        ValueError: a field has no docstring.
    """
    parts = []
    for name, info in Recipe.model_fields.items():
        section = info.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        parts += [
            f"### [{name}]",
            "",
            inspect.getdoc(section) or "",
            "",
            "| field | values | default | meaning |",
            "|---|---|---|---|",
        ]
        for field, details in section.model_fields.items():
            if not details.description:
                raise ValueError(f"the recipe field {name}.{field} has no docstring; write one below it in the schema")
            meaning = " ".join(details.description.split())
            cells = (f"`{name}.{field}`", values_of(details), f"`{toml(details.default)}`", meaning)
            parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        parts.append("")
    return "\n".join(parts)


def values_of(details: FieldInfo) -> str:
    """The values that a field takes, in words: its type, its bounds, and whether it can be unset."""
    return kind(details.annotation, tuple(bounds(details.metadata)))


def kind(annotation: Any, limits: tuple[str, ...] = ()) -> str:
    """A type in TOML's terms, such as `integer ≥ 1 or none`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(kind(argument, () if argument is types.NoneType else limits) for argument in arguments)
    if origin is Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin is tuple:
        parts = [argument for argument in arguments if argument is not Ellipsis]
        return f"list of {kind(parts[0])}" if len(parts) < len(arguments) else f"[{', '.join(map(kind, parts))}]"
    if origin is Annotated:
        return kind(arguments[0], tuple(limit for part in arguments[1:] for limit in bounds(getattr(part, "metadata", []))))
    return " ".join([KINDS[annotation], *limits])


def bounds(metadata: list[Any]) -> list[str]:
    """Bounds of a number, such as `≥ 1`; the parts of a range are joined by a comma."""
    limits = [f"{sign} {getattr(bound, name):g}" for bound in metadata for name, sign in BOUNDS.items() if hasattr(bound, name)]
    return [", ".join(limits)] if limits else []


def toml(value: Any) -> str:
    """A default as it is written in a recipe."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(toml(part) for part in value)}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def shipped_recipes() -> str:
    """A section for each recipe in the package: the facts of its header, then its fields."""
    parts = []
    for path in sorted(RECIPES.glob("*.toml")):
        text = path.read_text(encoding="utf-8")
        header, _, _ = text.partition("\n\n")
        about, facts = read_header(header)
        parts += [f"### {path.stem}", "", about, "", *(f"- **{name}**: {said}" for name, said in facts.items()), ""]
        parts += ["```toml", text[len(header) :].strip(), "```", ""]
    return "\n".join(parts)


def read_header(header: str) -> tuple[str, dict[str, str]]:
    """The prose and the facts (command, hardware, expected score) of a recipe's leading comment."""
    about: list[str] = []
    facts: dict[str, str] = {}
    for line in (line.removeprefix("#").strip() for line in header.splitlines()):
        name, colon, said = line.partition(":")
        if colon and name in FACTS:
            facts[name] = f"`{said.strip()}`" if name == "Command" else said.strip()
        elif facts:
            facts[list(facts)[-1]] += f" {line}"
        else:
            about.append(line)
    return " ".join(about).strip(), facts
