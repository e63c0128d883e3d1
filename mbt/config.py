"""Configuration of the model, in the paper's terms."""

import dataclasses
import json
import operator
from dataclasses import dataclass
from typing import Any, Literal

Modality = Literal["rgb", "spec"]

ImageSize = int | tuple[int, int]
"""Pixels of a frame: the side of a square, or (height, width)."""

VIT_SIZES: dict[str, dict[str, int]] = {
    "Ti": {"hidden_size": 192, "num_layers": 12, "num_heads": 3, "mlp_dim": 768},
    "S": {"hidden_size": 384, "num_layers": 12, "num_heads": 6, "mlp_dim": 1536},
    "B": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "mlp_dim": 3072},
    "L": {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096},
    "H": {"hidden_size": 1280, "num_layers": 32, "num_heads": 16, "mlp_dim": 5120},
}
"""Vision Transformers by name (Dosovitskiy et al., arXiv 2010.11929, Table 1; Ti and S: Touvron et al., arXiv 2012.12877)."""

MAX_BOTTLENECKS = 1024


@dataclass(frozen=True, kw_only=True)
class MBTConfig:
    """Architecture and input shapes of an MBT; the defaults are MBT-B with the paper's input.

    Raises:
        ValueError: a field is out of range or contradicts another; the message names both.
    """

    num_classes: int
    """Number of classes C, the width of the logits."""
    modalities: tuple[Modality, ...] = ("rgb", "spec")
    """Streams of the model. A single one gives the paper's single-modality baseline."""
    fusion: Literal["bottleneck", "attention"] = "bottleneck"
    """How the streams exchange information from `fusion_layer` on. `bottleneck`: through fusion tokens (paper, Eq. 8-9).
    `attention`: cross-attention (Eq. 5-6), or, with `share_encoder`, self-attention over the tokens of all streams (Eq. 4)."""
    share_encoder: bool = False
    """Use one set of transformer weights for all streams."""
    fusion_layer: int = 8
    """L_f, the first layer that fuses the streams, counted from 0. 0 is early fusion, `num_layers` is late fusion."""
    num_bottlenecks: int = 4
    """B, the number of fusion tokens."""
    bottleneck_update: Literal["mean", "sequential"] = "mean"
    """How a layer updates the fusion tokens. `mean`: each stream updates its own copy, and the copies are averaged (NeurIPS
    version, Eq. 8-9). `sequential`: rgb updates them first, then spec updates the result (first arXiv version)."""
    test_with_bottlenecks: bool = True
    """Fuse in evaluation too. If false, the streams are fused in training only."""
    hidden_size: int = 768
    """D, the width of a token."""
    num_layers: int = 12
    """L, the number of transformer layers."""
    num_heads: int = 12
    """Attention heads per layer."""
    mlp_dim: int = 3072
    """Width of the hidden layer of each MLP."""
    num_frames: int = 8
    """F, the number of frames of a clip."""
    image_size: ImageSize = 224
    """Pixels of a frame: one number for square frames, or (height, width)."""
    tubelet: tuple[int, int, int] = (1, 16, 16)
    """Patch of the rgb stream: frames, height and width in pixels."""
    spec_shape: tuple[int, int] = (800, 128)
    """Log-mel rows (100 per second) and mel bands. Rows and bands beyond the last whole patch are ignored, as in the official
    code."""
    spec_patch: tuple[int, int] = (16, 16)
    """Patch of the spec stream: log-mel rows and mel bands."""
    classifier: Literal["token", "gap"] = "token"
    """What the head classifies. `token`: the CLS token of each stream, with shared weights; the logits are averaged (paper,
    Sec. 3.4). `gap`: the mean of all tokens of all streams."""
    representation_size: int | None = None
    """Width of a tanh layer before the head, shared by the streams. None: no such layer."""
    drop_path: float = 0.0
    """Stochastic depth: probability of dropping a branch of the last layer. It grows linearly from 0 at the first layer."""
    drop_path_rescale: bool = False
    """Divide the branches that are kept by the probability of keeping them. This is usual, but the official code does not."""
    dropout: float = 0.0
    """Dropout after attention and after each layer of the MLP."""

    def __post_init__(self) -> None:
        for name in ("modalities", "tubelet", "spec_shape", "spec_patch"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "image_size", as_image_size(self.image_size))
        self._check_positive()
        self._check_fusion()
        self._check_patches()
        self._check_rates()

    def _check_positive(self) -> None:
        for name in ("num_classes", "hidden_size", "num_layers", "num_heads", "mlp_dim", "num_frames", "representation_size"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name} {size} is below 1")
        for name in ("tubelet", "spec_shape", "spec_patch"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is below 1")

    def _check_fusion(self) -> None:
        if self.modalities not in (("rgb", "spec"), ("rgb",), ("spec",)):
            raise ValueError(f"modalities {self.modalities} must be ('rgb', 'spec'), ('rgb',) or ('spec',)")
        if not 0 <= self.fusion_layer <= self.num_layers:
            raise ValueError(f"fusion_layer {self.fusion_layer} is outside 0..{self.num_layers}")
        if not 1 <= self.num_bottlenecks <= MAX_BOTTLENECKS:
            raise ValueError(f"num_bottlenecks {self.num_bottlenecks} is outside 1..{MAX_BOTTLENECKS}")
        if self.fusion == "attention" and not self.test_with_bottlenecks:
            raise ValueError("test_with_bottlenecks is false, but fusion 'attention' has no bottlenecks")

    def _check_patches(self) -> None:
        frames, *patch = self.tubelet
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}")
        if self.num_frames % frames:
            raise ValueError(f"num_frames {self.num_frames} is not divisible by the {frames} frames of the tubelet")
        if any(pixels % side for pixels, side in zip(self.image_shape, patch, strict=True)):
            raise ValueError(f"image_size {self.image_size} is not divisible by the tubelet's {patch[0]} x {patch[1]} pixels")
        if any(size < side for size, side in zip(self.spec_shape, self.spec_patch, strict=True)):
            raise ValueError(f"spec_shape {self.spec_shape} is smaller than spec_patch {self.spec_patch}")

    def _check_rates(self) -> None:
        for name in ("drop_path", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is outside [0, 1)")

    @classmethod
    def vit(cls, name: str, num_classes: int, **fields: Any) -> "MBTConfig":
        """An MBT made of ViTs of a published size, such as `Ti/16`, `S/16`, `B/32`, `L/16` or `H/14`.

        Args:
            name: size, and side of the patches in pixels and in log-mel rows and bands; any patch size will do.
            num_classes: C.
            fields: other fields; they override those that the name implies.

        Raises:
            ValueError: the name is unknown, or fields contradict each other.
        """
        size, slash, patch = name.partition("/")
        if size not in VIT_SIZES or not slash or not patch.isdecimal() or int(patch) < 1:
            raise ValueError(f"unknown ViT {name!r}: give one of {', '.join(VIT_SIZES)} and a patch size, such as 'B/16'")
        side = int(patch)
        shape: dict[str, Any] = {**VIT_SIZES[size], "tubelet": (1, side, side), "spec_patch": (side, side)}
        return cls(num_classes=num_classes, **{**shape, **fields})

    @property
    def has_bottleneck(self) -> bool:
        """Whether there are fusion tokens."""
        return self.fusion == "bottleneck" and len(self.modalities) > 1

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        return image_shape(self.image_size)

    @property
    def rgb_grid(self) -> tuple[int, int, int]:
        """Patches of the rgb stream over time, height and width."""
        height, width = self.image_shape
        return self.num_frames // self.tubelet[0], height // self.tubelet[1], width // self.tubelet[2]

    @property
    def spec_grid(self) -> tuple[int, int]:
        """Patches of the spec stream over time and mel bands."""
        return self.spec_shape[0] // self.spec_patch[0], self.spec_shape[1] // self.spec_patch[1]

    def to_json(self) -> str:
        """The configuration as JSON, one field per line."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "MBTConfig":
        """The configuration that `to_json` wrote.

        Raises:
            ValueError: the text is not a JSON object, a field is unknown or missing, or fields contradict each other.
        """
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(str(error).replace("MBTConfig.__init__() ", "")) from None


def as_image_size(value: object) -> ImageSize:
    """An image size in its one spelling: one number for square frames, (height, width) for others.

    Raises:
        ValueError: the value is neither a positive number nor two of them.
    """
    sides = value if isinstance(value, tuple | list) else (value, value)
    try:
        height, width = (operator.index(side) for side in sides)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) >= 1 and not any(isinstance(side, bool) for side in sides):
        return height if height == width else (height, width)
    raise ValueError(f"image_size {value!r} is neither a positive number of pixels nor [height, width]")


def image_shape(size: ImageSize) -> tuple[int, int]:
    """Height and width of an image size."""
    return (size, size) if isinstance(size, int) else size
