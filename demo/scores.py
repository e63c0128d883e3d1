"""Scores of the demo's models, by kind of label."""

from collections.abc import Mapping
from typing import Any

KINDS = ("seen", "heard", "matched")
Scores = Mapping[str, float]
"""mAP by column: `all` labels, and the labels of each kind."""


def scores_by_kind(report: Mapping[str, Any]) -> dict[str, float]:
    """Scores of a report of `mbt eval`."""
    return {"all": report["mAP"], **{kind: kind_map(report, kind) for kind in KINDS}}


def kind_map(report: Mapping[str, Any], kind: str) -> float:
    """Mean average precision over the labels of a kind: `seen`, `heard` or `matched`."""
    precision = [c["average_precision"] for c in report["classes"] if c["id"].startswith(f"{kind}:")]
    return sum(precision) / len(precision)


def score_table(scores: Mapping[str, Scores]) -> str:
    """The scores of each model as a table for the terminal."""
    lines = ["mAP on held-out clips", "", f"{'model':<18}{'all':>9}" + "".join(f"{kind:>9}" for kind in KINDS)]
    return "\n".join([*lines, *(f"{name:<18}" + "".join(f"{s:9.3f}" for s in row.values()) for name, row in scores.items())])
