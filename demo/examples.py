"""Held-out clips that the demo's page shows, with the predictions of every model and the attention of one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mbt.demo.clips import CLIP_SECONDS, COMBINATIONS, DemoClip, Factors, labels, media_file
from mbt.demo.variants import BOTTLENECK, VARIANTS
from mbt.train.evaluation.figures import FrameAttention, SpecAttention
from mbt.train.inference.explain import attend
from mbt.train.inference.predict import predict
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
class Example:
    """A held-out clip.

    Attributes:
        clip: the clip.
        predictions: probability of each label id, for each model.
        rgb: frames of the middle view, and the attention of bottleneck fusion to them.
        spec: log-mel of the middle view, and the attention to it.
    """

    clip: DemoClip
    predictions: Mapping[str, Mapping[str, float]]
    rgb: FrameAttention
    spec: SpecAttention


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
    shown, num_labels = shown_clips(), len(labels())
    files = {clip: media_file(clips, clip) for pair in shown.values() for clip in pair}
    predictions: dict[DemoClip, dict[str, dict[str, float]]] = {clip: {} for clip in files}
    for variant in VARIANTS:
        found = predict(runs / variant.folder, list(files.values()), 0.0, CLIP_SECONDS, CROPS, num_labels)
        for clip, predicted in zip(files, found, strict=True):
            predictions[clip][variant.name] = {label.id: label.probability for label in predicted}
    fused = load_trained(runs / BOTTLENECK.folder)
    examples = {}
    for clip, file in files.items():
        view = attend(*fused, file, 0.0, CLIP_SECONDS)
        assert view.rgb is not None
        assert view.spec is not None
        examples[clip] = Example(clip, predictions[clip], view.rgb, view.spec)
    return {kind: [examples[clip] for clip in pair] for kind, pair in shown.items()}
