"""Recipes: everything that decides a training, in TOML; every field can be set from the command line."""

import difflib
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, ValidationError, model_validator

from mbt.config import VIT_SIZES, MBTConfig, Modality
from mbt.manifests.errors import ConfigError
from mbt.manifests.settings import toml_value
from mbt.manifests.shards import FPS, DatasetInfo, Frozen
from mbt.train.sampling.inputs import Inputs
from mbt.train.sampling.plan import Jitter, Mixing
from mbt.train.sampling.window import Window

NONE = "none"
"""How a recipe says that a field is not set: TOML has no word for it."""


class ModelRecipe(Frozen):
    """The model's own part of MBTConfig; its input shapes come from `InputRecipe` and the dataset.

    `size`, one of Ti, S, B, L, H, stands for the width, depth, heads and MLP of that ViT; a field given beside it wins.
    """

    modalities: tuple[Modality, ...] = ("rgb", "spec")
    fusion: Literal["bottleneck", "attention"] = "bottleneck"
    share_encoder: bool = False
    fusion_layer: int = 8
    num_bottlenecks: int = 4
    bottleneck_update: Literal["mean", "sequential"] = "mean"
    test_with_bottlenecks: bool = True
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    tubelet: tuple[int, int, int] = (1, 16, 16)
    spec_patch: tuple[int, int] = (16, 16)
    classifier: Literal["token", "gap"] = "token"
    representation_size: int | None = None
    drop_path: float = 0.0
    drop_path_rescale: bool = False
    dropout: float = 0.0

    @model_validator(mode="before")
    @classmethod
    def _size(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or "size" not in fields:
            return fields
        size = fields["size"]
        if size not in VIT_SIZES:
            raise ValueError(f"size {size!r} is none of {', '.join(VIT_SIZES)}")
        return {**VIT_SIZES[size], **{name: value for name, value in fields.items() if name != "size"}}


class InitRecipe(Frozen):
    """Where the weights begin."""

    weights: str | None = None
    """An ImageNet ViT: the original .npz, a Scenic checkpoint, or `timm:NAME`; or an MBT: its folder, or its id on the hub.
    None: at random."""
    surgery: Literal["paper", "official"] = "paper"
    """What of a ViT goes where; see `mbt.weights.surgery.init_from_vit`."""
    inflation: Literal["central", "average", "rank_pooling"] = "central"
    """How a ViT's patches start on the frames of a tubelet."""


class InputRecipe(Frozen):
    """Views of the clips."""

    seconds: float = Field(8.0, gt=0)
    """t."""
    frames: int = Field(8, ge=1)
    """F."""
    stride: int | None = Field(None, ge=1)
    """Frames of 1/25 s from one to the next. None: the F frames are spread over t."""
    synchronised: bool = True
    """Training views of picture and sound begin together; false: each is drawn by itself."""
    resize: int = Field(256, ge=1)
    """Short side of the frames before the crop."""
    image_size: int = Field(224, ge=1)
    flip: bool = True
    """Mirror half of the training views left to right."""
    scale_jitter: tuple[float, float] | None = None
    """Bounds of the factors by which height and width of training views grow before the crop, each by itself."""
    colour_jitter: float = Field(0.0, ge=0, le=1)
    """Share of the training views whose brightness, saturation, contrast and hue are changed."""
    grey: float = Field(0.0, ge=0, le=1)
    """Share of the training views without colour."""
    streams: int = Field(8, ge=1)
    """Of shards behind a URL: places of the set that all ranks together read at a time. Each gives an equal part of a batch."""
    shuffle_buffer: int = Field(2048, ge=1)
    """Of shards behind a URL: views that are kept, over all ranks, to mix the order."""
    max_corrupt: float = Field(0.01, ge=0, le=1)
    """Damaged training samples are replaced by others; a larger share of the split stops the run."""

    @property
    def rgb_seconds(self) -> float | None:
        """t of the frames, where it is not that of the sound."""
        return None if self.stride is None else self.frames * self.stride / FPS

    @property
    def jitter(self) -> Jitter:
        """How the frames of training views vary."""
        return Jitter(self.flip, self.scale_jitter, self.colour_jitter, self.grey)

    @model_validator(mode="after")
    def _window(self) -> "InputRecipe":
        Window(self.seconds, self.frames, self.rgb_seconds)
        if self.image_size > self.resize:
            raise ValueError(f"image_size {self.image_size} is above resize {self.resize}")
        if self.scale_jitter is not None:
            low, high = self.scale_jitter
            if not 0 < low <= high or int(low * self.resize) < self.image_size:
                raise ValueError(f"scale_jitter [{low}, {high}] leaves no crop of {self.image_size} of resize {self.resize}")
        return self


class TrainRecipe(Frozen):
    """Optimisation."""

    batch_size: int = Field(64, ge=1)
    """Global batch."""
    epochs: float = Field(50.0, gt=0)
    balanced_sampling: bool = False
    """Draw clips with replacement so that rare classes come as often as common ones."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after so many steps, whatever the epochs; the schedule ends there too."""
    learning_rate: float = Field(0.5, gt=0)
    warmup_epochs: float = Field(2.5, ge=0)
    """Half of the training at most."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of sgd."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Of adamw: decay of the means of the gradient and of its square."""
    weight_decay: float = Field(0.0, ge=0)
    """Of adamw, on the kernels of layers and patch embeddings alone: not on biases, norms, positions and tokens."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Each layer's rate is so much of the rate of the layer above it. None: all learn at the same rate."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Keep a moving average of the weights with this decay a step; evaluate it, and keep it as best and last."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Global L2 norm to which gradients are clipped."""
    group_size: int | None = Field(None, ge=2)
    """So many examples share their mixup weights, and their gradient is clipped apart, before the mean is taken: one device
    of the official training has two. None: the whole batch."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What becomes of a step whose loss or gradient is not finite: it ends the training, or nothing is updated by it."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    mixup_alpha: float | None = Field(None, gt=0)
    """Mixup with weights from Beta(alpha, alpha)."""
    modality_mixup: bool = False
    """Weights of mixup are drawn for each modality (paper, Sec. 4.3)."""
    time_mask: int = Field(0, ge=0)
    """Longest SpecAugment mask over log-mel rows."""
    frequency_mask: int = Field(0, ge=0)
    """Widest SpecAugment mask over mel bands."""
    micro_batch: int | None = Field(None, ge=1)
    """Examples that a device takes at a time at the most; gradients add up to those of the whole batch: less memory. None:
    its whole share of the batch."""
    activation_checkpointing: bool = False
    """Keep less of the forward pass and compute it again in the backward pass: less memory, a third more work."""
    compile: bool = False
    """Compile the layers by torch.compile: faster steps on a GPU, a slower start."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 autocast where the device has fast bfloat16 (CUDA), else float32. float16: autocast with a dynamic scale
    of the loss."""
    seed: int = 0
    log_every: int = Field(10, ge=1)
    """Steps between log lines."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints."""
    wandb: str | None = None
    """Project of Weights & Biases to which the log goes too; its package must be installed (`pip install 'mbt[wandb]'`)."""
    keep_checkpoints: int = Field(2, ge=1)
    """The newest that are kept, beside the best."""
    eval_every_epochs: float | None = Field(5.0, gt=0)
    """Epochs between evaluations on `eval_split`; none: only at the end."""
    threads: int = Field(4, ge=1)
    """Decoding threads."""

    @model_validator(mode="after")
    def _groups(self) -> "TrainRecipe":
        group = self.group_size or (2 if self.mixup_alpha is not None else 1)
        if self.batch_size % group:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of {group}, the examples that go together")
        if self.modality_mixup and self.mixup_alpha is None:
            raise ValueError("modality_mixup is set, and mixup_alpha is not")
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(f"weight_decay is set, and the optimizer {self.optimizer} has none")
        return self

    @property
    def mixing(self) -> Mixing | None:
        """How mixup's weights are drawn."""
        if self.mixup_alpha is None:
            return None
        return Mixing(self.mixup_alpha, self.modality_mixup, self.group_size or self.batch_size)


class EvalRecipe(Frozen):
    """Evaluation during training."""

    split: str | None = "eval"
    """None: do not evaluate."""
    crops: int = Field(4, ge=1)
    batch_size: int = Field(64, ge=1)


class Recipe(Frozen):
    """A training, but for its data folder."""

    model: ModelRecipe = ModelRecipe()
    init: InitRecipe = InitRecipe()
    input: InputRecipe = InputRecipe()
    train: TrainRecipe = TrainRecipe()
    eval: EvalRecipe = EvalRecipe()

    @model_validator(mode="after")
    def _losses(self) -> "Recipe":
        if self.train.modality_mixup and self.model.classifier == "gap":
            raise ValueError("modality_mixup needs a loss for each modality, and the classifier 'gap' has one for all")
        return self

    def inputs(self, info: DatasetInfo) -> Inputs:
        """How this recipe turns the clips of a dataset into inputs."""
        return Inputs(
            media=info.media,
            seconds=self.input.seconds,
            frames=self.input.frames,
            rgb_seconds=self.input.rgb_seconds,
            resize=self.input.resize,
            image_size=self.input.image_size,
            modalities=self.model.modalities,
            mel_mean=info.log_mel_statistics.mean,
            mel_std=info.log_mel_statistics.std or 1.0,
        )

    def mbt_config(self, info: DatasetInfo) -> MBTConfig:
        """Configuration of the model for a dataset.

        Raises:
            ConfigError: the fields contradict each other.
        """
        try:
            return MBTConfig(
                num_classes=info.num_classes,
                num_frames=self.input.frames,
                image_size=self.input.image_size,
                spec_shape=(Window(self.input.seconds, self.input.frames).mel_rows, info.media.log_mel.n_mels),
                **self.model.model_dump(),
            )
        except ValueError as error:
            raise ConfigError(f"the recipe makes no model: {error}", "Set the field by --set model.FIELD=VALUE") from None

    def to_toml(self) -> str:
        """The recipe as TOML; a field that is none is written as the string `none`."""
        sections = self.model_dump(mode="json").items()
        return tomli_w.dumps({s: {f: NONE if v is None else v for f, v in fields.items()} for s, fields in sections})


def recipe_names() -> list[str]:
    """Names of the recipes that ship inside the package."""
    return sorted(path.name[:-5] for path in resources.files("mbt.train.recipes").iterdir() if path.name.endswith(".toml"))


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """A recipe by its name in the package, or by the path of a TOML file, with `section.field=value` settings on top.

    A setting's value is TOML (`0.1`, `true`, `["rgb"]`); what is none is taken as a string; `none` unsets a field.

    Raises:
        ConfigError: no such recipe or field, or a value of the wrong kind.
    """
    fields = _read(name)
    for setting in settings:
        path, separator, value = setting.partition("=")
        section, dot, field = path.strip().partition(".")
        if not separator or not dot:
            raise ConfigError(f"--set {setting} is not section.field=value", "Such as --set train.batch_size=32")
        fields.setdefault(section, {})[field] = toml_value(value.strip())
    try:
        return Recipe.model_validate({section: _with_none(values) for section, values in fields.items()})
    except ValidationError as error:
        raise _explained(error, name) from None


def _read(name: str) -> dict[str, Any]:
    """Sections of a recipe, over those of the one that it names as its `base`."""
    fields = _read_file(name)
    base = fields.pop("base", None)
    sections = {} if base is None else _read_file(str(base))
    for section, values in fields.items():
        sections[section] = {**sections.get(section, {}), **values} if isinstance(values, dict) else values
    return sections


def _read_file(name: str) -> dict[str, Any]:
    path = Path(name)
    if name in recipe_names():
        text = (resources.files("mbt.train.recipes") / f"{name}.toml").read_text(encoding="utf-8")
    elif path.suffix == ".toml" and path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        raise ConfigError(f"there is no recipe {name!r}", f"Choose one of {', '.join(recipe_names())}, or give a .toml file")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the recipe {name} is no TOML: {error}", "Mend the file") from None


def _with_none(values: Any) -> Any:
    return {f: None if v == NONE else v for f, v in values.items()} if isinstance(values, dict) else values


def _explained(error: ValidationError, name: str) -> ConfigError:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return ConfigError(f"recipe {name}: {place}: {first['msg']}", f"Set it by --set {place}=VALUE")
    known = [f"{s}.{f}" for s, section in Recipe() for f in type(section).model_fields]
    near = difflib.get_close_matches(place, known, n=1)
    return ConfigError(
        f"recipe {name}: there is no field {place!r}",
        f"Did you mean {near[0]}" if near else f"Fields: {', '.join(known)}",
    )
