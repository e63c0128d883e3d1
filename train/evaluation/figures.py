"""Figures: the cost of fusion, and where a model looks and listens."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage

from mbt.flops import SweepRow
from mbt.manifests.atomic import write_bytes

DPI = 120
HEAT = "inferno"
OPACITY = 0.55


@dataclass(frozen=True)
class FrameAttention:
    """The frames of a view, and the attention to them.

    Attributes:
        frames: uint8 (F, H, W, 3).
        times: time of each frame, seconds.
        attention: (maps, h, w), contribution of each patch to the output; each map covers F / maps frames.
    """

    frames: np.ndarray
    times: Sequence[float]
    attention: np.ndarray


@dataclass(frozen=True)
class SpecAttention:
    """The spectrogram of a view, and the attention to it.

    Attributes:
        log_mel: (T, M).
        span: start and end, seconds.
        attention: (rows, bands), contribution of each patch to the output; the patches cover the log-mel.
    """

    log_mel: np.ndarray
    span: tuple[float, float]
    attention: np.ndarray


def write_png(path: Path, figure: Figure) -> None:
    """Write a figure to `path` atomically."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI)
    write_bytes(path, data.getvalue())


def sweep_figure(rows: Sequence[SweepRow], caption: str) -> Figure:
    """Cost of each kind of fusion, by fusion layer (paper, Figure 3, right)."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, style, costs in (
        ("bottleneck", "C0^-", [row.bottleneck for row in rows]),
        ("attention", "C1s-", [row.attention for row in rows]),
        ("attention as the official code computes it", "C3o--", [row.official_attention for row in rows]),
    ):
        axes.plot([row.fusion_layer for row in rows], [cost.total / 1e9 for cost in costs], style, label=label, markersize=4)
    axes.set_title(caption, fontsize="medium")
    axes.set_xlabel(f"fusion layer $L_f$ (0: early fusion, {len(rows) - 1}: late fusion)")
    axes.set_ylabel("GFLOP per clip, forward pass")
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, reverse=True)
    return figure


def attention_figure(title: str, rgb: FrameAttention | None, spec: SpecAttention | None) -> Figure:
    """Where a model looked and listened in one view; colors are relative to the mean over the patches of the modality.

    Top: the middle frame, the sum of all maps over it (paper, Figure 6), and each map over its own frame. Bottom: the
    spectrogram, and the map over it. Modalities that the model does not have are omitted.
    """
    heights = [height for part, height in ((rgb, 3.9), (spec, 3.4)) if part is not None]
    figure = Figure(figsize=(14.0, sum(heights) + 0.7), layout="constrained")
    figure.suptitle(title, parse_math=False)
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat)
    if rgb is not None:
        _draw_frames(parts[0], rgb)
    if spec is not None:
        _draw_spec(parts[-1], spec)
    return figure


def _draw_frames(part: SubFigure, rgb: FrameAttention) -> None:
    maps, frames = len(rgb.attention), len(rgb.frames)
    relative = rgb.attention / rgb.attention.mean()
    rows = math.ceil(math.sqrt(maps / 2))
    columns = math.ceil(maps / rows)
    left, right = part.subfigures(1, 2, squeeze=False, width_ratios=(2, columns / rows + 0.25)).flat
    plain, total = left.subplots(1, 2)
    middle, summed = frames // 2, relative.mean(0)
    extent = _extent(rgb.frames[middle])
    _draw_frame(plain, rgb.frames[middle], f"middle frame, {rgb.times[middle]:.2f} s")
    _draw_frame(total, rgb.frames[middle], f"attention, all frames: up to {summed.max():.1f} x mean")
    _overlay(total, summed, extent)
    cells = list(right.subplots(rows, columns, squeeze=False).flat)
    for cell in cells[maps:]:
        cell.remove()
    for cell, map_, number in zip(cells, relative, range(frames // maps // 2, frames, frames // maps), strict=False):
        _draw_frame(cell, rgb.frames[number], f"{rgb.times[number]:.2f} s")
        drawn = _overlay(cell, map_, extent, vmax=relative.max())
    right.colorbar(drawn, ax=cells[:maps], label="attention / mean", shrink=0.8)


def _draw_spec(part: SubFigure, spec: SpecAttention) -> None:
    rows = part.subplots(2, 1, sharex=True)
    layout: dict[str, Any] = {"extent": (*spec.span, 0, spec.log_mel.shape[1]), "origin": "lower", "aspect": "auto"}
    for axes, title in zip(rows, ("log-mel", "attention"), strict=True):
        axes.imshow(spec.log_mel.T, cmap="gray", **layout)
        axes.set_title(title, fontsize="small")
        axes.set_ylabel("mel band")
    drawn = _overlay(rows[1], (spec.attention / spec.attention.mean()).T, **layout)
    rows[1].set_xlabel("time, s")
    part.colorbar(drawn, ax=list(rows), label="attention / mean")


def _extent(frame: np.ndarray) -> tuple[float, float, float, float]:
    """Extent of a frame (H, W, 3) in units of its height, for any number of pixels."""
    height, width = frame.shape[:2]
    return 0.0, width / height, 1.0, 0.0


def _draw_frame(axes: Axes, frame: np.ndarray, title: str) -> None:
    axes.imshow(frame, extent=_extent(frame))
    axes.set_title(title, fontsize="small")
    axes.set_axis_off()


def _overlay(axes: Axes, relative: np.ndarray, extent: tuple[float, float, float, float], **options: Any) -> AxesImage:
    """Overlay a map, with colors from 0 to its maximum or `vmax`."""
    return axes.imshow(relative, cmap=HEAT, alpha=OPACITY, vmin=0, extent=extent, interpolation="bilinear", **options)
