"""`mbt doctor`: checks of what the commands need. This file: running the checks, and those for fetching and packing."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from mbt.manifests.atomic import nearest_existing
from mbt.manifests.errors import InputError, MbtError, SourceError, StorageError
from mbt.manifests.lists.datasets import AUDIOSET, cache_folder
from mbt.manifests.shards import FPS, MEL_RATE, SAMPLE_RATE, LogMelFormat, VideoFormat
from mbt.manifests.sizes import format_gigabytes
from mbt.prep.state.failure_codes import UPGRADE, Verdict

if TYPE_CHECKING:
    from mbt.prep.fetch.lanes import VideoSource

OLDEST_PYTHON = (3, 11)
AGE_TO_WARN, AGE_TO_FAIL = 30, 180
"""Days; YouTube changes what yt-dlp must do every few weeks."""
SPACE_TO_WARN, SPACE_TO_FAIL = 50e9, 1e9
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_TO_WARN = 1e9
DECODERS = {"aac", "h264", "opus", "vp9"}
"""The codecs that YouTube serves, by their names in ffmpeg."""
SHORT_SIDE = 64
CHOOSE_OUT = "Choose another --out"
CHOOSE_CACHE = "Set MBT_CACHE to a writable folder"
CHECK_NETWORK = "Check the network, then run again"
REINSTALL_FFMPEG = "Run pip install --force-reinstall imageio-ffmpeg, then run again"


@dataclass(frozen=True)
class CheckWarning:
    """The result of a check that passes, but may not for long.

    Attributes:
        found: what was found.
        remedy: what the user can do.
    """

    found: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """The result of a check, ready to print.

    Attributes:
        check: name of the check.
        state: `ok`, `warn` or `fail`.
        found: versions, ages, free space; after a failure, what is wrong.
        remedy: what the user can do; empty if the check passed.
    """

    check: str
    state: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:<4}  {self.check:<13}  {self.found}" + (f". {self.remedy}." if self.remedy else "")


Check = tuple[str, Callable[[], str | CheckWarning], str]
"""Its name; the function, which returns what it found or raises; the remedy for errors other than MbtError."""


def report(checks: Iterable[Check], as_json: bool) -> bool:
    """Run the checks and print one line for each as it ends, or JSON at the end; return whether all passed."""
    findings = []
    for finding in examine(checks):
        findings.append(finding)
        if not as_json:
            click.echo(finding)
    ready = all(finding.state != "fail" for finding in findings)
    if as_json:
        click.echo(json.dumps({"ready": ready, "checks": [asdict(finding) for finding in findings]}, indent=2))
    return ready


def examine(checks: Iterable[Check]) -> Iterator[Finding]:
    """Run the checks one after another. An exception becomes a finding, and what a check prints goes to stderr."""
    for name, look, remedy in checks:
        try:
            with redirect_stdout(sys.stderr):
                found = look()
            yield Finding(name, "ok", found) if isinstance(found, str) else Finding(name, "warn", found.found, found.remedy)
        except MbtError as error:
            yield Finding(name, "fail", error.what, error.fix)
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            yield Finding(name, "fail", text[:300].rstrip("."), remedy)


def media_checks(out: Path, canary: str | None = None, lanes: Path | None = None, ytdlp: tuple[str, ...] = ()) -> list[Check]:
    """The checks for fetching and packing.

    Args:
        out: the folder that a dataset will be written to.
        canary: URL or YouTube id of a video to request; None: no network is used.
        lanes: TOML file of lanes; each requests the canary in a check of its own.
        ytdlp: yt-dlp options for the canary.

    Raises:
        InputError: the lanes cannot be read, a yt-dlp option is wrong, or one of them is given without a canary.
    """
    checks: list[Check] = [
        ("python", python, "Install Python 3.11 or newer"),
        ("clock", clock, UPGRADE),
        ("disk", partial(disk, out), CHOOSE_OUT),
        ("cache", cache, CHOOSE_CACHE),
        ("shared memory", shared_memory, "Mount a tmpfs at /dev/shm"),
        ("ffmpeg", ffmpeg_program, REINSTALL_FFMPEG),
        ("decode", decode, REINSTALL_FFMPEG),
        ("yt-dlp", yt_dlp_age, UPGRADE),
        ("yt-dlp-ejs", yt_dlp_ejs, UPGRADE),
        ("deno", deno, UPGRADE),
    ]
    return [*checks, *canary_checks(canary, lanes, ytdlp)]


def canary_checks(canary: str | None, lanes: Path | None, ytdlp: tuple[str, ...]) -> list[Check]:
    """The checks that request a video; arguments and errors are those of `media_checks`."""
    if canary is None:
        if lanes or ytdlp:
            option = f"--lanes {lanes}" if lanes else "--ytdlp"
            raise InputError(f"{option} requires --canary or --pilot", "Add --canary VIDEO_ID, the video to request")
        return []
    from mbt.prep.fetch.lanes import make_lanes
    from mbt.prep.fetch.options import FetchOptions

    made = make_lanes(
        Path(os.devnull), FetchOptions(source=_template(canary), sleep=0, lanes=lanes, ytdlp=ytdlp, rank=0, world=1)
    )
    check = "Check the network and the lane's options, then run again" if lanes else CHECK_NETWORK
    return [
        (f"canary {lane.name}" if lanes else "canary", partial(request, canary, lane.source, check), UPGRADE) for lane in made
    ]


def python() -> str:
    """Python's version."""
    if sys.version_info < OLDEST_PYTHON:
        raise InputError(f"Python {platform.python_version()} is too old", "Install Python 3.11 or newer")
    return platform.python_version()


def today() -> date:
    """Today's date by this machine's clock, UTC."""
    return datetime.now(UTC).date()


def clock() -> str:
    """The clock is not behind the release date of the installed yt-dlp; a wrong clock also breaks TLS."""
    released = _yt_dlp_date(metadata.version("yt-dlp"))
    if today() < released:
        raise InputError(f"the clock says {today()}, but yt-dlp was released on {released}", "Set the clock")
    return f"{today()}, UTC"


def disk(folder: Path) -> str | CheckWarning:
    """There is space, and permission to write, where `folder` is or will be."""
    existing = _writable(folder, CHOOSE_OUT)
    free = shutil.disk_usage(existing).free
    found = f"{format_gigabytes(free)} free at {existing}"
    if free < SPACE_TO_FAIL:
        raise StorageError(found, "Free some space, or choose another --out")
    if free < SPACE_TO_WARN:
        return CheckWarning(found, "Run mbt prep ... --dry-run to see how much space a dataset needs")
    return found


def cache() -> str:
    """Downloaded lists can be cached."""
    _writable(cache_folder(), CHOOSE_CACHE)
    return str(cache_folder())


def _writable(folder: Path, fix: str) -> Path:
    """The folder, or its nearest parent that exists, after writing a temporary file there."""
    existing = nearest_existing(folder)
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        raise StorageError(f"cannot write to {existing}: {error.strerror}", fix) from None
    return existing


def shared_memory() -> str | CheckWarning:
    """The size of /dev/shm, which the processes of a training run use to exchange data."""
    size = shutil.disk_usage(SHARED_MEMORY).total
    found = f"{format_gigabytes(size)} at {SHARED_MEMORY}"
    if size < SHARED_MEMORY_TO_WARN:
        return CheckWarning(found, "To train on several GPUs, start the container with --shm-size 8g")
    return found


def ffmpeg_program() -> str:
    """ffmpeg's version and path; it can decode what YouTube serves."""
    from mbt.prep.media.ffmpeg import ffmpeg, ffmpeg_version

    command = [ffmpeg(), "-nostdin", "-hide_banner", "-decoders"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL).stdout
    missing = DECODERS - set(re.findall(r"^ [VA]\S{5} (\S+)", listed, re.MULTILINE))
    if missing:
        raise InputError(f"{ffmpeg()} has no decoder for {', '.join(sorted(missing))}", "Unset IMAGEIO_FFMPEG_EXE")
    return f"{ffmpeg_version()}, {ffmpeg()}"


def decode() -> str:
    """A test clip of one second, encoded here, decodes to the right numbers of frames, samples and log-mel rows."""
    from mbt.manifests.reading.jpeg import jpeg_size
    from mbt.prep.media.decode import decode_clip
    from mbt.prep.media.ffmpeg import DEFAULT_LIMITS, ffmpeg, run_ffmpeg
    from mbt.prep.media.log_mel import log_mel

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        picture = ("-f", "lavfi", "-i", f"testsrc2=size=128x96:rate={FPS}:duration=1")
        tone = ("-f", "lavfi", "-i", f"sine=frequency=440:sample_rate={SAMPLE_RATE}:duration=1")
        program = (ffmpeg(), "-nostdin", "-nostats", "-hide_banner", "-loglevel", "level+info")
        run_ffmpeg([*program, *picture, *tone, "-c:v", "mpeg4", "-c:a", "aac", str(path)], DEFAULT_LIMITS)
        clip = decode_clip(path, 0.0, 1.0, VideoFormat(short_side=SHORT_SIDE))
    mel = log_mel(clip.audio, LogMelFormat())
    real = len(clip.jpegs) - clip.padded_frames, len(clip.audio) - clip.padded_samples, *mel.shape
    wanted = FPS, SAMPLE_RATE, MEL_RATE, LogMelFormat().n_mels
    if real != wanted or min(jpeg_size(clip.jpegs[0])) != SHORT_SIDE:
        raise InputError(
            f"the test clip has {real} frames, samples, log-mel rows and bands instead of {wanted}", REINSTALL_FFMPEG
        )
    if mel.max() - mel.min() < 1:
        raise InputError("the tone of the test clip is lost in decoding", REINSTALL_FFMPEG)
    return "1 s test clip: {} frames, {} samples, {} x {} log-mel".format(*real)


def yt_dlp_age() -> str | CheckWarning:
    """The age of yt-dlp, from its version."""
    version = metadata.version("yt-dlp")
    age = (today() - _yt_dlp_date(version)).days
    found = f"{version}, {age} days old"
    if age > AGE_TO_FAIL:
        raise SourceError(found, UPGRADE)
    return CheckWarning(found, UPGRADE) if age > AGE_TO_WARN else found


def _yt_dlp_date(version: str) -> date:
    year, month, day = map(int, version.split(".")[:3])
    return date(year, month, day)


def yt_dlp_ejs() -> str:
    """yt-dlp's scripts for YouTube's challenges have the version that yt-dlp requires."""
    requirements = " ".join(metadata.requires("yt-dlp") or ())
    required = set(re.findall(r"\byt-dlp-ejs *== *([\w.]+)", requirements))
    version = metadata.version("yt-dlp-ejs")
    if version not in required:
        raise SourceError(f"{version}, but yt-dlp requires {' or '.join(sorted(required)) or 'none'}", UPGRADE)
    return f"{version}, as yt-dlp requires"


def deno() -> str:
    """The JavaScript runtime that yt-dlp needs for most of YouTube."""
    from mbt.prep.sources.ytdlp import find_deno

    program = find_deno()
    if program is None:
        raise SourceError("yt-dlp cannot find deno, which it needs for YouTube", UPGRADE)
    if not program.supported:
        raise SourceError(f"{program.version} at {program.path} is too old for yt-dlp", UPGRADE)
    return f"{program.version}, {program.path}"


def _template(canary: str) -> str:
    from mbt.prep.sources.ytdlp import PLACEHOLDER

    return PLACEHOLDER if "://" in canary else AUDIOSET.url_template


def request(canary: str, source: "VideoSource", check_network: str) -> str | CheckWarning:
    """The formats that the site offers for a video, over a lane or this machine's own address; nothing is downloaded."""
    offer = source.probe(canary)
    if isinstance(offer, Verdict):
        remedy = offer.remedy or ("Try another video" if offer.answered else check_network)
        raise SourceError(f"{canary}: {offer.code}: {offer.message}".rstrip("."), remedy)
    part = "only the clips' bytes" if offer.by_ranges else "whole files"
    formats = f"{offer.num_formats} format{'s' * (offer.num_formats != 1)}"
    found = f"{canary}: {formats}; mbt prep would download {part} of {offer.chosen}"
    if offer.warnings:
        return CheckWarning(f"{found}; yt-dlp warns: {'; '.join(offer.warnings)}".rstrip("."), UPGRADE)
    return found
