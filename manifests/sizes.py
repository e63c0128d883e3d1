"""Human-readable byte counts, in decimal units."""


def format_gigabytes(count: float, digits: int = 1) -> str:
    """Bytes in GB, such as `1,234.5 GB`."""
    return f"{count / 1e9:,.{digits}f} GB"


def format_bytes(count: float) -> str:
    """Bytes in the largest unit that fits, with three significant digits, such as `1.23 MB`."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**power:
            return f"{count / 1000**power:.3g} {unit}"
    return f"{count:.3g} B"
