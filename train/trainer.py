"""`mbt train`: from a dataset folder to a run directory."""

import math
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mbt.config import MBTConfig
from mbt.manifests.errors import ConfigError, as_config_error
from mbt.manifests.progress import progress
from mbt.model import MBT
from mbt.state import check_state
from mbt.train.checkpoint import Best, Checkpoint, load_checkpoint, save_checkpoint
from mbt.train.data.augment import augment
from mbt.train.data.batch import Batch
from mbt.train.data.corruption import Damage
from mbt.train.data.random_access import batches
from mbt.train.data.source import Source, epoch_order, open_split, train_views
from mbt.train.distributed.process_group import joined
from mbt.train.distributed.signals import RESUME_ME, asked_to_stop
from mbt.train.engine.engine import Engine, TrainState
from mbt.train.engine.schedule import learning_rate
from mbt.train.engine.torch_engine import TorchEngine
from mbt.train.engine.zero_config import Zero
from mbt.train.evaluation.evaluate import evaluate_split
from mbt.train.models.initial import initial_model
from mbt.train.models.model_folder import Preprocessor, save_trained
from mbt.train.recipes.schema import InitRecipe, Recipe
from mbt.train.run_dir import CHECKPOINTS, Run
from mbt.train.sampling.inputs import Inputs
from mbt.train.sampling.plan import TrainPlan

TRAIN_SPLIT = "train"
SHOWN_KEYS = 8


def train(data: Path | str, folder: Path, recipe: Recipe, *, zero: Zero | None = None, resume: bool = False) -> None:
    """Train a model on `data` and leave a run directory; with the other ranks, where a launcher started several.

    Args:
        data: dataset folder with a split `train`, or the URL of one.
        folder: run directory.
        recipe: what to train and how.
        zero: train through DeepSpeed.
        resume: go on after the newest checkpoint of `folder`; what follows is the same as without the interruption.

    Raises:
        MbtError: anything that the user can mend.
    """
    with joined(), open_split(data, TRAIN_SPLIT) as source:
        config = recipe.mbt_config(source.info)
        Training(source, _eval_source(data, source, recipe), folder, recipe, config, zero, resume).run()


def _eval_source(data: Path | str, source: Source, recipe: Recipe) -> Source | None:
    if recipe.eval.split is None or recipe.eval.split not in source.info.splits:
        return None
    return open_split(data, recipe.eval.split)


class Training:
    """One training, from its state on disk to its end."""

    def __init__(
        self,
        source: Source,
        eval_source: Source | None,
        folder: Path,
        recipe: Recipe,
        config: MBTConfig,
        zero: Zero | None,
        resume: bool,
    ) -> None:
        self.source, self.eval_source, self.recipe, self.config = source, eval_source, recipe, config
        self.inputs: Inputs = recipe.inputs(source.info)
        seed, batch_size, mixing = recipe.train.seed, recipe.train.batch_size, recipe.train.mixing
        self.plan = TrainPlan(seed, len(source), batch_size, mixing, recipe.input.jitter, epoch_order(source, recipe))
        self.total_steps = math.ceil(recipe.train.epochs * self.plan.steps_per_epoch)
        if recipe.train.max_steps is not None:
            self.total_steps = min(self.total_steps, recipe.train.max_steps)
        self.folder = folder
        checkpoint = load_checkpoint(self.checkpoints) if resume else None
        self.engine = _engine(config, recipe if checkpoint is None else _from_scratch(recipe), source, zero)
        self.main = self.engine.rank == 0
        self.log = Run(folder, recipe, source.place, resume) if self.main else None
        self.step = 0
        self._losses: list[Tensor] = []
        self._skipped = 0
        self._damage = Damage(source, recipe.input.max_corrupt)
        self.best: Best | None = None
        if checkpoint is not None:
            self._continue(checkpoint)

    def run(self) -> None:
        """Train to the end."""
        recipe = self.recipe.train
        eval_every = self._steps(recipe.eval_every_epochs) if recipe.eval_every_epochs else self.total_steps
        if self.log is not None:
            self.log.start(self.step)
        meter = _Meter(recipe.batch_size)
        with (
            ExitStack() as self._reading,
            asked_to_stop(self.engine.device) as stopping,
            progress(self.total_steps, "train", "step", self.step, shown=self.main) as bar,
        ):
            for batch in meter.waiting(self._batches()):
                rate = learning_rate(self.step, recipe.learning_rate, self._warmup_steps, self.total_steps)
                torch.manual_seed(_step_seed(recipe.seed, self.step, self.engine.rank))
                result = self.engine.step(batch, rate)
                self._losses.append(result.loss)
                self.step += 1
                last = self.step == self.total_steps
                stops = stopping() and not last
                if self.step % recipe.log_every == 0 or last:
                    loss = self._log(result.loss, result.grad_norm, rate, meter)
                    bar.set_postfix({"loss": "-" if loss is None else f"{loss:.4g}"}, refresh=False)
                bar.update()
                evaluates = self.eval_source is not None and (self.step % eval_every == 0 or last)
                saves = self.step % recipe.checkpoint_every == 0 or last or stops
                if evaluates or saves:
                    self._check_losses()
                    state = self.engine.state()
                    is_best = evaluates and self._evaluate(state.model)
                    if saves or is_best:
                        self._checkpoint(state)
                if stops:
                    self._leave()
        self._save("last", self.engine.state().model)
        if self.log is not None:
            self.log.close()
            data = shlex.quote(self.source.place)
            click.echo(f"train: the run is in {self.folder}; next: mbt eval --checkpoint {self.folder} --data {data}")

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def _warmup_steps(self) -> float:
        return min(self.recipe.train.warmup_epochs * self.plan.steps_per_epoch, self.total_steps / 2)

    def _steps(self, epochs: float) -> int:
        return max(round(epochs * self.plan.steps_per_epoch), 1)

    def _batches(self) -> Iterator[Batch]:
        engine = self.engine
        views, steps, ranks = self.recipe.input, range(self.step, self.total_steps), (engine.rank, engine.world_size)
        raw = train_views(self.source, self.inputs, self.plan, steps, views.synchronised, self._damage, *ranks)
        self._reading.callback(raw.close)
        size = self.recipe.train.batch_size // engine.world_size
        scaled, threads = views.scale_jitter is not None, self.recipe.train.threads
        decoded = batches(raw, self.inputs, size, engine.device, self.source.targets, threads, scaled)
        return (augment(batch, self.recipe.train) for batch in decoded)

    def _check_losses(self) -> None:
        """Look for losses since the last time that are not finite; no checkpoint has been written since.

        Raises:
            ConfigError: one is, and the recipe says stop; or all of several are.
        """
        finite = torch.stack(self._losses).isfinite().tolist() if self._losses else []
        first = self.step - len(finite)
        self._losses.clear()
        bad = [first + number for number, is_finite in enumerate(finite) if not is_finite]
        skips = self.recipe.train.non_finite == "skip"
        if bad and (not skips or len(bad) == len(finite) > 1):
            fix = "Look at these clips, lower train.learning_rate, or resume from the last checkpoint with another recipe"
            raise ConfigError(f"the loss is not finite at {self._clips(bad[0])}", fix)
        for step in bad:
            if self.main:
                tqdm.write(f"train: left out, as the loss is not finite: {self._clips(step)}", file=sys.stderr)
        self._skipped += len(bad)

    def _clips(self, step: int) -> str:
        """A step and its clips, for people."""
        keys = [self.source.key(row) for row in self.plan.step(step).rows.tolist()]
        return f"step {step + 1}, of the clips {', '.join(keys[:SHOWN_KEYS])}{', ...' if len(keys) > SHOWN_KEYS else ''}"

    def _leave(self) -> None:
        """End after a checkpoint, as a signal has asked for."""
        if self.log is not None:
            self.log.close()
            click.echo(f"train: stopped by a signal after step {self.step}, with a checkpoint; go on by --resume", err=True)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        sys.exit(RESUME_ME)

    def _log(self, loss: Tensor, grad_norm: Tensor, rate: float, meter: "_Meter") -> float | None:
        self._check_losses()
        value = float(loss) if loss.isfinite() else None
        if self.log is not None:
            epoch = self.step / self.plan.steps_per_epoch
            norm = float(grad_norm) if grad_norm.isfinite() else None
            read = {**meter.read(), **_gpu_memory(self.engine.device), "skipped": self._skipped, "corrupt": len(self._damage)}
            self.log.write(self.step, {"epoch": round(epoch, 4), "loss": value, "lr": rate, "grad_norm": norm, **read})
        return value

    def _evaluate(self, weights: dict[str, Tensor]) -> bool:
        """Score the model; whether it is the best so far."""
        assert self.eval_source is not None
        options, engine = self.recipe.eval, self.engine
        with engine.averaged():
            result = evaluate_split(
                self.eval_source,
                self.inputs,
                options.crops,
                options.batch_size,
                engine.device,
                engine.logits,
                engine.rank,
                engine.world_size,
            )
        scores = result.metrics.scores
        if self.log is not None:
            self.log.write(self.step, {"eval": scores})
        main = scores[result.metrics.main]
        is_best = self.best is None or main > self.best.score
        if is_best:
            self.best = Best(main, self.step)
            self._save("best", weights)
        return is_best

    def _checkpoint(self, state: TrainState) -> None:
        if self.main:
            save_checkpoint(self.checkpoints, Checkpoint(self.step, self.best, state), self.recipe.train.keep_checkpoints)

    def _save(self, name: str, weights: dict[str, Tensor]) -> None:
        if not self.main:
            return
        preprocessor = Preprocessor.of(self.source.info.task, self.inputs, self.source.labels)
        save_trained(self.folder / name, weights, self.config, preprocessor)

    def _continue(self, checkpoint: Checkpoint) -> None:
        with as_config_error("Resume with the recipe that the run began with"):
            check_state(MBT.state_shapes(self.config), checkpoint.state.weights, str(self.checkpoints))
        self.engine.load(checkpoint.state)
        self.step, self.best = checkpoint.step, checkpoint.best


def _from_scratch(recipe: Recipe) -> Recipe:
    """The recipe without initial weights, which a checkpoint replaces."""
    return recipe.model_copy(update={"init": InitRecipe()})


def _engine(config: MBTConfig, recipe: Recipe, source: Source, zero: Zero | None) -> Engine:
    model = initial_model(config, recipe.init, recipe.train.seed)
    if zero is None:
        return TorchEngine(model, source.info.task, recipe.train)
    from mbt.train.engine.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(model, source.info.task, recipe.train, zero)


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the model's own draws (dropout, stochastic depth) in one step, so that a resumed run needs no RNG state."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _gpu_memory(device: torch.device) -> dict[str, float]:
    """Most memory that tensors have taken on the GPU so far."""
    return {"gpu_gb": round(torch.cuda.max_memory_allocated(device) / 1e9, 3)} if device.type == "cuda" else {}


class _Meter:
    """Speed and the share of time spent waiting for data, since the last reading."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._reset()

    def _reset(self) -> None:
        self._start, self._waited, self._batches = time.perf_counter(), 0.0, 0

    def waiting(self, items: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            asked = time.perf_counter()
            item = next(items, None)
            self._waited += time.perf_counter() - asked
            if item is None:
                return
            self._batches += 1
            yield item

    def read(self) -> dict[str, float]:
        passed = time.perf_counter() - self._start
        values = {
            "clips_per_s": round(self._batches * self.batch_size / passed, 2),
            "data_wait": round(self._waited / passed, 4),
        }
        self._reset()
        return values
