"""Cost of fetching: `python -m benchmarks.fetch` prints bytes and requests per clip, and how busy the lanes are.

It compares, against one server on this machine, `mbt prep custom` with its alternatives: yt-dlp with the whole video, and with
`--download-sections`. The server is that of the tests (so a checkout is needed). It serves five-minute videos as YouTube does:
pictures at 550 kb/s in groups of 5 s and sound at 128 kb/s in segments of 10 s, each as one fragmented MP4 that begins with
its index. YouTube's own servers and files were never measured.
"""

import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.processes import ROOT
from mbt.manifests.errors import InputError, MbtError
from mbt.manifests.lists.custom import REQUIRED
from mbt.prep.media.ffmpeg import ffmpeg
from mbt.prep.sources.sidx import parse_index
from mbt.prep.sources.ytdlp import PLACEHOLDER
from tests.mediaserver import MediaServer, Request, ServedFile, Slow, media_server, with_access_points

VIDEO_S = 300
CLIP_S = 10
LOOP_S = 10
"""Seconds that are rendered; the video is a loop of them."""
TARGET_BYTES = 1_500_000
TARGET_BUSY = 0.95
OTHERS = 2
"""Clips of each alternative: all of them cost the same."""
SECTION_BYTES_S = 8_000_000
"""Speed limit for ffmpeg's requests, so that few bytes are sent that ffmpeg does not read."""
INDEXED = "+dash+global_sidx+default_base_moof+empty_moov"
ANY_TIME, TENS, UNTYPED = "mbt, starts at any time", "mbt, starts at multiples of 10 s", "the same, index without types"
WORST = "mbt, starts just after a border"
"""50 ms after a border between sound segments, so that a third sound segment and a third group of pictures are needed."""
OURS = (ANY_TIME, TENS, UNTYPED, WORST)
WHOLE, SECTIONS = "yt-dlp, whole video", "yt-dlp --download-sections"


@dataclass(frozen=True)
class Clip:
    """The only clip of a video.

    Attributes:
        row: name of the row in the table.
        video_id: name of the video.
        start_s: start of the clip in the video, seconds.
    """

    row: str
    video_id: str
    start_s: float


@dataclass(frozen=True)
class Row:
    """The cost of one kind of clip.

    Attributes:
        name: who fetched which clips.
        clips: number of clips.
        requests: requests for media per clip.
        mean_bytes: mean bytes of media per clip.
        max_bytes: maximum bytes of media per clip.
        share: `mean_bytes` / bytes of the whole video.
    """

    name: str
    clips: int
    requests: float
    mean_bytes: float
    max_bytes: int
    share: float


@dataclass(frozen=True)
class Lanes:
    """How busy the lanes were.

    Attributes:
        lanes: number of lanes.
        sleep_s: seconds between two extractions of a lane.
        latency_s: seconds before the server sends a page.
        made: extractions per hour.
        allowed: extractions per hour at the rates of the lanes.
        busy: made / allowed.
    """

    lanes: int
    sleep_s: float
    latency_s: float
    made: float
    allowed: float
    busy: float


def render(folder: Path, seconds: int = VIDEO_S) -> tuple[bytes, bytes]:
    """A 640x360 video as two files, with pictures and with sound; the pictures loop every 10 s."""
    picture = f"testsrc2=size=640x360:rate=30:duration={LOOP_S},noise=alls=20:allf=t"
    rate = ["-b:v", "550k", "-minrate", "550k", "-maxrate", "550k", "-bufsize", "550k"]
    rate += ["-x264-params", "nal-hrd=cbr:filler=1:vbv-init=0.6"]
    coder = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-bf", "2", "-g", "150", "-sc_threshold", "0"]
    sound = f"anoisesrc=duration={seconds}:amplitude=0.2:sample_rate=44100:seed=1"
    _ffmpeg("-f", "lavfi", "-i", picture, *coder, *rate, folder / "loop.mp4")
    repeated = ["-stream_loop", str(seconds // LOOP_S - 1), "-i", folder / "loop.mp4", "-c", "copy"]
    _ffmpeg(*repeated, "-movflags", f"{INDEXED}+frag_keyframe", folder / "video.mp4")
    parts = ["-movflags", INDEXED, "-frag_duration", "10000000", "-f", "mp4"]
    _ffmpeg("-f", "lavfi", "-i", sound, "-c:a", "aac", "-b:a", "128k", *parts, folder / "audio.m4a")
    return (folder / "video.mp4").read_bytes(), (folder / "audio.m4a").read_bytes()


def _ffmpeg(*arguments: object) -> None:
    subprocess.run([ffmpeg(), "-nostdin", "-v", "error", *map(str, arguments)], check=True)


def choose(num_clips: int, audio: bytes, seed: int = 0) -> list[Clip]:
    """`num_clips` clips of each of our kinds, and a few for each alternative; none at either end of the video."""
    draw = random.Random(seed)
    middle = range(CLIP_S, VIDEO_S - 2 * CLIP_S)
    borders = [segment.start_s for segment in parse_index(audio, len(audio)).segments]
    start: dict[str, Callable[[], float]] = {
        ANY_TIME: lambda: draw.uniform(middle.start, middle.stop),
        TENS: lambda: draw.choice(middle[::10]),
        WORST: lambda: draw.choice([border for border in borders if middle.start < border < middle.stop]) + 0.05,
    }
    return [
        Clip(row, f"video-{kind}-{number:05}", round(start.get(row, start[TENS])(), 3))
        for kind, row in enumerate((*OURS, WHOLE, SECTIONS))
        for number in range(num_clips if row in OURS else min(num_clips, OTHERS))
    ]


@contextmanager
def serving(clips: Sequence[Clip], video: bytes, audio: bytes, latency_s: float) -> Iterator[MediaServer]:
    """A server with a page and its own media URLs for each clip's video."""
    typed = with_access_points(video)
    with media_server() as server:
        for clip in clips:
            paths = {"video": f"/video/{clip.video_id}", "audio": f"/audio/{clip.video_id}"}
            server.files[f"/watch/{clip.video_id}"] = ServedFile(json.dumps(paths).encode(), latency_s=latency_s)
            server.files[paths["video"]] = ServedFile(video if clip.row == UNTYPED else typed)
            server.files[paths["audio"]] = ServedFile(audio)
        yield server


def fetch_with_mbt(clips: Sequence[Clip], server: MediaServer, folder: Path, lanes: int, sleep_s: float) -> None:
    """`mbt prep custom --stage plan`, then `--stage fetch`.

    Raises:
        InputError: a clip was not fetched.
    """
    with (folder / "clips.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(REQUIRED)
        writer.writerows((clip.video_id, clip.start_s, clip.start_s + CLIP_S, "train", "a") for clip in clips)
    (folder / "labels.csv").write_text("id\na\n")
    (folder / "lanes.toml").write_text("".join(f'[[lane]]\nname = "lane-{lane}"\n' for lane in range(lanes)))
    lists = ["--list", folder / "clips.csv", "--labels", folder / "labels.csv", "--out", folder / "out"]
    rate = ["--source", f"{server.url}/watch/{PLACEHOLDER}", "--lanes", folder / "lanes.toml", "--sleep", sleep_s]
    for stage in ("plan", "fetch"):
        output = _python("cli", "prep", "custom", *lists, *rate, "--stage", stage)
    if f"fetch: {len(clips)} clips found, 0 missing" not in output:
        raise InputError(
            f"some clips were not fetched: {output.strip()}", "Read the ledger of a run of mbt prep against this server"
        )


def download_whole(clip: Clip, server: MediaServer, folder: Path) -> None:
    """Download the whole video with yt-dlp."""
    _ytdlp(clip, server, folder)


def download_section(clip: Clip, server: MediaServer, folder: Path) -> None:
    """Download the clip with yt-dlp, whose ffmpeg reads from the server, beginning at the keyframe before the clip."""
    for kind in ("video", "audio"):
        server.files[f"/{kind}/{clip.video_id}"].always = Slow(SECTION_BYTES_S)
    _ytdlp(clip, server, folder, "--download-sections", f"*{clip.start_s}-{clip.start_s + CLIP_S}")


def _ytdlp(clip: Clip, server: MediaServer, folder: Path, *options: str) -> None:
    program = ["--quiet", "--ffmpeg-location", ffmpeg(), "--output", folder / f"{clip.video_id}.%(ext)s"]
    _python("yt_dlp", *program, *options, f"{server.url}/watch/{clip.video_id}")


def _python(*arguments: object) -> str:
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "tests" / "plugins"))
    command = [sys.executable, "-m", *map(str, arguments)]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or [f"status {run.returncode}"])[-1]
        raise InputError(f"a program under test failed: {reason}", "Run it by hand to see its output")
    return run.stdout


def cost_rows(clips: Sequence[Clip], requests: Sequence[Request], whole_bytes: int) -> list[Row]:
    """The requests that the server received, as one row per kind of clip."""
    rows = []
    for name in dict.fromkeys(clip.row for clip in clips):
        ids = {clip.video_id for clip in clips if clip.row == name}
        media = [r for r in requests if r.path.startswith(("/video/", "/audio/")) and r.path.rpartition("/")[2] in ids]
        sent = [sum(r.sent for r in media if r.path.endswith(video_id)) for video_id in ids]
        mean = statistics.fmean(sent)
        rows.append(Row(name, len(ids), len(media) / len(ids), mean, max(sent), mean / whole_bytes))
    return rows


def lane_usage(requests: Sequence[Request], lanes: int, sleep_s: float, latency_s: float) -> Lanes | None:
    """How busy the lanes were, by the times of page requests; None without a rate, or with too few pages.

    The first page of each lane is ignored: it is late, because Python is still loading.
    """
    times = [request.time for request in requests if request.path.startswith("/watch/")][lanes:]
    if not sleep_s or len(times) <= lanes:
        return None
    made = 3600 * (len(times) - lanes) / (times[-1] - times[0])
    allowed = 3600 * lanes / sleep_s
    return Lanes(lanes, sleep_s, latency_s, made, allowed, made / allowed)


def measure(num_clips: int, folder: Path, lanes: int, sleep_s: float, latency_s: float) -> tuple[list[Row], Lanes | None]:
    """Run all programs against one server.

    Args:
        num_clips: clips of each kind.
        folder: folder for all files, which the caller removes.
        lanes: number of lanes.
        sleep_s: seconds between two extractions of a lane.
        latency_s: seconds before the server sends a page.

    Raises:
        InputError: a program failed.
    """
    video, audio = render(folder)
    clips = choose(num_clips, audio)
    with serving(clips, video, audio, latency_s) as server:
        fetch_with_mbt([clip for clip in clips if clip.row in OURS], server, folder, lanes, sleep_s)
        used = lane_usage(server.requests, lanes, sleep_s, latency_s)
        for clip in clips:
            if clip.row not in OURS:
                (download_whole if clip.row == WHOLE else download_section)(clip, server, folder)
        return cost_rows(clips, server.requests, len(video) + len(audio)), used


def table(rows: Sequence[Row], lanes: Lanes | None) -> str:
    """The results as text."""
    heads = ("clips", "requests", "mean MB", "max MB", "of video")
    lines = [f"{f'per clip of {CLIP_S} s':<36}" + "".join(f"{head:>11}" for head in heads)]
    for row in rows:
        megabytes = f"{row.mean_bytes / 1e6:.2f}", f"{row.max_bytes / 1e6:.2f}"
        cells = (f"{row.clips}", f"{row.requests:.1f}", *megabytes, f"{row.share:.1%}")
        lines.append(f"{row.name:<36}" + "".join(f"{cell:>11}" for cell in cells))
    lines += ["", f"target: at most {TARGET_BYTES / 1e6:.1f} MB per clip"]
    if lanes is not None:
        lines.append(
            f"{lanes.lanes} lanes, one request every {lanes.sleep_s:g} s each, page latency {lanes.latency_s * 1000:.0f} ms: "
            f"{lanes.made:,.0f} of {lanes.allowed:,.0f} requests per hour, {lanes.busy:.0%}; target >= {TARGET_BUSY:.0%}"
        )
    return "\n".join(lines)


@click.command(context_settings={"show_default": True})
@click.option("--clips", "num_clips", type=click.IntRange(min=1), default=10, help="Clips of each kind, one per video.")
@click.option("--lanes", type=click.IntRange(min=1), default=1, help="Number of lanes.")
@click.option("--sleep", default=1.0, type=click.FloatRange(min=0), help="Seconds between two extractions of a lane.")
@click.option("--latency", default=300.0, type=click.FloatRange(min=0), help="Milliseconds before the server sends a page.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(num_clips: int, lanes: int, sleep: float, latency: float, as_json: bool) -> None:
    """Measure the bytes and requests that fetching a clip costs, and how busy the lanes are."""
    try:
        with tempfile.TemporaryDirectory(prefix="mbt-fetch-") as folder:
            rows, used = measure(num_clips, Path(folder), lanes, sleep, latency / 1000)
    except MbtError as error:
        raise click.UsageError(str(error)) from None
    report: dict[str, Any] = {"rows": [asdict(row) for row in rows], "lanes": used and asdict(used)}
    click.echo(json.dumps(report, indent=2) if as_json else table(rows, used))


if __name__ == "__main__":
    main()
