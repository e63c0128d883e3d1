"""`mbt demo`, whole: the paper's claim in small."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mbt.cli import cli
from mbt.demo.run import VARIANTS, kind_map


@pytest.mark.slow
def test_only_bottleneck_fusion_tells_matched_labels(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["demo", "--out", str(tmp_path), "--seed", "0"])
    assert result.exit_code == 0, result.output
    reports = {v.name: json.loads((tmp_path / "runs" / v.name.replace(" ", "-") / "eval.json").read_text()) for v in VARIANTS}
    matched = {name: kind_map(report, "matched") for name, report in reports.items()}
    assert matched.pop("bottleneck fusion") >= 0.90
    assert max(matched.values()) <= 0.75, matched
    for kind, blind in (("seen", "audio only"), ("heard", "video only")):
        scores = {name: kind_map(report, kind) for name, report in reports.items()}
        assert scores.pop(blind) < 0.65
        assert min(scores.values()) > 0.8, scores
    assert all(report["samples"] == 144 for report in reports.values())
    for name, report in reports.items():
        assert f"{name:<18}{report['mAP']:9.3f}" in result.output
    assert " predict " in result.output.rpartition("Next:")[2]
