"""The benchmark at a tiny size: the content of its table, and agreement between the JAX peer and the model."""

import functools
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks.model import Row, Task, forward_flops, measure, report, table
from mbt import MBT, MBTConfig
from mbt.train.engine.losses import training_loss
from tests.tiny import CONFIG

pytestmark = pytest.mark.slow

TINY = replace(CONFIG, num_layers=3)
"""Two fused layers: what the first writes to the bottleneck tokens, the second reads."""
NAMES = {
    "matrix product": ("torch", "jax"),
    "forward": ("torch eager", "torch compiled", "jax"),
    "forward + backward": ("torch eager", "torch compiled", "jax"),
}
LABELS = [f"{dtype} {work} {name}" for dtype in ("float32", "bfloat16") for work, names in NAMES.items() for name in names]


@pytest.fixture(autouse=True)
def quick_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torch.compile trace without compiling."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


@pytest.fixture
def without_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the import of JAX fail."""
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.delitem(sys.modules, "benchmarks.flax_peer", raising=False)


def row(seconds: list[float], **fields: object) -> Row:
    given = {"dtype": "bfloat16", "work": "forward", "name": "torch eager", "clips": 2, "flops": 2_000_000_000_000, **fields}
    return Row(**given, prepare=lambda: lambda: None, seconds=seconds)


@pytest.mark.usefixtures("without_jax")
def test_every_row_shows_times_or_a_reason() -> None:
    text = report(TINY, "cpu", batch=2, product_size=64, repeats=2, skip=["backward jax"])
    rows = {" ".join(line[:46].split()): line[46:] for line in text.splitlines() if line.startswith(("float32", "bfloat16"))}
    assert list(rows) == [label for label in LABELS if "backward jax" not in label]
    for label, cells in rows.items():
        if label.endswith("jax"):
            assert cells == "jax is not installed"
        else:
            median, fastest, slowest, rate, share = (float(cell.rstrip("%")) for cell in cells.split())
            assert 0 <= fastest <= median <= slowest
            assert rate > 0
            assert share >= 0


def test_cells_are_computed_from_the_median_call() -> None:
    rows = [row([0.5], work="matrix product", name="torch", clips=1), row([1.0, 8.0, 2.0]), row([], name="jax")]
    rows[2].problem = "jax is not installed"
    header, product, eager, jax = table(rows, "NVIDIA H200").splitlines()
    assert header.split() == ["dtype", "work", "by", "ms/clip", "min", "max", "TFLOP/s", "share", "MFU"]
    assert product.split()[4:] == ["500.00", "500.00", "500.00", "4", "100.0%", "0.4%"]
    assert eager.split()[4:] == ["1000.00", "500.00", "4000.00", "1", "25.0%", "0.1%"]
    assert jax.split(maxsplit=3)[3] == "jax is not installed"
    assert "MFU" not in table(rows, "CPU")


def test_contenders_alternate_after_one_untimed_call_each() -> None:
    called = []
    rows = [Row("float32", "forward", name, 1, 1, lambda name=name: lambda: called.append(name)) for name in "ab"]
    measure(rows, rounds=2)
    assert "".join(called) == "ababab"
    assert [len(each.seconds) for each in rows] == [2, 2]


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_out_of_memory_is_reported(error: type[Exception]) -> None:
    def call() -> None:
        raise error

    full = Row("float32", "forward", "jax", 1, 1, lambda: call)
    measure([full], rounds=2)
    assert full.problem == "out of memory; use a smaller --batch"
    assert full.seconds == []


def test_a_missing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    rows = [each for each in Task.random(TINY, torch.device("cpu"), 1, 8).rows() if each.name == "torch compiled"]
    measure(rows, rounds=1)
    assert {each.problem for each in rows} == {"torch.compile needs a C++ compiler: install g++ or set CXX"}


def test_flops_of_mbt_b_are_those_of_its_matrix_products() -> None:
    def layer(tokens: int) -> int:
        projections = 4 * 2 * tokens * 768 * 768
        return projections + 2 * 2 * tokens * 768 * 3072 + 2 * 2 * tokens * tokens * 768

    patches = 2 * 1568 * 768 * 768 + 2 * 400 * 256 * 768
    layers = 8 * (layer(1569) + layer(401)) + 4 * (layer(1573) + layer(405))
    assert forward_flops(MBTConfig(num_classes=527)) == patches + layers + 2 * 2 * 768 * 527


@pytest.mark.parametrize("image_size", [32, (32, 48)])
def test_the_peer_computes_the_models_logits_and_gradients(image_size: int | tuple[int, int]) -> None:
    pytest.importorskip("flax")
    from benchmarks.flax_peer import FlaxPeer, flax_weights

    torch.manual_seed(0)
    config = replace(TINY, image_size=image_size)
    task = Task.random(config, torch.device("cpu"), batch=2, product_size=8)
    for parameter in task.model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    peer = FlaxPeer(task.model, task.rgb, task.spec, task.targets, "float32")
    logits = task.model.logits_by_modality(task.rgb, task.spec)
    for modality, given in peer.logits_by_modality().items():
        torch.testing.assert_close(torch.tensor(given.tolist()), logits[modality])
    training_loss(logits, {"all": task.targets}, "multilabel", label_smoothing=0).backward()
    gradients = MBT(config)
    gradients.load_state_dict({name: parameter.grad for name, parameter in task.model.named_parameters()})
    assert_same(peer.gradients(), flax_weights(gradients))


def assert_same(given: dict, expected: dict) -> None:
    assert given.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same(given[name], value)
        else:
            torch.testing.assert_close(torch.tensor(given[name].tolist()), torch.from_numpy(value), rtol=1e-4, atol=1e-6)
