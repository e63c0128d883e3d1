"""Checks of one sample against the specification: description, frames and log-mel (docs/shards.md, section 5)."""

import ast
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mbt.manifests.reading.jpeg import EOI, SAMPLING, SOF0, SOI, SOS, segments
from mbt.manifests.reading.split import NPY_MAGIC
from mbt.manifests.shards import FPS, MEL_RATE, SAMPLE_RATE, MediaFormat
from mbt.manifests.tasks import Task
from mbt.prep.media.ffmpeg import ClipError
from mbt.prep.media.frames import count_decodable
from mbt.prep.media.mel_sums import MelSums

MEL_ROWS_PER_FRAME = MEL_RATE // FPS
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
DRI, APP1 = 0xDD, 0xE1
OTHER_FRAME_HEADERS = frozenset(range(0xC1, 0xD0)) - {0xC4, 0xC8, 0xCC}

Natural = Annotated[int, Field(ge=0)]
Found = tuple[str, str]
"""Code of a fault, and a description."""


@dataclass(frozen=True)
class Rules:
    """What the samples of a folder are checked against.

    Attributes:
        media: how they are stored.
        task: multiclass samples must have exactly one label.
        num_classes: size of the label set.
        label_ids: ids of the classes; None if labels.csv cannot be read.
        removed: keys and video ids that must not be in the folder.
        decode: whether to decode every frame and the audio.
    """

    media: MediaFormat
    task: Task
    num_classes: int
    label_ids: tuple[str, ...] | None
    removed: frozenset[str]
    decode: bool


class Description(BaseModel):
    """The fields of KEY.json; others are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)

    key: str
    video_id: str
    start_ms: int
    end_ms: int
    split: str
    labels: list[Natural]
    label_ids: list[str]
    fps: Literal[25]
    num_frames: Annotated[int, Field(ge=1)]
    num_mel_rows: Natural
    width: Natural
    height: Natural
    frame_bytes: list[Natural]
    padded_frames: Natural
    padded_audio_samples: Natural
    flags: list[str]
    source: str


def read_description(data: bytes) -> Description:
    """Parse KEY.json.

    Raises:
        ValueError: it is not a JSON object with the fields of the format; the message names the field.
    """
    try:
        return Description.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None


def check_description(found: Description, key: str, split: str, row: dict[str, Any] | None, rules: Rules) -> Iterator[Found]:
    """Faults of a description, on its own and against its index row."""
    if found.key != key:
        yield "json.key", f"KEY.json has the key {found.key}"
    if found.split != split:
        yield "json.split", f"KEY.json has the split {found.split} in a shard of {split}"
    for column in (name for name in row or () if name in Description.model_fields):
        if row is not None and getattr(found, column) != row[column]:
            yield "json.index", f"{column} is {getattr(found, column)} in KEY.json and {row[column]} in the index"
    yield from _check_labels(found, rules)
    yield from _check_lengths(found)
    sides = sorted((found.width, found.height))
    if sides[0] != rules.media.video.short_side or sides[1] % 2:
        yield (
            "json.size",
            f"frames are {found.width} x {found.height}; the short side must be {rules.media.video.short_side}, the other even",
        )


def _check_labels(found: Description, rules: Rules) -> Iterator[Found]:
    labels = found.labels
    if labels != sorted(set(labels)):
        yield "json.labels", f"labels {labels} are not unique and in ascending order"
    if rules.task == "multiclass" and len(labels) != 1:
        yield "json.labels", f"{len(labels)} labels in a multiclass dataset; there must be 1"
    if any(label >= rules.num_classes for label in labels):
        yield "json.labels", f"labels {labels} exceed the {rules.num_classes} classes"
    elif rules.label_ids is not None and found.label_ids != (ids := [rules.label_ids[label] for label in labels]):
        yield "json.labels", f"label_ids are {found.label_ids}; labels.csv says {ids}"


def _check_lengths(found: Description) -> Iterator[Found]:
    frames, wanted = found.num_frames, FPS * (found.end_ms - found.start_ms) / 1000
    if found.num_mel_rows != MEL_ROWS_PER_FRAME * frames:
        yield "json.length", f"{found.num_mel_rows} log-mel rows for {frames} frames"
    if frames > wanted + 0.501 or (frames < wanted - 0.501 and "short" not in found.flags):
        yield "json.length", f"{frames} frames for {found.start_ms} to {found.end_ms} ms with flags {found.flags}"
    if found.padded_frames >= frames or found.padded_audio_samples >= frames * SAMPLES_PER_FRAME:
        yield (
            "json.length",
            f"{found.padded_frames} frames and {found.padded_audio_samples} audio samples of padding for {frames} frames",
        )
    if len(found.frame_bytes) != frames:
        yield "json.frame_bytes", f"frame_bytes has {len(found.frame_bytes)} entries for {frames} frames"


def check_frames(stream: bytes, found: Description, decode: bool) -> Iterator[Found]:
    """The first fault of KEY.mjpg against its description; later ones usually follow from it."""
    if sum(found.frame_bytes) != len(stream):
        yield "mjpg.size", f"the frames have {len(stream)} bytes; the sum of frame_bytes is {sum(found.frame_bytes)}"
        return
    for number, (start, end) in enumerate(pairwise([0, *accumulate(found.frame_bytes)])):
        if wrong := _check_jpeg(stream[start:end], found.width, found.height):
            yield wrong[0], f"frame {number} {wrong[1]}"
            return
    if decode:
        try:
            decodable = count_decodable(stream)
        except ClipError as error:
            yield "mjpg.decode", error.message
        else:
            if decodable != len(found.frame_bytes):
                yield "mjpg.decode", f"frame {decodable} does not decode"


def _check_jpeg(jpeg: bytes, width: int, height: int) -> Found | None:
    """What is wrong with a frame: it is not exactly one complete JPEG, or not of the format of docs/shards.md, section 5.3."""
    if not jpeg.startswith(SOI) or not jpeg.endswith(EOI):
        return "mjpg.jpeg", f"starts with {jpeg[:2].hex(' ')} and ends with {jpeg[-2:].hex(' ')}, not ff d8 and ff d9"
    headers: dict[int, bytes] = {}
    scan = len(jpeg)
    for marker, begin, end in segments(jpeg):
        headers[marker], scan = jpeg[begin:end], end
    if SOS not in headers or jpeg.find(EOI, scan) != len(jpeg) - len(EOI):
        return "mjpg.jpeg", "is not exactly one complete JPEG"
    header = headers.get(SOF0, b"")
    if (
        len(header) != 15
        or header[0] != 8
        or (header[7], header[10], header[13]) != SAMPLING
        or headers.keys() & OTHER_FRAME_HEADERS
    ):
        return "mjpg.format", "is not a baseline JPEG with 8 bits per sample and YCbCr 4:2:0"
    if DRI in headers or headers.get(APP1, b"").startswith(b"Exif"):
        return "mjpg.format", "has restart markers or EXIF"
    size = int.from_bytes(header[3:5], "big"), int.from_bytes(header[1:3], "big")
    return None if size == (width, height) else ("mjpg.format", f"is {size[0]} x {size[1]}, not {width} x {height}")


def check_log_mel(data: bytes, num_frames: int, media: MediaFormat) -> tuple[list[Found], MelSums | None]:
    """Faults of KEY.mel.npy, and the sums over its values if there are none.

    Args:
        data: the member.
        num_frames: number of frames of the sample.
        media: its floor and bands.
    """
    try:
        header, start = _npy_header(data)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        return [("mel.header", f"it is not an NPY file of format 1.0: {error}")], None
    shape = (MEL_ROWS_PER_FRAME * num_frames, media.log_mel.n_mels)
    if header != {"descr": "<f2", "fortran_order": False, "shape": shape}:
        return [("mel.shape", f"the header is {header}, not <f2 {shape} in C order")], None
    if len(data) - start != math.prod(shape) * np.dtype("<f2").itemsize:
        return [("mel.shape", f"{len(data) - start} bytes of values for the shape {shape}")], None
    values = np.frombuffer(data, "<f2", offset=start)
    if not_finite := int((~np.isfinite(values)).sum()):
        return [("mel.values", f"{not_finite} values are not finite")], None
    if too_low := int((values < float(np.float16(math.log(media.log_mel.floor)))).sum()):
        return [("mel.values", f"{too_low} values are below the logarithm of the floor {media.log_mel.floor:g}")], None
    return [], MelSums.of(values)


def _npy_header(data: bytes) -> tuple[Any, int]:
    """The header of an NPY file, and the byte at which the values begin; raises what `ast.literal_eval` raises."""
    if not data.startswith(NPY_MAGIC):
        raise ValueError(f"it starts with {data[: len(NPY_MAGIC)].hex(' ')}")
    start = len(NPY_MAGIC) + 2 + int.from_bytes(data[len(NPY_MAGIC) : len(NPY_MAGIC) + 2], "little")
    return ast.literal_eval(data[len(NPY_MAGIC) + 2 : start].decode("latin-1")), start
