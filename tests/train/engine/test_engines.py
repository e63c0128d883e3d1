"""Every engine, with one rank and with two, has the losses of a single plain process, and resumes the runs of all others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.distributed.several import MIDDLE, STEPS, averages_are_evaluated, averaging, trainings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
ADAM = [
    "train.optimizer=adamw",
    "train.learning_rate=0.01",
    "train.weight_decay=0.05",
    "train.layer_decay=0.75",
    "train.ema_decay=0.9",
]
DECAY = ["train.weight_decay=0.5", "train.layer_decay=0.75", "train.ema_decay=0.9"]
"""Weight decay of SGD, large enough to change the losses."""
GROUPS = ["train.group_size=2", "train.mixup_alpha=0.3", "train.modality_mixup=true"]
LATE = ["model.fusion_layer=2"]
HALF = ["train.precision=float16"]
HALF_DECAY = [*HALF, "train.weight_decay=0.5"]
THREE = ["train.micro_batch=3"]
SCORED = ["eval.split=eval", "eval.crops=1", "eval.batch_size=2", "train.eval_every_epochs=2"]
"""Seven clips: with two ranks, one has four and the other three."""
OFFLOAD = {
    "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
}
ALONE = [
    ("plain", [], "torch", None),
    ("adam", ADAM, "torch", None),
    ("groups", GROUPS, "torch", None),
    ("decay", DECAY, "torch", None),
    ("mixed", [*DECAY, *GROUPS], "torch", None),
    ("late", LATE, "torch", None),
    ("half", HALF, "torch", None),
    ("halfdecay", HALF_DECAY, "torch", None),
    ("scored", SCORED, "torch", None),
]
ALONE_TOO = [
    ("plain three", THREE, "torch", None),
    ("skip", HALF, "torch", "half"),
    ("skip decay", HALF_DECAY, "torch", "halfdecay"),
]
TOGETHER = [
    ("plain ddp", [], "torch", None),
    ("plain zero0", [], "0", None),
    ("plain zero1", [], "1", None),
    ("plain zero2", [], "2", None),
    ("plain zero3", [], "3", None),
    ("plain offload", [], "offload.json", None),
    ("plain ddp three", THREE, "torch", None),
    ("plain zero1 three", THREE, "1", None),
    ("groups ddp", GROUPS, "torch", None),
    ("groups zero0", GROUPS, "0", None),
    ("groups zero1 half", [*GROUPS, *HALF], "1", None),
    ("groups zero2", [*GROUPS, "train.micro_batch=1"], "2", None),
    ("groups zero1 of ddp", GROUPS, "1", "groups ddp"),
    ("decay ddp", DECAY, "torch", None),
    ("decay zero0 three", [*DECAY, *THREE], "0", None),
    ("decay zero1", DECAY, "1", None),
    ("decay zero2", DECAY, "2", None),
    ("decay zero3", DECAY, "3", None),
    ("decay zero3 to zero1", DECAY, "1", "decay zero3"),
    ("decay zero1 to ddp", DECAY, "torch", "decay zero1"),
    ("mixed zero2", [*DECAY, *GROUPS], "2", None),
    ("late ddp", LATE, "torch", None),
    ("scored ddp", SCORED, "torch", None),
    ("scored zero3", [*SCORED, "eval.batch_size=1"], "3", None),
    ("adam zero2", ADAM, "2", None),
    ("adam zero3", ADAM, "3", None),
    ("plain to zero1", [], "1", "plain"),
    ("plain ddp to zero3", [], "3", "plain ddp"),
    ("plain zero1 to zero3", [], "3", "plain zero1"),
    ("plain zero3 to ddp", [], "torch", "plain zero3"),
    ("adam zero2 to zero1", ADAM, "1", "adam zero2"),
    ("same ddp", [], "torch", "plain ddp"),
    ("same zero1", [], "1", "plain zero1"),
    ("same zero3", [], "3", "plain zero3"),
    ("half ddp", HALF, "torch", None),
    ("half zero1", HALF, "1", None),
    ("skip ddp", HALF, "torch", "half"),
    ("skip zero0", HALF, "0", "half"),
    ("skip zero1", HALF, "1", "half"),
    ("skip zero3", HALF, "3", "half"),
    ("skip decay zero0", HALF_DECAY, "0", "halfdecay"),
    ("skip decay zero3", HALF_DECAY, "3", "halfdecay"),
]
ALONE_AGAIN = [("plain zero1 to plain", [], "torch", "plain zero1"), ("adam zero3 to plain", ADAM, "torch", "adam zero3")]
KINDS = ("plain", "adam", "groups", "decay", "mixed", "late", "scored")
EXACT = [run for run, *_ in [*ALONE_TOO, *TOGETHER, *ALONE_AGAIN] if run.split()[0] in KINDS and "half" not in run]
TOO_LARGE = 2.0**30
"""A loss scale with which float16 overflows in all following steps."""


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs listed above: in one process, in two ranks, and in one process again."""
    folder = tmp_path_factory.mktemp("runs")
    trainings(shards, folder, ALONE)
    for begun in ("half", "halfdecay"):
        path = folder / begun / f"checkpoints/step-{MIDDLE}/progress.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "loss_scale": TOO_LARGE}))
    trainings(shards, folder, ALONE_TOO)
    (folder / "offload.json").write_text(json.dumps(OFFLOAD))
    listed = [(run, settings, str(folder / e) if e.endswith("json") else e, begun) for run, settings, e, begun in TOGETHER]
    (folder / "list.json").write_text(json.dumps(listed))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, "-m", "tests.train.distributed.several", shards, folder, folder / "list.json"],
        cwd=ROOT,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    trainings(shards, folder, ALONE_AGAIN)
    return folder


def logged(run: Path, name: str) -> list[float]:
    """A logged value, at each step that has it."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "last/model.safetensors")


def progress(run: Path, step: int) -> dict[str, float]:
    return json.loads((run / f"checkpoints/step-{step}/progress.json").read_text())


@pytest.mark.parametrize("run", EXACT)
def test_losses_equal_those_of_a_single_plain_process(runs: Path, run: str) -> None:
    """Gradient norms and weights too, and also for runs started by another engine or another number of ranks.

    Softmax is invariant to the bias of the keys: its gradient is rounding error, which Adam scales up like any other.
    """
    one = runs / run.split()[0]
    expected = logged(one, "loss")
    assert len(expected) == STEPS
    assert max(expected) > 1.1 * min(expected)
    assert logged(runs / run, "loss") == pytest.approx(expected, rel=1e-5)
    assert logged(runs / run, "grad_norm") == pytest.approx(logged(one, "grad_norm"), rel=1e-4)
    seen = {name: tensor for name, tensor in weights(runs / run).items() if not name.endswith("key.bias")}
    for name, tensor in seen.items():
        torch.testing.assert_close(tensor, weights(one)[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_ranks_with_unequal_last_batches_score_like_a_single_process(runs: Path, engine: str) -> None:
    """The second rank's last batch is smaller than the first rank's, or missing."""
    alone, together = (logged(runs / run, "eval") for run in ("scored", f"scored {engine}"))
    assert len(alone) == 3
    assert together == [pytest.approx(scores, abs=1e-6) for scores in alone]


@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero3"])
def test_a_resumed_run_of_two_ranks_is_bit_identical(runs: Path, engine: str) -> None:
    assert logged(runs / f"same {engine}", "loss") == logged(runs / f"plain {engine}", "loss")
    for name, tensor in weights(runs / f"same {engine}").items():
        assert torch.equal(tensor, weights(runs / f"plain {engine}")[name]), name


def test_a_checkpoint_names_every_parameter(runs: Path) -> None:
    for run in ("adam", "adam zero2", "adam zero3"):
        folder = runs / run / f"checkpoints/step-{STEPS}"
        names = set(load_file(folder / "model.safetensors"))
        state = load_file(folder / "optimizer.safetensors")
        assert set(state) == {f"{kind}/{name}" for kind in ("exp_avg", "exp_avg_sq") for name in names}
        averages = load_file(folder / "ema.safetensors")
        assert set(averages) == names
        assert all(torch.equal(averages[name], tensor) for name, tensor in weights(runs / run).items())
        assert progress(runs / run, STEPS)["updates"] == STEPS
    assert set(load_file(runs / f"plain zero3/checkpoints/step-{STEPS}/optimizer.safetensors")) == {
        f"momentum_buffer/{name}" for name in names
    }
    assert not (runs / f"plain zero3/checkpoints/step-{STEPS}/ema.safetensors").exists()


@pytest.mark.parametrize("run", ["half ddp", "half zero1"])
def test_float16_trains(runs: Path, run: str) -> None:
    losses = logged(runs / run, "loss")
    assert losses != logged(runs / "plain ddp", "loss")
    assert losses == pytest.approx(logged(runs / "plain", "loss"), rel=1e-3)
    assert logged(runs / run, "grad_norm") == pytest.approx(logged(runs / "plain", "grad_norm"), rel=0.05)
    assert progress(runs / run, STEPS)["loss_scale"] == 2**16
    assert progress(runs / run, STEPS)["finite_steps"] == STEPS


def test_float16_trains_with_groups(runs: Path) -> None:
    """An overflow in one group skips the step on all ranks; until then, losses equal those of float32."""
    run = runs / "groups zero1 half"
    norms, losses, exact = logged(run, "grad_norm"), logged(run, "loss"), logged(runs / "groups", "loss")
    same = [*norms, None].index(None) + 1
    assert same > MIDDLE
    assert losses != exact
    assert losses[:same] == pytest.approx(exact[:same], rel=1e-3)
    assert progress(run, STEPS)["updates"] == STEPS - norms.count(None)
    assert progress(run, STEPS)["loss_scale"] == 2.0 ** (16 - norms.count(None))


@pytest.mark.parametrize(
    "run", ["skip", "skip ddp", "skip zero0", "skip zero1", "skip zero3", "skip decay", "skip decay zero0", "skip decay zero3"]
)
def test_float16_skips_steps_that_overflow(runs: Path, run: str) -> None:
    """Five steps that change only the loss scale, which was set in the checkpoint."""
    begun, ended = (
        load_file(runs / name / f"checkpoints/step-{step}/model.safetensors") for name, step in ((run, MIDDLE), (run, STEPS))
    )
    assert all(torch.equal(ended[name], tensor) for name, tensor in begun.items())
    assert logged(runs / run, "grad_norm")[MIDDLE:] == [None] * (STEPS - MIDDLE)
    left = progress(runs / run, STEPS)
    assert (left["updates"], left["loss_scale"], left["finite_steps"]) == (MIDDLE, TOO_LARGE / 2 ** (STEPS - MIDDLE), 0)


def test_averages_are_evaluated_in_a_single_process() -> None:
    """`tests.train.distributed.several` checks this with two ranks."""
    averages_are_evaluated(averaging(None))
