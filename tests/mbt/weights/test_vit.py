"""Initialization from a ViT, compared with timm's own forward pass and with the official surgery."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mbt import MBT, MBTConfig
from mbt.weights.surgery import init_from_vit
from mbt.weights.vit import ViT, read_vit, timm_vit
from tests.golden import Golden, golden_file

NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small ViT with random position embeddings and norms, as timm would download them."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, depth=3, img_size=64)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    path = tmp_path_factory.mktemp("timm") / "vit.pth"
    torch.save(model.state_dict(), path)
    return path


def pretrained(file: Path, **options: Any) -> dict[str, Any]:
    return {"pretrained_cfg_overlay": {"file": str(file)}, "depth": 3, "img_size": 64, **options}


def same_shape(vit: ViT, **fields: Any) -> MBTConfig:
    """A configuration with the ViT's width and depth, changed by `fields`."""
    shape = {name: getattr(vit.config, name) for name in ("hidden_size", "num_layers", "num_heads", "mlp_dim")}
    return MBTConfig(**{"num_classes": 5, "image_size": 64, "num_frames": 4, "fusion_layer": 1, **shape, **fields})


def features(model: MBT, **inputs: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return model.encoder(model._tokenize(inputs.get("rgb"), inputs.get("spec")))


def test_one_frame_gives_timms_features(timm_file: Path) -> None:
    """For both streams: an image as one frame, and an image of three equal channels as a spectrogram."""
    torch.manual_seed(1)
    theirs = timm.create_model(NAME, pretrained=True, act_layer="gelu_tanh", **pretrained(timm_file)).eval()
    vit = timm_vit(NAME, **pretrained(timm_file))
    for modality in ("rgb", "spec"):
        model = MBT(same_shape(vit, modalities=(modality,), num_frames=1, spec_shape=(64, 64))).eval()
        init_from_vit(model, vit)
        image = torch.rand(2, 3, 64, 64) * 2 - 1
        if modality == "spec":
            image = image[:, :1].expand(-1, 3, -1, -1)
        given = {"rgb": image.unsqueeze(1)} if modality == "rgb" else {"spec": image[:, 0]}
        with torch.no_grad():
            expected = theirs.forward_features(image)
        torch.testing.assert_close(features(model, **given)[modality], expected, rtol=1e-4, atol=1e-5)


def test_pixels_are_normalized_as_in_the_vits_training(timm_file: Path) -> None:
    overlay = {"file": str(timm_file), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    options = {"pretrained_cfg_overlay": overlay, "depth": 3, "img_size": 64}
    theirs = timm.create_model(NAME, pretrained=True, act_layer="gelu_tanh", **options).eval()
    vit = timm_vit(NAME, **options)
    model = MBT(same_shape(vit, modalities=("rgb",), num_frames=1)).eval()
    init_from_vit(model, vit)
    pixels = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(overlay[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = theirs.forward_features((pixels - mean) / std)
    torch.testing.assert_close(features(model, rgb=(pixels * 2 - 1).unsqueeze(1))["rgb"], expected, rtol=1e-4, atol=1e-5)


def test_layer_scale_is_folded_in(timm_file: Path, tmp_path: Path) -> None:
    torch.manual_seed(2)
    theirs = timm.create_model(NAME, depth=3, img_size=64, init_values=0.5, act_layer="gelu_tanh").eval()
    torch.save(theirs.state_dict(), tmp_path / "scaled.pth")
    vit = timm_vit(NAME, **pretrained(tmp_path / "scaled.pth", init_values=0.1))
    model = MBT(same_shape(vit, modalities=("rgb",), num_frames=1)).eval()
    init_from_vit(model, vit)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = theirs.forward_features(image)
    torch.testing.assert_close(features(model, rgb=image.unsqueeze(1))["rgb"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {}, "not a plain Vision Transformer"),
        ("no_such_vit", {}, "has no pretrained model 'no_such_vit'"),
        (NAME, {"reg_tokens": 4}, "unknown tensor reg_token"),
        (NAME, {"qkv_bias": False}, r"query.bias \(192,\) is missing"),
        (NAME, {"pre_norm": True}, "unknown tensor norm_pre"),
    ],
)
def test_unsupported_timm_models_are_refused(name: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    if name != "no_such_vit":
        small = {"depth": 1, "img_size": 64, **options} if name == NAME else {}
        torch.save(timm.create_model(name, **small).state_dict(), tmp_path / "weights.pth")
        options = {"pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth")}, **small}
    with pytest.raises(ValueError, match=message):
        timm_vit(name, **options)


def flat_vit(seed: int = 0) -> dict[str, np.ndarray]:
    """A ViT under the names of the original .npz files: two layers, width 8, a grid of 3 x 3 patches of 16 x 16 pixels."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, 8),
        "embedding/kernel": (16, 16, 3, 8),
        "embedding/bias": (8,),
        "Transformer/posembed_input/pos_embedding": (1, 10, 8),
        "Transformer/encoder_norm/scale": (8,),
        "Transformer/encoder_norm/bias": (8,),
        "pre_logits/kernel": (8, 8),
        "pre_logits/bias": (8,),
        "head/kernel": (8, 21843),
        "head/bias": (21843,),
    }
    for layer in range(2):
        block = f"Transformer/encoderblock_{layer}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        shapes |= {f"{block}/{norm}/{leaf}": (8,) for norm in ("LayerNorm_0", "LayerNorm_2") for leaf in ("scale", "bias")}
        shapes |= {f"{attention}/{role}/kernel": (8, 2, 4) for role in ("query", "key", "value")}
        shapes |= {f"{attention}/{role}/bias": (2, 4) for role in ("query", "key", "value")}
        shapes |= {f"{attention}/out/kernel": (2, 4, 8), f"{attention}/out/bias": (8,)}
        shapes |= {f"{block}/MlpBlock_3/Dense_0/kernel": (8, 16), f"{block}/MlpBlock_3/Dense_0/bias": (16,)}
        shapes |= {f"{block}/MlpBlock_3/Dense_1/kernel": (16, 8), f"{block}/MlpBlock_3/Dense_1/bias": (8,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/"])
def test_files_of_the_original_vit_and_of_big_vision_are_read(prefix: str, tmp_path: Path) -> None:
    params = flat_vit()
    extra = {"opt/state/step": np.array(7), "extra/accum_train_time": np.array(1.0)} if prefix.startswith("opt") else {}
    np.savez(tmp_path / "ViT.npz", **{f"{prefix}{name}": array for name, array in params.items()}, **extra)
    vit = read_vit(tmp_path / "ViT.npz")
    assert (vit.config.image_size, vit.config.num_layers, vit.config.num_heads) == (48, 2, 2)
    model = MBT(same_shape(vit, image_size=48, spec_shape=(96, 48)))
    init_from_vit(model, vit)
    state = model.state_dict()
    kernel = params["Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel"]
    for stream in ("rgb", "spec"):
        np.testing.assert_array_equal(state[f"encoder.blocks.{stream}.1.mlp.fc1.weight"].numpy(), kernel.T)
        np.testing.assert_array_equal(state[f"tokens.{stream}.cls"].numpy(), params["cls"])
    assert not state["head.weight"].any()


def test_position_embeddings_are_resized_and_tiled(tmp_path: Path) -> None:
    """rgb: from 3 x 3 to 2 x 2 with unchanged corners, repeated for each frame; spec: from 3 x 3 to 6 x 3."""
    params = flat_vit()
    np.savez(tmp_path / "ViT.npz", **params)
    vit = read_vit(tmp_path / "ViT.npz")
    model = MBT(same_shape(vit, image_size=32, spec_shape=(96, 48)))
    init_from_vit(model, vit)
    position = params["Transformer/posembed_input/pos_embedding"][0]
    grid = position[1:].reshape(3, 3, 8)
    rgb = model.state_dict()["tokens.rgb.position"][0].numpy()
    np.testing.assert_array_equal(rgb[0], position[0])
    np.testing.assert_allclose(rgb[1:].reshape(4, 2, 2, 8), np.tile(grid[::2, ::2], (4, 1, 1, 1)), atol=1e-6)
    spec = model.state_dict()["tokens.spec.position"][0, 1:].reshape(6, 3, 8).numpy()
    np.testing.assert_allclose(spec[[0, -1]], grid[[0, -1]], atol=1e-6)
    np.testing.assert_allclose(spec[1], 0.6 * grid[0] + 0.4 * grid[1], atol=1e-6)


@pytest.mark.parametrize("surgery", ["paper", "official"])
def test_position_embeddings_of_wide_frames_are_interpolated_along_each_axis(surgery: Any, tmp_path: Path) -> None:
    """From 3 x 3 to 2 x 5, first along the height, then along the width; the corners keep their values."""
    params = flat_vit()
    np.savez(tmp_path / "ViT.npz", **params)
    vit = read_vit(tmp_path / "ViT.npz")
    model = MBT(same_shape(vit, image_size=(32, 80), spec_shape=(96, 48), num_bottlenecks=5))
    init_from_vit(model, vit, surgery)
    position = params["Transformer/posembed_input/pos_embedding"][0]
    top, _, bottom = position[1:].reshape(3, 3, 8)
    rows = [np.stack([row[0], (row[0] + row[1]) / 2, row[1], (row[1] + row[2]) / 2, row[2]]) for row in (top, bottom)]
    rgb = model.state_dict()["tokens.rgb.position"][0].numpy()
    np.testing.assert_array_equal(rgb[0], position[0])
    np.testing.assert_allclose(rgb[1:].reshape(4, 2, 5, 8), np.tile(np.stack(rows), (4, 1, 1, 1)), atol=1e-6)


def test_paper_and_official_surgery_differ_only_in_the_spec_cls_and_the_bottlenecks(tmp_path: Path) -> None:
    np.savez(tmp_path / "ViT.npz", **flat_vit())
    vit = read_vit(tmp_path / "ViT.npz")
    states = {}
    for surgery in ("paper", "official"):
        torch.manual_seed(0)
        model = MBT(same_shape(vit, image_size=48, spec_shape=(96, 48), num_bottlenecks=5))
        init_from_vit(model, vit, surgery)  # type: ignore[arg-type]
        states[surgery] = model.state_dict()
    differing = {name for name, tensor in states["paper"].items() if not torch.equal(tensor, states["official"][name])}
    assert differing == {"tokens.spec.cls", "encoder.bottleneck"}
    assert not states["official"]["tokens.spec.cls"].any()
    assert 0.005 < float(states["paper"]["encoder.bottleneck"].std()) < 0.04


@pytest.mark.parametrize(
    ("name", "inflation"),
    [
        ("init_surgery_token_central", "central"),
        ("init_surgery_token_avg_samegrid_B9", "average"),
        ("init_surgery_token_arp_t4", "rank_pooling"),
    ],
)
def test_the_official_surgery(name: str, inflation: Any, tmp_path: Path) -> None:
    golden = Golden(name)
    model = golden.model("before")
    init_from_vit(model, read_vit(golden_file(f"{name}_vit.npz", tmp_path)), "official", inflation)
    for ours, tensor in golden.tensors("after").items():
        torch.testing.assert_close(model.state_dict()[ours], tensor, rtol=0, atol=1e-6, msg=lambda m, n=ours: f"{n}: {m}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 3}, "the ViT has num_layers 2, but the model has 3"),
        ({"tubelet": (1, 8, 8)}, r"the ViT has patches \(16, 16\), but the rgb stream has \(8, 8\)"),
        ({"spec_patch": (16, 8)}, r"the spec stream has \(16, 8\)"),
    ],
)
def test_a_vit_of_a_different_shape_is_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "ViT.npz", **flat_vit())
    vit = read_vit(tmp_path / "ViT.npz")
    with pytest.raises(ValueError, match=message):
        init_from_vit(MBT(same_shape(vit, image_size=48, spec_shape=(96, 48), **fields)), vit)


def test_official_surgery_requires_a_grid_of_bottlenecks(tmp_path: Path) -> None:
    np.savez(tmp_path / "ViT.npz", **flat_vit())
    vit = read_vit(tmp_path / "ViT.npz")
    with pytest.raises(ValueError, match="cannot arrange 7 of them in a grid"):
        init_from_vit(MBT(same_shape(vit, image_size=48, num_bottlenecks=8)), vit, "official")


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    whole, truncated, foreign = tmp_path / "whole.npz", tmp_path / "truncated.npz", tmp_path / "foreign.npz"
    params = flat_vit()
    np.savez(whole, **params)
    truncated.write_bytes(whole.read_bytes()[:-500])
    np.savez(foreign, weights=np.zeros(3))
    with pytest.raises(ValueError, match=r"not a complete \.npz file"):
        read_vit(truncated)
    with pytest.raises(ValueError, match="this file is not a ViT checkpoint"):
        read_vit(foreign)
    truncated.write_bytes(b"not a zip file")
    with pytest.raises(ValueError, match=r"not a complete \.npz file"):
        read_vit(truncated)
    del params["Transformer/encoderblock_1/LayerNorm_2/bias"]
    np.savez(whole, **params)
    with pytest.raises(ValueError, match="encoderblock_1/LayerNorm_1/bias is missing"):
        read_vit(whole)
    np.savez(whole, **{**params, "Transformer/posembed_input/pos_embedding": np.zeros((1, 12, 8), np.float32)})
    with pytest.raises(ValueError, match="11 patches, which do not form a square"):
        read_vit(whole)


def test_resizing_is_align_corners_bilinear() -> None:
    from mbt.positions import resize_grid

    position = torch.randn(1, 12, 5)
    expected = F.interpolate(position.transpose(1, 2).reshape(1, 5, 3, 4), (7, 2), mode="bilinear", align_corners=True)
    torch.testing.assert_close(resize_grid(position, (3, 4), (7, 2)), expected.flatten(2).transpose(1, 2))
    assert resize_grid(position, (3, 4), (3, 4)) is position
