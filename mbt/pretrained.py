"""Models as folders, on disk or on the Hugging Face hub: model.safetensors, config.json, and a model card."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save
from torch import Tensor

from mbt.config import MBTConfig, Modality
from mbt.model import MBT
from mbt.state import adapt_state, check_state, model_of

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def load_pretrained(source: str | Path, revision: str | None = None, **fields: Any) -> MBT:
    """A model, on the CPU, in evaluation mode; see `MBT.from_pretrained`."""
    folder = local_folder(source, revision)
    config, state = read_folder(folder)
    wanted = dataclasses.replace(config, **fields)
    if wanted != config:
        state = adapt_state(state, config, wanted)
        check_state(wanted, state, str(folder))
    return model_of(wanted, state)


def local_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder itself, or a hub repository's in the local cache, after downloading what is not there yet.

    Raises:
        ValueError: it is neither a folder nor a hub id.
        OSError: the hub does not give it.
    """
    if Path(source).is_dir():
        return Path(source)
    if not HUB_ID.fullmatch(str(source)):
        raise ValueError(f"nothing is at {source}, and it is no id of a model on the hub (owner/name)")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        files = [Path(hf_hub_download(str(source), name, revision=revision)) for name in (CONFIG, WEIGHTS)]
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise OSError(f"the hub does not give {source}: {str(error).splitlines()[0]}") from None
    return files[0].parent


def read_folder(folder: Path) -> tuple[MBTConfig, dict[str, Tensor]]:
    """Configuration and float32 state_dict of a folder.

    Raises:
        ValueError: a file is missing or damaged, or a tensor is missing, unknown or of another shape; the message names it.
    """
    config = read_config(folder / CONFIG)
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged or missing: {error}") from None
    check_state(config, state, str(folder / WEIGHTS))
    return config, {name: tensor.float() for name, tensor in state.items()}


def read_config(path: Path) -> MBTConfig:
    """Read a config.json.

    Raises:
        ValueError: it is missing, or no configuration.
    """
    try:
        return MBTConfig.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no configuration of a model: {error}") from None


def folder_files(config: MBTConfig, state: Mapping[str, Tensor], about: str = "") -> dict[str, bytes]:
    """What a model's folder holds, by file name; `about` goes into the card."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return {
        CONFIG: config.to_json().encode(),
        CARD: model_card(config, sum(tensor.numel() for tensor in tensors.values()), about).encode(),
        WEIGHTS: save(tensors, metadata={"format": "pt"}),
    }


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files of a model's folder, each complete or not at all; the weights last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        partial = folder / f".{name}.partial"
        partial.write_bytes(content)
        partial.replace(folder / name)


def model_card(config: MBTConfig, num_parameters: int, about: str = "") -> str:
    """README.md of a model for the hub: metadata, facts, and how to use it."""
    from huggingface_hub import ModelCardData

    tags = ["mbt", "multimodal", "audio-visual", "arxiv:2107.00135"]
    metadata = ModelCardData(library_name="mbt", pipeline_tag="video-classification", tags=tags)
    rows, bands = config.spec_shape
    side = config.image_size
    inputs: dict[Modality, tuple[str, str]] = {
        "rgb": (f"(B, {config.num_frames}, 3, {side}, {side})", "frames in [-1, 1]"),
        "spec": (f"(B, {rows}, {bands})", "log-mel, standardised"),
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
