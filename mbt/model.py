"""MBT: tokens of each modality, the fused encoder, and the classifier."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mbt.config import MBTConfig, Modality
from mbt.encoder import Encoder

TOKEN_STD = 0.02


class Tokens(nn.Module):
    """One modality's input as patch tokens with CLS and position embedding (paper, Sec. 3.1)."""

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
    """Convolution over three equal channels, given one of them.

    The official code repeats the log-mel three times to fit an ImageNet kernel. Summing the kernel over its channels computes
    the same for a third of the work, and leaves weights and gradients as they are there.
    """

    def __init__(self, hidden_size: int, patch: tuple[int, int]) -> None:
        super().__init__(3, hidden_size, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, T, M) to (B, D, T / rows, M / bands)."""
        return F.conv2d(x, self.weight.sum(1, keepdim=True), self.bias, self.stride)


class MBT(nn.Module):
    """Multimodal Bottleneck Transformer."""

    def __init__(self, config: MBTConfig) -> None:
        super().__init__()
        self.config = config
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
        self._initialise()

    def forward(self, rgb: Tensor | None = None, spec: Tensor | None = None) -> Tensor:
        """Class logits.

        Args:
            rgb: (B, F, 3, H, W) float in [-1, 1].
            spec: (B, T, M) float, standardised log-mel.

        Returns:
            (B, num_classes): the mean of the modalities' logits.
        """
        return torch.stack(list(self.logits_by_modality(rgb, spec).values())).mean(0)

    def logits_by_modality(self, rgb: Tensor | None = None, spec: Tensor | None = None) -> dict[str, Tensor]:
        """Logits (B, num_classes) of each modality's CLS token, which training takes its losses from.

        With `gap` there is one entry, `all`. Inputs as in `forward`.
        """
        encoded = self.encoder(self._tokenise(rgb, spec))
        if self.config.classifier == "token":
            return {m: self.head(self.representation(z[:, 0])) for m, z in encoded.items()}
        return {"all": self.head(self.representation(torch.cat(list(encoded.values()), dim=1).mean(1)))}

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None, **fields: Any) -> "MBT":
        """A model from a folder that `save_pretrained` wrote, or from the Hugging Face hub; on the CPU, in evaluation mode.

        Args:
            source: folder, or hub id such as `owner/name`.
            revision: branch, tag or commit on the hub.
            fields: fields of the configuration to change: with other `num_frames`, `image_size` or `spec_shape` the position
                embeddings are resized, with other `num_classes` the head starts at zero.

        Raises:
            ValueError: a file is damaged, or a tensor is missing, unknown or of another shape; the message names it.
            OSError: the hub does not give it.
        """
        from mbt.pretrained import load_pretrained

        return load_pretrained(source, revision, **fields)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors, config.json and a model card, as the hub has them."""
        from mbt.pretrained import folder_files, write_folder

        write_folder(Path(folder), folder_files(self.config, self.state_dict()))

    def _tokenise(self, rgb: Tensor | None, spec: Tensor | None) -> dict[Modality, Tensor]:
        inputs: dict[Modality, Tensor] = {}
        if "rgb" in self.config.modalities:
            if rgb is None:
                raise ValueError("the model has an rgb stream, and rgb is not given")
            inputs["rgb"] = rgb.transpose(1, 2)
        if "spec" in self.config.modalities:
            if spec is None:
                raise ValueError("the model has a spec stream, and spec is not given")
            inputs["spec"] = spec.unsqueeze(1)
        return {m: self.tokens[m](x) for m, x in inputs.items()}

    def _initialise(self) -> None:
        """As in the official code: Xavier in the blocks, LeCun in embeddings, zeros in the head."""
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
