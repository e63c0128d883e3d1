"""`mbt train`: from a dataset folder to a run directory."""

import math
import shlex
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

from mbt.config import MBTConfig
from mbt.manifests.errors import as_config_error
from mbt.manifests.progress import progress
from mbt.model import MBT
from mbt.state import check_state
from mbt.train.checkpoint import Best, Checkpoint, load_checkpoint, save_checkpoint
from mbt.train.data.augment import augment
from mbt.train.data.batch import Batch, RawBatch
from mbt.train.data.corruption import CorruptSamples
from mbt.train.data.pipeline import decode_batches
from mbt.train.data.source import Source, epoch_order, open_split, train_batches
from mbt.train.distributed.process_group import process_group
from mbt.train.distributed.signals import RESUMABLE, stop_requested
from mbt.train.engine.engine import Engine, StepResult, TrainState
from mbt.train.engine.schedule import learning_rate
from mbt.train.engine.torch_engine import TorchEngine
from mbt.train.engine.zero_config import Zero
from mbt.train.evaluation.evaluate import evaluate_split
from mbt.train.models.initial import initial_model
from mbt.train.models.model_folder import Preprocessor, save_trained
from mbt.train.monitor import LossMonitor, SpeedMeter, gpu_memory
from mbt.train.recipes.schema import InitRecipe, Recipe, TrainRecipe
from mbt.train.run_dir import CHECKPOINTS, RunLog, claim_run_dir
from mbt.train.sampling.inputs import Inputs
from mbt.train.sampling.plan import TrainPlan

TRAIN_SPLIT = "train"
SHOWN_KEYS = 8


def train(data: Path | str, folder: Path, recipe: Recipe, *, zero: Zero | None = None, resume: bool = False) -> None:
    """Train a model on `data` and write a run directory, together with the other ranks if a launcher started several.

    Args:
        data: dataset folder with a split `train`, or the URL of one.
        folder: run directory.
        recipe: what to train and how.
        zero: train with DeepSpeed.
        resume: continue from the newest checkpoint of `folder`, exactly as an uninterrupted run would.

    Raises:
        MbtError: anything that the user can fix.
    """
    with process_group(), ExitStack() as splits:
        run_data = TrainingData.open(data, recipe, splits)
        config = recipe.mbt_config(run_data.train.info)
        checkpoint = load_checkpoint(folder / CHECKPOINTS) if resume else None
        engine = _engine(config, recipe, run_data.train, zero, resumes=checkpoint is not None)
        if engine.rank == 0:
            claim_run_dir(folder, recipe, run_data.train.place, resume)
        if checkpoint is not None:
            with as_config_error("Resume with the recipe that started the run"):
                check_state(MBT.state_shapes(config), checkpoint.state.weights, str(folder / CHECKPOINTS))
            engine.load(checkpoint.state)
        Trainer(folder, recipe, run_data, engine, checkpoint).run()


@dataclass(frozen=True)
class TrainingData:
    """What a run reads.

    Attributes:
        train: the split to train on.
        eval: the split to evaluate on during training, or None.
        inputs: how clips become model inputs.
        plan: the samples and draws of every step.
    """

    train: Source
    eval: Source | None
    inputs: Inputs
    plan: TrainPlan

    @classmethod
    def open(cls, data: Path | str, recipe: Recipe, splits: ExitStack) -> "TrainingData":
        """Open the splits of a dataset, which `splits` closes, and plan the run.

        Raises:
            ShardError: a split is missing or damaged.
            ConfigError: the recipe's order cannot be read from this dataset.
        """
        source = open_split(data, TRAIN_SPLIT)
        splits.enter_context(source)
        eval_source, split = None, recipe.eval.split
        if split is not None and split in source.info.splits:
            eval_source = open_split(data, split)
            splits.enter_context(eval_source)
        options = recipe.train
        order = epoch_order(source, recipe)
        plan = TrainPlan(options.seed, len(source), options.batch_size, options.mixing, recipe.input.jitter, order)
        return cls(source, eval_source, recipe.inputs(source.info), plan)


@dataclass(frozen=True)
class Schedule:
    """How many steps a run has, their learning rates, and when it logs, evaluates and saves.

    Steps are counted from 0 for `learning_rate`; the other methods take the number of steps done.

    Attributes:
        recipe: training options.
        steps_per_epoch: steps in an epoch.
    """

    recipe: TrainRecipe
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        steps = math.ceil(self.recipe.epochs * self.steps_per_epoch)
        return steps if self.recipe.max_steps is None else min(steps, self.recipe.max_steps)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step; the warm-up takes half of the run at most."""
        warmup_steps = min(self.recipe.warmup_epochs * self.steps_per_epoch, self.total_steps / 2)
        return learning_rate(step, self.recipe.learning_rate, warmup_steps, self.total_steps)

    def logs_after(self, steps: int) -> bool:
        """Whether to log after this many steps."""
        return steps % self.recipe.log_every == 0 or steps == self.total_steps

    def evaluates_after(self, steps: int) -> bool:
        """Whether to evaluate after this many steps."""
        epochs = self.recipe.eval_every_epochs
        every = max(round(epochs * self.steps_per_epoch), 1) if epochs else self.total_steps
        return steps % every == 0 or steps == self.total_steps

    def saves_after(self, steps: int) -> bool:
        """Whether to write a checkpoint after this many steps."""
        return steps % self.recipe.checkpoint_every == 0 or steps == self.total_steps


class Trainer:
    """The training loop, with its logs, evaluations and checkpoints. All ranks run it in step; rank 0 writes the files.

    Args:
        folder: run directory.
        recipe: what to train and how.
        data: what to train on.
        engine: holds the model, with the state of `checkpoint` loaded.
        checkpoint: where to resume, or None.
    """

    def __init__(self, folder: Path, recipe: Recipe, data: TrainingData, engine: Engine, checkpoint: Checkpoint | None) -> None:
        self.folder, self.recipe, self.data, self.engine = folder, recipe, data, engine
        self.step = 0 if checkpoint is None else checkpoint.step
        self.best = None if checkpoint is None else checkpoint.best
        self.schedule = Schedule(recipe.train, data.plan.steps_per_epoch)
        self.corrupt = CorruptSamples(data.train, recipe.input.max_corrupt)
        self.losses = LossMonitor(recipe.train.non_finite == "skip", self._describe, shown=engine.rank == 0)
        self.log = RunLog(folder, recipe, self.step) if engine.rank == 0 else None

    def run(self) -> None:
        """Train to the last step, or until a signal asks to stop."""
        total = self.schedule.total_steps
        meter = SpeedMeter(self.recipe.train.batch_size)
        with (
            closing(self._raw_batches()) as raw,
            stop_requested(self.engine.device) as should_stop,
            progress(total, "train", "step", self.step, shown=self.log is not None) as bar,
        ):
            for batch in meter.timed(self._batches(raw)):
                rate = self.schedule.learning_rate(self.step)
                torch.manual_seed(_step_seed(self.recipe.train.seed, self.step, self.engine.rank))
                result = self.engine.step(batch, rate)
                self.losses.add(self.step, result.loss)
                self.step += 1
                stops = should_stop() and self.step < total
                if self.schedule.logs_after(self.step):
                    loss = self._log(result, rate, meter)
                    bar.set_postfix({"loss": "-" if loss is None else f"{loss:.4g}"}, refresh=False)
                bar.update()
                self._evaluate_and_save(stops)
                if stops:
                    self._stop()
        self._finish()

    def _raw_batches(self) -> Generator[RawBatch]:
        steps = range(self.step, self.schedule.total_steps)
        data, synchronized = self.data, self.recipe.input.synchronised
        ranks = (self.engine.rank, self.engine.world_size)
        return train_batches(data.train, data.inputs, data.plan, steps, synchronized, self.corrupt, *ranks)

    def _batches(self, raw: Iterator[RawBatch]) -> Iterator[Batch]:
        recipe, source = self.recipe, self.data.train
        size = recipe.train.batch_size // self.engine.world_size
        scaled, threads = recipe.input.scale_jitter is not None, recipe.train.threads
        decoded = decode_batches(raw, self.data.inputs, size, self.engine.device, source.targets, threads, scaled)
        return (augment(batch, recipe.train) for batch in decoded)

    def _log(self, result: StepResult, rate: float, meter: SpeedMeter) -> float | None:
        """Log the step; returns its loss, or None if that is non-finite."""
        self.losses.check()
        loss, norm = (float(value) if value.isfinite() else None for value in (result.loss, result.grad_norm))
        if self.log is not None:
            epoch = round(self.step / self.schedule.steps_per_epoch, 4)
            values = {"epoch": epoch, "loss": loss, "lr": rate, "grad_norm": norm}
            values |= meter.read() | gpu_memory(self.engine.device)
            self.log.write(self.step, {**values, "skipped": self.losses.skipped, "corrupt": len(self.corrupt)})
        return loss

    def _evaluate_and_save(self, stops: bool) -> None:
        """Evaluate and write a checkpoint if due; a new best model is saved, with a checkpoint, wherever it occurs."""
        evaluates = self.data.eval is not None and self.schedule.evaluates_after(self.step)
        saves = self.schedule.saves_after(self.step) or stops
        if not evaluates and not saves:
            return
        self.losses.check()
        state = self.engine.state()
        is_best = evaluates and self._evaluate()
        if is_best:
            self._save_model("best", state)
        if (saves or is_best) and self.log is not None:
            checkpoint = Checkpoint(self.step, self.best, state)
            save_checkpoint(self.folder / CHECKPOINTS, checkpoint, self.recipe.train.keep_checkpoints)

    def _evaluate(self) -> bool:
        """Score the model on the evaluation split; returns whether it is the best so far."""
        assert self.data.eval is not None
        options, engine = self.recipe.eval, self.engine
        with engine.ema_weights():
            result = evaluate_split(
                self.data.eval,
                self.data.inputs,
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
        score = scores[result.metrics.main]
        is_best = self.best is None or score > self.best.score
        if is_best:
            self.best = Best(score, self.step)
        return is_best

    def _save_model(self, name: str, state: TrainState) -> None:
        if self.log is not None:
            info = self.data.train.info
            preprocessor = Preprocessor.of(info.task, self.data.inputs, self.data.train.labels)
            save_trained(self.folder / name, state.eval_weights, self.recipe.mbt_config(info), preprocessor)

    def _stop(self) -> None:
        """End the process after a signal, once the checkpoint is written."""
        if self.log is not None:
            self.log.close()
            click.echo(f"train: stopped by a signal after step {self.step}; resume with --resume", err=True)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        sys.exit(RESUMABLE)

    def _finish(self) -> None:
        self._save_model("last", self.engine.state())
        if self.log is not None:
            self.log.close()
            data = shlex.quote(self.data.train.place)
            click.echo(f"train: the run is in {self.folder}; next: mbt eval --checkpoint {self.folder} --data {data}")

    def _describe(self, step: int) -> str:
        """Name a step, counted from 0, and its clips."""
        keys = [self.data.train.key(row) for row in self.data.plan.step(step).rows.tolist()]
        return f"step {step + 1} (clips {', '.join(keys[:SHOWN_KEYS])}{', ...' if len(keys) > SHOWN_KEYS else ''})"


def _engine(config: MBTConfig, recipe: Recipe, source: Source, zero: Zero | None, resumes: bool) -> Engine:
    """The engine, with the recipe's initial weights; a checkpoint will replace those of a resumed run, so it skips them."""
    model = initial_model(config, InitRecipe() if resumes else recipe.init, recipe.train.seed)
    if zero is None:
        return TorchEngine(model, source.info.task, recipe.train)
    from mbt.train.engine.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(model, source.info.task, recipe.train, zero)


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of dropout and stochastic depth in one step, so that a resumed run needs no RNG state."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
