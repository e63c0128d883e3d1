"""The headers of baseline JPEG frames: their segments, where the scan begins, its size, and whether decoders accept it.

Decoders make a picture of any scan, but some, including DALI's, fail the whole batch or crash the process on a header that they
reject. So `jpeg_fault` checks all headers and tables before the scan against docs/shards.md, section 5.3, but not the scan.
"""

from collections.abc import Iterator

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
SOF0, DHT, SOS, DQT, COM = 0xC0, 0xC4, 0xDA, 0xDB, 0xFE
IGNORED = {COM, *range(0xE0, 0xF0)} - {0xE1}
"""COM and all APP segments except APP1, which holds EXIF."""
SAMPLING = (0x22, 0x11, 0x11)
"""Sampling factors of Y, Cb and Cr in SOF0: 4:2:0."""
FULL_SCAN = b"\x00\x3f\x00"
"""The end of a sequential scan's SOS segment: spectral selection 0 to 63, no successive approximation."""


def segments(data: bytes, start: int = 0) -> Iterator[tuple[int, int, int]]:
    """Marker segments of the JPEG at byte `start`, up to and including SOS (ITU-T T.81, B.1.1).

    It stops early at bytes that are not a complete segment, so SOS comes last or not at all.

    Yields:
        The marker's second byte, and the first and past-the-end byte of the segment's content.
    """
    position = start + len(SOI)
    if data[start:position] != SOI:
        return
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], data[position + 2] << 8 | data[position + 3]
        end = position + 2 + length
        if length < 2 or end > len(data):
            return
        yield marker, position + 4, end
        if marker == SOS:
            return
        position = end


def scan_start(stream: bytes, start: int = 0) -> int:
    """The byte after the headers of the baseline JPEG at byte `start`.

    The frame ends with the next `FF D9`, which cannot occur inside a scan (ITU-T T.81, B.1.1.5).

    Raises:
        ValueError: there is no baseline JPEG.
    """
    has_frame_header = False
    for marker, _, end in segments(stream, start):
        if marker == SOF0:
            has_frame_header = True
        elif marker == SOS and has_frame_header:
            return end
    raise ValueError("no complete baseline JPEG")


def jpeg_size(jpeg: bytes) -> tuple[int, int]:
    """Width and height of a baseline JPEG in pixels.

    Raises:
        ValueError: it has no SOF0 segment.
    """
    for marker, begin, _ in segments(jpeg):
        if marker == SOF0:
            return int.from_bytes(jpeg[begin + 3 : begin + 5], "big"), int.from_bytes(jpeg[begin + 1 : begin + 3], "big")
    raise ValueError("no SOF0 segment")


def jpeg_fault(jpeg: bytes, width: int, height: int) -> str | None:
    """What is wrong with a frame's headers or its ends; None if decoders accept them."""
    if not (jpeg.startswith(SOI) and jpeg.endswith(EOI)):
        return f"it starts with {jpeg[:2].hex(' ')} and ends with {jpeg[-2:].hex(' ')}, not ff d8 and ff d9"
    huffman_tables: set[int] = set()
    quantization_tables: set[int] = set()
    components: dict[int, int] = {}
    position = len(SOI)
    for marker, begin, end in segments(jpeg):
        body = jpeg[begin:end]
        if marker == SOF0 and not components:
            components = dict(zip(body[6::3], body[8::3], strict=False))
            start = bytes((8, *height.to_bytes(2, "big"), *width.to_bytes(2, "big"), 3))
            if len(body) != 15 or len(components) != 3 or not body.startswith(start) or tuple(body[7::3]) != SAMPLING:
                return f"it is not a baseline JPEG of {width} x {height}, YCbCr 4:2:0"
        elif marker == DHT:
            if not _add_huffman_tables(body, huffman_tables):
                return "it has a damaged Huffman table"
        elif marker == DQT:
            if len(body) % 65 or any(number > 3 for number in body[::65]):
                return "it has a damaged quantization table"
            quantization_tables.update(body[::65])
        elif marker == SOS:
            scanned = dict(zip(body[1:-3:2], body[2:-3:2], strict=False))
            used = {table for pair in scanned.values() for table in (pair >> 4, 0x10 | pair & 15)}
            complete = len(body) == 10 and body[0] == 3 and body.endswith(FULL_SCAN) and list(scanned) == list(components)
            has_tables = used <= huffman_tables and quantization_tables >= {*components.values()}
            return None if complete and has_tables else "its scan refers to missing tables or components"
        elif marker not in IGNORED:
            break
        position = end
    return f"its segments are broken at byte {position}"


def _add_huffman_tables(body: bytes, tables: set[int]) -> bool:
    """Add the class and number of each Huffman table in a DHT segment to `tables`; False if one is damaged."""
    while body:
        number, counts = body[0], body[1:17]
        end = 17 + sum(counts)
        symbols = body[17:end]
        if number not in (0x00, 0x01, 0x10, 0x11) or len(counts) < 16 or len(symbols) < end - 17 or end > 17 + 256:
            return False
        code = 0
        for bits, count in enumerate(counts, 1):
            code += count
            if count and code >= 1 << bits:
                return False
            code <<= 1
        if number < 0x10 and symbols and max(symbols) > 15:
            return False
        tables.add(number)
        body = body[end:]
    return True
