"""Loading speed: `python -m benchmarks.loader` compares clips/s and bytes read per clip of our loader and common alternatives.

All contenders produce the same views (frames spread over t from a random start, one random crop and flip per clip, log-mel of
the same time span, float32 batches) from the same shards on the same cores. Each runs in its own process, in rounds that run
each contender once, so that other load on the machine affects all alike. Timing starts with the first batch.
"""

import io
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.pack import Clips, media_files, render
from benchmarks.processes import ROOT, pinned
from mbt.manifests.errors import InputError, MbtError
from mbt.manifests.progress import progress
from mbt.manifests.reading.reader import ShardReader
from mbt.manifests.reading.stream import ShardStream
from mbt.train.data.batch import RawBatch
from mbt.train.data.corruption import CorruptSamples
from mbt.train.data.decode import decode
from mbt.train.data.pipeline import decode_batches
from mbt.train.data.random_access import train_batches
from mbt.train.data.streaming import TrainStream
from mbt.train.data.views import read_view
from mbt.train.recipes.loading import load_recipe
from mbt.train.sampling.inputs import Inputs
from mbt.train.sampling.order import Streamed
from mbt.train.sampling.plan import StepPlan, TrainPlan

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
SPLIT = "train"
HALF_RANGE = 127.5
CHILD = "import sys, benchmarks.loader as b; print(b.child(*sys.argv[1:]))"
MIN_OF_BEST, MIN_OF_WEBDATASET, MAX_BYTES = 1.0, 3.0, 1.05

Tensors = tuple[torch.Tensor, torch.Tensor]
"""Frames, float32 (F, 3, S, S) or (B, F, 3, S, S) in [-1, 1], and standardized log-mel, float32 (T, M) or (B, T, M)."""
DecodeCrop = Callable[[bytes, float, float, int], torch.Tensor]
"""Decodes a crop of a JPEG, uint8 (3, S, S), from its bytes, x and y in [0, 1], and S."""


@dataclass(frozen=True)
class Views:
    """What every contender loads: `count` views of the clips of a dataset folder.

    Attributes:
        folder: the dataset.
        count: views per run, divisible by `batch_size`.
        batch_size: views per batch.
        cores: number of threads or processes.
    """

    folder: Path
    count: int
    batch_size: int
    cores: int

    @property
    def inputs(self) -> Inputs:
        """The inputs of the paper: 8 frames over 8 s, crops of 224."""
        with ShardReader(self.folder, SPLIT) as reader:
            return load_recipe("mbt_paper").inputs(reader.info)

    def plans(self) -> Iterator[StepPlan]:
        """The plan of each batch."""
        with ShardReader(self.folder, SPLIT) as reader:
            plan = TrainPlan(0, len(reader), self.batch_size)
        return (plan.step(step) for step in range(self.count // self.batch_size))

    def needed_bytes(self) -> float:
        """Mean bytes of the frames and log-mel rows of a view."""
        inputs, total = self.inputs, 0
        with ShardReader(self.folder, SPLIT) as reader:
            for plan in self.plans():
                for row, draws in zip(plan.rows.tolist(), plan.start, strict=True):
                    start = inputs.window.random_start(draws, reader.num_frames(row))
                    _, jpegs, spec = read_view(reader[row], inputs, start)
                    total += sum(map(len, jpegs)) + (0 if spec is None else spec.nbytes)
        return total / self.count


def ours(views: Views) -> Iterator[Any]:
    """The loader of `mbt train`."""
    reader, inputs = ShardReader(views.folder, SPLIT), views.inputs
    raw = train_batches(reader, inputs, views.plans(), True, CorruptSamples(reader, 0.0))
    return decode_batches(raw, inputs, views.batch_size, torch.device("cpu"), reader.targets, views.cores)


def ours_streamed(views: Views) -> Iterator[Any]:
    """The loader of `mbt train` for shards behind a URL, here file://."""
    split, size = ShardStream(f"file://{views.folder.resolve()}", SPLIT), views.batch_size
    order = Streamed(split.shard_of, streams=math.gcd(size, 8), buffer=4 * size, batch_size=size)
    plan = TrainPlan(0, len(split), size, order=order)
    raw = TrainStream(split, views.inputs, plan, True, CorruptSamples(split, 0.0)).batches(range(views.count // size))
    return decode_batches(raw, views.inputs, size, torch.device("cpu"), split.targets, views.cores)


class ClipDataset(torch.utils.data.Dataset[Tensors]):
    """Random access for torch's DataLoader: reads as our loader does, and decodes with `decode_crop`."""

    def __init__(self, views: Views, decode_crop: DecodeCrop) -> None:
        self.folder, self.inputs, self.decode_crop = views.folder, views.inputs, decode_crop
        parts = [zip(p.rows, p.start, p.crop_x, p.crop_y, p.flip, strict=True) for p in views.plans()]
        self.draws = list(itertools.chain.from_iterable(parts))
        self.reader: ShardReader | None = None

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, place: int) -> Tensors:
        if self.reader is None:
            self.reader = ShardReader(self.folder, SPLIT)
        row, draws, x, y, flip = self.draws[place]
        sample = self.reader[int(row)]
        _, jpegs, spec = read_view(sample, self.inputs, self.inputs.window.random_start(draws, sample.num_frames))
        assert spec is not None
        return to_tensors(jpegs, spec, (x, y), flip, self.inputs, self.decode_crop)


def to_tensors(
    jpegs: Iterable[bytes],
    spec: np.ndarray,
    crop: tuple[float, float],
    flip: bool,
    inputs: Inputs,
    decode_crop: DecodeCrop,
) -> Tensors:
    """A view as model input."""
    frames = torch.stack([decode_crop(jpeg, *crop, inputs.image_shape[0]) for jpeg in jpegs])
    if flip:
        frames = frames.flip(3)
    return frames.float().div_(HALF_RANGE).sub_(1), (torch.from_numpy(spec).float() - inputs.mel_mean) / inputs.mel_std


def pil_crop(jpeg: bytes, x: float, y: float, size: int) -> torch.Tensor:
    """Decode a crop, uint8 (3, size, size), with PIL."""
    from PIL import Image

    image = Image.open(io.BytesIO(jpeg))
    left, top = round(x * (image.width - size)), round(y * (image.height - size))
    return torch.from_numpy(np.array(image.crop((left, top, left + size, top + size)))).permute(2, 0, 1)


def torchvision_crop(jpeg: bytes, x: float, y: float, size: int) -> torch.Tensor:
    """Decode a crop, uint8 (3, size, size), with torchvision."""
    from torchvision.io import decode_jpeg  # type: ignore[import-untyped]

    image = decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8))
    left, top = round(x * (image.shape[2] - size)), round(y * (image.shape[1] - size))
    return image[:, top : top + size, left : left + size]


def data_loader(views: Views, decode_crop: DecodeCrop) -> Iterator[Any]:
    """torch's DataLoader with one worker per core."""
    return worker_batches(ClipDataset(views, decode_crop), views)


def worker_batches(clips: Any, views: Views) -> Iterator[Any]:
    """Batches from torch's DataLoader."""
    return iter(
        torch.utils.data.DataLoader(
            clips, views.batch_size, num_workers=views.cores, persistent_workers=True, prefetch_factor=2, drop_last=True
        )
    )


def torch_pil(views: Views) -> Iterator[Any]:
    """DataLoader with PIL."""
    return data_loader(views, pil_crop)


def torch_torchvision(views: Views) -> Iterator[Any]:
    """DataLoader with torchvision's decode_jpeg."""
    import torchvision.io  # type: ignore[import-untyped]  # noqa: F401

    return data_loader(views, torchvision_crop)


@dataclass(frozen=True)
class RandomView:
    """Cuts a random view from a whole sample, with draws of the current process."""

    inputs: Inputs

    def cut(self, description: bytes, mel: bytes, stream: bytes) -> tuple[list[bytes], np.ndarray]:
        """JPEGs and log-mel of a random view of a sample, from its members."""
        ends = np.cumsum([0, *json.loads(description)["frame_bytes"]])
        window = self.inputs.window
        start = window.random_start(np.random.random(2).tolist(), len(ends) - 1)
        jpegs = [stream[ends[n] : ends[n + 1]] for n in window.frame_numbers(start.rgb, len(ends) - 1)]
        rows = np.frombuffer(mel, "<f2", offset=len(mel) - 4 * 256 * (len(ends) - 1)).reshape(-1, 128)
        return jpegs, np.concatenate([rows[a:b] for a, b in window.mel_spans(start.spec, len(ends) - 1)])

    def __call__(self, sample: dict[str, bytes]) -> Tensors:
        """The view as model input."""
        jpegs, spec = self.cut(sample["json"], sample["mel.npy"], sample["mjpg"])
        x, y, flip = np.random.random(3)
        return to_tensors(jpegs, spec, (x, y), flip < 0.5, self.inputs, pil_crop)


def webdataset_pil(views: Views) -> Iterator[Any]:
    """webdataset in torch's DataLoader, with PIL; each worker reads randomly drawn shards."""
    import webdataset

    tars = [str(path) for path in sorted(views.folder.glob(f"{SPLIT}-*.tar"))]
    samples = webdataset.WebDataset(tars, resampled=True, shardshuffle=False, nodesplitter=None).map(RandomView(views.inputs))
    return itertools.islice(worker_batches(samples.with_epoch(views.count), views), views.count // views.batch_size)


def dali_reader(views: Views) -> Any:
    """A built DALI pipeline that reads the members json, mel.npy and mjpg as bytes, with read() instead of mmap."""
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import pipeline_def

    tars = sorted(views.folder.glob(f"{SPLIT}-*.tar"))

    @pipeline_def
    def members():  # type: ignore[no-untyped-def]
        members = fn.readers.webdataset(
            paths=[str(tar) for tar in tars],
            index_paths=[str(tar.with_suffix(".idx")) for tar in tars],
            ext=["json", "mel.npy", "mjpg"],
            dtypes=[types.UINT8] * 3,
            random_shuffle=True,
            initial_fill=views.batch_size,
            dont_use_mmap=True,
        )
        return tuple(members)  # type: ignore[arg-type]

    pipeline = members(batch_size=views.batch_size, num_threads=views.cores, device_id=None, prefetch_queue_depth=2)
    pipeline.build()
    return pipeline


def webdataset_dali(views: Views) -> Iterator[Any]:
    """DALI's webdataset reader, and our DALI decoder for the frames of a view."""
    inputs, cut = views.inputs, RandomView(views.inputs).cut
    pipeline = dali_reader(views)

    def raw() -> Iterator[RawBatch]:
        for plan in views.plans():
            members = ([part.at(place).tobytes() for place in range(views.batch_size)] for part in pipeline.run())
            samples = zip(*members, strict=True)
            parts = [cut(*sample) for sample in samples]
            yield RawBatch(plan, [jpeg for jpegs, _ in parts for jpeg in jpegs], np.stack([spec for _, spec in parts]))

    source, images = raw(), views.batch_size * inputs.window.frames
    size, cpu = inputs.image_shape, torch.device("cpu")
    for batch, frames in decode(lambda: next(source, None), images, inputs.cover, size, cpu, views.cores):
        assert batch.spec is not None
        spec = (torch.from_numpy(batch.spec).float() - inputs.mel_mean) / inputs.mel_std
        yield frames.unflatten(0, (-1, inputs.window.frames)), spec


OURS, STREAMED = "mbt", "mbt-stream"
CONTENDERS: dict[str, tuple[str, Callable[[Views], Iterator[Any]]]] = {
    OURS: ("mbt train's loader", ours),
    STREAMED: ("mbt train's loader, tars as a stream", ours_streamed),
    "torch-pil": ("DataLoader, same reads, PIL", torch_pil),
    "torch-torchvision": ("DataLoader, same reads, torchvision", torch_torchvision),
    "webdataset-pil": ("webdataset, DataLoader, PIL", webdataset_pil),
    "webdataset-dali": ("DALI's webdataset reader and decoder", webdataset_dali),
}
STREAMS = ("webdataset-pil", "webdataset-dali")


def child(name: str, folder: str, count: str, batch_size: str, cores: str) -> str:
    """Run a contender once; returns JSON with `rate`, clips/s after the first batch, and `bytes` read per clip."""
    torch.set_num_threads(1)
    views = Views(Path(folder), int(count), int(batch_size), int(cores))
    views.needed_bytes()
    items = CONTENDERS[name][1](views)
    before = _read_bytes("self")
    next(items)
    begin = time.perf_counter()
    seen = 1 + sum(1 for _ in items)
    rate = (seen - 1) * views.batch_size / (time.perf_counter() - begin)
    children = [pid for listed in Path("/proc/self/task").glob("*/children") for pid in listed.read_text().split()]
    read = _read_bytes("self", *children) - before
    if seen != views.count // views.batch_size:
        raise InputError(f"{name} yielded {seen} batches for {views.count} views", "Choose a count divisible by the batch size")
    return json.dumps({"rate": rate, "bytes": read / views.count})


def _read_bytes(*pids: str) -> int:
    """Bytes that these processes have read, whether cached or not."""
    return sum(int(Path(f"/proc/{pid}/io").read_text().split()[1]) for pid in pids)


@dataclass
class Row:
    """A contender and the results of its runs."""

    name: str
    rates: list[float] = field(default_factory=list)
    bytes: list[float] = field(default_factory=list)

    def run(self, views: Views) -> None:
        """Run the contender once, in its own process.

        Raises:
            InputError: the run failed.
        """
        given = [self.name, str(views.folder), str(views.count), str(views.batch_size), str(views.cores)]
        done = subprocess.run([sys.executable, "-c", CHILD, *given], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.splitlines() or [f"status {done.returncode}"])[-1]
            raise InputError(f"{self.name} failed: {reason}", "Skip it by naming the others with --only")
        found = json.loads(done.stdout.splitlines()[-1])
        self.rates.append(found["rate"])
        self.bytes.append(found["bytes"])


def report(views: Views, names: Iterable[str], rounds: int) -> str:
    """Run the benchmark and return its table."""
    rows = {name: Row(name) for name in names}
    with pinned(views.cores), progress(len(rows) * rounds, "benchmark", "run") as bar:
        needed = views.needed_bytes()
        for row in list(rows.values()) * rounds:
            row.run(views)
            bar.update()
    lines = [
        f"{views.count} views in batches of {views.batch_size} on {views.cores} cores, median of {rounds} rounds; "
        f"a view needs {needed / 1e3:,.0f} kB",
        "",
        f"{'':<38}{'clips/s':>9}{'frames/s':>10}{'mbt is x':>10}{'kB/clip':>11}{'x needed':>10}",
    ]
    own, others = rows.get(OURS), [row for row in rows.values() if row.name not in (OURS, STREAMED)]
    for row in rows.values():
        rate, read = statistics.median(row.rates), statistics.median(row.bytes)
        times = f"{_ratio(own, row):.2f}" if own else "-"
        cells = f"{rate:>9.1f}{rate * views.inputs.frames:>10.0f}{times:>10}{read / 1e3:>11,.0f}{read / needed:>10.2f}"
        lines.append(f"{CONTENDERS[row.name][0]:<38}{cells}")
    if own and others:
        best = min(_ratio(own, row) for row in others)
        streams = [_ratio(own, row) for row in rows.values() if row.name in STREAMS]
        lines += ["", f"mbt / best of the others {best:.2f}; target >= {MIN_OF_BEST}"]
        lines += [f"mbt / best of webdataset {min(streams):.2f}; target >= {MIN_OF_WEBDATASET}"] if streams else []
        lines += [f"bytes read / needed {statistics.median(own.bytes) / needed:.3f}; target <= {MAX_BYTES}"]
    return "\n".join(lines)


def _ratio(own: Row, other: Row) -> float:
    """Median over the rounds of our rate divided by the other's."""
    return statistics.median(a / b for a, b in zip(own.rates, other.rates, strict=True))


def packed(folder: Path, media: Path | None, count: int) -> Path:
    """Pack `count` clips of these media files, or of rendered ones; returns the dataset folder."""
    clips = Clips.of(folder / "clips", media_files(media) if media else render(folder / "rendered", count), count)
    lists: list[str | Path] = ["--list", clips.folder / "clips.csv", "--labels", clips.folder / "labels.csv"]
    places: list[str | Path] = ["--source", clips.folder / "media", "--out", folder / "set"]
    subprocess.run([sys.executable, "-m", "mbt", "prep", "custom", *lists, *places], check=True, cwd=ROOT)
    return folder / "set"


@click.command(context_settings={"show_default": True})
@click.option("--data", type=FOLDER, help="Dataset folder; rendered if omitted.")
@click.option("--clips", type=FOLDER, help="Folder of media files to pack instead.")
@click.option("--count", type=click.IntRange(min=2), default=64, help="Number of clips to pack.")
@click.option("--batches", "number", type=click.IntRange(min=2), default=24, help="Batches per run.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16)
@click.option("--repeats", type=click.IntRange(min=1), default=3, help="Number of rounds.")
@click.option("--cores", type=click.IntRange(min=1), default=2)
@click.option("--only", multiple=True, type=click.Choice(list(CONTENDERS)), help="Run only this contender; may be repeated.")
def main(
    data: Path | None,
    clips: Path | None,
    count: int,
    number: int,
    batch_size: int,
    repeats: int,
    cores: int,
    only: tuple[str, ...],
) -> None:
    """Compare our loader with common alternatives, on the same shards and cores with the same transforms."""
    try:
        with tempfile.TemporaryDirectory(prefix="mbt-loader-") as folder:
            views = Views(data or packed(Path(folder), clips, count), number * batch_size, batch_size, cores)
            click.echo(report(views, only or CONTENDERS, repeats))
    except MbtError as error:
        raise click.UsageError(str(error)) from None


if __name__ == "__main__":
    main()
