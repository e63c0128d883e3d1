"""Values of `NAME=VALUE` options, written as TOML."""

import tomllib
from typing import Any


def toml_value(text: str) -> Any:
    """The TOML value that `text` spells, or else `text` itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
