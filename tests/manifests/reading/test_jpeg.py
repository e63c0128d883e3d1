"""Frame headers: decoders accept every frame that passes the check."""

import io

import numpy as np
import pytest
from PIL import Image

from mbt.manifests.reading.jpeg import jpeg_fault


def jpeg(seed: int = 0, width: int = 46, height: int = 34, **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 2, width // 2, 3), np.uint8).repeat(2, 0).repeat(2, 1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", **{"subsampling": "4:2:0", "quality": 90, **options})  # type: ignore[arg-type]
    return file.getvalue()


def scan_of(data: bytes) -> int:
    """The byte at which the scan begins."""
    position = data.index(b"\xff\xda")
    return position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"quality": 30}, {"comment": b"by hand"}])
def test_baseline_frames_pass(options: dict[str, object]) -> None:
    assert jpeg_fault(jpeg(**options), 46, 34) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "it starts with  and ends with ,"),
        (jpeg()[:-1], "not ff d8 and ff d9"),
        (jpeg()[1:], "not ff d8 and ff d9"),
        (b"\xff\xd8\xff\xd9", "broken at byte 2"),
        (jpeg(width=48), "not a baseline JPEG of 46 x 34"),
        (jpeg(subsampling="4:4:4"), "YCbCr 4:2:0"),
        (jpeg(progressive=True), "broken at byte"),
        (jpeg(restart_marker_blocks=1), "broken at byte"),
        (jpeg(exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"), "broken at byte"),
        (jpeg().replace(b"\xff\xc4", b"\xff\xfe", 1), "missing tables"),
        (jpeg().replace(b"\xff\xdb", b"\xff\xfe", 2), "missing tables"),
    ],
)
def test_other_frames_are_rejected(data: bytes, fault: str) -> None:
    assert fault in str(jpeg_fault(data, 46, 34))


def test_frames_that_pass_can_be_decoded() -> None:
    """Flip bits in the headers: PIL decodes every frame that passes, and fails on many of the others."""
    random = np.random.default_rng(0)
    passed, undecodable = 0, 0
    for number in range(3000):
        data = bytearray(jpeg(number % 7, optimize=bool(number % 2)))
        for position in random.integers(2, scan_of(bytes(data)), random.integers(1, 4)):
            data[position] ^= 1 << random.integers(8)
        fault = jpeg_fault(bytes(data), 46, 34)
        try:
            Image.open(io.BytesIO(data)).load()
        except (OSError, SyntaxError, ValueError):
            assert fault is not None, number
            undecodable += 1
        passed += fault is None
    assert passed > 300
    assert undecodable > 300
