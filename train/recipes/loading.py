"""Recipes from the package or from TOML files, with settings of the command line applied."""

import difflib
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mbt.manifests.errors import ConfigError
from mbt.manifests.toml_value import toml_value
from mbt.train.recipes.model_fields import DECIDED_ELSEWHERE
from mbt.train.recipes.schema import NONE, Recipe

PACKAGE = "mbt.train.recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(path.name[:-5] for path in resources.files(PACKAGE).iterdir() if path.name.endswith(".toml"))


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """Load a recipe and apply settings to it.

    Args:
        name: name of a recipe in the package, or path of a TOML file.
        settings: `section.field=value`. The value is TOML (`0.1`, `true`, `["rgb"]`); anything else is taken as a string, and
            `none` unsets the field.

    Raises:
        ConfigError: the recipe or a field does not exist, or a value is invalid.
    """
    sections = _read(name)
    for setting in settings:
        path, separator, value = setting.partition("=")
        section, dot, field = path.strip().partition(".")
        if not separator or not dot:
            raise ConfigError(f"--set {setting} is not section.field=value", "Write, for example, --set train.batch_size=32")
        sections.setdefault(section, {})[field] = toml_value(value.strip())
    try:
        return Recipe.model_validate({section: _with_none(fields) for section, fields in sections.items()})
    except ValidationError as error:
        raise _explained(error, name) from None


def _read(name: str) -> dict[str, Any]:
    """Sections of a recipe, merged over those of the recipe that it names as its `base`."""
    own = _read_file(name)
    base = own.pop("base", None)
    sections = {} if base is None else _read_file(str(base))
    for section, fields in own.items():
        sections[section] = {**sections.get(section, {}), **fields} if isinstance(fields, dict) else fields
    return sections


def _read_file(name: str) -> dict[str, Any]:
    path = Path(name)
    if name in recipe_names():
        text = (resources.files(PACKAGE) / f"{name}.toml").read_text(encoding="utf-8")
    elif path.suffix == ".toml" and path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        raise ConfigError(f"no recipe {name!r}", f"Choose one of {', '.join(recipe_names())}, or give a .toml file")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {name} is not valid TOML: {error}", "Fix the file") from None


def _with_none(fields: Any) -> Any:
    return {name: None if value == NONE else value for name, value in fields.items()} if isinstance(fields, dict) else fields


def _explained(error: ValidationError, name: str) -> ConfigError:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][:2])
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        where = f"recipe {name}: {place}" if place else f"recipe {name}"
        field = place if "." in place else f"{place or 'SECTION'}.FIELD"
        return ConfigError(f"{where}: {message}", f"Change it with --set {field}=VALUE")
    section, _, field = place.partition(".")
    if section == "model" and field in DECIDED_ELSEWHERE:
        return ConfigError(f"recipe {name}: {place} is not a field of a recipe", DECIDED_ELSEWHERE[field])
    known = [f"{section}.{field}" for section, fields in Recipe() for field in type(fields).model_fields]
    near = difflib.get_close_matches(place, known, n=1)
    return ConfigError(
        f"recipe {name}: unknown field {place!r}",
        f"Did you mean {near[0]}?" if near else f"Fields: {', '.join(known)}",
    )
