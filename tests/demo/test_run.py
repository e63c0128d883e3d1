"""`mbt demo`, end to end: the paper's claim in small."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from mbt.cli import cli
from mbt.demo.scores import kind_map
from mbt.demo.variants import VARIANTS
from tests.demo.test_page import Page

PICTURES = ("samples.png", "attention.png", "demo.png")


@pytest.mark.slow
def test_only_bottleneck_fusion_predicts_matched_labels(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["demo", "--out", str(tmp_path), "--seed", "0"])
    assert result.exit_code == 0, result.output
    reports = {v.name: json.loads((tmp_path / "runs" / v.folder / "eval.json").read_text()) for v in VARIANTS}
    matched = {name: kind_map(report, "matched") for name, report in reports.items()}
    assert matched.pop("bottleneck fusion") >= 0.90
    assert max(matched.values()) <= 0.75, matched
    for kind, blind in (("seen", "audio only"), ("heard", "video only")):
        scores = {name: kind_map(report, kind) for name, report in reports.items()}
        assert scores.pop(blind) < 0.65
        assert min(scores.values()) > 0.8, scores
    assert all(report["samples"] == 72 for report in reports.values())
    for name, report in reports.items():
        assert f"{name:<18}{report['mAP']:9.3f}" in result.output
    assert " predict " in result.output.rpartition("Next:")[2]
    check_page(tmp_path, reports)
    for name in PICTURES:
        path = tmp_path / "pictures" / name
        assert path.stat().st_size < 300_000
        with Image.open(path) as image:
            assert image.format == "PNG"


def check_page(out: Path, reports: dict[str, dict[str, float]]) -> None:
    """The page shows the scores that `mbt eval` wrote, and the predictions that `mbt predict` prints."""
    page = Page((out / "report.html").read_text())
    assert str(out / "clips" / "media" / "eval-0000.mp4") in page.text
    scores, *clips = page.tables
    assert [row[:2] for row in scores[1:]] == [[name, f"{report['mAP']:.3f}"] for name, report in reports.items()]
    run = str(out / "runs" / "bottleneck-fusion")
    file = str(out / "clips" / "media" / "eval-0000.mp4")
    result = CliRunner().invoke(cli, ["predict", file, "--checkpoint", run, "--top", "15", "--json"])
    predicted = {label["name"]: label["probability"] for label in json.loads(result.output)["labels"]}
    shown = {row[0].lstrip("\N{CHECK MARK}\N{NO-BREAK SPACE}") + " is seen": row[4] for row in clips[0][1:]}
    assert shown == {name: f"{predicted[name]:.2f}" for name in shown}
    assert len(shown) == 7
