"""`mbt prep report`: report.html and report.json of a dataset folder, also during a run."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from mbt.manifests.atomic import write_text
from mbt.manifests.sizes import format_bytes
from mbt.prep.report.counts import make_report
from mbt.prep.report.model import Report
from mbt.prep.report.page import LANE_HEAD, SPLIT_HEAD, clips_by_code, lane_row, pace_line, page, split_row, visible

PAGE_FILE = "report.html"
REPORT_FILE = "report.json"
LISTED = 10
"""Reasons in the printed table; the files list all."""


def write_report(folder: Path, out: Path) -> Report:
    """Write `out`/report.html and `out`/report.json about the current state of `folder`.

    Raises:
        InputError: the folder has no plan, or the plan is damaged.
        StorageError: `out` cannot be written.
    """
    report = make_report(folder, time.time())
    write_text(out / REPORT_FILE, report.model_dump_json(indent=2) + "\n")
    write_text(out / PAGE_FILE, page(report))
    return report


def table(report: Report) -> str:
    """The main counts, human-readable."""
    counts = clips_by_code(report)
    reasons = [f"{count:,} {code}" for code, count in counts.most_common(LISTED)]
    refused = ", ".join(f"{refusal.times:,} {visible(refusal.code)}" for refusal in report.refusals)
    more = [f"and {len(counts) - LISTED} more reasons"] if len(counts) > LISTED else []
    return "\n".join(
        [
            f"{report.dataset}, {report.time:%Y-%m-%d %H:%M:%S} UTC",
            *_aligned(SPLIT_HEAD, (split_row(name, split) for name, split in report.splits.items())),
            *([f"missing or not packed: {', '.join([*reasons, *more])}"] if reasons else []),
            *([f"refused requests: {refused}"] if refused else []),
            pace_line(report),
            *(_aligned(LANE_HEAD, map(lane_row, report.lanes)) if report.lanes else []),
            f"media files {format_bytes(report.raw_bytes)}, finished shards {format_bytes(report.packed_bytes)}",
        ]
    )


def _aligned(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; the first column is left-aligned, the others are right-aligned."""
    cells = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
