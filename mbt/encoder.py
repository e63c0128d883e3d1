"""The transformer: pre-norm blocks, and the three ways in which streams are fused (paper, Sec. 3.2-3.3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mbt.config import MBTConfig, Modality

LAYER_NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head attention whose keys and values may include a context that itself asks nothing (paper, Eq. 5-6)."""

    def __init__(self, config: MBTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend from x (B, N, D) to context (B, M, D); returns (B, N, D)."""
        query, key, value = (
            tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens in (self.query(x), self.key(context), self.value(context))
        )
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers with GELU (tanh approximation, as in flax)."""

    def __init__(self, config: MBTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x), approximate="tanh"))))


class DropPath(nn.Module):
    """Stochastic depth: drops the whole branch of an example with probability `rate`; kept branches are not rescaled."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        if not self.training or self.rate == 0:
            return branch
        return branch * (torch.rand(len(branch), 1, 1, device=branch.device) >= self.rate)


class Block(nn.Module):
    """Pre-norm transformer layer (paper, Eq. 1-2)."""

    def __init__(self, config: MBTConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.attention = Attention(config)
        self.dropout = nn.Dropout(config.dropout)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.mlp = MLP(config)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, others: Tensor | None = None) -> Tensor:
        """x (B, N, D) attends to itself and, where given, to others (B, M, D); returns (B, N, D)."""
        own = self.norm1(x)
        context = own if others is None else torch.cat([self.norm1(others), own], dim=1)
        x = x + self.drop_path(self.dropout(self.attention(own, context)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


Streams = dict[Modality, Tensor]


class Encoder(nn.Module):
    """L layers: each stream alone up to L_f, fused from there on; then one layer norm for all streams."""

    def __init__(self, config: MBTConfig) -> None:
        super().__init__()
        self.config = config
        rates = [config.drop_path * layer / max(config.num_layers - 1, 1) for layer in range(config.num_layers)]
        names = ["shared"] if config.share_encoder else list(config.modalities)
        self.blocks = nn.ModuleDict({name: nn.ModuleList(Block(config, rate) for rate in rates) for name in names})
        self.norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        if config.fusion == "bottleneck" and len(config.modalities) > 1:
            self.bottleneck = nn.Parameter(torch.empty(1, config.num_bottlenecks, config.hidden_size))

    def forward(self, streams: Streams) -> Streams:
        """Tokens (B, N_m, D) of each modality to the same shapes."""
        batch = len(next(iter(streams.values())))
        fused = len(streams) > 1
        z_fsn = self.bottleneck.expand(batch, -1, -1) if fused and self.config.fusion == "bottleneck" else None
        for layer in range(self.config.num_layers):
            if not fused or layer < self.config.fusion_layer:
                streams = {m: self._block(m, layer)(z) for m, z in streams.items()}
            elif z_fsn is not None:
                streams, z_fsn = self._through_bottleneck(layer, streams, z_fsn)
            elif self.config.share_encoder:
                streams = self._joint(layer, streams)
            else:
                streams = self._cross(layer, streams)
        return {m: self.norm(z) for m, z in streams.items()}

    def _block(self, modality: Modality, layer: int) -> nn.Module:
        blocks = self.blocks["shared" if self.config.share_encoder else modality]
        assert isinstance(blocks, nn.ModuleList)
        return blocks[layer]

    def _through_bottleneck(self, layer: int, streams: Streams, z_fsn: Tensor) -> tuple[Streams, Tensor]:
        """[z_m || z_fsn] through each stream's layer; the fusion tokens carry what crosses (Eq. 8-9)."""
        fused: Streams = {}
        updates = []
        for m, z in streams.items():
            out = self._block(m, layer)(torch.cat([z, z_fsn], dim=1))
            fused[m], update = out.split([z.shape[1], z_fsn.shape[1]], dim=1)
            updates.append(update)
            if self.config.bottleneck_update == "sequential":
                z_fsn = update
        if self.config.bottleneck_update == "mean":
            z_fsn = torch.stack(updates).mean(0)
        return fused, z_fsn

    def _joint(self, layer: int, streams: Streams) -> Streams:
        """Vanilla self-attention over the tokens of all streams (Eq. 4)."""
        lengths = [z.shape[1] for z in streams.values()]
        out = self._block("rgb", layer)(torch.cat(list(streams.values()), dim=1))
        return dict(zip(streams, out.split(lengths, dim=1), strict=True))

    def _cross(self, layer: int, streams: Streams) -> Streams:
        """Each stream attends to all tokens with weights of its own (Eq. 5-6)."""
        return {
            m: self._block(m, layer)(z, torch.cat([other for o, other in streams.items() if o != m], dim=1))
            for m, z in streams.items()
        }
