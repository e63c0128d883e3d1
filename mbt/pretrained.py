"""Models as folders, on disk or on the Hugging Face hub: model.safetensors, config.json, and a model card."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mbt.config import MBTConfig, Modality
from mbt.state import Shapes, adapt_state, check_state

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class PretrainedModel(nn.Module):
    """A model that is built from its configuration alone, with methods to load and save it."""

    def __init__(self, config: MBTConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None, **fields: Any) -> Self:
        """Load a model from a folder that `save_pretrained` wrote, or from the Hugging Face hub.

        Args:
            source: folder, or hub id such as `owner/name`.
            revision: branch, tag or commit on the hub.
            fields: fields of the configuration to change. For another `num_frames`, `image_size` or `spec_shape` the position
                embeddings are resized; for another `num_classes` the head starts at zero.

        Returns:
            The model, on the CPU, in float32 and in evaluation mode.

        Raises:
            ValueError: there is no model at `source`, a file is damaged, or a tensor is missing, unknown or has another shape;
                the message names it.
            OSError: the download from the hub fails.
        """
        folder = local_folder(source, revision)
        old, state = read_folder(folder)
        check_state(cls.state_shapes(old), state, str(folder / WEIGHTS))
        new = dataclasses.replace(old, **fields)
        if new != old:
            state = adapt_state(state, old, new)
            check_state(cls.state_shapes(new), state, str(source))
        return cls.from_state(new, state)

    @classmethod
    def from_state(cls, config: MBTConfig, state: Mapping[str, Tensor]) -> Self:
        """A model in evaluation mode that uses the tensors of `state`, which has passed `check_state`, without copying them."""
        model = cls._on_meta(config)
        model.load_state_dict(state, assign=True)
        return model.requires_grad_().eval()

    @classmethod
    def state_shapes(cls, config: MBTConfig) -> Shapes:
        """Shapes of the tensors in the state_dict of a model of this configuration."""
        return {name: tuple(tensor.shape) for name, tensor in cls._on_meta(config).state_dict().items()}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors, config.json and a model card, in the layout of the Hugging Face hub."""
        write_folder(Path(folder), folder_files(self.config, self.state_dict()))

    @classmethod
    def _on_meta(cls, config: MBTConfig) -> Self:
        """A model whose tensors have shapes, but no memory."""
        with torch.device("meta"):
            return cls(config)


def local_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder itself, or the folder of a hub repository in the local cache; files that are not cached are downloaded.

    Raises:
        ValueError: `source` is neither a folder nor a hub id.
        OSError: the download fails.
    """
    if Path(source).is_dir():
        return Path(source)
    if not HUB_ID.fullmatch(str(source)):
        raise ValueError(f"{source} is neither a folder nor a model id on the hub (owner/name)")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        files = [Path(hf_hub_download(str(source), name, revision=revision)) for name in (CONFIG, WEIGHTS)]
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise OSError(f"cannot download {source} from the hub: {str(error).splitlines()[0]}") from None
    return files[0].parent


def read_folder(folder: Path) -> tuple[MBTConfig, dict[str, Tensor]]:
    """Configuration and state_dict of a folder; the tensors are not checked, and floating-point ones are converted to float32.

    Raises:
        ValueError: a file is missing or damaged.
    """
    config = read_config(folder / CONFIG)
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged or missing: {error}") from None
    return config, {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def read_config(path: Path) -> MBTConfig:
    """Read a config.json.

    Raises:
        ValueError: the file is missing, or not a valid configuration.
    """
    try:
        return MBTConfig.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a valid model configuration: {error}") from None


def folder_files(config: MBTConfig, state: Mapping[str, Tensor], about: str = "") -> dict[str, bytes]:
    """Contents of a model folder by file name; `about` is a sentence for the model card."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return {
        CONFIG: config.to_json().encode(),
        CARD: model_card(config, sum(tensor.numel() for tensor in tensors.values()), about).encode(),
        WEIGHTS: save(tensors, metadata={"format": "pt"}),
    }


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of a model folder, each atomically, the weights last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        partial = folder / f".{name}.partial"
        partial.write_bytes(content)
        partial.replace(folder / name)


def model_card(config: MBTConfig, num_parameters: int, about: str = "") -> str:
    """README.md of a model: metadata for the hub, facts, and how to use it."""
    from huggingface_hub import ModelCardData

    tags = ["mbt", "multimodal", "audio-visual", "arxiv:2107.00135"]
    metadata = ModelCardData(library_name="mbt", pipeline_tag="video-classification", tags=tags)
    rows, bands = config.spec_shape
    height, width = config.image_shape
    inputs: dict[Modality, tuple[str, str]] = {
        "rgb": (f"(B, {config.num_frames}, 3, {height}, {width})", "frames in [-1, 1]"),
        "spec": (f"(B, {rows}, {bands})", "standardized log-mel"),
    }
    facts: dict[str, str] = {
        "Parameters": f"{num_parameters:,}",
        "Classes": f"{config.num_classes:,}",
        **{m: f"float32 {inputs[m][0]}, {inputs[m][1]}" for m in config.modalities},
        "Encoder": f"{config.num_layers} layers of width {config.hidden_size}, {config.num_heads} heads",
        "Fusion": _fusion(config),
    }
    arguments = ", ".join(f"{m}={m}" for m in config.modalities)
    return "\n".join(
        [
            "---",
            metadata.to_yaml(),
            "---",
            "",
            "# Multimodal Bottleneck Transformer",
            "",
            *([about, ""] if about else []),
            "| | |",
            "|---|---|",
            *(f"| {name} | {fact} |" for name, fact in facts.items()),
            "",
            "```python",
            "from mbt import MBT",
            "",
            'model = MBT.from_pretrained(".")  # this folder, or its id on the hub',
            f"logits = model({arguments})  # (B, {config.num_classes})",
            "```",
            "",
            "Architecture: Nagrani et al., Attention Bottlenecks for Multimodal Fusion, NeurIPS 2021, arXiv 2107.00135.",
            "",
        ]
    )


def _fusion(config: MBTConfig) -> str:
    if len(config.modalities) == 1:
        return "none: one modality"
    if config.fusion_layer == config.num_layers:
        return "late: the mean of the logits"
    layers = f"layers {config.fusion_layer} to {config.num_layers - 1}"
    if config.has_bottleneck:
        return f"{config.num_bottlenecks} bottleneck tokens in {layers}"
    return f"{'self-attention over all tokens' if config.share_encoder else 'cross-attention'} in {layers}"
