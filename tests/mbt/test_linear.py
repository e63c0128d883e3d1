"""The linear layer agrees with torch's, whether oneDNN computes it or not."""

import pytest
import torch
from torch import nn

from mbt import MBT, linear
from mbt.linear import Linear
from tests.mbt.test_model import inputs, small


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use oneDNN for layers of any size."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch is built without oneDNN")
    monkeypatch.setattr(linear, "MIN_WEIGHTS", 1)


def outcome(model: MBT) -> dict[str, torch.Tensor]:
    logits = model(**inputs())
    model.zero_grad()
    logits.square().sum().backward()
    return {"logits": logits.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("fields", [{}, {"fusion": "attention"}, {"fusion": "attention", "share_encoder": True}])
def test_logits_and_gradients_are_those_of_torch(fields: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(**fields).train()
    by_onednn = outcome(model)
    monkeypatch.setattr(linear, "MIN_WEIGHTS", 1 << 60)
    for name, tensor in outcome(model).items():
        torch.testing.assert_close(by_onednn[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.usefixtures("onednn")
def test_onednn_is_used_only_in_eager_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, by_torch = Linear(8, 4), []
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: by_torch.append(x.dtype) or x[..., :4])
    layer(torch.randn(2, 3, 8))
    assert not by_torch
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(2, 8))
    Linear(8, 4).double()(torch.randn(2, 8).double())
    monkeypatch.setattr(linear, "MIN_WEIGHTS", 33)
    layer(torch.randn(2, 8))
    assert by_torch == [torch.float32, torch.float64, torch.float32]


@pytest.mark.usefixtures("onednn")
def test_strided_and_expanded_inputs() -> None:
    layer = Linear(8, 4)
    for x in (torch.randn(3, 8, 5).transpose(1, 2), torch.randn(1, 1, 8).expand(3, 2, 8), torch.randn(2, 6, 8)[:, 1:3]):
        torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("onednn")
def test_a_replaced_function_never_gets_onednns_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed replaces torch.nn.functional.linear with a function that computes `input.matmul(weight.t())`."""
    layer, x = Linear(8, 4), torch.randn(2, 8)
    expected = layer(x)
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, weight, bias=None: x.matmul(weight.t()) + bias)
    torch.testing.assert_close(layer(x), expected)
    monkeypatch.setattr(linear, "MIN_WEIGHTS", 1 << 60)
    torch.testing.assert_close(layer(x), expected)
