"""The transformer: pre-norm blocks, and three ways to fuse the streams (paper, Sec. 3.2-3.3)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mbt.config import MBTConfig, Modality
from mbt.linear import Linear

LAYER_NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head attention; keys and values may come from a larger context than the queries (paper, Eq. 5-6)."""

    def __init__(self, config: MBTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query = Linear(config.hidden_size, config.hidden_size)
        self.key = Linear(config.hidden_size, config.hidden_size)
        self.value = Linear(config.hidden_size, config.hidden_size)
        self.out = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend from x (B, N, D) to context (B, M, D); returns (B, N, D)."""
        query, key, value = self._heads(self.query(x)), self._heads(self.key(context)), self._heads(self.value(context))
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, context: Tensor) -> Tensor:
        """Attention weights of `forward`, averaged over the heads: (B, N, M); each row sums to 1."""
        scores = self._heads(self.query(x)) @ self._heads(self.key(context)).transpose(-2, -1)
        return (scores * (x.shape[-1] // self.num_heads) ** -0.5).softmax(-1).mean(1)

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    """Two layers with GELU (tanh approximation, as in flax)."""

    def __init__(self, config: MBTConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.mlp_dim)
        self.fc2 = Linear(config.mlp_dim, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x), approximate="tanh"))))


class DropPath(nn.Module):
    """Stochastic depth: drops the whole branch of an example with probability `rate`.

    With `rescale`, branches that are kept are divided by `1 - rate`.
    """

    def __init__(self, rate: float, rescale: bool) -> None:
        super().__init__()
        self.rate = rate
        self.scale = 1 / (1 - rate) if rescale else 1.0

    def forward(self, branch: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.rate
        return branch * (kept * self.scale)


class Block(nn.Module):
    """Pre-norm transformer layer (paper, Eq. 1-2)."""

    def __init__(self, config: MBTConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.attention = Attention(config)
        self.dropout = nn.Dropout(config.dropout)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.mlp = MLP(config)
        self.drop_path = DropPath(drop_path, config.drop_path_rescale)

    def forward(self, x: Tensor, others: Tensor | None = None) -> Tensor:
        """Let x (B, N, D) attend to itself and to others (B, M, D), if given; returns (B, N, D)."""
        x = x + self.drop_path(self.dropout(self.attention(*self._query_and_context(x, others))))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attention_weights(self, x: Tensor, others: Tensor | None = None) -> Tensor:
        """Attention of x (B, N, D) over the tokens of [others || x], mean over the heads: (B, N, M + N)."""
        return self.attention.weights(*self._query_and_context(x, others))

    def _query_and_context(self, x: Tensor, others: Tensor | None) -> tuple[Tensor, Tensor]:
        own = self.norm1(x)
        return own, own if others is None else torch.cat([self.norm1(others), own], dim=1)


Streams = dict[Modality, Tensor]

RunBlock = Callable[[Block, Tensor, Tensor | None], Tensor]
"""Applies a layer to x (B, N, D) and others (B, M, D) or None; returns (B, N, D)."""


def run_block(block: Block, x: Tensor, others: Tensor | None) -> Tensor:
    """Apply the layer."""
    return block(x, others)


def run_checkpointed(block: Block, x: Tensor, others: Tensor | None) -> Tensor:
    """Apply the layer, and recompute it in the backward pass instead of storing its activations."""
    return checkpoint(block, x, others, use_reentrant=False)


class Encoder(nn.Module):
    """L layers, which process each stream separately before L_f and fuse them from L_f on; then one layer norm for all streams.

    Attributes:
        activation_checkpointing: in training, store only the input of each layer, and recompute the layer in the backward pass.
    """

    def __init__(self, config: MBTConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        rates = [config.drop_path * layer / max(config.num_layers - 1, 1) for layer in range(config.num_layers)]
        names = ["shared"] if config.share_encoder else list(config.modalities)
        self.blocks = nn.ModuleDict({name: nn.ModuleList(Block(config, rate) for rate in rates) for name in names})
        self.norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        if config.has_bottleneck:
            self.bottleneck = nn.Parameter(torch.empty(1, config.num_bottlenecks, config.hidden_size))

    def forward(self, streams: Streams) -> Streams:
        """Encode the tokens (B, N_m, D) of each modality; shapes are unchanged."""
        batch = len(next(iter(streams.values())))
        z_fsn = self.bottleneck.expand(batch, -1, -1) if self.config.has_bottleneck else None
        run = run_checkpointed if self.activation_checkpointing and self.training else run_block
        return {m: self.norm(z) for m, z in self.through_layers(streams, z_fsn, run).items()}

    def through_layers(self, streams: Streams, z_fsn: Tensor | None, run: RunBlock) -> Streams:
        """Pass the tokens through all layers, each applied by `run`.

        Args:
            streams: (B, N_m, D) of each modality.
            z_fsn: fusion tokens (B, num_bottlenecks, D); None if the model has none.
            run: applies one layer.
        """
        for layer in range(self.config.num_layers):
            if self._is_unfused(layer):
                streams = {m: run(self._block(m, layer), z, None) for m, z in streams.items()}
            elif z_fsn is not None:
                streams, z_fsn = self._through_bottleneck(layer, streams, z_fsn, run)
            elif self.config.share_encoder:
                streams = self._joint(layer, streams, run)
            else:
                streams = self._cross(layer, streams, run)
        return streams

    def _is_unfused(self, layer: int) -> bool:
        fused = len(self.config.modalities) > 1 and (self.training or self.config.test_with_bottlenecks)
        return not fused or layer < self.config.fusion_layer

    def _block(self, modality: Modality, layer: int) -> Block:
        blocks = self.blocks["shared" if self.config.share_encoder else modality]
        assert isinstance(blocks, nn.ModuleList)
        block = blocks[layer]
        assert isinstance(block, Block)
        return block

    def _through_bottleneck(self, layer: int, streams: Streams, z_fsn: Tensor, run: RunBlock) -> tuple[Streams, Tensor]:
        """Apply each stream's layer to [z_m || z_fsn]; information crosses through the fusion tokens only (Eq. 8-9)."""
        fused: Streams = {}
        updates = []
        for m, z in streams.items():
            out = run(self._block(m, layer), torch.cat([z, z_fsn], dim=1), None)
            fused[m], update = out.split([z.shape[1], z_fsn.shape[1]], dim=1)
            updates.append(update)
            if self.config.bottleneck_update == "sequential":
                z_fsn = update
        if self.config.bottleneck_update == "mean":
            z_fsn = torch.stack(updates).mean(0)
        return fused, z_fsn

    def _joint(self, layer: int, streams: Streams, run: RunBlock) -> Streams:
        """Vanilla self-attention over the tokens of all streams (Eq. 4)."""
        lengths = [z.shape[1] for z in streams.values()]
        out = run(self._block("rgb", layer), torch.cat(list(streams.values()), dim=1), None)
        return dict(zip(streams, out.split(lengths, dim=1), strict=True))

    def _cross(self, layer: int, streams: Streams, run: RunBlock) -> Streams:
        """Cross-attention: each stream attends to all tokens, with its own weights (Eq. 5-6)."""
        return {
            m: run(self._block(m, layer), z, torch.cat([other for o, other in streams.items() if o != m], dim=1))
            for m, z in streams.items()
        }
