"""`mbt explain`: where a trained model looked and listened in a media file."""

import textwrap
from pathlib import Path

from mbt.manifests.shards import FPS, MEL_RATE
from mbt.rollout import attention_rollout
from mbt.train.engine.engine import inference, pick_device
from mbt.train.evaluation.figures import Heard, Seen, explanation, write_png
from mbt.train.inference.predict import Prediction, decode_span, most_probable, views
from mbt.train.models.model_folder import load_trained

TOP = 5
TITLE_WIDTH = 130
"""Characters."""
NO_BREAK = "\N{NO-BREAK SPACE}"


def explain(checkpoint: Path, file: Path, start_s: float, duration_s: float, out: Path) -> list[Prediction]:
    """Picture of the attention rollout of the middle view of a span of a file.

    A span that is shorter than a view is repeated, as in evaluation.

    Args:
        checkpoint: folder of a run or of a model.
        file: media file.
        start_s: where the span begins.
        duration_s: its length; a file that ends earlier is taken to its end.
        out: PNG to write.

    Returns:
        The most probable labels of the view, which the picture names too.

    Raises:
        InputError: the file cannot be decoded.
        ConfigError: no model in `checkpoint`.
        StorageError: the picture cannot be written.
    """
    model, preprocessor = load_trained(checkpoint)
    config, inputs = model.config, preprocessor.inputs
    device = pick_device()
    logits_of = inference(model, device)
    clip = decode_span(file, start_s, duration_s, inputs)
    batch = views(clip, inputs, 1, device)
    labels = most_probable(logits_of(batch)[0], preprocessor, TOP)
    shares = attention_rollout(model, batch.rgb, batch.spec)
    (start,) = inputs.window.crop_starts(1, clip.num_frames)
    seen = heard = None
    if batch.rgb is not None:
        numbers = inputs.window.frame_numbers(start.rgb, clip.num_frames)
        frames = ((batch.rgb[0] + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
        seen = Seen(frames.cpu().numpy(), [start_s + number / FPS for number in numbers], shares["rgb"][0].cpu().numpy())
    if batch.spec is not None:
        rows, bands = (n * size for n, size in zip(config.spec_grid, config.spec_patch, strict=True))
        begin = start_s + start.spec / FPS
        log_mel = batch.spec[0, :rows, :bands].cpu().numpy()
        heard = Heard(log_mel, (begin, begin + rows / MEL_RATE), shares["spec"][0].cpu().numpy())
    write_png(out, explanation(_title(file, labels), seen, heard))
    return labels


def _title(file: Path, labels: list[Prediction]) -> str:
    named = [f"{label.name} {label.probability:.2f}".replace(" ", NO_BREAK) for label in labels]
    return "\n".join([file.name, *textwrap.wrap(",  ".join(named), TITLE_WIDTH, break_on_hyphens=False)])
