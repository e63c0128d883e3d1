"""The fields of MBTConfig, for recipes and for `--set FIELD=VALUE` of commands that take a model's configuration."""

import ast
import dataclasses
import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from mbt.config import MBTConfig
from mbt.manifests.errors import ConfigError
from mbt.manifests.toml_value import toml_value

DECIDED_ELSEWHERE = {
    "num_classes": "The dataset decides the number of classes",
    "num_frames": "Set input.frames",
    "image_size": "Set input.image_size",
    "spec_shape": "Set input.seconds",
}
"""Fields of MBTConfig that are not in a recipe's section `model`, and what sets them."""
"""Fields that a recipe's model section lacks: the dataset and the recipe's input section decide them."""


def config_fields(settings: Sequence[str]) -> dict[str, Any]:
    """Fields of `MBTConfig` from `FIELD=VALUE` settings, validated by type; values are TOML, as in recipes.

    Raises:
        ConfigError: a field is unknown, or a value has the wrong type.
    """
    return dict(_field(setting) for setting in settings)


def recipe_fields() -> dict[str, Any]:
    """Definitions of a recipe's model fields for `pydantic.create_model`: types, defaults and docstrings are MBTConfig's."""
    types, descriptions = get_type_hints(MBTConfig), _attribute_docstrings(MBTConfig)
    return {
        field.name: (types[field.name], Field(field.default, description=descriptions[field.name]))
        for field in dataclasses.fields(MBTConfig)
        if field.name not in DECIDED_ELSEWHERE
    }


def _field(setting: str) -> tuple[str, Any]:
    types = get_type_hints(MBTConfig)
    name, equals, value = (part.strip() for part in setting.partition("="))
    if not equals or name not in types:
        raise ConfigError(f"--set {setting}: not FIELD=VALUE for a field of the model", f"Fields: {', '.join(types)}")
    try:
        return name, TypeAdapter(types[name]).validate_python(toml_value(value))
    except ValidationError as error:
        raise ConfigError(f"--set {setting}: {error.errors()[0]['msg']}", "Write the value as in config.json") from None


def _attribute_docstrings(cls: type) -> dict[str, str]:
    """The string literals that follow annotated attributes, by attribute; pydantic reads them for its own classes only."""
    (definition,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        attribute.target.id: inspect.cleandoc(text.value.value)
        for attribute, text in pairwise(definition.body)
        if isinstance(attribute, ast.AnnAssign) and isinstance(attribute.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }
