"""`mbt predict`: labels of media files, decoded by the function that packs training shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mbt.config import Modality
from mbt.manifests.errors import InputError
from mbt.prep.media.decode import DecodedClip, Stream, decode_clip
from mbt.prep.media.ffmpeg import DEFAULT_LIMITS, ClipError
from mbt.prep.media.log_mel import log_mel
from mbt.train.data.batch import Batch, RawBatch
from mbt.train.data.pipeline import decode_batches
from mbt.train.data.views import eval_plan
from mbt.train.engine.engine import inference_fn, pick_device
from mbt.train.models.model_folder import Preprocessor, load_trained
from mbt.train.sampling.inputs import Inputs

STREAMS: dict[Modality, Stream] = {"rgb": "video", "spec": "audio"}
THREADS = 4


@dataclass(frozen=True)
class Prediction:
    """A label and its probability in [0, 1]."""

    id: str
    name: str
    probability: float


def predict(
    checkpoint: Path, files: Sequence[Path], start_s: float, duration_s: float, crops: int, top: int
) -> list[list[Prediction]]:
    """The `top` most probable labels of a span of each file, from the mean logits of `crops` temporal views.

    Args:
        checkpoint: run directory or model folder.
        files: media files.
        start_s: start of the span, seconds.
        duration_s: its length, seconds; it may extend beyond the end of a file.
        crops: number of temporal views.
        top: number of labels.

    Raises:
        InputError: a file is missing or cannot be decoded.
        ConfigError: `checkpoint` holds no model.
    """
    model, preprocessor = load_trained(checkpoint)
    device = pick_device()
    logits_of = inference_fn(model, device)
    predictions = []
    for file in files:
        clip = decode_span(file, start_s, duration_s, preprocessor.inputs)
        batch = eval_views(clip, preprocessor.inputs, crops, device)
        predictions.append(most_probable(logits_of(batch).mean(0), preprocessor, top))
    return predictions


def most_probable(logits: Tensor, preprocessor: Preprocessor, top: int) -> list[Prediction]:
    """The `top` most probable labels for logits (C,), most probable first."""
    labels = preprocessor.label_set.labels
    probabilities = (logits.sigmoid() if preprocessor.task == "multilabel" else logits.softmax(0)).cpu().numpy()
    best = np.argsort(-probabilities, kind="stable")[:top]
    return [Prediction(labels[i].id, labels[i].display_name, float(probabilities[i])) for i in best]


def decode_span(file: Path, start_s: float, duration_s: float, inputs: Inputs) -> DecodedClip:
    """Decode a span of a media file with the options of the training clips.

    Raises:
        InputError: the file is missing or cannot be decoded.
    """
    if not file.is_file():
        raise InputError(f"{file} does not exist", "Pass the path of a media file")
    streams = [STREAMS[modality] for modality in inputs.modalities]
    try:
        return decode_clip(file, start_s, duration_s, inputs.media.video, DEFAULT_LIMITS, streams, min_share=0)
    except ClipError as error:
        fix = "Pass a media file with the video and audio streams that the model needs"
        if error.code == "clip.short":
            fix = f"Check that the file lasts longer than --start {start_s:g}"
        raise InputError(f"{file} cannot be decoded: {error}", fix) from None


def eval_views(clip: DecodedClip, inputs: Inputs, crops: int, device: torch.device) -> Batch:
    """The evaluation views of a decoded clip."""
    window = inputs.window
    starts = window.crop_starts(crops, clip.num_frames)
    jpegs: list[bytes] = []
    spec = None
    if "rgb" in inputs.modalities:
        jpegs = [clip.jpegs[number] for start in starts for number in window.frame_numbers(start.rgb, clip.num_frames)]
    if "spec" in inputs.modalities:
        mel = log_mel(clip.audio, inputs.media.log_mel)
        spec = np.stack([np.concatenate([mel[a:b] for a, b in window.mel_spans(s.spec, clip.num_frames)]) for s in starts])
    raw = RawBatch(plan=eval_plan(np.arange(crops)), jpegs=jpegs, spec=spec)
    (batch,) = decode_batches(iter([raw]), inputs, crops, device, None, THREADS)
    return batch
