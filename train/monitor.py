"""What the training loop measures: speed, time spent waiting for data, GPU memory, and non-finite losses."""

import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from mbt.manifests.errors import ConfigError
from mbt.train.data.batch import Batch


class SpeedMeter:
    """Throughput, and the fraction of time spent waiting for data, since the last reading.

    Args:
        batch_size: clips in a global batch.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._start, self._waited, self._batches = time.perf_counter(), 0.0, 0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches, timing how long each takes to arrive."""
        while True:
            requested = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - requested
            if batch is None:
                return
            self._batches += 1
            yield batch

    def read(self) -> dict[str, float]:
        """`clips_per_s` and `data_wait`; starts a new reading."""
        now = time.perf_counter()
        passed = now - self._start
        values = {
            "clips_per_s": round(self._batches * self.batch_size / passed, 2),
            "data_wait": round(self._waited / passed, 4),
        }
        self._start, self._waited, self._batches = now, 0.0, 0
        return values


def gpu_memory(device: torch.device) -> dict[str, float]:
    """`gpu_gb`, the peak memory of tensors on the GPU so far; empty on a CPU."""
    return {"gpu_gb": round(torch.cuda.max_memory_allocated(device) / 1e9, 3)} if device.type == "cuda" else {}


class LossMonitor:
    """Finds non-finite losses, some steps late, so that the loop does not wait for the device at every step.

    Args:
        skip: tolerate single non-finite losses, whose steps the engine skips.
        describe: names a step and its clips.
        shown: report skipped steps on stderr.

    Attributes:
        skipped: steps skipped so far.
    """

    def __init__(self, skip: bool, describe: Callable[[int], str], shown: bool) -> None:
        self.skip, self.describe, self.shown = skip, describe, shown
        self.skipped = 0
        self._losses: list[tuple[int, Tensor]] = []

    def add(self, step: int, loss: Tensor) -> None:
        """Keep the loss of a step for the next check."""
        self._losses.append((step, loss))

    def check(self) -> None:
        """Check the losses since the last check; every log line, evaluation and checkpoint follows a check.

        Raises:
            ConfigError: a loss is non-finite and the recipe does not skip such steps, or several are and none is finite.
        """
        if not self._losses:
            return
        finite = torch.stack([loss for _, loss in self._losses]).isfinite().tolist()
        bad = [step for (step, _), is_finite in zip(self._losses, finite, strict=True) if not is_finite]
        self._losses.clear()
        if bad and (not self.skip or len(bad) == len(finite) > 1):
            fix = "Check these clips, start another run with a lower train.learning_rate, or resume with train.non_finite=skip"
            raise ConfigError(f"non-finite loss at {self.describe(bad[0])}", fix)
        for step in bad:
            if self.shown:
                tqdm.write(f"train: skipped {self.describe(step)}: non-finite loss", file=sys.stderr)
        self.skipped += len(bad)
