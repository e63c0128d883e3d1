"""Checksums, against published test values."""

from pathlib import Path

from mbt.manifests.checksums import crc32, file_sha256


def test_crc32_of_parts_is_that_of_the_whole() -> None:
    """The check value of CRC-32/ISO-HDLC."""
    assert crc32([b"123", b"", b"456789"]) == crc32([b"123456789"]) == 0xCBF43926
    assert crc32([]) == 0


def test_sha256_of_a_file(tmp_path: Path) -> None:
    """FIPS 180-4, example of one block."""
    (tmp_path / "file").write_bytes(b"abc")
    assert file_sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
