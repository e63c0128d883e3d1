"""Held-out clips that the demo's page shows, with the predictions of every model and the attention of one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mbt.demo.clips import CLIP_SECONDS, COMBINATIONS, DemoClip, Factors, media_file
from mbt.demo.variants import BOTTLENECK, VARIANTS
from mbt.rollout import attention_rollout
from mbt.train.engine.engine import pick_device
from mbt.train.inference.predict import decode_span, eval_views, predict
from mbt.train.models.model_folder import load_trained

CROPS = 4
SHOWN: dict[str, tuple[Factors, Factors]] = {
    "seen": (
        Factors("red", "disc", "resting", "low-tone", "steady"),
        Factors("blue", "ring", "swinging", "low-tone", "steady"),
    ),
    "heard": (
        Factors("green", "disc", "resting", "high-tone", "steady"),
        Factors("green", "disc", "resting", "noise", "pulsed"),
    ),
    "matched": (
        Factors("red", "ring", "swinging", "low-tone", "pulsed"),
        Factors("red", "ring", "swinging", "noise", "pulsed"),
    ),
}
"""Two clips for each kind of label; they differ only in what decides it."""


@dataclass(frozen=True)
class View:
    """The middle view of a clip, and the attention of bottleneck fusion to it.

    Attributes:
        frames: uint8 (F, H, W, 3).
        log_mel: float32 (T, M), standardized.
        rgb_attention: float32 (maps, height, width) of the patches; each map covers F / maps frames.
        spec_attention: float32 (rows, bands) of the patches.
    """

    frames: np.ndarray
    log_mel: np.ndarray
    rgb_attention: np.ndarray
    spec_attention: np.ndarray


@dataclass(frozen=True)
class Example:
    """A held-out clip.

    Attributes:
        clip: the clip.
        predictions: probability of each label id, for each model.
        view: what bottleneck fusion attends to.
    """

    clip: DemoClip
    predictions: Mapping[str, Mapping[str, float]]
    view: View


def shown_clips() -> dict[str, list[DemoClip]]:
    """The clips of the split `eval` that are shown, by kind of label."""
    return {kind: [DemoClip("eval", COMBINATIONS.index(factors)) for factors in pair] for kind, pair in SHOWN.items()}


def predict_examples(clips: Path, runs: Path) -> dict[str, list[Example]]:
    """Predict the labels of the shown clips with every model, from their media files.

    Args:
        clips: folder that `render` wrote.
        runs: folder of the run directories.

    Raises:
        InputError: a file cannot be decoded.
        ConfigError: a run directory holds no model.
    """
    shown = shown_clips()
    files = {clip: media_file(clips, clip) for pair in shown.values() for clip in pair}
    predictions: dict[DemoClip, dict[str, dict[str, float]]] = {clip: {} for clip in files}
    for variant in VARIANTS:
        _, preprocessor = load_trained(runs / variant.folder)
        found = predict(runs / variant.folder, list(files.values()), 0.0, CLIP_SECONDS, CROPS, len(preprocessor.labels))
        for clip, labels in zip(files, found, strict=True):
            predictions[clip][variant.name] = {label.id: label.probability for label in labels}
    attended = attend(runs / BOTTLENECK.folder, list(files.values()))
    examples = {clip: Example(clip, predictions[clip], view) for clip, view in zip(files, attended, strict=True)}
    return {kind: [examples[clip] for clip in pair] for kind, pair in shown.items()}


def attend(checkpoint: Path, files: list[Path]) -> list[View]:
    """The middle view of each file, and the attention rollout of a model with both modalities."""
    model, preprocessor = load_trained(checkpoint)
    device = pick_device()
    model.to(device)
    found = []
    for file in files:
        batch = eval_views(decode_span(file, 0.0, CLIP_SECONDS, preprocessor.inputs), preprocessor.inputs, 1, device)
        assert batch.rgb is not None
        assert batch.spec is not None
        attention = attention_rollout(model, batch.rgb, batch.spec)
        frames = ((batch.rgb[0] + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
        tensors = (frames, batch.spec[0], attention["rgb"][0], attention["spec"][0])
        found.append(View(*(tensor.cpu().numpy().copy() for tensor in tensors)))
    return found
