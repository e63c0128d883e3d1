"""Download of a published file to a cache: resumable, checked, atomic."""

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from mbt.manifests.atomic import storage_errors
from mbt.manifests.errors import InputError

CHUNK = 1 << 20
TRIES = 5
TIMEOUT_S = 30


def download(url: str, path: Path, size: int, sha256: str) -> None:
    """Make `path` hold the file at `url`; return at once if it already does.

    A broken transfer is resumed where it stopped, within this call and in later ones, from `<path>.part`.

    Raises:
        InputError: the server refuses, or what it serves is not the recorded file.
        StorageError: the cache cannot be written.
    """
    if path.exists() and path.stat().st_size == size:
        return
    part = path.with_name(path.name + ".part")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(TRIES):
            try:
                _continue(url, part, size)
                break
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                if attempt == TRIES - 1 or (isinstance(error, urllib.error.HTTPError) and error.code < 500):
                    fix = "Check the network and run again (it resumes), or give the list by --list FILE"
                    raise InputError(f"cannot download {url}: {error}", fix) from error
                time.sleep(2**attempt)
        if part.stat().st_size != size or file_sha256(part) != sha256:
            part.unlink()
            raise InputError(
                f"{url} served another file than the recorded one", "Get the list elsewhere and give it by --list FILE"
            )
        part.replace(path)


def _continue(url: str, part: Path, size: int) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have >= size:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with _open(request, part) as response:
        resumed = have > 0 and response.status == 206
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(total=size, initial=have if resumed else 0, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if part.stat().st_size < size:
        raise ConnectionError(f"the transfer ended at byte {part.stat().st_size} of {size}")


def _open(request: urllib.request.Request, part: Path) -> http.client.HTTPResponse:
    """The response; where what is there cannot be gone on with, it is removed, and the next try begins anew."""
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink(missing_ok=True)
        raise ConnectionError(f"the server's file is shorter than the {part.name} that was there") from error


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
