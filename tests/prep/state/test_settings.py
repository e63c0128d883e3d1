"""The settings that a folder was packed with, and the URL of its finished files: its credentials are nowhere on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mbt.manifests.reading.remote import hide_secrets, without_secrets
from mbt.prep.state.settings import SETTINGS_FILE, PackSettings, check_settings, freeze_settings
from tests.conftest import Collection, Door

PASSWORD = "hunter2-of-the-vault"


class Vault(MemoryFileSystem):
    """A file system that quotes the whole URL in its errors, and serves only who knows the password."""

    protocol = "vault"
    cachable = False
    store: dict[str, Any] = {}  # noqa: RUF012
    is_down = False

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(**options)
        self._url = url
        if "nobody" in url:
            raise ConnectionError(f"no connection to {url}")

    @classmethod
    def _get_kwargs_from_urls(cls, path: str) -> dict[str, str]:
        return {"url": path}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        parts = urlsplit(path)
        return (f"/{parts.hostname}{parts.path}" if parts.hostname else path).rstrip("/")

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        if self.is_down or urlsplit(self._url).password not in (PASSWORD, "another"):
            raise PermissionError(f"401 from {self._url}")
        return super().ls(path, detail=detail)


@pytest.fixture
def vault() -> Iterator[type[Vault]]:
    fsspec.register_implementation("vault", Vault, clobber=True)
    yield Vault
    Vault.store.clear()
    Vault.is_down = False


def test_credentials_of_the_target_are_neither_stored_nor_printed(
    collection: Collection, tmp_path: Path, mbt: Door, vault: type[Vault], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a later run with other credentials finds the same shards; report needs none."""
    out = tmp_path / "out"
    run = collection.arguments(out, "--limit", 1, "--short-side", 32)
    url = f"vault://me:{PASSWORD}@bucket/set?token=sesame-sesame"
    done = mbt(*run, "--to", url)
    assert done.code == 0, done.err
    assert {path.rpartition("/")[2] for path in vault.store} >= {"dataset.json", "train-000000.tar", "eval-000000.tar"}
    texts = [done.out, done.err, *(path.read_bytes().decode("latin1") for path in out.rglob("*") if path.is_file())]
    texts += [file.getvalue().decode("latin1") for file in vault.store.values()]
    assert mbt("prep", "report", out).code == 0
    texts.append((out / "report.json").read_text())

    def no_decoding(*_: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr("mbt.prep.pack.pack_shard.decode_clip", no_decoding)
        assert mbt(*run, "--to", "vault://you:another@bucket/set").code == 0
    elsewhere = mbt(*run, "--to", f"vault://me:{PASSWORD}@other/set")
    assert "--to vault://bucket/set, not vault://other/set (see " in elsewhere.err
    vault.is_down = True
    failed = mbt(*run, "--to", url)
    assert "cannot reach vault://bucket/set: 401 from vault://" in failed.err
    unknown = mbt(*run, "--to", f"vault://nobody:{PASSWORD}@bucket/set")
    assert unknown.err.startswith("error: cannot reach vault://bucket/set: no connection to vault://")
    texts += [elsewhere.err, failed.err, unknown.err]
    assert not [text for text in texts for secret in (PASSWORD, "sesame") if secret in text]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a", "s3://bucket/a"),
        ("ftp://me:pw@host:21/a/b?x=1", "ftp://host:21/a/b"),
        ("ftp://me:p@w@host/a@b", "ftp://host/a@b"),
        ("https://host?mail=a@b", "https://host"),
        ("simplecache::ftp://me@host/a", "simplecache::ftp://host/a"),
    ],
)
def test_a_url_without_its_secrets(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_secrets_that_an_error_quotes_are_hidden() -> None:
    url = "ftp://me:pass%21word@host/a?signature=abcdef&v=1"
    text = f"530 {url}: login me with pass!word failed (abcdef)"
    hidden = hide_secrets(text, url)
    assert "ftp://***host/a***" in hidden
    assert not [secret for secret in ("pass!word", "pass%21word", "abcdef") if secret in hidden]


def test_a_file_of_an_earlier_version_loses_its_credentials(tmp_path: Path) -> None:
    settings = PackSettings(to="ftp://host/a")
    (tmp_path / "work").mkdir()
    text = settings.model_dump_json().replace("ftp://host", "ftp://me:pw@host")
    assert "me:pw" in text
    (tmp_path / SETTINGS_FILE).write_text(text)
    check_settings(tmp_path, settings, packed=True)
    freeze_settings(tmp_path, settings)
    assert "me:pw" not in (tmp_path / SETTINGS_FILE).read_text()
