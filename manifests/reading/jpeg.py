"""Whether a decoder takes a frame: every table and header in front of the scan is what docs/shards.md, section 5.3, says.

What the scan's bits say is not looked at: decoders make a picture of any. But some, DALI's among them, take a whole batch or
the process with them when they meet a header that they refuse.
"""

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
SOF0, DHT, SOS, DQT, COM = 0xC0, 0xC4, 0xDA, 0xDB, 0xFE
COMMENTS = {COM, *range(0xE0, 0xF0)} - {0xE1}
"""COM, and APP segments but EXIF's."""
SAMPLING = (0x22, 0x11, 0x11)
FULL_SCAN = b"\x00\x3f\x00"


def jpeg_fault(jpeg: bytes, width: int, height: int) -> str | None:
    """What is wrong with the frame in front of its scan, or at its ends; None: nothing."""
    if not (jpeg.startswith(SOI) and jpeg.endswith(EOI)):
        return f"it goes from {jpeg[:2].hex(' ')} to {jpeg[-2:].hex(' ')}, not from ff d8 to ff d9"
    tables: set[int] = set()
    quantisers: set[int] = set()
    components: dict[int, int] = {}
    position = len(SOI)
    while position + 4 <= len(jpeg) and jpeg[position] == 0xFF:
        marker, length = jpeg[position + 1], int.from_bytes(jpeg[position + 2 : position + 4], "big")
        body = jpeg[position + 4 : position + 2 + length]
        if length < 2 or len(body) != length - 2:
            break
        position += 2 + length
        if marker == SOF0 and not components:
            components = dict(zip(body[6::3], body[8::3], strict=False))
            start = bytes((8, *height.to_bytes(2, "big"), *width.to_bytes(2, "big"), 3))
            if len(body) != 15 or len(components) != 3 or not body.startswith(start) or tuple(body[7::3]) != SAMPLING:
                return f"it is no baseline JPEG of {width} x {height}, YCbCr 4:2:0"
        elif marker == DHT:
            if not _read_tables(body, tables):
                return "it has a damaged Huffman table"
        elif marker == DQT:
            if len(body) % 65 or any(number > 3 for number in body[::65]):
                return "it has a damaged quantisation table"
            quantisers.update(body[::65])
        elif marker == SOS:
            scanned = dict(zip(body[1:-3:2], body[2:-3:2], strict=False))
            used = {table for pair in scanned.values() for table in (pair >> 4, 0x10 | pair & 15)}
            whole = len(body) == 10 and body[0] == 3 and body.endswith(FULL_SCAN) and list(scanned) == list(components)
            return None if whole and used <= tables and quantisers >= {*components.values()} else "its scan lacks tables"
        elif marker not in COMMENTS:
            break
    return f"its segments are broken at byte {position}"


def _read_tables(body: bytes, tables: set[int]) -> bool:
    """Note the class and number of each Huffman table; False: one is damaged."""
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
