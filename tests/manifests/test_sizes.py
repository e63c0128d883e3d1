"""Byte counts as text."""

import pytest

from mbt.manifests.sizes import format_bytes, format_gigabytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (15_704, "15.7 kB"),
        (1_234_567, "1.23 MB"),
        (20e9, "20 GB"),
        (2.5e12, "2.5 TB"),
        (1.234e16, "1.23e+04 TB"),
    ],
)
def test_bytes_are_shown_in_the_largest_unit_that_fits(count: float, text: str) -> None:
    assert format_bytes(count) == text


def test_gigabytes_have_a_fixed_number_of_decimals() -> None:
    assert format_gigabytes(49_999_999) == "0.0 GB"
    assert format_gigabytes(1_234_560_000_000) == "1,234.6 GB"
    assert format_gigabytes(85_899_345_920, digits=0) == "86 GB"
