"""A trained model with all that is needed to use it: weights, configuration, inputs and labels."""

from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from mbt.config import MBTConfig
from mbt.manifests.atomic import write_bytes, write_text
from mbt.manifests.errors import ConfigError, as_config_error
from mbt.manifests.labels import Label, LabelSet
from mbt.manifests.shards import Frozen
from mbt.manifests.tasks import Task
from mbt.model import MBT
from mbt.pretrained import WEIGHTS, folder_files
from mbt.train.sampling.inputs import Inputs

PREPROCESSOR = "preprocessor_config.json"
CHOICES = ("best", "last")


class Preprocessor(Frozen):
    """How media become inputs, and outputs become labels."""

    task: Task
    inputs: Inputs
    labels: tuple[tuple[str, str], ...]
    """(id, display name), in the order of the logits."""

    @classmethod
    def of(cls, task: Task, inputs: Inputs, labels: LabelSet) -> "Preprocessor":
        """With the labels of a dataset."""
        return cls(task=task, inputs=inputs, labels=tuple((label.id, label.display_name) for label in labels.labels))

    @property
    def label_set(self) -> LabelSet:
        """The labels."""
        return LabelSet(tuple(Label(*label) for label in self.labels))


def save_trained(
    folder: Path, weights: dict[str, Tensor], config: MBTConfig, preprocessor: Preprocessor, about: str = ""
) -> None:
    """Write a model's files, and preprocessor_config.json beside them, to `folder`, each atomically."""
    write_text(folder / PREPROCESSOR, preprocessor.model_dump_json(indent=2) + "\n")
    for name, content in folder_files(config, weights, about).items():
        write_bytes(folder / name, content)


def load_trained(path: Path) -> tuple[MBT, Preprocessor]:
    """Model (on the CPU, in evaluation mode) and preprocessor of a run folder (its best, else its last) or a model folder.

    Raises:
        ConfigError: there is no model, a file is damaged, or the weights are of another configuration.
    """
    folder = next((f for f in (path, *(path / name for name in CHOICES)) if (f / WEIGHTS).is_file()), None)
    if folder is None:
        raise ConfigError(f"{path} holds no trained model", "Give the folder of a run that `mbt train` finished, or of a model")
    with as_config_error("Copy the model's files anew"):
        model = MBT.from_pretrained(folder)
    try:
        preprocessor = Preprocessor.model_validate_json((folder / PREPROCESSOR).read_bytes())
    except OSError:
        fix = "Take it from where the model was trained; for an imported one: mbt import-scenic --data FOLDER"
        raise ConfigError(f"{folder} has no {PREPROCESSOR}: its inputs and labels are not known", fix) from None
    except ValidationError as error:
        what = str(error).splitlines()[0]
        raise ConfigError(f"{folder / PREPROCESSOR} is damaged: {what}", "Copy the model's files anew") from None
    preprocessor.inputs.check_model(model.config)
    return model, preprocessor
