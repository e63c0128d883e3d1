"""What the specification says of one sample: its description, its frames and its log-mel (docs/shards.md, section 5)."""

import ast
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mbt.manifests.reading.split import NPY_MAGIC
from mbt.manifests.shards import FPS, MEL_RATE, SAMPLE_RATE, MediaFormat
from mbt.manifests.tasks import Task
from mbt.prep.media.decode import ClipError
from mbt.prep.media.frames import count_decodable
from mbt.prep.media.mel_sums import MelSums

MEL_ROWS_PER_FRAME = MEL_RATE // FPS
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
SOI, EOI = b"\xff\xd8", b"\xff\xd9"
SOF0, SOS, DRI, APP1 = 0xC0, 0xDA, 0xDD, 0xE1
OTHER_FRAME_HEADERS = frozenset(range(0xC1, 0xD0)) - {0xC4, 0xC8, 0xCC}
YUV420 = (0x22, 0x11, 0x11)
"""Sampling factors of Y, Cb and Cr in SOF0."""

Natural = Annotated[int, Field(ge=0)]
Found = tuple[str, str]
"""Code of a fault, and what is wrong."""


@dataclass(frozen=True)
class Rules:
    """What the samples of a folder are held against.

    Attributes:
        media: how they are stored.
        task: multiclass samples have one label.
        num_classes: size of the label set.
        label_ids: ids of the classes; None where labels.csv cannot be read.
        removed: keys and video ids that must not be here.
        decode: decode every frame, and the sound.
    """

    media: MediaFormat
    task: Task
    num_classes: int
    label_ids: tuple[str, ...] | None
    removed: frozenset[str]
    decode: bool


class Description(BaseModel):
    """The fields of KEY.json; others are passed over."""

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
        ValueError: it is no JSON object with the fields of the format; the text says where.
    """
    try:
        return Description.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None


def check_description(found: Description, key: str, split: str, row: dict[str, Any] | None, rules: Rules) -> Iterator[Found]:
    """Faults of a description, by itself and against its index row."""
    if found.key != key:
        yield "json.key", f"KEY.json is of {found.key}"
    if found.split != split:
        yield "json.split", f"split {found.split} in a shard of {split}"
    for column in (name for name in row or () if name in Description.model_fields):
        if row is not None and getattr(found, column) != row[column]:
            yield "json.index", f"{column} is {getattr(found, column)} in KEY.json and {row[column]} in the index"
    yield from _check_labels(found, rules)
    yield from _check_lengths(found)
    sides = sorted((found.width, found.height))
    if sides[0] != rules.media.video.short_side or sides[1] % 2:
        yield (
            "json.size",
            f"{found.width} x {found.height} where the short side is {rules.media.video.short_side}, the other even",
        )


def _check_labels(found: Description, rules: Rules) -> Iterator[Found]:
    labels = found.labels
    if labels != sorted(set(labels)):
        yield "json.labels", f"labels {labels} are not ascending and unique"
    if rules.task == "multiclass" and len(labels) != 1:
        yield "json.labels", f"{len(labels)} labels in a multiclass dataset"
    if any(label >= rules.num_classes for label in labels):
        yield "json.labels", f"labels {labels} of {rules.num_classes} classes"
    elif rules.label_ids is not None and found.label_ids != (ids := [rules.label_ids[label] for label in labels]):
        yield "json.labels", f"label_ids are {found.label_ids}; labels.csv says {ids}"


def _check_lengths(found: Description) -> Iterator[Found]:
    frames, wanted = found.num_frames, FPS * (found.end_ms - found.start_ms) / 1000
    if found.num_mel_rows != MEL_ROWS_PER_FRAME * frames:
        yield "json.length", f"{found.num_mel_rows} log-mel rows for {frames} frames"
    if frames > wanted + 0.501 or (frames < wanted - 0.501 and "short" not in found.flags):
        yield "json.length", f"{frames} frames for {found.start_ms} to {found.end_ms} ms, flags {found.flags}"
    if found.padded_frames >= frames or found.padded_audio_samples >= frames * SAMPLES_PER_FRAME:
        yield "json.length", f"{found.padded_frames} frames and {found.padded_audio_samples} sound samples of padding"
    if len(found.frame_bytes) != frames:
        yield "json.frame_bytes", f"frame_bytes has {len(found.frame_bytes)} entries for {frames} frames"


def check_frames(stream: bytes, found: Description, decode: bool) -> Iterator[Found]:
    """Faults of KEY.mjpg against its description: the first, as those behind it follow from it."""
    if sum(found.frame_bytes) != len(stream):
        yield "mjpg.size", f"{len(stream)} bytes; the sum of frame_bytes is {sum(found.frame_bytes)}"
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
    """What is wrong with a frame: not one whole JPEG, or not as docs/shards.md, section 5.3, has it."""
    if not jpeg.startswith(SOI) or not jpeg.endswith(EOI):
        return "mjpg.jpeg", f"goes from {jpeg[:2].hex(' ')} to {jpeg[-2:].hex(' ')}, not from ff d8 to ff d9"
    segments, scan = _segments(jpeg)
    if scan is None or jpeg.find(EOI, scan) != len(jpeg) - len(EOI):
        return "mjpg.jpeg", "is not one whole JPEG"
    header = segments.get(SOF0, b"")
    if (
        len(header) != 15
        or header[0] != 8
        or (header[7], header[10], header[13]) != YUV420
        or segments.keys() & OTHER_FRAME_HEADERS
    ):
        return "mjpg.format", "is no baseline JPEG of 8 bit, YCbCr 4:2:0"
    if DRI in segments or segments.get(APP1, b"").startswith(b"Exif"):
        return "mjpg.format", "has restart markers or EXIF"
    size = int.from_bytes(header[3:5], "big"), int.from_bytes(header[1:3], "big")
    return None if size == (width, height) else ("mjpg.format", f"is {size[0]} x {size[1]}, not {width} x {height}")


def _segments(jpeg: bytes) -> tuple[dict[int, bytes], int | None]:
    """The segments in front of the scan by marker, and where the scan begins; None where they lead nowhere."""
    segments: dict[int, bytes] = {}
    position = len(SOI)
    while position + 4 <= len(jpeg) and jpeg[position] == 0xFF:
        marker, length = jpeg[position + 1], int.from_bytes(jpeg[position + 2 : position + 4], "big")
        segments[marker] = jpeg[position + 4 : position + 2 + length]
        position += 2 + length
        if marker == SOS:
            return segments, position
    return segments, None


def check_log_mel(data: bytes, num_frames: int, media: MediaFormat) -> tuple[list[Found], MelSums | None]:
    """Faults of KEY.mel.npy, and the sums over its values where there is none.

    Args:
        data: the member.
        num_frames: F.
        media: floor and bands.
    """
    try:
        header, start = _npy_header(data)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        return [("mel.header", f"no NPY file of format 1.0: {error}")], None
    shape = (MEL_ROWS_PER_FRAME * num_frames, media.log_mel.n_mels)
    if header != {"descr": "<f2", "fortran_order": False, "shape": shape}:
        return [("mel.shape", f"{header}, not <f2 {shape} in C order")], None
    if len(data) - start != math.prod(shape) * np.dtype("<f2").itemsize:
        return [("mel.shape", f"{len(data) - start} bytes of values for {shape}")], None
    values = np.frombuffer(data, "<f2", offset=start)
    if strange := int((~np.isfinite(values)).sum()):
        return [("mel.values", f"{strange} values are not finite")], None
    if low := int((values < float(np.float16(math.log(media.log_mel.floor)))).sum()):
        return [("mel.values", f"{low} values are below the logarithm of the floor {media.log_mel.floor:g}")], None
    return [], MelSums.of(values)


def _npy_header(data: bytes) -> tuple[Any, int]:
    """The header of an NPY file, and where the values begin. Raises what `ast.literal_eval` raises."""
    if not data.startswith(NPY_MAGIC):
        raise ValueError(f"it begins with {data[: len(NPY_MAGIC)].hex(' ')}")
    start = len(NPY_MAGIC) + 2 + int.from_bytes(data[len(NPY_MAGIC) : len(NPY_MAGIC) + 2], "little")
    return ast.literal_eval(data[len(NPY_MAGIC) + 2 : start].decode("latin-1")), start
