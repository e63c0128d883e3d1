"""The errors a user can mend: each says what is wrong, where, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


class MbtError(Exception):
    """Base of every error that the user can mend; the command line prints it as one line and exits with 2.

    Line breaks become spaces.

    Args:
        what: what is wrong and where (file, row, option, tensor).
        fix: what to do about it.
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.what, self.fix = (" ".join(text.splitlines()) for text in (what, fix))

    def __str__(self) -> str:
        return f"{self.what}. {self.fix}."


class InputError(MbtError):
    """A list, folder, media file or option given by the user is missing or malformed."""


class ShardError(MbtError):
    """A dataset folder does not hold what its index or the format's specification says."""


class ConfigError(MbtError):
    """A recipe, model configuration or checkpoint contradicts itself or another."""


class StorageError(MbtError):
    """Files cannot be written: no space, no permission."""


class SourceError(MbtError):
    """A media source refuses to serve at all (rate limit, block, wrong installation); nothing is wrong with the clips."""


@contextmanager
def as_config_error(fix: str) -> Iterator[None]:
    """Turn the ValueError and OSError of rooms that know no errors of ours into a ConfigError."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ConfigError(str(error).rstrip("."), fix) from None
