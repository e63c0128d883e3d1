"""The model: parameter counts, information flow between the streams, and configuration errors."""

import numpy as np
import pytest
import torch

from mbt import MBT, MBTConfig
from mbt.encoder import DropPath

SMALL = {
    "num_classes": 5,
    "hidden_size": 32,
    "num_layers": 4,
    "num_heads": 4,
    "mlp_dim": 64,
    "num_frames": 2,
    "image_size": 32,
    "spec_shape": (64, 32),
    "fusion_layer": 2,
}


def small(**fields: object) -> MBT:
    """A small model with a random head; a new model's head is zero."""
    torch.manual_seed(0)
    model = MBT(MBTConfig(**{**SMALL, **fields})).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


def inputs(batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "rgb": torch.rand(batch, 2, 3, 32, 32, generator=generator) * 2 - 1,
        "spec": torch.randn(batch, 64, 32, generator=generator),
    }


def test_mbt_b_has_as_many_parameters_as_the_official_module() -> None:
    """The official code adds a fifth bottleneck token to the paper's four."""
    with torch.device("meta"):
        paper = MBT(MBTConfig(num_classes=527))
        official = MBT(MBTConfig(num_classes=527, num_bottlenecks=5))
        released = MBT(MBTConfig(num_classes=527, num_bottlenecks=5, num_frames=32, tubelet=(2, 16, 16)))
    assert sum(p.numel() for p in official.parameters()) == 173_215_247
    assert sum(p.numel() for p in paper.parameters()) == 173_215_247 - 768
    assert sum(p.numel() for p in released.parameters()) == 175_009_295


def test_parameter_counts_of_single_modality_models() -> None:
    with torch.device("meta"):
        rgb = MBT(MBTConfig(num_classes=527, modalities=("rgb",), num_frames=32, tubelet=(2, 16, 16)))
        spec = MBT(MBTConfig(num_classes=527, modalities=("spec",)))
    assert sum(p.numel() for p in rgb.parameters()) == 89_051_663
    assert sum(p.numel() for p in spec.parameters()) == 86_360_591


@pytest.mark.parametrize("classifier", ["token", "gap"])
@pytest.mark.parametrize(
    "fields",
    [
        {"fusion": "bottleneck"},
        {"fusion": "bottleneck", "bottleneck_update": "sequential"},
        {"fusion": "bottleneck", "share_encoder": True},
        {"fusion": "attention"},
        {"fusion": "attention", "share_encoder": True},
        *({"fusion_layer": layer} for layer in range(5)),
        {"num_bottlenecks": 1},
        {"num_bottlenecks": 1024},
        {"tubelet": (2, 8, 32), "spec_patch": (32, 8)},
        {"modalities": ("rgb",)},
        {"modalities": ("spec",)},
        {"representation_size": 16},
    ],
)
def test_every_variant_runs_forward_and_backward(fields: dict[str, object], classifier: str) -> None:
    model = small(**fields, classifier=classifier).train()
    given = {m: x for m, x in inputs().items() if m in model.config.modalities}
    logits = model(**given)
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    late = model.config.fusion_layer == model.config.num_layers
    # Shifting all keys does not change the softmax, so the gradient of key biases is zero up to rounding.
    assert {name for name in unused if not name.endswith("key.bias")} == ({"encoder.bottleneck"} if late else set())


def reach(model: MBT, logits_of: str, given: str) -> float:
    """How much the logits of the stream `logits_of` depend on the input of the stream `given`."""
    x = inputs()
    x[given].requires_grad_()
    model.logits_by_modality(**x)[logits_of].square().sum().backward()
    grad = x[given].grad
    return 0.0 if grad is None else float(grad.abs().sum())


def test_late_fusion_keeps_the_streams_separate() -> None:
    assert reach(small(fusion_layer=4), "spec", "rgb") == 0
    assert reach(small(fusion_layer=4), "spec", "spec") > 0


def test_bottlenecks_work_in_both_directions_after_a_second_fused_layer() -> None:
    """A layer writes to the bottleneck tokens and the next one reads them: a single fused layer fuses nothing."""
    for a, b in (("rgb", "spec"), ("spec", "rgb")):
        assert reach(small(fusion_layer=2), a, b) > 0
        assert reach(small(fusion_layer=3), a, b) == 0


def test_sequential_update_lets_spec_read_rgb_within_one_layer() -> None:
    model = small(fusion_layer=3, bottleneck_update="sequential")
    assert reach(model, "spec", "rgb") > 0
    assert reach(model, "rgb", "spec") == 0


def test_cross_attention_fuses_within_one_layer() -> None:
    for a, b in (("rgb", "spec"), ("spec", "rgb")):
        assert reach(small(fusion="attention", fusion_layer=3), a, b) > 0


def test_logits_are_the_mean_of_the_modalities() -> None:
    model = small()
    by_modality = model.logits_by_modality(**inputs())
    np.testing.assert_allclose(model(**inputs()).detach(), ((by_modality["rgb"] + by_modality["spec"]) / 2).detach(), atol=1e-6)


def test_logits_start_at_zero() -> None:
    assert not MBT(MBTConfig(**SMALL))(**inputs()).any()


@pytest.mark.parametrize(("rescale", "kept"), [(False, 7.0), (True, 14.0)])
def test_drop_path_drops_whole_branches(rescale: bool, kept: float) -> None:
    torch.manual_seed(0)
    branch = torch.full((1000, 2, 3), 7.0)
    out = DropPath(0.5, rescale).train()(branch)
    assert set(out.unique().tolist()) == {0.0, kept}
    assert (out == out[:, :1, :1]).all()
    assert 0.45 < float((out[:, 0, 0] == 0).float().mean()) < 0.55
    assert torch.equal(DropPath(0.5, rescale).eval()(branch), branch)


def test_without_test_bottlenecks_the_streams_are_separate_in_evaluation_only() -> None:
    model = small(fusion_layer=0, test_with_bottlenecks=False)
    assert reach(model, "spec", "rgb") == 0
    assert reach(model.train(), "spec", "rgb") > 0


@pytest.mark.parametrize("fields", [{}, {"fusion": "attention"}, {"fusion": "attention", "share_encoder": True}])
def test_activation_checkpointing_does_not_change_gradients(fields: dict[str, object]) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = small(**fields, drop_path=0.5, dropout=0.1).train()
        model.encoder.activation_checkpointing = checkpointing
        torch.manual_seed(3)
        model(**inputs()).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"fusion": "attention"}, {"fusion": "attention", "share_encoder": True}])
def test_the_model_compiles_without_graph_breaks(fields: dict[str, object]) -> None:
    model = small(**fields, drop_path=0.3).train()
    torch._dynamo.reset()
    compiled = torch.compile(model.logits_by_modality, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    expected = model.logits_by_modality(**inputs())
    torch.manual_seed(0)
    for modality, logits in compiled(**inputs()).items():
        torch.testing.assert_close(logits, expected[modality])
    sum(compiled(**inputs()).values()).sum().backward()


@pytest.mark.parametrize(
    ("name", "millions"),
    [("Ti/16", 5.717), ("S/16", 22.051), ("B/16", 86.568), ("B/32", 88.224), ("L/16", 304.327), ("H/14", 632.046)],
)
def test_one_frame_and_one_modality_is_the_published_vit(name: str, millions: float) -> None:
    """`millions`: parameters of the published Vision Transformers with 1,000 classes."""
    with torch.device("meta"):
        model = MBT(MBTConfig.vit(name, num_classes=1000, modalities=("rgb",), num_frames=1))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.0006)


@pytest.mark.parametrize("name", ["B", "B/0", "XL/16", "B/x", "B/16/2", ""])
def test_unknown_sizes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="give one of Ti, S, B, L, H"):
        MBTConfig.vit(name, num_classes=2)


def test_spectrogram_rows_beyond_the_last_full_patch_are_ignored() -> None:
    model = small(modalities=("spec",), spec_shape=(70, 32))
    x = torch.randn(1, 70, 32)
    changed = x.clone()
    changed[:, 64:] = 9
    assert torch.equal(model(spec=x), model(spec=changed))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fusion_layer": 13}, "fusion_layer 13 is outside 0..4"),
        ({"num_heads": 5}, "hidden_size 32 is not divisible by num_heads 5"),
        ({"image_size": 33}, "image_size 33 is not divisible"),
        ({"image_size": (32, 40)}, r"image_size \(32, 40\) is not divisible by the tubelet's 16 x 16 pixels"),
        ({"image_size": (32,)}, r"image_size \(32,\) is neither a positive number of pixels nor \[height, width\]"),
        ({"image_size": 0}, "image_size 0 is neither"),
        ({"image_size": True}, "image_size True is neither"),
        ({"image_size": 32.5}, r"image_size 32\.5 is neither"),
        ({"num_frames": 3, "tubelet": (2, 16, 16)}, "num_frames 3 is not divisible"),
        ({"tubelet": (0, 16, 16)}, r"tubelet \(0, 16, 16\) is below 1"),
        ({"mlp_dim": 0}, "mlp_dim 0 is below 1"),
        ({"representation_size": -1}, "representation_size -1 is below 1"),
        ({"num_bottlenecks": 1025}, r"num_bottlenecks 1025 is outside 1\.\.1024"),
        ({"num_bottlenecks": 0}, "num_bottlenecks 0 is outside 1..1024"),
        ({"spec_shape": (8, 32)}, r"spec_shape \(8, 32\) is smaller than spec_patch"),
        ({"modalities": ("flow",)}, "modalities"),
        ({"drop_path": 1.0}, "drop_path 1.0 is outside"),
        ({"fusion": "attention", "test_with_bottlenecks": False}, "'attention' has no bottlenecks"),
    ],
)
def test_configuration_errors_say_what_is_wrong(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MBTConfig(**{**SMALL, **fields})


def test_missing_input_is_named() -> None:
    with pytest.raises(ValueError, match="spec is not given"):
        small()(rgb=inputs()["rgb"])


def test_configuration_survives_json() -> None:
    config = MBTConfig(**SMALL, tubelet=(2, 16, 16))
    assert MBTConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="color"):
        MBTConfig.from_json('{"num_classes": 3, "color": 1}')


def test_a_square_image_size_is_written_as_one_number() -> None:
    assert MBTConfig(**{**SMALL, "image_size": np.int64(32)}).to_json() == MBTConfig(**SMALL).to_json()
    square, wide = MBTConfig(**{**SMALL, "image_size": [32, 32]}), MBTConfig(**{**SMALL, "image_size": [32, 64]})
    assert square == MBTConfig(**SMALL)
    assert '"image_size": 32,' in square.to_json()
    assert MBTConfig.from_json(wide.to_json()) == wide
    assert (wide.image_size, wide.image_shape, wide.rgb_grid) == ((32, 64), (32, 64), (2, 2, 4))


def test_tokens_of_wide_frames_are_in_row_major_order() -> None:
    """Changing one patch changes only the token at its row and column."""
    model = small(image_size=(32, 64), fusion_layer=4)
    rgb = torch.zeros(1, 2, 3, 32, 64)
    changed = rgb.clone()
    changed[:, 1, :, 16:, 32:48] = 1
    tokens = [model.tokens["rgb"](x.transpose(1, 2)) for x in (rgb, changed)]
    assert (tokens[0] != tokens[1]).any(2)[0].nonzero().flatten().tolist() == [1 + 1 * 8 + 1 * 4 + 2]
    assert model(rgb, inputs(1)["spec"]).shape == (1, 5)
