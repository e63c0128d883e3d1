"""Headers of frames: what passes, decoders take."""

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
    """Where the scan's bits begin."""
    place = data.index(b"\xff\xda")
    return place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"quality": 30}, {"comment": b"by hand"}])
def test_baseline_frames_pass(options: dict[str, object]) -> None:
    assert jpeg_fault(jpeg(**options), 46, 34) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "goes from  to "),
        (jpeg()[:-1], "not from ff d8 to ff d9"),
        (jpeg()[1:], "not from ff d8 to ff d9"),
        (b"\xff\xd8\xff\xd9", "broken at byte 2"),
        (jpeg(width=48), "no baseline JPEG of 46 x 34"),
        (jpeg(subsampling="4:4:4"), "YCbCr 4:2:0"),
        (jpeg(progressive=True), "broken at byte"),
        (jpeg(restart_marker_blocks=1), "broken at byte"),
        (jpeg(exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"), "broken at byte"),
        (jpeg().replace(b"\xff\xc4", b"\xff\xfe", 1), "lacks tables"),
        (jpeg().replace(b"\xff\xdb", b"\xff\xfe", 2), "lacks tables"),
    ],
)
def test_other_frames_are_refused(data: bytes, fault: str) -> None:
    assert fault in str(jpeg_fault(data, 46, 34))


def test_what_passes_is_decoded() -> None:
    """Frames with some bytes of their headers changed: PIL decodes all that pass, and far from all of the others."""
    random = np.random.default_rng(0)
    passed, refused_rightly = 0, 0
    for number in range(3000):
        data = bytearray(jpeg(number % 7, optimize=bool(number % 2)))
        for place in random.integers(2, scan_of(bytes(data)), random.integers(1, 4)):
            data[place] ^= 1 << random.integers(8)
        fault = jpeg_fault(bytes(data), 46, 34)
        try:
            Image.open(io.BytesIO(data)).load()
        except (OSError, SyntaxError, ValueError):
            assert fault is not None, number
            refused_rightly += 1
        passed += fault is None
    assert passed > 300
    assert refused_rightly > 300
