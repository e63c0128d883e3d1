"""FLOPs by formula, compared with torch's counter."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mbt import MBT, MBTConfig
from mbt.encoder import Block
from mbt.flops import clip_flops, fusion_layer_sweep
from tests.tiny import VARIANTS

ODD = {
    "num_classes": 7,
    "hidden_size": 36,
    "num_layers": 5,
    "num_heads": 3,
    "mlp_dim": 52,
    "num_frames": 6,
    "image_size": 42,
    "tubelet": (1, 14, 7),
    "spec_shape": (75, 33),
    "spec_patch": (8, 6),
    "fusion_layer": 2,
    "num_bottlenecks": 3,
}
"""All sizes differ, and the spectrogram's are not divisible by its patches."""
TOKENS = {"rgb": 6 * 3 * 6 + 1, "spec": 9 * 5 + 1}


def counted(model: MBT, rgb: Tensor, spec: Tensor) -> FlopCounterMode:
    """torch's count for a forward pass; on the meta device attention consists of matrix products, which torch counts."""
    given = {"rgb": rgb, "spec": spec}
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(**{m: given[m] for m in model.config.modalities})
    return counter


def on_meta(config: MBTConfig) -> tuple[MBT, Tensor, Tensor]:
    """A model and the input of one clip on the meta device, which allocates no memory."""
    with torch.device("meta"):
        rgb = torch.empty(1, config.num_frames, 3, *config.image_shape)
        return MBT(config).eval(), rgb, torch.empty(1, *config.spec_shape)


@pytest.mark.parametrize("classifier", ["token", "gap"])
@pytest.mark.parametrize(
    "fields",
    [*VARIANTS, {"fusion_layer": 5}, {"tubelet": (2, 14, 7)}, {"image_size": (28, 63)}, {"representation_size": 11}],
    ids=str,
)
def test_formulas_agree_with_torchs_counter(fields: dict[str, object], classifier: str) -> None:
    config = MBTConfig(**{**ODD, **fields, "classifier": classifier})
    total = counted(*on_meta(config)).get_total_flops()
    assert clip_flops(config).total == pytest.approx(total, rel=1e-12)


def test_torchs_counter_sees_attention() -> None:
    """It would miss a fused attention kernel that it does not know."""
    config = MBTConfig(**ODD)
    by_kind = counted(*on_meta(config)).get_flop_counts()["Global"]
    expected = sum(4 * 36 * (2 * n**2 + 3 * (n + 3) ** 2) for n in TOKENS.values())
    assert {str(kind): number for kind, number in by_kind.items()}["aten.bmm"] == expected


def test_parts_match_torchs_counts_by_module() -> None:
    config = MBTConfig(**ODD, representation_size=11)
    by_module = counted(*on_meta(config)).get_flop_counts()

    def part(*names: str) -> int:
        return sum(sum(by_module[name].values()) for name in names)

    parts = clip_flops(config)
    assert parts.embeddings == part("MBT.tokens.rgb", "MBT.tokens.spec")
    assert parts.rgb == part(*(f"MBT.encoder.blocks.rgb.{layer}" for layer in range(5)))
    assert parts.spec == part(*(f"MBT.encoder.blocks.spec.{layer}" for layer in range(5)))
    assert parts.head == part("MBT.representation", "MBT.head")


@pytest.mark.parametrize("share_encoder", [False, True])
def test_official_attention_runs_the_layer_on_the_context_too(share_encoder: bool) -> None:
    """The official code (scenic, projects/mbt/model.py) runs [others ; x] through the block and keeps the last tokens."""
    config = MBTConfig(**ODD, fusion="attention", share_encoder=share_encoder)

    def whole(block: Block, x: Tensor, others: Tensor | None) -> Tensor:
        return block(x if others is None else torch.cat([others, x], dim=1))[:, -x.shape[1] :]

    streams = {m: torch.empty(1, n, 36, device="meta") for m, n in TOKENS.items()}
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        on_meta(config)[0].encoder.through_layers(streams, None, whole)
    official = clip_flops(config, run_context=True)
    assert official.rgb + official.spec == counter.get_total_flops()


@pytest.mark.parametrize(
    ("fields", "gflop"),
    [({}, 437), ({"num_frames": 32, "tubelet": (2, 16, 16)}, 986)],
)
def test_full_size_is_just_below_xlas_count_for_the_official_module(fields: dict[str, object], gflop: float) -> None:
    """XLA counts element-wise operations too, so our count is lower, by less than 3%."""
    total = clip_flops(MBTConfig(num_classes=527, num_bottlenecks=5, **fields)).total / 1e9
    assert 0.97 * gflop < total < gflop


def test_figure_3() -> None:
    """The cost of bottleneck fusion hardly depends on L_f; in early fusion it is less than half of attention's (Sec. 4.3.1)."""
    rows = fusion_layer_sweep(MBTConfig(num_classes=527, spec_shape=(400, 128)))
    assert [row.fusion_layer for row in rows] == list(range(13))
    bottleneck = [row.bottleneck.total for row in rows]
    assert max(bottleneck) < 1.01 * min(bottleneck)
    assert bottleneck[0] < 0.5 * rows[0].official_attention.total
    for early, late in pairwise(rows):
        assert early.attention.total > late.attention.total
        assert early.official_attention.total > early.attention.total > early.bottleneck.total
    assert rows[12].bottleneck.total == rows[12].attention.total == rows[12].official_attention.total


def test_the_sweep_ignores_the_configurations_fusion() -> None:
    config = MBTConfig(**ODD)
    rows = fusion_layer_sweep(config)
    assert fusion_layer_sweep(replace(config, fusion="attention", fusion_layer=4)) == rows
    assert fusion_layer_sweep(replace(config, test_with_bottlenecks=False)) == rows
    assert rows[2].bottleneck == clip_flops(config)
    assert rows[2].attention == clip_flops(replace(config, fusion="attention"))


def test_one_modality_has_nothing_to_sweep() -> None:
    with pytest.raises(ValueError, match="nothing to fuse"):
        fusion_layer_sweep(MBTConfig(**ODD, modalities=("rgb",)))
