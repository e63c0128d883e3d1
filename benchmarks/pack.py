"""Cost of packing: `python -m benchmarks.pack` compares core-seconds per clip with ffmpeg alone and with the usual script.

All contenders work on the same clips and the same cores, and take turns: each round runs each of them once, in processes of its
own, so that other load on the machine affects them equally. Nothing is subtracted: ours is all of `mbt prep custom`.
"""

import csv
import importlib.util
import json
import multiprocessing
import re
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import click

from benchmarks.processes import Usage, pinned, run
from mbt.manifests.errors import InputError, MbtError
from mbt.manifests.lists.custom import REQUIRED
from mbt.manifests.progress import progress
from mbt.manifests.shards import FPS, SAMPLE_RATE, LogMelFormat, VideoFormat
from mbt.prep.media.decode import decode_command
from mbt.prep.media.ffmpeg import ffmpeg, ffmpeg_version
from mbt.prep.sources.media_names import MEDIA_SUFFIXES

CLIP_S = 10.0
RENDERED = 8
"""Maximum number of rendered files; further clips reuse them."""
CHILD = "import pathlib, sys, benchmarks.pack as b; getattr(b, sys.argv[1])(pathlib.Path(sys.argv[2]), int(sys.argv[3]))"
LIMIT, OURS, USUAL = "ffmpeg alone", "mbt prep custom", "JPEG files, fbank, TarWriter"


@dataclass(frozen=True)
class Clips:
    """A folder with the lists for `mbt prep custom`, and the media in `media/`.

    Attributes:
        folder: the folder.
        rows: rows of `clips.csv`.
    """

    folder: Path
    rows: list[dict[str, str]]

    @classmethod
    def of(cls, folder: Path, files: Sequence[Path], count: int) -> "Clips":
        """`count` clips of the first 10 s of `files`, which are reused in order if there are fewer.

        Raises:
            InputError: the length of a file is unknown.
        """
        lengths = {file: _seconds(file) for file in files[:count]}
        (folder / "media").mkdir(parents=True)
        rows = []
        for number, file in enumerate(islice(cycle(lengths), count)):
            name = f"clip-{number:05d}"
            (folder / "media" / f"{name}{file.suffix}").symlink_to(file.resolve())
            values = (name, "0", f"{min(lengths[file], CLIP_S):.3f}", "train", "clip")
            rows.append(dict(zip(REQUIRED, values, strict=True)))
        with (folder / "clips.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, REQUIRED)
            writer.writeheader()
            writer.writerows(rows)
        (folder / "labels.csv").write_text("id,display_name\nclip,Clip\n")
        return cls(folder, rows)

    @classmethod
    def read(cls, folder: Path) -> "Clips":
        """The clips that `of` wrote into the folder."""
        with (folder / "clips.csv").open(newline="") as stream:
            return cls(folder, list(csv.DictReader(stream)))

    def first(self, count: int, folder: Path) -> "Clips":
        """The first `count` clips, in another folder."""
        return Clips.of(folder, [self.file(row) for row in self.rows], count)

    def file(self, row: dict[str, str]) -> Path:
        """The media file of a row."""
        return next((self.folder / "media").glob(f"{row['video_id']}.*"))


@dataclass
class Row:
    """A contender and its runs.

    Attributes:
        name: its name in the table.
        run: runs it once on the given clips.
        usages: what each run used.
    """

    name: str
    run: Callable[[Clips], Usage]
    usages: list[Usage] = field(default_factory=list)

    def median(self, quantity: Callable[[Usage], float]) -> float:
        """Median of a quantity over the runs."""
        return statistics.median(map(quantity, self.usages))

    def ratio(self, other: "Row", quantity: Callable[[Usage], float] = lambda usage: usage.core_s) -> float:
        """Median over the rounds of the ratio of a quantity to the other contender's."""
        return statistics.median(quantity(a) / quantity(b) for a, b in zip(self.usages, other.usages, strict=True))


def contenders(workers: int) -> list[Row]:
    """ffmpeg alone, ours, and the usual script."""
    return [
        Row(LIMIT, lambda clips: run(limit_commands(clips), workers, clips.folder)),
        Row(OURS, lambda clips: run([_child("ours", clips, workers)], 1, clips.folder)),
        Row(USUAL, lambda clips: run([_child("usual", clips, workers)], 1, clips.folder)),
    ]


def _child(function: str, clips: Clips, workers: int) -> list[str]:
    return [sys.executable, "-c", CHILD, function, str(clips.folder), str(workers)]


def limit_commands(clips: Clips) -> list[list[str]]:
    """ffmpeg commands that seek, decode, filter and encode like packing, but write nothing."""
    commands = []
    for row in clips.rows:
        command = decode_command(clips.file(row), 0.0, round(float(row["end"]) * FPS), VideoFormat(), ("video", "audio"))
        for i, part in enumerate(command):
            if part.startswith("pipe:"):
                command[i - 1 : i + 1] = ["null", "-"]
        commands.append(command)
    return commands


def ours(folder: Path, workers: int) -> None:
    """Run `mbt prep custom`: plan, fetch from the folder, pack.

    Raises:
        InputError: a clip was not packed.
    """
    import mbt.prep.run  # noqa: F401
    from mbt.cli import cli

    clips = Clips.read(folder)
    _started(folder)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        lists = ["--list", f"{folder / 'clips.csv'}", "--labels", f"{folder / 'labels.csv'}", "--source", f"{folder / 'media'}"]
        arguments = ["prep", "custom", *lists, "--out", out, "--workers", str(workers)]
        cli.main(arguments, standalone_mode=False)
        packed = json.loads((Path(out) / "dataset.json").read_bytes())["splits"]["train"]["samples"]
    if packed != len(clips.rows):
        raise InputError(f"{len(clips.rows) - packed} clips cannot be packed", "Give files with video and audio")


def usual(folder: Path, workers: int) -> None:
    """The usual script: ffmpeg writes files, Python reads them, computes the fbank, and writes one tar per process."""
    rows = Clips.read(folder).rows
    with tempfile.TemporaryDirectory(dir=folder) as out:
        parts = [(folder, Path(out) / f"{number:06d}.tar", rows[number::workers]) for number in range(workers)]
        if workers == 1:
            usual_tar(parts[0])
            return
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(usual_tar, parts))


def usual_tar(part: tuple[Path, Path, list[dict[str, str]]]) -> None:
    """Write a tar of the clips: one JPEG member per frame, the fbank and a JSON.

    Args:
        part: folder of the clips, path of the tar, and rows of the clips.
    """
    import torch
    import torchaudio.compliance.kaldi
    import webdataset

    folder, tar, rows = part
    torch.set_num_threads(1)
    _started(folder)
    clips = Clips(folder, rows)
    with webdataset.TarWriter(str(tar)) as writer:
        for row in rows:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                audio = Path(scratch, "audio.wav")
                subprocess.run(usual_command(clips.file(row), row["end"], Path(scratch)), check=True, stdin=subprocess.DEVNULL)
                mel = torchaudio.compliance.kaldi.fbank(
                    _load(audio), sample_frequency=SAMPLE_RATE, num_mel_bins=LogMelFormat().n_mels, window_type="hamming"
                )
                frames = {f"{path.stem}.jpg": path.read_bytes() for path in sorted(Path(scratch).glob("*.jpg"))}
            description = {"labels": row["labels"], "frames": len(frames)}
            writer.write({"__key__": row["video_id"], **frames, "mel.npy": mel.numpy(), "json": description})


def usual_command(file: Path, seconds: str, folder: Path) -> list[str]:
    """ffmpeg command that writes numbered JPEGs and a 16 kHz WAV in one pass over the file."""
    video = VideoFormat()
    scale = f"fps={FPS},scale='if(lt(iw,ih),{video.short_side},-2)':'if(lt(iw,ih),-2,{video.short_side})'"
    return [
        *(ffmpeg(), "-nostdin", "-loglevel", "error", "-t", seconds, "-i", str(file)),
        *("-map", "0:v:0", "-vf", scale, "-q:v", str(video.jpeg_qscale), str(folder / "%06d.jpg")),
        *("-map", "0:a:0", "-ac", "1", "-ar", str(SAMPLE_RATE), str(folder / "audio.wav")),
    ]


def has_torchcodec() -> bool:
    """Whether torchaudio can load files: since 2.9 it needs TorchCodec."""
    return importlib.util.find_spec("torchcodec") is not None


def _load(path: Path) -> Any:
    """Samples of a 16-bit WAV as a tensor (1, samples), float32 in [-1, 1]."""
    import torch
    import torchaudio

    if has_torchcodec():
        return torchaudio.load(path)[0]
    with wave.open(str(path)) as file:
        samples = torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16)
    return samples[None] / 32768


def _started(folder: Path) -> None:
    """Record the core-seconds that this process used before its first clip."""
    with (folder / "started").open("a") as file:
        file.write(f"{time.process_time()}\n")


def render(folder: Path, count: int, seconds: float = CLIP_S) -> list[Path]:
    """Render 640x360 H.264 files with moving shapes and noise at 30 frames per second, and noise as AAC audio."""
    folder.mkdir()
    files = [folder / f"{number}.mp4" for number in range(min(count, RENDERED))]
    for number, file in enumerate(files):
        video = f"testsrc2=size=640x360:rate=30:duration={seconds},noise=alls=12:allf=t:all_seed={number}"
        audio = f"anoisesrc=duration={seconds}:amplitude=0.1:sample_rate=44100:seed={number}"
        command = [ffmpeg(), "-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", video, "-f", "lavfi", "-i", audio]
        codecs = ["-c:v", "libx264", "-preset", "veryfast", "-b:v", "700k", "-pix_fmt", "yuv420p", "-g", "150", "-c:a", "aac"]
        subprocess.run([*command, *codecs, str(file)], check=True)
    return files


def media_files(folder: Path) -> list[Path]:
    """Media files in the folder and its subfolders.

    Raises:
        InputError: there are none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in MEDIA_SUFFIXES and path.is_file())
    if not files:
        raise InputError(f"{folder}: no media files found", "Give a folder of media files with video and audio")
    return files


def _seconds(file: Path) -> float:
    log = subprocess.run([ffmpeg(), "-nostdin", "-hide_banner", "-i", str(file)], capture_output=True, text=True).stderr
    length = re.search(r"Duration: (\d+):(\d+):([\d.]+)", log)
    if length is None:
        raise InputError(f"{file}: the length is unknown", "Give files with video and audio")
    return int(length[1]) * 3600 + int(length[2]) * 60 + float(length[3])


def measure(rows: Sequence[Row], clips: Clips, rounds: int) -> None:
    """Run each contender once in each round."""
    with progress(len(rows) * rounds, "benchmark", "run") as bar:
        for row in list(rows) * rounds:
            row.usages.append(row.run(clips))
            bar.update()


def table(rows: Sequence[Row], clips: int, workers: int) -> str:
    """The table: medians over the rounds.

    Args:
        rows: the measured contenders: ffmpeg alone, ours, the usual script.
        clips: number of clips in a run.
        workers: number of cores.
    """
    limit, _, usual_row = rows
    headers = ("core-s/clip", "at start", "wall-s/clip", "busy", "idle", "x (a)", "x (c)", "peak MB")
    lines = [f"{'':<34}" + "".join(f"{header:>12}" for header in headers)]
    for letter, row in zip("abc", rows, strict=True):
        cells = (
            f"{row.median(lambda usage: usage.core_s / clips):.3f}",
            f"{row.median(lambda usage: usage.start_s / clips):.3f}",
            f"{row.median(lambda usage: usage.wall_s / clips):.3f}",
            f"{row.median(lambda usage: usage.core_s / usage.wall_s / workers):.0%}",
            f"{row.median(lambda usage: usage.idle_s / usage.wall_s / workers):.0%}",
            f"{row.ratio(limit):.2f}",
            f"{row.ratio(usual_row):.2f}",
            f"{row.median(lambda usage: usage.peak_bytes / 1e6):.0f}",
        )
        lines.append(f"({letter}) {row.name:<30}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def report(files: Sequence[Path], folder: Path, count: int, repeats: int, workers: int) -> str:
    """Run the benchmark and return its report.

    Args:
        files: media files.
        folder: where everything is written; the caller removes it.
        count: clips in a run.
        repeats: number of rounds.
        workers: clips at a time, and number of cores.

    Raises:
        InputError: a clip cannot be packed, or the machine has fewer cores.
    """
    with pinned(workers):
        clips = Clips.of(folder / "clips", files, count)
        rows = contenders(workers)
        measure(rows, clips, repeats)
        limit, ours_row, usual_row = rows
        fewer = clips.first(max(1, count // 4), folder / "fewer")
        few_bytes = ours_row.run(fewer).peak_bytes
    seconds = sum(float(row["end"]) for row in clips.rows) / count
    loader = "torchaudio.load" if has_torchcodec() else "Python's wave, because torchaudio.load needs TorchCodec"

    def without_start(usage: Usage) -> float:
        return usage.core_s - usage.start_s

    return f"""\
{count} clips of {seconds:.1f} s on average, {workers} workers on {workers} cores, ffmpeg {ffmpeg_version()}, \
median of {repeats} rounds
core-s: user and system time of all processes; at start: the part before the first clip, once per run
busy: core-s divided by wall-s and cores; idle: share of the cores' time that no process used, ours or other
peak MB: of all processes together, without mapped files such as library code
(c) reads the WAV with {loader}

{table(rows, count, workers)}

(b) / (a) {ours_row.ratio(limit):.2f}, without the start-up {ours_row.ratio(limit, without_start):.2f}; target <= 1.10
(b) idle {ours_row.median(lambda usage: usage.idle_s / usage.wall_s / workers):.1%}; target <= 3%
(b) / (c) {ours_row.ratio(usual_row):.2f}, without the start-up {ours_row.ratio(usual_row, without_start):.2f}; target <= 0.60
memory of (b): {few_bytes / 1e6:.0f} MB with {len(fewer.rows)} clips, \
{ours_row.median(lambda usage: usage.peak_bytes) / 1e6:.0f} MB with {count}"""


@click.command(context_settings={"show_default": True})
@click.option(
    "--clips", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of media files; rendered by default."
)
@click.option("--count", type=click.IntRange(min=1), default=64, help="Clips in a run; files are reused if there are fewer.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, help="Number of rounds.")
@click.option("--workers", type=click.IntRange(min=1), default=2, help="Clips at a time, and number of cores.")
def main(clips: Path | None, count: int, repeats: int, workers: int) -> None:
    """Compare the cost of packing a clip with ffmpeg alone and with the usual script."""
    try:
        with tempfile.TemporaryDirectory(prefix="mbt-pack-") as folder:
            files = media_files(clips) if clips else render(Path(folder) / "rendered", count)
            click.echo(report(files, Path(folder), count, repeats, workers))
    except MbtError as error:
        raise click.UsageError(str(error)) from None


if __name__ == "__main__":
    main()
