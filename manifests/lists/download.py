"""Downloads of published files to the cache: resumable, verified, atomic."""

import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from mbt.manifests.atomic import storage_errors
from mbt.manifests.checksums import file_sha256
from mbt.manifests.errors import InputError

CHUNK = 1 << 20
TRIES = 5
TIMEOUT_S = 30


def download(url: str, path: Path, size: int, sha256: str) -> None:
    """Download `url` to `path`, unless `path` already exists with this size.

    An interrupted transfer is resumed from `<path>.part`, in this call or a later one.

    Raises:
        InputError: the download fails, or the file does not have this size and SHA-256.
        StorageError: the cache is not writable.
    """
    if path.exists() and path.stat().st_size == size:
        return
    part = path.with_name(path.name + ".part")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(TRIES):
            try:
                _resume(url, part, size)
                break
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                if attempt == TRIES - 1 or (isinstance(error, urllib.error.HTTPError) and error.code < 500):
                    fix = "Check the network and run the command again to resume, or give the list with --list FILE"
                    raise InputError(f"cannot download {url}: {error}", fix) from error
                time.sleep(2**attempt)
        if part.stat().st_size != size or file_sha256(part) != sha256:
            part.unlink()
            raise InputError(
                f"the file from {url} does not have the recorded size and SHA-256",
                "Get the list from another source and give it with --list FILE",
            )
        part.replace(path)


def _resume(url: str, part: Path, size: int) -> None:
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
    """The response; if the server cannot resume after `part`, delete `part`, so that the next attempt starts over."""
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink(missing_ok=True)
        raise ConnectionError(f"the file on the server is shorter than {part.name}") from error
