"""Recipes: every field that determines a training run. They are read from TOML, and `--set` overrides them."""

from typing import Annotated, Any, Literal

import tomli_w
from pydantic import ConfigDict, Field, create_model, model_validator

from mbt.config import VIT_SIZES, MBTConfig, image_shape
from mbt.manifests.errors import ConfigError
from mbt.manifests.shards import FPS, DatasetInfo, Frozen
from mbt.train.recipes.model_fields import recipe_fields
from mbt.train.sampling.inputs import FrameSize, Inputs, box_to_cover
from mbt.train.sampling.plan import Jitter, Mixing
from mbt.train.sampling.window import Window

NONE = "none"
"""How a recipe writes None, which TOML does not have."""


class Section(Frozen):
    """A section of a recipe; the docstring of a field is its description."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class ModelRecipe(create_model("ModelFields", __base__=Section, **recipe_fields())):  # type: ignore[misc]
    """Architecture of the model: the fields of `MBTConfig`, except for the shapes of its inputs and the number of classes.

    `size` (Ti, S, B, L or H) sets `hidden_size`, `num_layers`, `num_heads` and `mlp_dim` to those of the ViT of that size;
    each of them can still be overridden.
    """

    @model_validator(mode="before")
    @classmethod
    def _expand_size(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or "size" not in fields:
            return fields
        size = fields["size"]
        if size not in VIT_SIZES:
            raise ValueError(f"size {size!r} is not one of {', '.join(VIT_SIZES)}")
        return {**VIT_SIZES[size], **{name: value for name, value in fields.items() if name != "size"}}


class InitRecipe(Section):
    """Initial weights."""

    weights: str | None = None
    """Pretrained weights: a ViT (the original .npz, a Scenic checkpoint, or `timm:NAME`) or an MBT (a folder, or an id on the
    Hugging Face hub). None: random weights."""
    surgery: Literal["paper", "official"] = "paper"
    """How the weights of a ViT are mapped to the model. `paper`: CLS tokens of both streams from the ViT, fusion tokens random.
    `official`, as the published code does: the spec stream's CLS token stays zero, and the fusion tokens are made of the ViT's
    position embeddings."""
    inflation: Literal["central", "average", "rank_pooling"] = "central"
    """How the ViT's patch kernel is extended to tubelets of several frames: on the `central` frame only, its `average` on all
    frames, or weighted by approximate `rank_pooling`."""


class InputRecipe(Section):
    """How clips become inputs of the model, and how training inputs are augmented."""

    seconds: float = Field(8.0, gt=0)
    """t, the length of a view in seconds; a multiple of 1/25 s."""
    frames: int = Field(8, ge=1)
    """F, the number of frames per view."""
    stride: int | None = Field(None, ge=1)
    """Distance between frames, in frames of 1/25 s. None: the F frames are spread evenly over t."""
    synchronised: bool = True
    """Start the frames and the sound of a training view at the same time. If false, their starts are drawn independently."""
    resize: int = Field(256, ge=1)
    """Short side of the frames in pixels, to which they are resized before the crop. If `image_size` is not square, it is the
    short side of a box of the crop's shape: frames get the smallest size that covers this box."""
    image_size: FrameSize = 224
    """Size of the crop in pixels, which the model sees: one number for a square, or [height, width]."""
    flip: bool = True
    """Mirror half of the training views left to right."""
    scale_jitter: tuple[float, float] | None = None
    """Range of the random factors that scale training views before the crop; height and width are scaled independently. None:
    no scaling."""
    colour_jitter: float = Field(0.0, ge=0, le=1)
    """Probability of changing the brightness, saturation, contrast and hue of a training view."""
    grey: float = Field(0.0, ge=0, le=1)
    """Probability of converting a training view to grayscale."""
    streams: int = Field(8, ge=1)
    """For shards behind a URL: number of places in the split that are read in parallel, over all ranks. Each supplies an equal
    part of every batch."""
    shuffle_buffer: int = Field(2048, ge=1)
    """For shards behind a URL: number of views in the shuffle buffers of all ranks together."""
    max_corrupt: float = Field(0.01, ge=0, le=1)
    """Largest tolerated share of damaged samples in the training split. Damaged samples are replaced by others; beyond this
    share the run stops."""

    @property
    def rgb_seconds(self) -> float | None:
        """Length of the frames' window in seconds; None: the same as the sound's."""
        return None if self.stride is None else self.frames * self.stride / FPS

    @property
    def jitter(self) -> Jitter:
        """Augmentation of the frames of training views."""
        return Jitter(self.flip, self.scale_jitter, self.colour_jitter, self.grey)

    @model_validator(mode="after")
    def _check(self) -> "InputRecipe":
        Window(self.seconds, self.frames, self.rgb_seconds)
        crop = image_shape(self.image_size)
        if min(crop) > self.resize:
            raise ValueError(f"image_size {self.image_size} is larger than resize {self.resize}")
        if self.scale_jitter is not None:
            low, high = self.scale_jitter
            smallest = [int(low * side) for side in box_to_cover(self.resize, self.image_size)]
            if not 0 < low <= high:
                raise ValueError(f"scale_jitter [{low}, {high}] is not a range of positive factors")
            if smallest[0] < crop[0] or smallest[1] < crop[1]:
                raise ValueError(
                    f"scale_jitter {low} times resize {self.resize} is smaller than the crop of image_size {self.image_size}"
                )
        return self


class TrainRecipe(Section):
    """Optimization, logging and checkpoints."""

    batch_size: int = Field(64, ge=1)
    """Clips per step, over all devices."""
    epochs: float = Field(50.0, gt=0)
    """Passes over the training split."""
    balanced_sampling: bool = False
    """Sample clips with replacement so that rare classes are seen as often as common ones."""
    max_steps: int | None = Field(None, ge=1)
    """Maximum number of steps, if `epochs` would take more; the learning-rate schedule ends there too."""
    learning_rate: float = Field(0.5, gt=0)
    """Peak learning rate. It rises linearly during the warm-up, then falls to zero along a half cosine."""
    warmup_epochs: float = Field(2.5, ge=0)
    """Length of the warm-up in epochs; at most half of the training."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` with momentum, or `adamw`."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Betas of adamw: decay rates of the running means of the gradient and of its square."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay, multiplied into the weights rather than added to the gradient. With sgd, it follows the update, as
    `explicit_weight_decay` of the official trainer does. It applies only to the kernels of linear layers and patch embeddings,
    not to biases, norms, position embeddings and tokens."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Ratio of a layer's learning rate to that of the layer above it. None: all layers have the same learning rate."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay per step of an exponential moving average of the weights. The average is what is evaluated and saved as `best` and
    `last`. None: no average."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Clip gradients to this global L2 norm. None: no clipping."""
    group_size: int | None = Field(None, ge=2)
    """Examples per group. A group shares its mixup weights, and its gradient is clipped before the mean over all groups is
    taken. 2 reproduces the official training, where each device has two examples. None: the whole batch is one group."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What to do when the loss or the gradient is not finite: `stop` the training, or `skip` the update."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing."""
    mixup_alpha: float | None = Field(None, gt=0)
    """Mixup with weights drawn from Beta(alpha, alpha). None: no mixup."""
    modality_mixup: bool = False
    """Draw the mixup weights for each modality independently (paper, Sec. 4.3)."""
    time_mask: int = Field(0, ge=0)
    """SpecAugment: maximum length of the time mask in log-mel rows. 0: no mask."""
    frequency_mask: int = Field(0, ge=0)
    """SpecAugment: maximum width of the frequency mask in mel bands. 0: no mask."""
    micro_batch: int | None = Field(None, ge=1)
    """Maximum number of examples that a device processes at a time; gradients are accumulated over its share of the batch.
    Saves memory. None: the whole share at once."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them. Saves memory, for about a third more computation."""
    compile: bool = False
    """Compile the layers with torch.compile: faster steps on a GPU, a slower start."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the computation; weights are always float32. `auto`: bfloat16 autocast on CUDA devices with fast bfloat16,
    otherwise float32. `float16`: autocast with dynamic loss scaling."""
    seed: int = 0
    """Seed of the initial weights, the order of the clips and all augmentation."""
    log_every: int = Field(10, ge=1)
    """Steps between log lines."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints."""
    wandb: str | None = None
    """Weights & Biases project to log to as well; needs `pip install 'mbt[wandb]'`. None: do not use it."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of newest checkpoints to keep, in addition to the best."""
    eval_every_epochs: float | None = Field(5.0, gt=0)
    """Epochs between evaluations on `eval.split`. None: evaluate at the end only."""
    threads: int = Field(4, ge=1)
    """Decoding threads per process."""

    @model_validator(mode="after")
    def _check(self) -> "TrainRecipe":
        group = self.group_size or (2 if self.mixup_alpha is not None else 1)
        if self.batch_size % group:
            reason = f"group_size {group}" if self.group_size else f"{group}, which mixup needs"
            raise ValueError(f"batch_size {self.batch_size} is not divisible by {reason}")
        if self.modality_mixup and self.mixup_alpha is None:
            raise ValueError("modality_mixup is set, but mixup_alpha is not")
        return self

    @property
    def mixing(self) -> Mixing | None:
        """How mixup weights are drawn; None: no mixup."""
        if self.mixup_alpha is None:
            return None
        return Mixing(self.mixup_alpha, self.modality_mixup, self.group_size or self.batch_size)


class EvalRecipe(Section):
    """Evaluation during training."""

    split: str | None = "eval"
    """Split to evaluate on. None: do not evaluate."""
    crops: int = Field(4, ge=1)
    """Views per clip, evenly spaced in time; their logits are averaged."""
    batch_size: int = Field(64, ge=1)
    """Views per forward pass, on each device."""


class Recipe(Section):
    """A complete training recipe; only the dataset folder is given elsewhere."""

    model: ModelRecipe = ModelRecipe()
    """Architecture of the model."""
    init: InitRecipe = InitRecipe()
    """Initial weights."""
    input: InputRecipe = InputRecipe()
    """Inputs and their augmentation."""
    train: TrainRecipe = TrainRecipe()
    """Optimization, logging and checkpoints."""
    eval: EvalRecipe = EvalRecipe()
    """Evaluation during training."""

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        if self.train.modality_mixup and self.model.classifier == "gap":
            raise ValueError("train.modality_mixup needs one loss per modality, but model.classifier 'gap' has a single loss")
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
            raise ConfigError(f"invalid model in the recipe: {error}", "Change it with --set model.FIELD=VALUE") from None

    def to_toml(self) -> str:
        """The recipe as TOML, with None written as the string `none`."""
        sections = self.model_dump(mode="json").items()
        return tomli_w.dumps({s: {f: NONE if v is None else v for f, v in fields.items()} for s, fields in sections})
