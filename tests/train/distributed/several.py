"""What each rank does in tests with several ranks: a list of runs. Arguments: shards, folder of the runs, JSON file.

The file lists [run, settings, engine, from]. `engine` is `torch`, a ZeRO stage, or a DeepSpeed configuration file; `from` is
null, or another run, a copy of which is resumed from its middle checkpoint.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

from mbt import MBT
from mbt.train.data.batch import Batch
from mbt.train.data.views import eval_plan
from mbt.train.distributed.process_group import process_group, rank_and_world_size
from mbt.train.engine.engine import Engine
from mbt.train.engine.torch_engine import TorchEngine
from mbt.train.engine.zero_config import Zero
from mbt.train.recipes.schema import TrainRecipe
from mbt.train.trainer import train
from tests.tiny import CONFIG, tiny

STEPS, MIDDLE = 10, 5
SETTINGS = (f"train.max_steps={STEPS}", f"train.checkpoint_every={MIDDLE}", "eval.split=none", "train.precision=float32")


def trainings(shards: Path, runs: Path, listed: list[tuple[str, list[str], str, str | None]]) -> None:
    """Train each listed run."""
    rank, world_size = rank_and_world_size()
    for run, settings, engine, begun in listed:
        if begun is not None and rank == 0:
            shutil.copytree(runs / begun, runs / run)
            shutil.rmtree(runs / run / f"checkpoints/step-{STEPS}")
        if world_size > 1:
            torch.distributed.barrier()
        zero = None if engine == "torch" else Zero(int(engine)) if engine.isdecimal() else Zero(file=Path(engine))
        train(shards, runs / run, tiny(*SETTINGS, *settings), zero=zero, resume=begun is not None)


def batch(seed: int) -> Batch:
    """This rank's half of a random batch of four."""
    numbers = torch.Generator().manual_seed(seed)
    rgb = torch.rand(4, CONFIG.num_frames, 3, CONFIG.image_size, CONFIG.image_size, generator=numbers)
    spec = torch.randn(4, *CONFIG.spec_shape, generator=numbers)
    targets = (torch.rand(4, CONFIG.num_classes, generator=numbers) < 0.5).float()
    rank, world_size = rank_and_world_size()
    return Batch(eval_plan(np.arange(4)), rgb, spec, {"all": targets}).split(4 // world_size)[rank]


def averages_are_evaluated(engine: Engine) -> None:
    """`logits` uses the averages inside `ema_weights` and the weights outside; training continues with the weights."""
    for seed in range(3):
        engine.step(batch(seed), 0.1)
    state, seen = engine.state(), [engine.logits(batch(9))]
    with engine.ema_weights():
        seen.append(engine.logits(batch(9)))
    seen.append(engine.logits(batch(9)))
    loss = engine.step(batch(3), 0.1).loss
    engine_without = engine.state()
    if engine.rank == 0:
        for weights, logits in zip((state.weights, state.ema, state.weights), seen, strict=True):
            model = MBT(CONFIG).eval()
            model.load_state_dict(weights)
            with torch.no_grad():
                torch.testing.assert_close(logits, model(rgb=batch(9).rgb, spec=batch(9).spec))
        for name, average in engine_without.ema.items():
            torch.testing.assert_close(average, 0.5 * state.ema[name] + 0.5 * engine_without.weights[name])
        assert not torch.allclose(seen[0], seen[1])
    assert loss.isfinite()


def averaging(zero: Zero | None) -> Engine:
    """An engine that averages its weights."""
    torch.manual_seed(0)
    recipe = TrainRecipe(batch_size=4, ema_decay=0.5, optimizer="adamw", weight_decay=0.1, layer_decay=0.5, precision="float32")
    if zero is None:
        return TorchEngine(MBT(CONFIG), "multilabel", recipe)
    from mbt.train.engine.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(MBT(CONFIG), "multilabel", recipe, zero)


if __name__ == "__main__":
    with process_group():
        trainings(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text()))
        for each in (None, Zero(2), Zero(3)):
            averages_are_evaluated(averaging(each))
