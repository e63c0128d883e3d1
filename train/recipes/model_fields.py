"""`--set FIELD=VALUE` for a model's configuration."""

from collections.abc import Sequence
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from mbt.config import MBTConfig
from mbt.manifests.errors import ConfigError
from mbt.manifests.settings import toml_value


def config_fields(settings: Sequence[str]) -> dict[str, Any]:
    """Fields of `MBTConfig`, each of its kind; values are TOML, as in recipes.

    Raises:
        ConfigError: no such field, or a value of another kind.
    """
    return dict(_field(setting) for setting in settings)


def _field(setting: str) -> tuple[str, Any]:
    kinds = get_type_hints(MBTConfig)
    name, equals, value = (part.strip() for part in setting.partition("="))
    if not equals or name not in kinds:
        raise ConfigError(f"--set {setting} sets no field of the model", f"Fields: {', '.join(kinds)}")
    try:
        return name, TypeAdapter(kinds[name]).validate_python(toml_value(value))
    except ValidationError as error:
        raise ConfigError(f"--set {setting}: {error.errors()[0]['msg']}", "Give a value as it stands in config.json") from None
