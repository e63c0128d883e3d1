"""Pack a thousand damaged media files: each becomes a complete sample, or a failure with a reason."""

import io
import json
import random
import re
import struct
import subprocess
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mbt.prep.media.ffmpeg import ffmpeg
from tests.conftest import Door

pytestmark = pytest.mark.slow

FILES = 1000
SEED = 20_240_615
SHORT_SIDE = 32
TIMEOUT_S = 5
SOURCES = {
    "plain.mp4": (64, 48, "-c:v libx264 -c:a aac"),
    "tall.mp4": (48, 64, "-c:v libx264 -bf 2 -c:a aac -movflags +faststart"),
    "fragments.mp4": (64, 48, "-c:v libx264 -c:a aac -movflags +dash+global_sidx+frag_keyframe+empty_moov"),
    "vp9.webm": (64, 48, "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -c:a libopus"),
    "vp8.webm": (48, 64, "-c:v libvpx -deadline realtime -cpu-used 8 -c:a libvorbis"),
    "floats.mkv": (64, 48, "-c:v libx264 -c:a pcm_f32le"),
    "mpeg4.avi": (64, 48, "-c:v mpeg4 -c:a libmp3lame"),
    "h264.ts": (64, 48, "-c:v libx264 -c:a aac"),
    "mpeg2.ts": (48, 64, "-c:v mpeg2video -c:a mp2"),
    "theora.ogv": (64, 48, "-c:v libtheora -c:a libvorbis"),
    "h263.flv": (128, 96, "-c:v flv -c:a libmp3lame -ar 44100"),
    "wmv2.wmv": (64, 48, "-c:v wmv2 -c:a wmav2"),
}
"""Width, height and codecs of the undamaged files, of one second each."""
BOXES = re.compile(
    rb"ftyp|moov|mdat|moof|mvhd|trak|tkhd|edts|elst|mdia|mdhd|hdlr|minf|stbl|stsd|avc1|avcC|mp4a|esds|stts|ctts|stss|stsc|stsz|stco"
    rb"|sidx|mvex|trex|mfhd|traf|tfhd|tfdt|trun|free|udta"
)
CODES = {
    *("clip.no_audio", "clip.no_video", "clip.short"),
    *("decode.error", "decode.interrupted", "decode.jpeg", "decode.memory", "decode.timeout", "decode.unreadable"),
}
SIZES = (0, 1, 7, 8, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)

Damage = Callable[[random.Random, bytearray, bytes], bytes]


def span(rng: random.Random, size: int, longest: int = 4096) -> tuple[int, int]:
    """A non-empty span of `size` bytes."""
    start = rng.randrange(size)
    return start, min(size, start + rng.randint(1, longest))


def a_few_bits(rng: random.Random, data: bytearray, _: bytes) -> bytes:
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def bits_of_the_header(rng: random.Random, data: bytearray, _: bytes) -> bytes:
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(min(1500, len(data)))] ^= 1 << rng.randrange(8)
    return data


def many_bits(rng: random.Random, data: bytearray, _: bytes) -> bytes:
    for _ in range(len(data) // 50):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def truncated(rng: random.Random, data: bytearray, _: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def zeroed(rng: random.Random, data: bytearray, _: bytes) -> bytes:
    start, end = span(rng, len(data))
    data[start:end] = bytes(end - start)
    return data


def repeated(rng: random.Random, data: bytearray, _: bytes) -> bytes:
    start, end = span(rng, len(data))
    return data[:end] + data[start:]


def removed(rng: random.Random, data: bytearray, _: bytes) -> bytes:
    start, end = span(rng, len(data))
    return data[:start] + data[end:]


def swapped(rng: random.Random, data: bytearray, _: bytes) -> bytes:
    """Swap two parts of the file, cut at its boxes if it has any."""
    starts = [match.start() - 4 for match in BOXES.finditer(data)] or [0, len(data) // 2]
    cuts = sorted(rng.sample([*starts, len(data)], 2)) if len(starts) > 1 else [0, len(data) // 2]
    middle = rng.randint(cuts[0], cuts[1])
    return data[: cuts[0]] + data[middle : cuts[1]] + data[cuts[0] : middle] + data[cuts[1] :]


def wrong_lengths(rng: random.Random, data: bytearray, _: bytes) -> bytes:
    """Make box sizes, or counts and times inside boxes, tiny or huge; without boxes, four bytes of the header."""
    names = [match.start() for match in BOXES.finditer(data)]
    for _ in range(rng.randint(1, 4)):
        name = rng.choice(names) if names else rng.randrange(4, min(1500, len(data)))
        position = name - 4 if rng.random() < 0.5 else min(name + 8 + 4 * rng.randrange(4), len(data) - 4)
        data[position : position + 4] = struct.pack(">I", rng.choice(SIZES))
    return data


def spliced(rng: random.Random, data: bytearray, other: bytes) -> bytes:
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def appended(rng: random.Random, data: bytearray, other: bytes) -> bytes:
    return data + other


def noise_after_a_header(rng: random.Random, data: bytearray, _: bytes) -> bytes:
    return data[: rng.randrange(2000)] + rng.randbytes(rng.randrange(20_000))


def header_alone(rng: random.Random, data: bytearray, _: bytes) -> bytes:
    return data[: rng.choice((1, 4, 8, 12, 32, 188, 400, 1000))]


def noise(rng: random.Random, data: bytearray, _: bytes) -> bytes:
    return rng.randbytes(rng.choice((1, 100, 10_000)))


def empty(rng: random.Random, data: bytearray, _: bytes) -> bytes:
    return b""


DAMAGES: dict[Damage, int] = {
    a_few_bits: 20, bits_of_the_header: 12, many_bits: 10, truncated: 10, zeroed: 8, repeated: 6, removed: 6, swapped: 6,
    wrong_lengths: 20, spliced: 10, appended: 4, noise_after_a_header: 4, header_alone: 2, noise: 2, empty: 1,
}  # fmt: skip
"""Relative frequency of each kind of damage."""


@dataclass(frozen=True)
class Run:
    """The result of packing the damaged files."""

    folder: Path
    damage: dict[str, str]
    seconds: float


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, mbt: Door) -> Run:
    folder = tmp_path_factory.mktemp("fuzz")
    good = {name: render(folder, name) for name in SOURCES}
    rng, damage = random.Random(SEED), {}
    (folder / "media").mkdir()
    for number in range(FILES):
        name, other = rng.choice(list(good)), rng.choice(list(good))
        (kind,) = rng.choices(list(DAMAGES), list(DAMAGES.values()))
        data = kind(rng, bytearray(good[name]), good[other])
        damage[f"v{number:04d}_0"] = kind.__name__
        (folder / "media" / f"v{number:04d}{Path(name).suffix}").write_bytes(data)
    rows = [f"v{number:04d},0,1,train,a" for number in range(FILES)]
    (folder / "clips.csv").write_text("\n".join(["video_id,start,end,split,labels", *rows]) + "\n")
    (folder / "labels.csv").write_text("id,display_name\na,Alpha\n")
    begin = time.monotonic()
    lists = ["--list", folder / "clips.csv", "--labels", folder / "labels.csv", "--source", folder / "media"]
    limits = ["--short-side", SHORT_SIDE, "--clip-timeout", TIMEOUT_S]
    outcome = mbt("prep", "custom", *lists, "--out", folder / "set", *limits)
    assert outcome.code == 0, outcome.err
    return Run(folder / "set", damage, time.monotonic() - begin)


def render(folder: Path, name: str) -> bytes:
    """One second of a test picture and a tone, in this container with these codecs."""
    width, height, codecs = SOURCES[name]
    picture = ["-f", "lavfi", "-i", f"testsrc2=s={width}x{height}:r=25:d=1", "-pix_fmt", "yuv420p"]
    tone = ["-f", "lavfi", "-i", "sine=f=440:r=48000:d=1"]
    command = [ffmpeg(), "-nostdin", "-v", "error", *picture[:4], *tone, *picture[4:], *codecs.split(), str(folder / name)]
    subprocess.run(command, check=True)
    return (folder / name).read_bytes()


def test_every_file_is_a_sample_or_a_failure_with_a_reason(run: Run) -> None:
    packed = pq.read_table(run.folder / "train.parquet")["key"].to_pylist()
    failures = pq.read_table(run.folder / "failures.parquet").to_pylist()
    assert Counter(packed) + Counter(row["key"] for row in failures) == Counter(run.damage.keys())
    assert {row["code"] for row in failures} <= CODES
    assert all(row["stage"] == "pack" and row["message"] for row in failures)
    assert FILES / 5 < len(packed) < FILES * 4 / 5
    assert set(run.damage.values()) == {kind.__name__ for kind in DAMAGES}
    assert not {"empty", "noise", "header_alone"} & {run.damage[key] for key in packed}
    assert run.seconds < 300


def test_every_sample_is_complete_for_other_readers(run: Run) -> None:
    """Read by Pillow, NumPy and tarfile as the specification says, not by our own reader."""
    seen = 0
    for path in sorted(run.folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            content = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name in [name for name in content if name.endswith(".json")]:
            key, seen = name.removesuffix(".json"), seen + 1
            description, stream = json.loads(content[name]), content[f"{key}.mjpg"]
            ends = np.cumsum([0, *description["frame_bytes"]])
            assert (ends[-1], len(ends) - 1) == (len(stream), description["num_frames"]), key
            assert description["num_frames"] == 25 or "short" in description["flags"]
            for start, end in pairwise(ends):
                picture = Image.open(io.BytesIO(stream[start:end]))
                picture.load()
                assert (picture.size, picture.mode) == ((description["width"], description["height"]), "RGB"), key
                assert stream[end - 2 : end] == b"\xff\xd9"
            mel = np.load(io.BytesIO(content[f"{key}.mel.npy"]))
            assert (mel.dtype, mel.shape) == (np.float16, (4 * description["num_frames"], 128)), key
            assert np.isfinite(mel).all(), (key, run.damage[key])
    assert seen == pq.read_metadata(run.folder / "train.parquet").num_rows


def test_dataset_of_damaged_files_has_no_faults(run: Run, mbt: Door) -> None:
    outcome = mbt("shards", "verify", run.folder, "--decode", "--workers", 2)
    assert outcome.code == 0, outcome.out[-2000:] + outcome.err
    statistics = json.loads((run.folder / "dataset.json").read_text())["log_mel_statistics"]
    assert -13.9 < statistics["mean"] < 5
    assert 0 < statistics["std"] < 15
