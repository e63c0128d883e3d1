"""MBT: tokens of each modality, the fused encoder, and the classifier."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mbt.config import MBTConfig, Modality
from mbt.encoder import Encoder
from mbt.pretrained import PretrainedModel

TOKEN_STD = 0.02


class Tokens(nn.Module):
    """Patch tokens of one modality, with the CLS token and position embeddings (paper, Sec. 3.1)."""

    def __init__(self, patches: nn.Module, num_patches: int, hidden_size: int, cls: bool) -> None:
        super().__init__()
        self.patches = patches
        self.cls = nn.Parameter(torch.zeros(1, 1, hidden_size)) if cls else None
        self.position = nn.Parameter(torch.empty(1, num_patches + cls, hidden_size).normal_(std=TOKEN_STD))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, ...) to (B, N, D): CLS first, then patches in row-major order."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        if self.cls is not None:
            tokens = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], dim=1)
        return tokens + self.position


class EqualChannels(nn.Conv2d):
    """Convolution over three equal channels, given only one of them.

    The official code repeats the log-mel three times to fit an ImageNet kernel. Summing the kernel over its channels gives the
    same result for a third of the work, with the same weights and gradients.
    """

    def __init__(self, hidden_size: int, patch: tuple[int, int]) -> None:
        super().__init__(3, hidden_size, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, T, M) to (B, D, T / rows, M / bands)."""
        return F.conv2d(x, self.weight.sum(1, keepdim=True), self.bias, self.stride)


class MBT(PretrainedModel):
    """Multimodal Bottleneck Transformer (Nagrani et al., arXiv 2107.00135)."""

    def __init__(self, config: MBTConfig) -> None:
        super().__init__(config)
        hidden = config.hidden_size
        patches: dict[Modality, tuple[nn.Module, int]] = {
            "rgb": (nn.Conv3d(3, hidden, config.tubelet, config.tubelet), math.prod(config.rgb_grid)),
            "spec": (EqualChannels(hidden, config.spec_patch), math.prod(config.spec_grid)),
        }
        cls = config.classifier == "token"
        self.tokens = nn.ModuleDict({m: Tokens(*patches[m], hidden, cls) for m in config.modalities})
        self.encoder = Encoder(config)
        self.representation = (
            nn.Sequential(nn.Linear(hidden, config.representation_size), nn.Tanh())
            if config.representation_size
            else nn.Identity()
        )
        self.head = nn.Linear(config.representation_size or hidden, config.num_classes)
        self._initialize()

    def forward(self, rgb: Tensor | None = None, spec: Tensor | None = None) -> Tensor:
        """Class logits.

        Args:
            rgb: (B, F, 3, H, W) float in [-1, 1].
            spec: (B, T, M) float, standardized log-mel.

        Returns:
            (B, num_classes): the logits, averaged over the modalities.
        """
        return torch.stack(list(self.logits_by_modality(rgb, spec).values())).mean(0)

    def logits_by_modality(self, rgb: Tensor | None = None, spec: Tensor | None = None) -> dict[str, Tensor]:
        """Logits (B, num_classes) of the CLS token of each modality, for the losses of training.

        With the classifier `gap` there is a single entry, `all`. Inputs are those of `forward`.
        """
        encoded = self.encoder(self._tokenize(rgb, spec))
        if self.config.classifier == "token":
            return {m: self.head(self.representation(z[:, 0])) for m, z in encoded.items()}
        return {"all": self.head(self.representation(torch.cat(list(encoded.values()), dim=1).mean(1)))}

    def _tokenize(self, rgb: Tensor | None, spec: Tensor | None) -> dict[Modality, Tensor]:
        inputs: dict[Modality, Tensor] = {}
        if "rgb" in self.config.modalities:
            if rgb is None:
                raise ValueError("the model has an rgb stream, but rgb is not given")
            inputs["rgb"] = rgb.transpose(1, 2)
        if "spec" in self.config.modalities:
            if spec is None:
                raise ValueError("the model has a spec stream, but spec is not given")
            inputs["spec"] = spec.unsqueeze(1)
        return {m: self.tokens[m](x) for m, x in inputs.items()}

    def _initialize(self) -> None:
        """Initialize as the official code does: Xavier in the blocks, LeCun in the patch embeddings, zeros in the head."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d | nn.Conv3d):
                fan_in = module.weight[0].numel()
                nn.init.trunc_normal_(module.weight, std=fan_in**-0.5, a=-2 * fan_in**-0.5, b=2 * fan_in**-0.5)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.head.weight)
        if hasattr(self.encoder, "bottleneck"):
            nn.init.normal_(self.encoder.bottleneck, std=TOKEN_STD)
