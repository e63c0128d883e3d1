"""A trained model with all that is needed to use it: weights, configuration, inputs and labels."""

from pathlib import Path

import safetensors
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save
from torch import Tensor

from manifests.atomic import write_bytes, write_text
from manifests.datasets import Task
from manifests.errors import ConfigError
from manifests.labels import Label, LabelSet
from manifests.shards import Frozen
from mbt.config import MBTConfig
from mbt.model import MBT
from train.inputs import Inputs

WEIGHTS, CONFIG, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
CHOICES = ("best", "last")


class Preprocessor(Frozen):
    """How media become inputs, and outputs become labels."""

    task: Task
    inputs: Inputs
    labels: tuple[tuple[str, str], ...]
    """(id, display name), in the order of the logits."""

    @property
    def label_set(self) -> LabelSet:
        """The labels."""
        return LabelSet(tuple(Label(*label) for label in self.labels))


def save_trained(folder: Path, weights: dict[str, Tensor], config: MBTConfig, preprocessor: Preprocessor) -> None:
    """Write model.safetensors, config.json and preprocessor_config.json to `folder`, each atomically."""
    write_text(folder / CONFIG, config.to_json())
    write_text(folder / PREPROCESSOR, preprocessor.model_dump_json(indent=2) + "\n")
    write_bytes(folder / WEIGHTS, save(weights, metadata={"format": "pt"}))


def load_trained(path: Path) -> tuple[MBT, Preprocessor]:
    """Model (on the CPU, in evaluation mode) and preprocessor of a run folder (its best, else its last) or a model folder.

    Raises:
        ConfigError: there is no model, a file is damaged, or the weights are of another configuration.
    """
    folder = next((f for f in (path, *(path / name for name in CHOICES)) if (f / WEIGHTS).is_file()), None)
    if folder is None:
        raise ConfigError(f"{path} holds no trained model", "Give the folder of a run that `mbt train` finished, or of a model")
    try:
        config = read_config(folder / CONFIG)
        preprocessor = Preprocessor.model_validate_json((folder / PREPROCESSOR).read_bytes())
        weights = load_file(folder / WEIGHTS)
    except (OSError, ValidationError, safetensors.SafetensorError) as error:
        raise ConfigError(
            f"the model in {folder} is damaged: {str(error).splitlines()[0]}", "Copy its three files anew"
        ) from None
    preprocessor.inputs.check_model(config)
    check_weights(config, weights, str(folder / WEIGHTS))
    with torch.device("meta"):
        model = MBT(config)
    model.load_state_dict(weights, assign=True)
    return model.eval(), preprocessor


def read_config(path: Path) -> MBTConfig:
    """Read a config.json.

    Raises:
        ConfigError: it is no configuration.
        OSError: it cannot be read.
    """
    try:
        return MBTConfig.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"{path} is no model configuration: {error}", "Take the file that was written with the weights"
        ) from None


def check_weights(config: MBTConfig, weights: dict[str, Tensor], where: str) -> None:
    """Make sure that every tensor of a model is there in its shape, and no other.

    Raises:
        ConfigError: naming the first tensor that is missing, unknown or of another shape.
    """
    with torch.device("meta"):
        model = MBT(config)
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    fix = "Give a checkpoint of this configuration"
    for name in own.keys() | given.keys():
        if own.get(name) != given.get(name):
            raise ConfigError(f"{where}: tensor {name} is {given.get(name)} where the model has {own.get(name)}", fix)
