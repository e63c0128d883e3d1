"""Evaluation: the logits of N temporal views are averaged for every sample."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbt.manifests.errors import ConfigError
from mbt.manifests.progress import progress
from mbt.train.data.batch import Batch
from mbt.train.data.pipeline import decode_batches
from mbt.train.data.source import Source, eval_batches, open_split
from mbt.train.engine.engine import inference_fn, pick_device
from mbt.train.evaluation.metrics import Metrics, evaluate_logits
from mbt.train.models.model_folder import load_trained
from mbt.train.sampling.inputs import Inputs

THREADS = 4
SHOWN_CLASSES = 10


@dataclass(frozen=True)
class Evaluation:
    """Predictions of a split and their metrics.

    Attributes:
        keys: keys of the samples, in the order of the index.
        logits: float32 (N, C), mean over the views.
        targets: float32 (N, C), multi-hot.
        metrics: their metrics.
        crops: views per sample.
    """

    keys: list[str]
    logits: np.ndarray
    targets: np.ndarray
    metrics: Metrics
    crops: int

    def report(self, label_ids: list[str], names: list[str]) -> dict[str, Any]:
        """The evaluation as a JSON object: scores, counts, and the average precision of each class."""
        precision = self.metrics.average_precision
        return {
            **self.metrics.scores,
            "samples": len(self.keys),
            "crops": self.crops,
            "classes_without_positives": int((self.metrics.positives == 0).sum()),
            "classes": [
                {
                    "id": label_id,
                    "name": name,
                    "positives": int(self.metrics.positives[i]),
                    "average_precision": None if np.isnan(precision[i]) else float(precision[i]),
                }
                for i, (label_id, name) in enumerate(zip(label_ids, names, strict=True))
            ],
        }


def evaluate_split(
    source: Source,
    inputs: Inputs,
    crops: int,
    batch_size: int,
    device: torch.device,
    logits: Callable[[Batch], Tensor],
    rank: int = 0,
    world_size: int = 1,
) -> Evaluation:
    """Evaluate a split together with the other ranks; each view is evaluated once, for any number of ranks.

    The ranks take equal parts and call `logits` equally often, as sharded models require: a rank that finishes early
    repeats its first batch and discards the result.

    Args:
        source: the split.
        inputs: how clips become model inputs.
        crops: views per sample.
        batch_size: views per batch.
        device: device of the batches.
        logits: returns the logits (B, C), float32, of a batch.
        rank: this process.
        world_size: number of processes that evaluate this split together.

    Raises:
        ConfigError: the clips were packed with other options than the model's training clips.
        ShardError: bytes are damaged.
    """
    inputs.check_dataset(source.info)
    sums = np.zeros((len(source), len(source.labels)), np.float64)
    views_seen = np.zeros(len(source), np.int64)
    parts = np.array_split(np.arange(len(source)), world_size)
    own, num_batches = parts[rank], -(-len(parts[0]) * crops // batch_size)
    raw = eval_batches(source, inputs, own if len(own) else parts[0][:1], crops, batch_size)
    decoded, first = decode_batches(raw, inputs, batch_size, device, None, THREADS), None
    with progress(len(own) * crops, "eval", "view", shown=rank == 0) as bar:
        for number in range(num_batches):
            batch = next(decoded, first)
            assert batch is not None
            first = first or batch
            values = logits(batch)
            if number * batch_size < len(own) * crops:
                np.add.at(sums, batch.plan.rows, values.cpu().numpy())
                np.add.at(views_seen, batch.plan.rows, 1)
                bar.update(len(batch.plan.rows))
    if world_size > 1:
        sums, views_seen = (_all_reduce(array, device) for array in (sums, views_seen))
    if not (views_seen == crops).all():
        raise RuntimeError(f"a sample of {source.place} was not evaluated in exactly {crops} views")
    mean = (sums / crops).astype(np.float32)
    targets = source.targets()
    metrics = evaluate_logits(mean, targets, source.info.task)
    return Evaluation(source.index["key"].to_pylist(), mean, targets, metrics, crops)


def _all_reduce(array: np.ndarray, device: torch.device) -> np.ndarray:
    """Sum over all ranks."""
    tensor = torch.from_numpy(array).to(device)
    torch.distributed.all_reduce(tensor)
    return tensor.cpu().numpy()


def evaluate(checkpoint: Path, data: Path | str, split: str, crops: int, batch_size: int) -> dict[str, Any]:
    """Evaluate a trained model on a split of a dataset folder, or of the URL of one; returns the report.

    Raises:
        ConfigError: no model in `checkpoint`, or its labels or inputs differ from the dataset's.
        ShardError: the split is missing or damaged.
    """
    model, preprocessor = load_trained(checkpoint)
    device = pick_device()
    logits = inference_fn(model, device)
    with open_split(data, split) as source:
        if source.labels.index != preprocessor.label_set.index:
            raise ConfigError(
                f"the labels of {data} differ from those of the model in {checkpoint}",
                "Evaluate on shards with the label set of the training shards",
            )
        result = evaluate_split(source, preprocessor.inputs, crops, batch_size, device, logits)
        ids = [label.id for label in source.labels.labels]
        about = {"checkpoint": str(checkpoint), "data": source.place, "split": split}
        return {**about, **result.report(ids, source.labels.names())}


def table(report: dict[str, Any]) -> str:
    """The report as text: scores, then the best and the worst classes."""
    scores = [f"{name} {report[name]:.4f}" for name in ("mAP", "top-1", "top-5") if name in report]
    lines = [f"{report['split']}: {'  '.join(scores)}  ({report['samples']:,} samples, {report['crops']} views each)"]
    if report["classes_without_positives"]:
        lines.append(f"{report['classes_without_positives']} classes have no positive sample and are excluded from the mean")
    ranked = sorted((c for c in report["classes"] if c["average_precision"] is not None), key=lambda c: -c["average_precision"])
    hidden = max(len(ranked) - 2 * SHOWN_CLASSES, 0)
    lines += ["", f"{'AP':>6}  {'positives':>9}  class"]
    lines += [_class_line(c) for c in (ranked[:SHOWN_CLASSES] if hidden else ranked)]
    if hidden:
        lines += [f"{'...':>6}  {hidden} classes between", *(_class_line(c) for c in ranked[-SHOWN_CLASSES:])]
    return "\n".join(lines)


def _class_line(row: dict[str, Any]) -> str:
    return f"{row['average_precision']:6.3f}  {row['positives']:9,}  {row['name']}"
