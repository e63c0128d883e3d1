"""Pictures of the demo: the bar chart of its scores, and what a model attends to in a clip."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from mbt.demo.scores import Scores
from mbt.manifests.atomic import write_bytes
from mbt.manifests.shards import MEL_RATE
from mbt.train.evaluation.figures import HEAT, OPACITY, FrameAttention, SpecAttention

CHART_DPI, VIEW_DPI = 150, 100
SMALL_WIDTH = 960
COLORS = ("#56b4e9", "#e69f00", "#999999", "#0072b2")
"""One for each model, distinguishable with any kind of color vision (Okabe & Ito)."""
GAP = 0.6
"""Space between the groups of the chart, in bars."""


def score_chart(scores: Mapping[str, Scores]) -> Figure:
    """Horizontal bars: a group for each kind of label, a bar for each model."""
    columns = list(next(iter(scores.values())))
    figure = Figure(figsize=(4.8, 5.4), dpi=CHART_DPI, layout="constrained")
    axes = figure.subplots()
    step = len(scores) + GAP
    for number, ((name, row), color) in enumerate(zip(scores.items(), COLORS, strict=True)):
        bars = axes.barh(
            [group * step + number for group in range(len(columns))], list(row.values()), 0.86, color=color, label=name
        )
        axes.bar_label(bars, [f"{score:.2f}" for score in row.values()], padding=3)
    middle = (len(scores) - 1) / 2
    axes.set_yticks([group * step + middle for group in range(len(columns))], columns)
    axes.tick_params("y", length=0, labelsize="large")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 5))
    axes.set_xlabel("mAP on held-out clips")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def view_picture(rgb: FrameAttention, spec: SpecAttention) -> Figure:
    """Frames and spectrogram of a view, each with the attention overlaid below; colors are relative to the mean."""
    figure = Figure(figsize=(4.8, 5.2), dpi=VIEW_DPI, layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(2.7, 2.5)).flat
    frames, maps = rgb.frames, rgb.attention / rgb.attention.mean()
    rows = upper.subplots(2, len(frames))
    for number, frame in enumerate(frames):
        for axes in rows[:, number]:
            axes.imshow(frame, extent=(0, 1, 1, 0))
            axes.set_axis_off()
        _overlay(rows[1, number], maps[number * len(maps) // len(frames)], vmax=maps.max(), extent=(0, 1, 1, 0))
    rows[0, 0].set_title("frames", loc="left")
    rows[1, 0].set_title("attention", loc="left")
    place: dict[str, Any] = {"extent": (0, len(spec.log_mel) / MEL_RATE, 0, spec.log_mel.shape[1])}
    place |= {"origin": "lower", "aspect": "auto"}
    plain, attended = lower.subplots(2, 1, sharex=True)
    for axes, title in ((plain, "spectrogram"), (attended, "attention")):
        axes.imshow(spec.log_mel.T, cmap="gray", **place)
        axes.set_title(title, loc="left")
        axes.set_yticks([])
    _overlay(attended, (spec.attention / spec.attention.mean()).T, **place)
    attended.set_xlabel("time in the view, s")
    return figure


def _overlay(axes: Any, relative: np.ndarray, **options: Any) -> None:
    axes.imshow(relative, cmap=HEAT, alpha=OPACITY, vmin=0, interpolation="bilinear", **options)


def png(figure: Figure) -> bytes:
    """The figure as PNG."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def shrink(path: Path) -> None:
    """Rewrite a PNG with a width of SMALL_WIDTH pixels."""
    with Image.open(path) as image:
        height = round(image.height * SMALL_WIDTH / image.width)
        small = image.convert("RGB").resize((SMALL_WIDTH, height), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    small.save(data, format="png", optimize=True)
    write_bytes(path, data.getvalue())
