"""Reading Flax checkpoint files, written here in their format, and mapping the official parameter names to ours."""

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from mbt import MBT, MBTConfig
from mbt.weights.flax_checkpoint import read_flax_checkpoint
from mbt.weights.scenic import from_scenic, interior_frames
from tests.golden import Golden, close, golden_file


def packed_array(array: np.ndarray, code: int = 1, dtype: str | None = None) -> msgpack.ExtType:
    """An array as flax.serialization packs it."""
    return msgpack.ExtType(code, msgpack.packb((array.shape, dtype or array.dtype.name, array.tobytes())))


def chunked(array: np.ndarray, parts: int) -> dict[str, Any]:
    pieces = np.array_split(array.reshape(-1), parts)
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): size for i, size in enumerate(array.shape)},
        "chunks": {str(i): packed_array(piece) for i, piece in enumerate(pieces)},
    }


RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(13, 7)).astype(np.float32)
LAYOUTS = {
    "optax": lambda tree: {"params": tree, "opt_state": {"0": {"trace": tree}}, "global_step": 7},
    "flax.optim": lambda tree: {"optimizer": {"target": tree, "state": {"step": 7}}, "model_state": {}},
    "flax.optim, params": lambda tree: {"optimizer": {"target": {"params": tree}}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_layouts_are_read(layout: str, tmp_path: Path) -> None:
    tree = {
        "Transformer": {"a": {"kernel": packed_array(MATRIX)}},
        "big": chunked(MATRIX, 3),
        "step": packed_array(np.array(5, np.int64), 3),
        "half": packed_array((MATRIX.view(np.uint32) >> 16).astype(np.uint16), dtype="bfloat16"),
    }
    path = tmp_path / "checkpoint"
    path.write_bytes(msgpack.packb(LAYOUTS[layout](tree)))
    params = read_flax_checkpoint(path)
    assert set(params) == {"Transformer/a/kernel", "big", "step", "half"}
    np.testing.assert_array_equal(params["Transformer/a/kernel"], MATRIX)
    np.testing.assert_array_equal(params["big"], MATRIX)
    assert params["step"] == 5
    np.testing.assert_allclose(params["half"], MATRIX, rtol=2**-7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a complete Flax checkpoint"),
        (b"\x80\x04\x95 pickled", "is not a complete Flax checkpoint"),
        (msgpack.packb({"weights": 1}), "has neither 'params'"),
        (msgpack.packb({"params": {}}), "has neither 'params'"),
        (msgpack.packb({"params": {"a": "text"}}), "a is str, not an array"),
        (msgpack.packb({"params": {"a": packed_array(MATRIX, dtype="object")}}), "dtype 'object'"),
        (msgpack.packb({"params": {"a": packed_array(MATRIX[:3], dtype="float64")}}), "is not a complete Flax checkpoint"),
        (msgpack.packb({"params": {"a": packed_array(MATRIX)}})[:-40], "is not a complete Flax checkpoint"),
        (
            msgpack.packb({"params": {"a": {**chunked(MATRIX, 2), "shape": {"0": 99}}}}),
            "but its chunks have 91 values",
        ),
    ],
)
def test_damaged_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_flax_checkpoint(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder"):
        read_flax_checkpoint(tmp_path)


@pytest.mark.parametrize("layout", ["checkpoint_old_layout", "checkpoint_new_layout"])
def test_official_checkpoints_give_the_official_logits(layout: str, tmp_path: Path) -> None:
    golden = Golden("checkpoint_expected")
    config, state = from_scenic(read_flax_checkpoint(golden_file(layout, tmp_path)), fusion_layer=1)
    assert config == golden.config
    model = MBT(config).eval()
    model.load_state_dict(state)
    close(model(**golden.inputs()), golden.arrays["outputs/logits"])


@pytest.mark.parametrize(
    "name",
    [
        "p01_rgb_token_3dconv",
        "p02_spec_token",
        "p05_bneck_f2_B4_token",
        "p07_bneck_f2_B1_token_rgbfirst",
        "p10_xattn_separate_f2_gap",
        "p12_shared_vanilla_f2_gap",
        "p13_bneck_shared_f2_token",
        "p15_bneck_f1_B4_token_reprsize",
    ],
)
def test_the_configuration_is_inferred_from_shapes_and_a_few_given_fields(name: str) -> None:
    golden = Golden(name)
    fields = {f: getattr(golden.config, f) for f in ("fusion_layer", "image_size", "num_frames", "spec_shape")}
    assert from_scenic(golden.under("params"), **fields)[0] == golden.config


def released(**fields: Any) -> tuple[MBTConfig, dict[str, np.ndarray]]:
    """Configuration and zero parameters; names and shapes are those of released checkpoints, with a smaller hidden size."""
    config = MBTConfig(num_classes=527, num_frames=32, tubelet=(2, 16, 16), num_bottlenecks=5, **fields)
    params: dict[str, np.ndarray] = {
        "embedding/kernel": np.zeros((2, 16, 16, 3, 8)),
        "embedding/bias": np.zeros(8),
        "embedding_spectrogram/kernel": np.zeros((16, 16, 3, 8)),
        "embedding_spectrogram/bias": np.zeros(8),
        "cls": np.zeros((1, 1, 8)),
        "clsspectrogram": np.zeros((1, 1, 8)),
        "bottleneck": np.zeros((1, 5, 8)),
        "Transformer/posembed_input/pos_embedding": np.zeros((1, 3137, 8)),
        "Transformer/posembed_input_spectrogram/pos_embedding": np.zeros((1, 401, 8)),
        "Transformer/encoder_norm/scale": np.zeros(8),
        "Transformer/encoder_norm/bias": np.zeros(8),
        "output_projection/kernel": np.zeros((8, 527)),
        "output_projection/bias": np.zeros(527),
    }
    for layer in range(config.num_layers):
        for suffix in ("", "_spectrogram"):
            block = f"Transformer/encoderblock_{layer}{suffix}"
            for norm in ("LayerNorm_0", "LayerNorm_1"):
                params |= {f"{block}/{norm}/scale": np.zeros(8), f"{block}/{norm}/bias": np.zeros(8)}
            attention = f"{block}/MultiHeadDotProductAttention_0"
            for role in ("query", "key", "value"):
                params |= {f"{attention}/{role}/kernel": np.zeros((8, 2, 4)), f"{attention}/{role}/bias": np.zeros((2, 4))}
            params |= {f"{attention}/out/kernel": np.zeros((2, 4, 8)), f"{attention}/out/bias": np.zeros(8)}
            mlp = f"{block}/MlpBlock_0"
            params |= {f"{mlp}/Dense_0/kernel": np.zeros((8, 16)), f"{mlp}/Dense_0/bias": np.zeros(16)}
            params |= {f"{mlp}/Dense_1/kernel": np.zeros((16, 8)), f"{mlp}/Dense_1/bias": np.zeros(8)}
    return config, params


SMALL = {"hidden_size": 8, "num_heads": 2, "mlp_dim": 16}


def test_the_configuration_of_the_released_checkpoints_is_inferred_fully() -> None:
    """32 frames of 224 x 224 in tubelets of 2, 8 s of log-mel, five bottleneck tokens, fusion from layer 8."""
    config, params = released(**SMALL)
    assert from_scenic(params)[0] == config


def wrong(change: str) -> dict[str, np.ndarray]:
    params = released(**SMALL)[1]
    query = "Transformer/encoderblock_3/MultiHeadDotProductAttention_0/query/kernel"
    match change:
        case "missing":
            del params[query]
        case "heads":
            params[query] = np.zeros((8, 4, 2))
        case "unknown":
            params["Transformer/encoderblock_3/extra/scale"] = np.zeros(8)
        case "twelve":
            params["Transformer/encoderblock_12/LayerNorm_0/scale"] = np.zeros(8)
    return params


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "encoderblock_3/MultiHeadDotProductAttention_0/query/kernel is missing"),
        ("heads", r"encoderblock_3/MultiHeadDotProductAttention_0/query/kernel has shape \(8, 4, 2\), but .* has \(8, 2, 4\)"),
        ("unknown", r"encoderblock_3/extra/scale \(8,\) does not belong to an MBT with"),
        ("twelve", "encoderblock_12.* is missing"),
    ],
)
def test_a_wrong_tensor_is_named(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_scenic(wrong(change))


def test_parameter_names_from_before_linen_are_accepted() -> None:
    config, params = released(**SMALL)
    old = {"LayerNorm_1": "LayerNorm_2", "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1"}
    old |= {"MlpBlock_0": "MlpBlock_3"}
    renamed = {}
    for name, array in params.items():
        for new_part, old_part in old.items():
            name = name.replace(new_part, old_part)
        renamed[name] = array
    assert from_scenic(renamed)[0] == config


def test_a_configuration_that_does_not_match_is_refused() -> None:
    config, params = released(**SMALL)
    with pytest.raises(ValueError, match="pos_embedding has shape"):
        from_scenic(params, MBTConfig(**{**vars(config), "num_frames": 16}))
    with pytest.raises(ValueError, match="either config or fields"):
        from_scenic(params, config, fusion_layer=3)
    with pytest.raises(ValueError, match="no field 'color'"):
        from_scenic(params, color=3)
    with pytest.raises(ValueError, match="not the parameters of an MBT"):
        from_scenic({"head/kernel": np.zeros((3, 3))})


def test_tensors_do_not_share_memory_with_the_arrays() -> None:
    _, params = released(**SMALL)
    _, state = from_scenic(params)
    params["cls"][:] = 1
    assert not state["tokens.rgb.cls"].any()
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in state.values())


@pytest.mark.parametrize(
    ("frames", "sampled", "expected"),
    [
        (32, 8, [4, 7, 11, 14, 18, 21, 25, 28]),
        (250, 8, [28, 56, 83, 111, 139, 167, 194, 222]),
        (4, 2, [1, 3]),
        (4, 4, [0, 1, 2, 3]),
        (2, 8, [0, 1]),
    ],
)
def test_interior_frames(frames: int, sampled: int, expected: list[int]) -> None:
    assert interior_frames(frames, sampled) == expected


@pytest.mark.parametrize(("given", "grid"), [({}, (16, 14, 14)), ({"image_size": (112, 448)}, (16, 7, 28))])
def test_the_image_size_decides_the_grid(given: dict[str, Any], grid: tuple[int, int, int]) -> None:
    """3,136 patches are 16 x 196; the number of patches alone does not distinguish wide frames from square ones."""
    _, params = released(hidden_size=8, num_heads=2, mlp_dim=16)
    config, state = from_scenic(params, **given)
    assert (config.rgb_grid, config.num_frames) == (grid, 32)
    assert state["tokens.rgb.position"].shape == (1, 3137, 8)
