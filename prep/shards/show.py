"""`mbt shards show`: a contact sheet of one sample with frames, spectrogram and labels."""

import difflib
import io
import math
import re
import textwrap
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.figure import Figure, SubFigure

from mbt.manifests.atomic import write_bytes
from mbt.manifests.errors import InputError, ShardError
from mbt.manifests.reading.reader import ShardReader
from mbt.manifests.reading.split import read_index
from mbt.manifests.shards import FAILURES_FILE, FPS, MEL_RATE, SAMPLE_RATE, DatasetInfo, index_file, read_dataset
from mbt.prep.media.ffmpeg import ClipError
from mbt.prep.media.frames import decode_frames

FRAMES = 12
DPI = 120
WIDTH = 14.0
"""Inches."""
TITLE_WIDTH = 150
"""Characters."""
MAX_CANDIDATES = 10_000
"""Maximum number of keys to compare when suggesting similar ones."""


def show(folder: Path, key: str, out: Path | None = None) -> Path:
    """Write a contact sheet of a sample as PNG.

    Args:
        folder: dataset folder.
        key: key of the sample, or SPLIT:ROW, a row of the split's index; ROW alone if there is only one split.
        out: PNG to write; KEY.png by default.

    Returns:
        The PNG.

    Raises:
        InputError: no such sample, or `out` is not named .png.
        ShardError: the folder or the sample is damaged.
        StorageError: the PNG cannot be written.
    """
    if out and out.suffix.lower() != ".png":
        raise InputError(f"cannot write {out}: the contact sheet is a PNG", f"Give --out {out.with_suffix('.png')}")
    split, row = find(folder, read_dataset(folder), key)
    with ShardReader(folder, split) as reader:
        sample = reader[row]
        description = sample.description()
        numbers = [round(number) for number in np.linspace(0, sample.num_frames - 1, min(FRAMES, sample.num_frames))]
        jpegs = sample.frames(numbers)
        try:
            frames = decode_frames(b"".join(jpegs), description["width"], description["height"])
        except ClipError as error:
            raise ShardError(
                f"{sample.key}: {error.message}", f"Run `mbt shards verify --decode {folder}` to find all damage"
            ) from None
        log_mel = sample.log_mel(0, description["num_mel_rows"])
        names = reader.labels.names()
        place = f"{reader.info.dataset}, {reader.index['shard'][row]}"
        title = _title(description, [names[label] for label in description["labels"]], place)
    path = out or Path(f"{description['key']}.png")
    data = io.BytesIO()
    contact_sheet(title, frames, [number / FPS for number in numbers], log_mel).savefig(data, format="png", dpi=DPI)
    write_bytes(path, data.getvalue())
    return path


def find(folder: Path, info: DatasetInfo, key: str) -> tuple[str, int]:
    """Split and row of a sample.

    Raises:
        InputError: no such sample; with the reason if the clip was not packed, otherwise with similar keys.
    """
    columns = {split: read_index(folder / index_file(split), info.media)["key"] for split in info.splits}
    for split, keys in columns.items():
        if (row := pc.index(keys, key).as_py()) >= 0:
            return split, row
    if match := re.fullmatch(r"(?:(?P<split>[\w-]+):)?(?P<row>\d+)", key):
        split, row = match["split"] or next(iter(columns)), int(match["row"])
        if match["split"] is None and len(columns) > 1:
            choices = " or ".join(f"{split}:{row}" for split in columns)
            raise InputError(f"{folder} has no sample {key}, and more than one split", f"To choose a row, give {choices}")
        if split not in columns or row >= len(columns[split]):
            rows = ", ".join(f"{split}:0 to {split}:{len(keys) - 1}" for split, keys in columns.items())
            raise InputError(f"{folder} has no row {key}", f"Give a row of {rows}")
        return split, row
    raise _unknown_key(folder, pa.chunked_array([chunk for keys in columns.values() for chunk in keys.chunks]), key)


def _unknown_key(folder: Path, keys: pa.ChunkedArray, key: str) -> InputError:
    path = folder / FAILURES_FILE
    failed = pq.read_table(path, filters=[("key", "=", key)]).to_pylist() if path.exists() else []
    if failed:
        reason = f"{failed[0]['code']}: {failed[0]['message']}"
        return InputError(f"{key} was not packed: {reason}", f"See {path} for all missing clips")
    third = max(1, math.ceil(len(key) / 3))
    parts = [key[start : start + third] for start in range(0, len(key), third)]
    matches = [pc.match_substring(keys, part, ignore_case=True) for part in parts]
    likely = keys.filter(reduce(pc.or_, matches)) if matches else keys
    by_lower = {candidate.lower(): candidate for candidate in likely.slice(0, MAX_CANDIDATES).to_pylist()}
    similar = [by_lower[match] for match in difflib.get_close_matches(key.lower(), by_lower, cutoff=0.5)]
    hint = f"Similar keys: {', '.join(similar)}" if similar else f"Keys look like {keys[0]}"
    return InputError(f"{folder} has no sample {key!r}", hint)


def _title(description: dict[str, Any], labels: list[str], place: str) -> str:
    span = f"{description['start_ms'] / 1000:g} to {description['end_ms'] / 1000:g} s of {description['video_id']}"
    padding = f"{description['padded_frames']} frames, {description['padded_audio_samples'] / SAMPLE_RATE:.2f} s of sound"
    lines = [
        f"{description['key']}   ({place}; {span})",
        f"labels: {'; '.join(labels) or 'none'}",
        f"flags: {', '.join(description['flags']) or 'none'}   padding: {padding}   source: {description['source']}",
    ]
    return "\n".join(line for text in lines for line in textwrap.wrap(text, TITLE_WIDTH))


def contact_sheet(title: str, frames: np.ndarray, times: list[float], log_mel: np.ndarray) -> Figure:
    """Frames above a spectrogram.

    Args:
        title: the text at the top.
        frames: uint8 (F, H, W, 3).
        times: time of each frame, seconds.
        log_mel: (rows, bands), 100 rows per second.
    """
    number, height, width, _ = frames.shape
    columns = number if height > width else math.ceil(number / 2)
    rows = math.ceil(number / columns)
    heights = (rows * (WIDTH / columns * height / width + 0.3), 3.0)
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.3 + 0.2 * title.count("\n")), layout="constrained")
    figure.suptitle(title, parse_math=False, fontsize="medium", x=0.01, ha="left")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
    cells = list(upper.subplots(rows, columns, squeeze=False).flat)
    for cell, frame, time in zip(cells, frames, times, strict=False):
        cell.imshow(frame)
        cell.set_title(f"{time:.2f} s", fontsize="small")
    for cell in cells:
        cell.set_axis_off()
    _draw_log_mel(lower, log_mel)
    return figure


def _draw_log_mel(figure: SubFigure, log_mel: np.ndarray) -> None:
    axes = figure.subplots()
    extent = (0, len(log_mel) / MEL_RATE, 0, log_mel.shape[1])
    drawn = axes.imshow(log_mel.T.astype(np.float32), origin="lower", aspect="auto", extent=extent, interpolation="nearest")
    axes.set_xlabel("time, s")
    axes.set_ylabel("mel band")
    figure.colorbar(drawn, ax=axes, label="ln power")
