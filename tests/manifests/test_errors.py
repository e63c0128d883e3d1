"""Errors that a user can fix: they are one line, and survive pickling between processes."""

import pickle

import pytest

from mbt.manifests.errors import ConfigError, InputError, MbtError, ShardError, SourceError, StorageError


@pytest.mark.parametrize("kind", [MbtError, InputError, ShardError, ConfigError, StorageError, SourceError])
def test_errors_survive_pickling(kind: type[MbtError]) -> None:
    again = pickle.loads(pickle.dumps(kind("a.csv: row 3 is empty", "Fill it")))
    assert type(again) is kind
    assert (str(again), again.what, again.fix) == ("a.csv: row 3 is empty. Fill it.", "a.csv: row 3 is empty", "Fill it")


def test_messages_of_several_lines_become_one() -> None:
    error = ShardError("cannot read it: broken\nPage 3\n", "Make it\r\nagain")
    assert str(error) == "cannot read it: broken Page 3. Make it again."
