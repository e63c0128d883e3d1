"""Speed of MBT-B on the paper's input: `python -m benchmarks.model` prints one table.

Each round calls every contender once, so that other load on the machine affects all of them equally.
"""

import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Literal

import click
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mbt import MBT, MBTConfig
from mbt.manifests.progress import progress
from mbt.train.engine.losses import training_loss

Dtype = Literal["float32", "bfloat16"]
Work = Literal["matrix product", "forward", "forward + backward"]
Call = Callable[[], object]
"""A function that returns once its work has finished, also on a GPU."""

DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
PEAK_TFLOPS = {"NVIDIA H100 80GB HBM3": 989, "NVIDIA H200": 989}
"""Dense bfloat16 peak by the data sheets of the SXM versions of the H100 and the H200."""


class UnavailableError(Exception):
    """A contender cannot run on this machine; the message says why."""


@dataclass
class Row:
    """One contender, one kind of work, and its times.

    Attributes:
        dtype: dtype of the computation; weights are always float32.
        work: the kind of work.
        name: name of the contender.
        clips: clips per call; a matrix product counts as one clip.
        flops: FLOPs per call; for every contender, a backward pass counts as two forward passes.
        prepare: returns the function to time; raises UnavailableError if it cannot run here.
        seconds: duration of each timed call.
        problem: why the contender could not run or had to stop; empty if it ran.
    """

    dtype: Dtype
    work: Work
    name: str
    clips: int
    flops: int
    prepare: Callable[[], Call]
    seconds: list[float] = field(default_factory=list)
    problem: str = ""

    @property
    def label(self) -> str:
        """Name of the row; unique in the table."""
        return f"{self.dtype} {self.work} {self.name}"

    @property
    def is_reference(self) -> bool:
        """Whether the other rows of this dtype give their speed as a share of this row's."""
        return self.work == "matrix product" and self.name == "torch"

    @property
    def flop_rate(self) -> float:
        """FLOP/s of the median call, from nominal FLOPs."""
        return self.flops / statistics.median(self.seconds)


@dataclass(frozen=True)
class Task:
    """The model and inputs that all contenders get.

    Attributes:
        model: in training mode, but without dropout and stochastic depth, so that evaluation would cost the same.
        rgb: (B, F, 3, H, W).
        spec: (B, T, M).
        targets: (B, num_classes), multi-hot.
        product_size: rows and columns of the matrices in the matrix product.
    """

    model: MBT
    rgb: Tensor
    spec: Tensor
    targets: Tensor
    product_size: int

    @classmethod
    def random(cls, config: MBTConfig, device: torch.device, batch: int, product_size: int) -> "Task":
        """A task with random weights and inputs on `device`."""
        torch.manual_seed(0)
        rgb = torch.rand(batch, config.num_frames, 3, *config.image_shape) * 2 - 1
        spec, targets = torch.randn(batch, *config.spec_shape), torch.rand(batch, config.num_classes).round()
        return cls(MBT(config).to(device).train(), rgb.to(device), spec.to(device), targets.to(device), product_size)

    def rows(self) -> Iterator[Row]:
        """One row for each contender, dtype and kind of work."""
        clips = len(self.rgb)
        forward = clips * forward_flops(self.model.config)
        works: tuple[tuple[Work, int], ...] = (("forward", forward), ("forward + backward", 3 * forward))
        for dtype in DTYPES:
            for name, prepare in (("torch", self._torch_product), ("jax", self._jax_product)):
                yield Row(dtype, "matrix product", name, 1, 2 * self.product_size**3, partial(prepare, dtype))
            for work, flops in works:
                for name, call in (("torch eager", self._eager), ("torch compiled", self._compiled), ("jax", self._jax)):
                    yield Row(dtype, work, name, clips, flops, partial(call, dtype, work))

    def _torch_product(self, dtype: Dtype) -> Call:
        a, b = torch.randn(2, self.product_size, self.product_size, device=self.rgb.device).to(getattr(torch, dtype))
        return self._synchronized(lambda: a @ b)

    def _jax_product(self, dtype: Dtype) -> Call:
        return self._flax_peer().product(self.product_size, dtype)

    def _eager(self, dtype: Dtype, work: Work) -> Call:
        return self._torch(self.model.logits_by_modality, dtype, work)

    def _compiled(self, dtype: Dtype, work: Work) -> Call:
        if not shutil.which(os.environ.get("CXX", "g++")):
            raise UnavailableError("torch.compile needs a C++ compiler: install g++ or set CXX")
        return self._torch(torch.compile(self.model.logits_by_modality, fullgraph=True), dtype, work)

    def _torch(self, logits: Callable[[Tensor, Tensor], dict[str, Tensor]], dtype: Dtype, work: Work) -> Call:
        autocast = partial(torch.autocast, self.rgb.device.type, torch.bfloat16, enabled=dtype == "bfloat16")

        @torch.no_grad()
        def forward() -> None:
            with autocast():
                logits(self.rgb, self.spec)

        def forward_backward() -> None:
            with autocast():
                loss = training_loss(logits(self.rgb, self.spec), {"all": self.targets}, "multilabel", label_smoothing=0)
            loss.backward()
            self.model.zero_grad()

        return self._synchronized(forward if work == "forward" else forward_backward)

    def _jax(self, dtype: Dtype, work: Work) -> Call:
        peer = self._flax_peer().FlaxPeer(self.model, self.rgb, self.spec, self.targets, dtype)
        return peer.logits_by_modality if work == "forward" else peer.gradients

    def _flax_peer(self) -> ModuleType:
        try:
            from benchmarks import flax_peer
        except ModuleNotFoundError as error:
            if error.name not in ("jax", "flax"):
                raise
            raise UnavailableError(f"{error.name} is not installed") from None
        if not flax_peer.runs_on(self.rgb.device.type):
            raise UnavailableError(f"jax finds no {self.rgb.device.type} device")
        return flax_peer

    def _synchronized(self, call: Call) -> Call:
        def run() -> None:
            call()
            if self.rgb.is_cuda:
                torch.cuda.synchronize()

        return run


def forward_flops(config: MBTConfig) -> int:
    """FLOPs of one clip's forward pass, as counted by torch: two per multiply-add."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        rgb = torch.empty(1, config.num_frames, 3, *config.image_shape)
        MBT(config)(rgb, torch.empty(1, *config.spec_shape))
    return counter.get_total_flops()


def measure(rows: Sequence[Row], rounds: int) -> None:
    """Fill in `seconds` or `problem` of each row: one untimed call, then one timed call per round."""
    calls: dict[str, Call] = {}
    with progress(len(rows) * (1 + rounds), "benchmark", "call") as bar:
        for row in rows:
            with recording_problem(row):
                calls[row.label] = row.prepare()
                calls[row.label]()
            bar.update()
        for row in list(rows) * rounds:
            if not row.problem:
                with recording_problem(row):
                    start = time.perf_counter()
                    calls[row.label]()
                    row.seconds.append(time.perf_counter() - start)
            bar.update()


@contextmanager
def recording_problem(row: Row) -> Iterator[None]:
    """Record in `row` why its contender is unavailable or ran out of memory."""
    try:
        yield
    except UnavailableError as error:
        row.problem = str(error)
    except (torch.OutOfMemoryError, MemoryError):
        row.problem = "out of memory; use a smaller --batch"


def table(rows: Sequence[Row], device_name: str) -> str:
    """The rows as text: milliseconds per clip of the median, fastest and slowest call, and the speed of the median call.

    Args:
        rows: rows that were measured.
        device_name: device name as torch reports it; devices of known peak speed get a column for MFU.
    """
    product = {row.dtype: row.flop_rate for row in rows if row.is_reference}
    peak = PEAK_TFLOPS.get(device_name)
    columns = f"{'ms/clip':>10}{'min':>10}{'max':>10}{'TFLOP/s':>10}{'share':>9}" + ("      MFU" if peak else "")
    lines = [f"{'dtype':<10}{'work':<20}{'by':<16}{columns}"]
    for row in rows:
        cells = row.problem
        if not row.problem:
            times = (statistics.median(row.seconds), min(row.seconds), max(row.seconds))
            cells = "".join(f"{1000 * seconds / row.clips:10.2f}" for seconds in times)
            cells += f"{row.flop_rate / 1e12:10.3g}{row.flop_rate / product[row.dtype]:9.1%}"
            cells += f"{row.flop_rate / 1e12 / peak:9.1%}" if peak and row.dtype == "bfloat16" else ""
        lines.append(f"{row.dtype:<10}{row.work:<20}{row.name:<16}{cells}")
    return "\n".join(lines)


def report(config: MBTConfig, device: str, batch: int, product_size: int, repeats: int, skip: Sequence[str]) -> str:
    """Run the benchmark and return its report as text.

    Args:
        config: configuration without dropout and stochastic depth.
        device: `cpu` or `cuda`.
        batch: clips per call.
        product_size: rows and columns of the matrices in the matrix product.
        repeats: number of rounds.
        skip: skip rows whose label contains any of these texts; torch's matrix products always run.
    """
    task = Task.random(config, torch.device(device), batch, product_size)
    rows = [row for row in task.rows() if row.is_reference or not any(text in row.label for text in skip)]
    measure(rows, repeats)
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    return f"""\
{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, batch {batch}, median of {repeats} rounds
{forward_flops(config) / 1e9:.1f} GFLOP per clip for the forward pass, three times as many with the backward pass
share: TFLOP/s relative to torch's product of two {product_size} x {product_size} matrices of the same dtype

{table(rows, name)}"""


@click.command(context_settings={"show_default": True})
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="auto: a GPU if available.")
@click.option("--batch", type=click.IntRange(min=1), help="Clips per call; by default 64 on a GPU, 1 on a CPU.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, help="Number of rounds.")
@click.option("--skip", multiple=True, metavar="TEXT", help="Skip rows whose name contains TEXT, such as 'float32 forward'.")
def main(device: str, batch: int | None, repeats: int, skip: tuple[str, ...]) -> None:
    """Time MBT-B in PyTorch and JAX, and compare it with a large matrix product on the same device."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    default_batch, product_size = (64, 8192) if device == "cuda" else (1, 4096)
    click.echo(report(MBTConfig(num_classes=527), device, batch or default_batch, product_size, repeats, skip))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # Lets `python benchmarks/model.py` import benchmarks.
    main()
