"""FLOPs of a forward pass by formula. Matrix products and convolutions count two per multiply-add; nothing else counts."""

import math
from dataclasses import dataclass, replace

from mbt.config import MBTConfig, Modality


@dataclass(frozen=True)
class Flops:
    """FLOPs of one clip's forward pass in evaluation.

    Attributes:
        embeddings: patch embeddings.
        rgb: layers of the rgb stream, with its fusion tokens; for layers shared by all streams, the share of its tokens.
        spec: the same for the spec stream.
        head: classifier.
    """

    embeddings: int
    rgb: int
    spec: int
    head: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.embeddings + self.rgb + self.spec + self.head


@dataclass(frozen=True)
class SweepRow:
    """Cost of each kind of fusion for one fusion layer.

    Attributes:
        fusion_layer: L_f.
        bottleneck: fusion through bottleneck tokens.
        attention: attention to all tokens, with the configuration's `share_encoder`.
        official_attention: the same attention as the official code computes it; see `clip_flops`.
    """

    fusion_layer: int
    bottleneck: Flops
    attention: Flops
    official_attention: Flops

    def ways(self) -> dict[str, Flops]:
        """Cost of each kind of fusion by its name."""
        return {
            "bottleneck": self.bottleneck,
            "attention": self.attention,
            "official_attention": self.official_attention,
        }


def clip_flops(config: MBTConfig, *, run_context: bool = False) -> Flops:
    """FLOPs of one clip's forward pass in evaluation.

    Args:
        config: the model.
        run_context: count cross-attention as the official code computes it: each stream's layer runs on the tokens of all
            streams, and its output for the tokens of other streams is discarded. This model uses those tokens as keys and
            values only. Other kinds of fusion are not affected.
    """
    return Flops(
        embeddings=_embeddings(config),
        rgb=_stream(config, "rgb", run_context),
        spec=_stream(config, "spec", run_context),
        head=_head(config),
    )


def fusion_layer_sweep(config: MBTConfig) -> list[SweepRow]:
    """Cost of each kind of fusion for every L_f from 0 (early) to num_layers (late); the right half of the paper's Figure 3.

    Args:
        config: the model; its own `fusion` and `fusion_layer` are ignored.

    Raises:
        ValueError: the model has a single modality.
    """
    if len(config.modalities) < 2:
        raise ValueError(f"modalities {config.modalities}: a single stream has nothing to fuse")
    rows = []
    for layer in range(config.num_layers + 1):
        bottleneck = replace(config, fusion="bottleneck", fusion_layer=layer, test_with_bottlenecks=True)
        attention = replace(bottleneck, fusion="attention")
        rows.append(SweepRow(layer, clip_flops(bottleneck), clip_flops(attention), clip_flops(attention, run_context=True)))
    return rows


def num_tokens(config: MBTConfig) -> dict[Modality, int]:
    """Number of tokens of each stream, with CLS and without fusion tokens."""
    return {m: patches + (config.classifier == "token") for m, patches in _patches(config).items()}


def _patches(config: MBTConfig) -> dict[Modality, int]:
    grids = {"rgb": config.rgb_grid, "spec": config.spec_grid}
    return {m: math.prod(grids[m]) for m in config.modalities}


def _layer(config: MBTConfig, queries: int, keys: int) -> int:
    """FLOPs of a layer in which `queries` tokens attend to `keys` tokens."""
    width = config.hidden_size
    query_and_out = 4 * queries * width**2
    key_and_value = 4 * keys * width**2
    scores_and_mixing = 4 * queries * keys * width
    mlp = 4 * queries * width * config.mlp_dim
    return query_and_out + key_and_value + scores_and_mixing + mlp


def _stream(config: MBTConfig, modality: Modality, run_context: bool) -> int:
    tokens = num_tokens(config)
    if modality not in tokens:
        return 0
    own, everyone = tokens[modality], sum(tokens.values())
    if config.has_bottleneck:
        fused = _layer(config, own + config.num_bottlenecks, own + config.num_bottlenecks)
    elif config.share_encoder:
        fused = _layer(config, everyone, everyone) * own // everyone
    else:
        fused = _layer(config, everyone if run_context else own, everyone)
    fuses = len(tokens) > 1 and config.test_with_bottlenecks
    unfused = config.fusion_layer if fuses else config.num_layers
    return unfused * _layer(config, own, own) + (config.num_layers - unfused) * fused


def _embeddings(config: MBTConfig) -> int:
    """One multiply-add per patch and kernel weight, for three channels of rgb and one of log-mel."""
    weights = {"rgb": 3 * math.prod(config.tubelet), "spec": math.prod(config.spec_patch)}
    return sum(2 * patches * weights[m] * config.hidden_size for m, patches in _patches(config).items())


def _head(config: MBTConfig) -> int:
    """FLOPs of the head, which is applied to the CLS token of each stream, or once to the mean of all tokens."""
    width = config.representation_size or config.hidden_size
    representation = 2 * config.hidden_size * width if config.representation_size else 0
    times = len(config.modalities) if config.classifier == "token" else 1
    return times * (representation + 2 * width * config.num_classes)
