"""One clip as a sample: the bytes of its members, its index row, and its contribution to the log-mel statistics."""

import importlib
import io
import json
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from mbt.manifests.clips import Clip
from mbt.manifests.labels import LabelSet
from mbt.manifests.reading.jpeg import jpeg_size
from mbt.manifests.shards import FPS, MediaFormat
from mbt.prep.media.decode import DecodedClip
from mbt.prep.media.ffmpeg import DEFAULT_LIMITS, Limits
from mbt.prep.media.flac import encode_flac
from mbt.prep.media.mel_sums import MelSums

FLAGS = ("short", "upscaled", "silent", "frozen", "black")


@dataclass(frozen=True)
class Sample:
    """A clip, ready to be written.

    Attributes:
        members: bytes by extension, in the order of the tar.
        row: the index columns that do not depend on the tar.
        mel: sums over the log-mel.
    """

    members: dict[str, bytes]
    row: dict[str, Any]
    mel: MelSums


def make_sample(
    clip: Clip, decoded: DecodedClip, labels: LabelSet, media: MediaFormat, source: str, limits: Limits = DEFAULT_LIMITS
) -> Sample:
    """The sample of a decoded clip.

    Args:
        clip: the clip.
        decoded: its frames and audio.
        labels: the label set.
        media: how samples are stored.
        source: `local`, or the host that served the video.
        limits: limits of the process that encodes the audio.

    Raises:
        ClipError: the audio cannot be encoded within the limits.
    """
    from mbt.prep.media.log_mel import log_mel, use_one_core

    use_one_core()
    mel = log_mel(decoded.audio, media.log_mel)
    width, height = jpeg_size(decoded.jpegs[0])
    flags = [name for name in FLAGS if getattr(decoded, name)]
    row = {
        "key": clip.key,
        "num_frames": decoded.num_frames,
        "num_mel_rows": len(mel),
        "width": width,
        "height": height,
        "padded_frames": decoded.padded_frames,
        "padded_audio_samples": decoded.padded_samples,
        "flags": flags,
        "video_id": clip.video_id,
        "start_ms": clip.start_ms,
        "end_ms": clip.end_ms,
        "split": clip.split,
        "labels": list(clip.labels),
    }
    description = {
        **row,
        "label_ids": labels.ids(clip.labels),
        "fps": FPS,
        "source": source,
        "frame_bytes": [len(jpeg) for jpeg in decoded.jpegs],
    }
    members = {
        "json": json.dumps(description, ensure_ascii=False, separators=(",", ":")).encode(),
        "mel.npy": npy(mel),
        "mjpg": b"".join(decoded.jpegs),
    }
    if media.flac:
        members["flac"] = encode_flac(decoded.audio, limits)
    return Sample(members, row, MelSums.of(mel))


def load_libraries() -> None:
    """Load what `make_sample` needs, in the background: it takes seconds, in which the first clips are decoded."""
    threading.Thread(target=importlib.import_module, args=("mbt.prep.media.log_mel",), daemon=True).start()


def npy(array: np.ndarray) -> bytes:
    """The array as an NPY file of format 1.0."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    return file.getvalue()
