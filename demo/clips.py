"""The clips of `mbt demo`: rendered H.264/AAC files with labels that are seen, heard, or decided by both together."""

import csv
import io
import itertools
import json
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mbt.manifests.atomic import write_text
from mbt.manifests.errors import InputError, StorageError
from mbt.manifests.labels import Label, LabelSet
from mbt.manifests.lists.custom import REQUIRED
from mbt.manifests.progress import progress
from mbt.manifests.shards import FPS
from mbt.prep.media.ffmpeg import ffmpeg

CLIP_SECONDS = 2.4
WIDTH, HEIGHT = 96, 72
AUDIO_RATE = 32_000
DESIGN = 2
"""Version of the rendering; a folder never mixes clips of two versions."""

COLORS = {"red": (0.9, 0.15, 0.15), "green": (0.15, 0.75, 0.2), "blue": (0.2, 0.3, 0.95)}
SHAPES = ("disc", "ring")
MOTIONS = ("resting", "swinging")
SOUNDS = {"low-tone": (250.0, 400.0), "high-tone": (1500.0, 2400.0), "noise": (0.0, 0.0)}
"""Lowest and highest pitch, Hz."""
RHYTHMS = ("steady", "pulsed")


@dataclass(frozen=True)
class Factors:
    """Content of a clip."""

    color: str
    shape: str
    motion: str
    sound: str
    rhythm: str

    @property
    def match(self) -> int:
        """Number of the matched label that applies: the cell of (color, sound) in a Latin square."""
        return (list(SOUNDS).index(self.sound) - list(COLORS).index(self.color)) % len(COLORS)

    def label_ids(self) -> list[str]:
        """Ids of the labels that apply, in the order of the label set."""
        seen = [f"seen:{name}" for name in (self.color, self.shape, self.motion)]
        return [*seen, *(f"heard:{name}" for name in (self.sound, self.rhythm)), f"matched:{self.match}"]


COMBINATIONS = [
    Factors(color, shape, motion, sound, rhythm)
    for shape, motion, rhythm, color, sound in itertools.product(SHAPES, MOTIONS, RHYTHMS, COLORS, SOUNDS)
]
"""Every combination; each block of 9 has each pair of color and sound once."""


@dataclass(frozen=True)
class DemoClip:
    """One clip; its random numbers depend only on these fields and the seed."""

    split: str
    index: int

    @property
    def video_id(self) -> str:
        """Stem of the media file."""
        return f"{self.split}-{self.index:04d}"

    @property
    def factors(self) -> Factors:
        """Content of the clip."""
        return COMBINATIONS[self.index % len(COMBINATIONS)]

    def generator(self, seed: int) -> np.random.Generator:
        """Random numbers for everything in the clip that its labels do not decide."""
        return np.random.default_rng([seed, *self.split.encode(), self.index])


def labels() -> LabelSet:
    """The labels: one modality decides `seen:*` and `heard:*`, the pair of color and sound decides `matched:*`.

    Each matched label applies to one sound per color and one color per sound. So neither color nor sound alone says anything
    about it, and no sum of a score for the color and a score for the sound can predict it.
    """
    seen = [Label(f"seen:{name}", f"{name} is seen") for name in (*COLORS, *SHAPES, *MOTIONS)]
    heard = [Label(f"heard:{name}", f"{name} is heard") for name in (*SOUNDS, *RHYTHMS)]
    return LabelSet((*seen, *heard, *(Label(f"matched:{match}", _pairs(match)) for match in range(len(COLORS)))))


def _pairs(match: int) -> str:
    """Display name of a matched label: its pairs."""
    pairs = dict.fromkeys((f.color, f.sound) for f in COMBINATIONS if f.match == match)
    return " or ".join(f"{color} with {sound}" for color, sound in pairs)


def clips(num_train: int, num_eval: int) -> list[DemoClip]:
    """The clips of both splits; balanced over all combinations if the counts are multiples of 72."""
    return [DemoClip(split, i) for split, n in (("train", num_train), ("eval", num_eval)) for i in range(n)]


def render(folder: Path, seed: int, num_train: int, num_eval: int, workers: int) -> int:
    """Write `folder`/media/VIDEO_ID.mp4, clips.csv and labels.csv; files that exist are kept.

    Args:
        folder: created if missing.
        seed: random seed of the clips.
        num_train: number of clips in the split `train`.
        num_eval: number of clips in the split `eval`.
        workers: number of clips to render at a time.

    Returns:
        Number of media files that this call wrote.

    Raises:
        InputError: the folder holds clips of another seed or of another version of the rendering.
        StorageError: a clip cannot be written.
    """
    _claim(folder, seed)
    wanted = clips(num_train, num_eval)
    missing = [clip for clip in wanted if not media_file(folder, clip).exists()]
    (folder / "media").mkdir(exist_ok=True)
    with ThreadPoolExecutor(workers) as pool, progress(len(missing), "render", "clip") as bar:
        for _ in pool.map(lambda clip: _render_clip(media_file(folder, clip), clip, seed), missing):
            bar.update()
    labels().write(folder / "labels.csv")
    write_text(folder / "clips.csv", _clip_list(wanted))
    return len(missing)


def _claim(folder: Path, seed: int) -> None:
    """Record the seed and the version in the folder, or compare them with its record."""
    path, record = folder / "render.json", json.dumps({"design": DESIGN, "seed": seed}) + "\n"
    if not path.exists():
        write_text(path, record)
    elif path.read_text(encoding="utf-8") != record:
        raise InputError(
            f"{folder} holds clips that were rendered with another seed or by another version of mbt",
            "Remove the folder, or choose another --out",
        )


def media_file(folder: Path, clip: DemoClip) -> Path:
    """Media file of a clip in the folder that `render` wrote."""
    return folder / "media" / f"{clip.video_id}.mp4"


def _clip_list(wanted: list[DemoClip]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(REQUIRED)
    for clip in wanted:
        writer.writerow((clip.video_id, 0, CLIP_SECONDS, clip.split, ";".join(clip.factors.label_ids())))
    return text.getvalue()


def _render_clip(path: Path, clip: DemoClip, seed: int) -> None:
    random = clip.generator(seed)
    frames = draw(clip.factors, random)
    samples = sound(clip.factors, random)
    partial = path.with_suffix(".tmp")
    with tempfile.TemporaryFile() as file:
        file.write((samples * 32767).astype("<i2").tobytes())
        file.seek(0)
        audio = file.fileno()
        command = _command(audio, partial)
        result = subprocess.run(command, input=frames.tobytes(), pass_fds=(audio,), capture_output=True, check=False)
    if result.returncode:
        partial.unlink(missing_ok=True)
        reason = result.stderr.decode(errors="replace").strip()
        raise StorageError(f"cannot render {path}: {reason}", "Fix the cause, then run the same command again")
    partial.replace(path)


def _command(audio: int, path: Path) -> list[str]:
    """ffmpeg command for frames on stdin and samples on the file descriptor `audio`."""
    return [
        *(ffmpeg(), "-nostats", "-hide_banner", "-loglevel", "error", "-y"),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", str(FPS), "-i", "pipe:0"),
        *("-f", "s16le", "-ar", str(AUDIO_RATE), "-ac", "1", "-i", f"pipe:{audio}"),
        *("-c:v", "libx264", "-preset", "ultrafast", "-crf", "20", "-pix_fmt", "yuv420p", "-threads", "1"),
        *("-c:a", "aac", "-b:a", "64k", "-fflags", "+bitexact", "-flags", "+bitexact", "-f", "mp4", str(path)),
    ]


def draw(factors: Factors, random: np.random.Generator) -> np.ndarray:
    """Draw the frames of a clip: a colored shape rests or swings on a gray, grainy background.

    Returns:
        uint8 (frames, 72, 96, 3), RGB.
    """
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    size = random.uniform(12, 15)
    centers = _path(factors.motion, random).astype(np.float32)
    masks = np.stack([_shape(factors.shape, np.hypot(x - center_x, y - center_y), size) for center_x, center_y in centers])
    color = np.array(COLORS[factors.color]) * random.uniform(0.75, 1.0) + random.uniform(-0.06, 0.06, 3)
    background = _background(x, y, random)[..., None]
    change = (color - background).astype(np.float32)
    return ((background + masks[..., None] * change).clip(0, 1) * 255).round().astype(np.uint8)


def _path(motion: str, random: np.random.Generator) -> np.ndarray:
    """Center of the shape in each frame: (frames, 2), x and y in pixels, within the central square."""
    seconds = np.arange(round(CLIP_SECONDS * FPS)) / FPS
    swing = np.sin(2 * np.pi * (random.uniform(0.6, 0.9) * seconds + random.uniform())) * (motion == "swinging")
    angle = random.uniform(-0.6, 0.6)
    reach = random.uniform(18, 22) * np.array([np.cos(angle), np.sin(angle)])
    return random.uniform(-4, 4, 2) + (WIDTH / 2, HEIGHT / 2) + swing[:, None] * reach


def _shape(shape: str, radius: np.ndarray, size: float) -> np.ndarray:
    """Coverage in [0, 1] of pixels at these distances from the center of the shape."""
    distance = radius - size if shape == "disc" else np.abs(radius - size) - size / 7
    return np.clip(0.5 - distance, 0, 1)


def _background(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Gray gradient in a random direction, with grain: float32 (72, 96)."""
    angle = random.uniform(0, 2 * np.pi)
    slope = (np.cos(angle) * (x / WIDTH - 0.5) + np.sin(angle) * (y / HEIGHT - 0.5)) * random.uniform(0, 0.4)
    return (random.uniform(0.3, 0.7) + slope + random.normal(0, 0.03, x.shape)).astype(np.float32)


def sound(factors: Factors, random: np.random.Generator) -> np.ndarray:
    """Synthesize the sound of a clip: a tone or noise, steady or pulsed, over faint noise.

    Returns:
        float (samples,), 32 kHz mono in [-1, 1].
    """
    seconds = np.arange(round(CLIP_SECONDS * AUDIO_RATE)) / AUDIO_RATE
    low, high = SOUNDS[factors.sound]
    if factors.sound == "noise":
        source = random.normal(0, 0.4, len(seconds))
    else:
        source = np.sin(2 * np.pi * (random.uniform(low, high) * seconds + random.uniform()))
    if factors.rhythm == "pulsed":
        source *= _pulses(seconds, random)
    volume = 10 ** random.uniform(-1, -0.3)
    return (volume * (source + random.normal(0, 0.02, len(seconds)))).clip(-1, 1)


def _pulses(seconds: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Envelope in [0, 1] with 3 to 5 pulses per second and edges of about 10 ms."""
    wave = np.cos(2 * np.pi * (random.uniform(3, 5) * seconds + random.uniform()))
    return np.clip(wave * 5 + 0.5, 0, 1)
