"""Pictures: what fusion costs, and where a model looks and listens."""

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
class Seen:
    """The frames of a view, and where the model looked.

    Attributes:
        frames: uint8 (F, H, W, 3).
        times: seconds of each frame.
        shares: (maps, h, w): share of each patch in the output; a map is of F / maps frames.
    """

    frames: np.ndarray
    times: Sequence[float]
    shares: np.ndarray


@dataclass(frozen=True)
class Heard:
    """The sound of a view, and where the model listened.

    Attributes:
        log_mel: (T, M).
        span: seconds at which it begins and ends.
        shares: (rows, bands): share of each patch in the output; the patches cover the log-mel.
    """

    log_mel: np.ndarray
    span: tuple[float, float]
    shares: np.ndarray


def write_png(path: Path, figure: Figure) -> None:
    """Write a figure to `path` atomically."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI)
    write_bytes(path, data.getvalue())


def sweep_figure(rows: Sequence[SweepRow], caption: str) -> Figure:
    """What each way of fusion costs over the fusion layer (paper, Figure 3, right)."""
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
    axes.set_ylabel("GFLOP of a clip's forward pass")
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, reverse=True)
    return figure


def explanation(title: str, seen: Seen | None, heard: Heard | None) -> Figure:
    """Where a model looked and listened in a view; colours are multiples of what a patch of the stream has on average.

    Above the middle frame, the sum of the maps over it (paper, Figure 6), and each map over a frame of its own; below the
    spectrogram, and the map over it. A stream that the model does not have is left out.
    """
    heights = [height for part, height in ((seen, 3.9), (heard, 3.4)) if part is not None]
    figure = Figure(figsize=(14.0, sum(heights) + 0.7), layout="constrained")
    figure.suptitle(title, parse_math=False)
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat)
    if seen is not None:
        _draw_seen(parts[0], seen)
    if heard is not None:
        _draw_heard(parts[-1], heard)
    return figure


def _draw_seen(part: SubFigure, seen: Seen) -> None:
    maps, frames = len(seen.shares), len(seen.frames)
    relative = seen.shares / seen.shares.mean()
    rows = math.ceil(math.sqrt(maps / 2))
    columns = math.ceil(maps / rows)
    left, right = part.subfigures(1, 2, squeeze=False, width_ratios=(2, columns / rows + 0.25)).flat
    plain, total = left.subplots(1, 2)
    middle, summed = frames // 2, relative.mean(0)
    extent = _extent(seen.frames[middle])
    _draw_frame(plain, seen.frames[middle], f"middle frame, {seen.times[middle]:.2f} s")
    _draw_frame(total, seen.frames[middle], f"attention, all frames: up to {summed.max():.1f} x mean")
    _overlay(total, summed, extent)
    cells = list(right.subplots(rows, columns, squeeze=False).flat)
    for cell in cells[maps:]:
        cell.remove()
    for cell, map_, number in zip(cells, relative, range(frames // maps // 2, frames, frames // maps), strict=False):
        _draw_frame(cell, seen.frames[number], f"{seen.times[number]:.2f} s")
        drawn = _overlay(cell, map_, extent, vmax=relative.max())
    right.colorbar(drawn, ax=cells[:maps], label="attention / mean", shrink=0.8)


def _draw_heard(part: SubFigure, heard: Heard) -> None:
    rows = part.subplots(2, 1, sharex=True)
    place: dict[str, Any] = {"extent": (*heard.span, 0, heard.log_mel.shape[1]), "origin": "lower", "aspect": "auto"}
    for axes, title in zip(rows, ("log-mel", "attention"), strict=True):
        axes.imshow(heard.log_mel.T, cmap="gray", **place)
        axes.set_title(title, fontsize="small")
        axes.set_ylabel("mel band")
    drawn = _overlay(rows[1], (heard.shares / heard.shares.mean()).T, **place)
    rows[1].set_xlabel("time, s")
    part.colorbar(drawn, ax=list(rows), label="attention / mean")


def _extent(frame: np.ndarray) -> tuple[float, float, float, float]:
    """Extent of a frame (H, W, 3) in units of its height, whatever its number of pixels."""
    height, width = frame.shape[:2]
    return 0.0, width / height, 1.0, 0.0


def _draw_frame(axes: Axes, frame: np.ndarray, title: str) -> None:
    axes.imshow(frame, extent=_extent(frame))
    axes.set_title(title, fontsize="small")
    axes.set_axis_off()


def _overlay(axes: Axes, relative: np.ndarray, extent: tuple[float, float, float, float], **how: Any) -> AxesImage:
    """Lay a map over what is drawn there: colours from 0 to its maximum, or to `vmax`."""
    return axes.imshow(relative, cmap=HEAT, alpha=OPACITY, vmin=0, extent=extent, interpolation="bilinear", **how)
