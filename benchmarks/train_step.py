"""The training step of MBT-B, as in `mbt train`: `python -m benchmarks.train_step` prints one table.

Each variant runs in its own process, which also times a large matrix product between the steps, so that other load on the
machine affects both alike. The data are random and already on the device; `benchmarks.loader` measures reading and decoding.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch

from benchmarks.model import PEAK_TFLOPS
from mbt import MBT, MBTConfig
from mbt.config import image_shape
from mbt.flops import clip_flops
from mbt.manifests.tasks import Task
from mbt.train.data.augment import augment
from mbt.train.data.batch import Batch
from mbt.train.engine.engine import Engine
from mbt.train.engine.precision import autocast_dtype
from mbt.train.engine.torch_engine import TorchEngine
from mbt.train.engine.zero_config import STAGES, Zero
from mbt.train.recipes.loading import load_recipe
from mbt.train.recipes.schema import Recipe
from mbt.train.sampling.plan import TrainPlan

ROOT = Path(__file__).parents[1]
WHOLE, GROUPS = "train.group_size=none", "train.group_size=2"
VARIANTS = {
    "eager": (WHOLE, "train.compile=false"),
    "compiled": (WHOLE, "train.compile=true"),
    "checkpointed": (WHOLE, "train.compile=false", "train.activation_checkpointing=true"),
    "groups": (GROUPS, "train.compile=false"),
    "groups-compiled": (GROUPS, "train.compile=true"),
    **{f"zero{stage}": (WHOLE, "train.compile=false") for stage in STAGES},
}
"""Recipe settings per variant. `groups`: gradients clipped per group of two, as in the paper's recipes; `zeroN`: DeepSpeed."""
CLASSES = 527
SPEC_SHAPE = (800, 128)
WARM_UP = 2
TASK: Task = "multilabel"


@dataclass(frozen=True)
class Timing:
    """Measurements of one variant.

    Attributes:
        step_s: seconds of each step.
        product_s: seconds of each matrix product.
        product_flop: FLOP of one matrix product.
        peak_bytes: peak memory of tensors on the GPU; 0 on a CPU.
        device: name of the device.
    """

    step_s: list[float]
    product_s: list[float]
    product_flop: int
    peak_bytes: int
    device: str


def time_steps(variant: str, recipe_name: str, settings: Sequence[str], steps: int, product_size: int) -> Timing:
    """Time `steps` training steps, after two warm-up steps."""
    recipe = load_recipe(recipe_name, (*settings, "init.weights=none", *VARIANTS[variant]))
    engine = _engine(variant, recipe)
    batches = _batches(recipe, engine.device)
    dtype = autocast_dtype(recipe.train.precision, engine.device) or torch.float32
    a, b = torch.randn(2, product_size, product_size, device=engine.device).to(dtype)
    step_s, product_s = [], []
    for number in range(WARM_UP + steps):
        step = _timed(lambda: engine.step(augment(batches(number), recipe.train), 1e-3), engine.device)  # noqa: B023
        product = _timed(lambda: a @ b, engine.device)
        if number >= WARM_UP:
            step_s.append(step)
            product_s.append(product)
    on_gpu = engine.device.type == "cuda"
    return Timing(
        step_s,
        product_s,
        2 * product_size**3,
        torch.cuda.max_memory_allocated() if on_gpu else 0,
        torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads",
    )


def _engine(variant: str, recipe: Recipe) -> Engine:
    torch.manual_seed(0)
    model = MBT(config(recipe))
    if not variant.startswith("zero"):
        return TorchEngine(model, TASK, recipe.train)
    from mbt.train.engine.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(model, TASK, recipe.train, Zero(int(variant.removeprefix("zero"))))


def config(recipe: Recipe) -> MBTConfig:
    """The recipe's model, with AudioSet's number of classes."""
    fields = recipe.model.model_dump()
    size = recipe.input.image_size
    return MBTConfig(num_classes=CLASSES, num_frames=recipe.input.frames, image_size=size, spec_shape=SPEC_SHAPE, **fields)


def _batches(recipe: Recipe, device: torch.device) -> Callable[[int], Batch]:
    """Returns the batch of a step: the same clips in each step, with new draws."""
    size, shape = recipe.train.batch_size, image_shape(recipe.input.image_size)
    plan = TrainPlan(0, size, size, recipe.train.mixing)
    rgb = torch.rand(size, recipe.input.frames, 3, *shape, device=device) * 2 - 1
    spec = torch.randn(size, *SPEC_SHAPE, device=device)
    targets = {"all": (torch.rand(size, CLASSES, device=device) < 2 / CLASSES).float()}
    return lambda step: Batch(plan.step(step), rgb, spec, targets)


def _timed(call: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure(variant: str, recipe: str, settings: Sequence[str], steps: int, product_size: int) -> Timing | str:
    """Run `time_steps` in its own process; returns the last line of its errors if it failed."""
    arguments = json.dumps([variant, recipe, list(settings), steps, product_size])
    command = [sys.executable, "-m", "benchmarks.train_step", "--child", arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exited with status {done.returncode}"])[-1]
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


def table(recipe: Recipe, timings: dict[str, Timing | str]) -> str:
    """The table of all variants."""
    batch = recipe.train.batch_size
    flop = 3 * batch * clip_flops(config(recipe)).total
    lines = [f"{'variant':<14}{'ms/step':>10}{'min':>10}{'clips/s':>10}{'TFLOP/s':>10}{'share':>9}{'MFU':>8}{'GB':>8}"]
    for name, timing in timings.items():
        if isinstance(timing, str):
            lines.append(f"{name:<14}  {timing}")
            continue
        step_s, product_s = statistics.median(timing.step_s), statistics.median(timing.product_s)
        rate, peak = flop / step_s / 1e12, PEAK_TFLOPS.get(timing.device)
        cells = f"{1000 * step_s:10.1f}{1000 * min(timing.step_s):10.1f}{batch / step_s:10.2f}{rate:10.3g}"
        cells += f"{rate / (timing.product_flop / product_s / 1e12):9.1%}"
        cells += f"{rate / peak:8.1%}" if peak else f"{'-':>8}"
        lines.append(f"{name:<14}{cells}{timing.peak_bytes / 1e9:8.1f}")
    return "\n".join(lines)


@click.command(context_settings={"show_default": True})
@click.option("--recipe", default="mbt_paper", help="Recipe that sets inputs and optimizer.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.FIELD=VALUE",
    help="Set a field of the recipe, such as train.batch_size=8.",
)
@click.option("--steps", type=click.IntRange(min=1), default=10, help="Number of timed steps.")
@click.option("--only", multiple=True, type=click.Choice(list(VARIANTS)), help="Run only this variant; may be repeated.")
@click.option("--product-size", type=click.IntRange(min=8), default=8192, help="Rows and columns of the multiplied matrices.")
@click.option("--child", hidden=True, help="Measure one variant here and print JSON.")
def main(
    recipe: str, settings: tuple[str, ...], steps: int, only: tuple[str, ...], product_size: int, child: str | None
) -> None:
    """Time training steps: augmentation on the device, forward, backward, clipping, update."""
    if child is not None:
        click.echo(json.dumps(asdict(time_steps(*json.loads(child)))))
        return
    names = only or tuple(VARIANTS)
    loaded = load_recipe(recipe, (*settings, "init.weights=none"))
    timings = {name: measure(name, recipe, settings, steps, product_size) for name in names}
    device = next((timing.device for timing in timings.values() if isinstance(timing, Timing)), "no device")
    click.echo(f"""\
{device}, torch {torch.__version__}, {recipe}, batch {loaded.train.batch_size}, median of {steps} steps
{clip_flops(config(loaded)).total / 1e9:.1f} GFLOP per clip forward, three times that for a step
share: TFLOP/s relative to torch's product of two {product_size} x {product_size} matrices in the same precision and process
GB: peak memory of tensors on the GPU

{table(loaded, timings)}""")


if __name__ == "__main__":
    main()
