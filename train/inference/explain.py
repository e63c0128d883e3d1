"""`mbt explain`: where a trained model looks and listens in a media file."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

from mbt.manifests.shards import FPS, MEL_RATE
from mbt.model import MBT
from mbt.rollout import attention_rollout
from mbt.train.engine.engine import inference_fn, pick_device
from mbt.train.evaluation.figures import FrameAttention, SpecAttention, attention_figure, write_png
from mbt.train.inference.predict import Prediction, decode_span, eval_views, most_probable
from mbt.train.models.model_folder import Preprocessor, load_trained

TOP = 5
TITLE_WIDTH = 130
"""Characters."""
NO_BREAK = "\N{NO-BREAK SPACE}"


def explain(checkpoint: Path, file: Path, start_s: float, duration_s: float, out: Path) -> list[Prediction]:
    """Draw the attention rollout of the middle view of a span of a file.

    A span shorter than a view is repeated, as in evaluation.

    Args:
        checkpoint: run directory or model folder.
        file: media file.
        start_s: start of the span, seconds.
        duration_s: its length, seconds; it may extend beyond the end of the file.
        out: PNG to write.

    Returns:
        The most probable labels of the view, which are also the title of the picture.

    Raises:
        InputError: the file is missing or cannot be decoded.
        ConfigError: `checkpoint` holds no model.
        StorageError: the picture cannot be written.
    """
    model, preprocessor = load_trained(checkpoint)
    view = attend(model, preprocessor, file, start_s, duration_s)
    write_png(out, attention_figure(_title(file, view.labels[:TOP]), view.rgb, view.spec))
    return view.labels[:TOP]


@dataclass(frozen=True)
class AttendedView:
    """The middle view of a span of a file.

    Attributes:
        labels: all labels, most probable first.
        rgb: the frames and the attention to them; None for a model of audio only.
        spec: the log-mel and the attention to it; None for a model of video only.
    """

    labels: list[Prediction]
    rgb: FrameAttention | None
    spec: SpecAttention | None


def attend(model: MBT, preprocessor: Preprocessor, file: Path, start_s: float, duration_s: float) -> AttendedView:
    """Predict the labels of the middle view of a span of a file, and compute the attention rollout.

    Args:
        model: the model; it is moved to the device that it runs on.
        preprocessor: its inputs and labels.
        file: media file.
        start_s: start of the span, seconds.
        duration_s: its length, seconds; it may extend beyond the end of the file.

    Raises:
        InputError: the file is missing or cannot be decoded.
    """
    config, inputs = model.config, preprocessor.inputs
    device = pick_device()
    logits_of = inference_fn(model, device)
    clip = decode_span(file, start_s, duration_s, inputs)
    batch = eval_views(clip, inputs, 1, device)
    labels = most_probable(logits_of(batch)[0], preprocessor, len(preprocessor.labels))
    attention = attention_rollout(model, batch.rgb, batch.spec)
    (start,) = inputs.window.crop_starts(1, clip.num_frames)
    rgb = spec = None
    if batch.rgb is not None:
        numbers = inputs.window.frame_numbers(start.rgb, clip.num_frames)
        pixels = ((batch.rgb[0] + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        rgb = FrameAttention(pixels, [start_s + number / FPS for number in numbers], attention["rgb"][0].cpu().numpy())
    if batch.spec is not None:
        rows, bands = (n * size for n, size in zip(config.spec_grid, config.spec_patch, strict=True))
        begin = start_s + start.spec / FPS
        log_mel = batch.spec[0, :rows, :bands].cpu().numpy()
        spec = SpecAttention(log_mel, (begin, begin + rows / MEL_RATE), attention["spec"][0].cpu().numpy())
    return AttendedView(labels, rgb, spec)


def _title(file: Path, labels: list[Prediction]) -> str:
    named = [f"{label.name} {label.probability:.2f}".replace(" ", NO_BREAK) for label in labels]
    return "\n".join([file.name, *textwrap.wrap(",  ".join(named), TITLE_WIDTH, break_on_hyphens=False)])
