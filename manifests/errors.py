"""Errors that a user can fix: each says what is wrong, where, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


class MbtError(Exception):
    """Base of all errors that the user can fix; the command line prints it on one line and exits with status 2.

    Line breaks in the texts become spaces.

    Args:
        what: what is wrong and where (file, row, option, tensor).
        fix: what to do about it.
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.what, self.fix = (" ".join(text.splitlines()) for text in (what, fix))

    def __str__(self) -> str:
        return f"{self.what}. {self.fix}" + "." * (not self.fix.endswith("?"))


class InputError(MbtError):
    """A list, folder, media file or option from the user is missing or invalid."""


class ShardError(MbtError):
    """A dataset folder contradicts its index or the format specification."""


class ConfigError(MbtError):
    """A recipe, model configuration or checkpoint is invalid, or does not match another one."""


class StorageError(MbtError):
    """Files cannot be written, for example because of missing space or permission."""


class SourceError(MbtError):
    """A media source serves nothing at all (rate limit, block, broken installation); the clips themselves are fine."""


@contextmanager
def as_config_error(fix: str) -> Iterator[None]:
    """Turn ValueError and OSError from code that does not use our error classes into a ConfigError."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ConfigError(str(error).rstrip("."), fix) from None
