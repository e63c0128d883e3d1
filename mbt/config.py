"""Configuration of the model, in the paper's terms."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

Modality = Literal["rgb", "spec"]

VIT_SIZES: dict[str, dict[str, int]] = {
    "Ti": {"hidden_size": 192, "num_layers": 12, "num_heads": 3, "mlp_dim": 768},
    "S": {"hidden_size": 384, "num_layers": 12, "num_heads": 6, "mlp_dim": 1536},
    "B": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "mlp_dim": 3072},
    "L": {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096},
    "H": {"hidden_size": 1280, "num_layers": 32, "num_heads": 16, "mlp_dim": 5120},
}
"""Vision Transformers by name (Dosovitskiy et al., arXiv 2010.11929, Table 1; Ti and S: Touvron et al., arXiv 2012.12877)."""

SIZES = (
    *("num_classes", "hidden_size", "num_layers", "num_heads", "mlp_dim", "num_frames", "image_size"),
    *("tubelet", "spec_shape", "spec_patch", "representation_size"),
)


@dataclass(frozen=True, kw_only=True)
class MBTConfig:
    """Shape of an MBT; defaults are MBT-B with the paper's input (8 frames of 224 x 224, 8 s of log-mel).

    Raises:
        ValueError: fields contradict each other; the message names them.
    """

    num_classes: int
    modalities: tuple[Modality, ...] = ("rgb", "spec")
    """Streams of the model; one of them alone gives the single-modality baseline."""
    fusion: Literal["bottleneck", "attention"] = "bottleneck"
    """How streams exchange information from `fusion_layer` on. `attention` is the paper's cross-attention (Eq. 5-6), or
    with `share_encoder` its vanilla self-attention over all tokens (Eq. 4)."""
    share_encoder: bool = False
    """One set of block weights for all streams."""
    fusion_layer: int = 8
    """L_f: layers before it see one modality; num_layers is late fusion, 0 is early fusion."""
    num_bottlenecks: int = 4
    """B: fusion tokens."""
    bottleneck_update: Literal["mean", "sequential"] = "mean"
    """Each stream updates the tokens and their mean goes on (NeurIPS version, Eq. 8-9), or rgb updates them, then spec
    (first arXiv version)."""
    test_with_bottlenecks: bool = True
    """Bottlenecks in evaluation too; without them the streams of a trained model stay apart there."""
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    num_frames: int = 8
    image_size: int = 224
    tubelet: tuple[int, int, int] = (1, 16, 16)
    """Patch of the rgb stream: frames, height, width."""
    spec_shape: tuple[int, int] = (800, 128)
    """Log-mel rows and mel bands; what is left over by whole patches is not seen, as in the official code."""
    spec_patch: tuple[int, int] = (16, 16)
    """Patch of the spec stream: rows, bands."""
    classifier: Literal["token", "gap"] = "token"
    """`token`: one shared head on each stream's CLS token, logits averaged (Sec. 3.4). `gap`: the head on the mean of all
    tokens of all streams."""
    representation_size: int | None = None
    """Width of a tanh layer before the head, shared by the streams."""
    drop_path: float = 0.0
    """Stochastic depth of the last layer; it grows linearly from 0 at the first."""
    drop_path_rescale: bool = False
    """Divide kept branches by the probability to be kept, as is usual; the official code does not."""
    dropout: float = 0.0
    """After attention and after each layer of the MLP."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", tuple(self.modalities))
        for name in ("tubelet", "spec_shape", "spec_patch"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for wrong in self._wrong():
            raise ValueError(wrong)

    def _wrong(self) -> list[str]:
        frames, height, width = self.tubelet
        rows, bands = self.spec_shape
        sizes = {name: getattr(self, name) for name in SIZES if getattr(self, name) is not None}
        small = [
            f"{name} {size} is below 1" for name, size in sizes.items() if min(size if isinstance(size, tuple) else (size,)) < 1
        ]
        if small:
            return small
        checks = [
            (
                self.modalities in (("rgb", "spec"), ("rgb",), ("spec",)),
                f"modalities {self.modalities} are neither ('rgb', 'spec') nor one of them",
            ),
            (
                0 <= self.fusion_layer <= self.num_layers,
                f"fusion_layer {self.fusion_layer} is outside 0..{self.num_layers}",
            ),
            (
                self.test_with_bottlenecks or self.fusion == "bottleneck",
                "test_with_bottlenecks is false, and fusion 'attention' has no bottlenecks",
            ),
            (1 <= self.num_bottlenecks <= 1024, f"num_bottlenecks {self.num_bottlenecks} is outside 1..1024"),
            (
                self.hidden_size % self.num_heads == 0,
                f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}",
            ),
            (
                self.num_frames % frames == 0,
                f"num_frames {self.num_frames} is no multiple of the tubelet's {frames} frames",
            ),
            (
                self.image_size % height == 0 and self.image_size % width == 0,
                f"image_size {self.image_size} is no multiple of the tubelet's {height} x {width} pixels",
            ),
            (
                rows >= self.spec_patch[0] and bands >= self.spec_patch[1],
                f"spec_shape {self.spec_shape} holds no spec_patch {self.spec_patch}",
            ),
            (0 <= self.drop_path < 1, f"drop_path {self.drop_path} is outside [0, 1)"),
            (0 <= self.dropout < 1, f"dropout {self.dropout} is outside [0, 1)"),
        ]
        return [message for holds, message in checks if not holds]

    @classmethod
    def vit(cls, name: str, num_classes: int, **fields: Any) -> "MBTConfig":
        """An MBT of ViTs by name: `Ti/16`, `S/16`, `B/32`, `L/16`, `H/14`; any patch size goes.

        Args:
            name: size, and side of the patches in pixels and in log-mel rows and bands.
            num_classes: C.
            fields: others of the configuration; they win over what the name says.

        Raises:
            ValueError: no such size, or fields that contradict each other.
        """
        size, slash, patch = name.partition("/")
        if size not in VIT_SIZES or not slash or not patch.isdecimal() or int(patch) < 1:
            raise ValueError(f"ViT {name!r} is none of {', '.join(VIT_SIZES)} with a patch size, such as 'B/16'")
        side = int(patch)
        shape: dict[str, Any] = {**VIT_SIZES[size], "tubelet": (1, side, side), "spec_patch": (side, side)}
        return cls(num_classes=num_classes, **{**shape, **fields})

    @property
    def has_bottleneck(self) -> bool:
        """Whether there are fusion tokens."""
        return self.fusion == "bottleneck" and len(self.modalities) > 1

    @property
    def rgb_grid(self) -> tuple[int, int, int]:
        """Patches of the rgb stream over time, height and width."""
        return (
            self.num_frames // self.tubelet[0],
            self.image_size // self.tubelet[1],
            self.image_size // self.tubelet[2],
        )

    @property
    def spec_grid(self) -> tuple[int, int]:
        """Patches of the spec stream over time and mel bands."""
        return self.spec_shape[0] // self.spec_patch[0], self.spec_shape[1] // self.spec_patch[1]

    def to_json(self) -> str:
        """The configuration as JSON, a field a line."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "MBTConfig":
        """Configuration of `to_json`'s text.

        Raises:
            ValueError: no JSON object, an unknown or missing field, or fields that contradict each other.
        """
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(str(error).replace("MBTConfig.__init__() ", "")) from None
