"""`NAME=VALUE` settings of the command line: values are TOML."""

import tomllib
from typing import Any


def toml_value(text: str) -> Any:
    """A value as TOML has it; what is none is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
