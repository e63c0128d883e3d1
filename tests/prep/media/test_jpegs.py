"""Motion-JPEG streams are split at the right bytes, whatever the frames contain."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mbt.manifests.reading.jpeg import jpeg_size
from mbt.prep.media.decode import split_jpegs
from mbt.prep.media.ffmpeg import ClipError


def jpeg(seed: int, size: tuple[int, int] = (48, 32), **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


TRICKY = {
    "plain": jpeg(0),
    "noise, best quality": jpeg(1, (320, 200), quality=100, subsampling=0),
    "restart markers": jpeg(2, (160, 96), restart_marker_blocks=3),
    "end marker in a comment": jpeg(3, comment=b"\xff\xd9\xff\xd8 never mind \xff\xd9"),
    "a JPEG in its EXIF": jpeg(4, exif=b"Exif\x00\x00" + jpeg(5)),
    "gray": jpeg(6, (17, 9)),
    "one pixel": jpeg(7, (1, 1)),
}


@pytest.mark.parametrize("name", TRICKY)
def test_tricky_frames_are_split_from_plain_ones(name: str) -> None:
    frames = [TRICKY["plain"], TRICKY[name], TRICKY[name], TRICKY["plain"]]
    assert split_jpegs(b"".join(frames)) == frames


def test_hundreds_of_noisy_frames_are_split() -> None:
    frames = [jpeg(seed, (64, 64), quality=20 + seed % 80) for seed in range(300)]
    assert split_jpegs(b"".join(frames)) == frames


def test_empty_stream_has_no_frames() -> None:
    assert split_jpegs(b"") == []


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 21, 200, -2, -1])
def test_truncated_stream_is_an_error(cut: int) -> None:
    frame = TRICKY["noise, best quality"]
    with pytest.raises(ClipError, match="frame 1 is not a complete JPEG") as error:
        split_jpegs(TRICKY["plain"] + frame[:cut])
    assert error.value.code == "decode.jpeg"


@pytest.mark.parametrize(
    "stream", [b"\x00", b"RIFF    AVI ", TRICKY["plain"] + b"\x00" + TRICKY["plain"], b"\xff\xd8\xff\xe0\x00\x01"]
)
def test_other_bytes_are_an_error(stream: bytes) -> None:
    with pytest.raises(ClipError):
        split_jpegs(stream)


@pytest.mark.parametrize("size", [(48, 32), (32, 48), (1, 1), (455, 256)])
def test_size_is_read_from_the_header(size: tuple[int, int], tmp_path: Path) -> None:
    assert jpeg_size(jpeg(0, size, comment=b"\xff\xc0 not a frame header")) == size
