"""The model reproduces the official implementation's outputs."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mbt.train.engine.losses import training_loss
from tests.golden import Golden, close, gradients_close

FORWARD = [
    "p01_rgb_token_3dconv",
    "p02_spec_token",
    "p03_rgb_gap_tsample",
    "p04_bneck_f0_B4_token",
    "p05_bneck_f2_B4_token",
    "p06_bneck_f4late_B4_token",
    "p07_bneck_f2_B1_token_rgbfirst",
    "p08_bneck_f2_B4_token_tsample",
    "p09_xattn_separate_f0_token",
    "p10_xattn_separate_f2_gap",
    "p11_shared_vanilla_f0_token",
    "p12_shared_vanilla_f2_gap",
    "p13_bneck_shared_f2_token",
    "p14_bneck_f2_B4_gap_PATCHED",
    "p15_bneck_f1_B4_token_reprsize",
    "p16_bneck_no_test_bottleneck",
    "p17_tiny_tokens_eps_probe",
    "p18_grads_bneck_f2_B4_token",
    "p19_grads_shared_vanilla_f1_gap",
    "x01_v1_asymmetric_f2_B4_token_NOT_OFFICIAL",
]


@pytest.mark.parametrize("name", FORWARD)
def test_logits(name: str) -> None:
    golden = Golden(name)
    close(golden.model()(**golden.inputs()), golden.arrays["outputs/logits"])


@pytest.mark.parametrize("name", [name for name in FORWARD if "token" in name and "x01" not in name])
def test_logits_of_each_modality_in_training(name: str) -> None:
    golden = Golden(name)
    expected = golden.under("outputs/train_logits")
    assert len(expected) == len(golden.config.modalities)
    logits = golden.model().train().logits_by_modality(**golden.inputs())
    for official, array in expected.items():
        close(logits["spec" if official == "spectrogram" else official], array)


@pytest.mark.parametrize("name", ["p18_grads_bneck_f2_B4_token", "p19_grads_shared_vanilla_f1_gap"])
def test_loss_and_gradients(name: str) -> None:
    golden = Golden(name)
    model = golden.model().train()
    loss = training_loss(model.logits_by_modality(**golden.inputs()), golden.targets(), "multilabel", 0.3)
    assert float(loss) == pytest.approx(float(golden.arrays["outputs/loss_train"]), rel=1e-5)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    gradients_close(gradients, golden.tensors("grads"))
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert float(norm) == pytest.approx(float(golden.arrays["outputs/grad_global_norm"]), rel=1e-4)
    clipped = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert float(clipped) == pytest.approx(float(golden.arrays["outputs/clipped_grad_global_norm"]), rel=1e-5)


@pytest.mark.parametrize("name", ["p18_grads_bneck_f2_B4_token", "p19_grads_shared_vanilla_f1_gap"])
def test_other_losses(name: str) -> None:
    """The official evaluation loss uses the mean logits; a masked example counts in neither the sum nor the divisor."""
    golden = Golden(name)
    expected = golden.under("outputs")
    logits = golden.model()(**golden.inputs())
    targets = golden.targets()["all"]
    one_hot = torch.from_numpy(golden.arrays["labels/onehot"])

    def loss(keep: slice, targets: Tensor, task: str, smoothing: float) -> float:
        return float(training_loss({"all": logits[keep]}, {"all": targets[keep]}, task, smoothing))  # type: ignore[arg-type]

    whole = slice(None)
    assert loss(whole, targets, "multilabel", 0.3) == pytest.approx(float(expected["loss_eval"]), rel=1e-5)
    assert loss(slice(0, -1), targets, "multilabel", 0.3) == pytest.approx(float(expected["loss_eval_last_masked"]), rel=1e-5)
    assert loss(whole, targets, "multilabel", 0.0) == pytest.approx(float(expected["loss_eval_no_smoothing"]), rel=1e-5)
    assert loss(whole, one_hot, "multiclass", 0.3) == pytest.approx(float(expected["softmax_loss_eval"]), rel=1e-5)


class MaskedDropPath(nn.Module):
    """Drops branches according to the given masks, one mask per call."""

    def __init__(self, masks: list[np.ndarray]) -> None:
        super().__init__()
        self.masks = iter(masks)

    def forward(self, branch: Tensor) -> Tensor:
        return branch * (1 - torch.from_numpy(next(self.masks)))


def test_stochastic_depth() -> None:
    """The official masks replace the random ones of each block."""
    golden = Golden("p20_droplayer_masks_bneck")
    model = golden.model().train()
    rates = [model.encoder._block("rgb", layer).drop_path.rate for layer in range(3)]
    assert rates == pytest.approx([0.0, 0.3, 0.6])
    for layer in (1, 2):
        for m, official in (("rgb", "rgb"), ("spec", "spectrogram")):
            masks = [golden.arrays[f"drop/layer{layer}/{official}/{branch}"] for branch in ("attn", "mlp")]
            model.encoder._block(m, layer).drop_path = MaskedDropPath(masks)  # type: ignore[assignment, arg-type]
    logits = model.logits_by_modality(**golden.inputs())
    for official, m in (("rgb", "rgb"), ("spectrogram", "spec")):
        close(logits[m], golden.arrays[f"outputs/train_logits/{official}"])


def test_branches_are_dropped_independently() -> None:
    """As in the official code, each example, stream, layer and branch (attention or MLP) has its own draw."""
    golden = Golden("p20_droplayer_masks_bneck")
    model = golden.model().train()
    drawn: list[Tensor] = []
    rand: Callable[..., Tensor] = torch.rand
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *size, **options: drawn.append(rand(*size, **options)) or drawn[-1])
        model.logits_by_modality(**golden.inputs())
    assert [tuple(draw.shape) for draw in drawn] == [(4, 1, 1)] * 8
    assert len({float(value) for draw in drawn for value in draw.flatten()}) == 32


def test_multi_crop_evaluation_averages_raw_logits() -> None:
    golden = Golden("multicrop")
    logits = golden.model()(**golden.inputs())
    close(logits, golden.arrays["outputs/per_clip_logits"])
    close(logits.mean(0, keepdim=True), golden.arrays["outputs/averaged_logits"])
