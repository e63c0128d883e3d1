"""Folders of trained models: weights, configuration, and a description of inputs and labels."""

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
    """How media are turned into inputs, and logits into labels."""

    task: Task
    inputs: Inputs
    labels: tuple[tuple[str, str], ...]
    """(id, display name), in the order of the logits."""

    @classmethod
    def of(cls, task: Task, inputs: Inputs, labels: LabelSet) -> "Preprocessor":
        """The preprocessor of a model with these inputs, for the labels of a dataset."""
        return cls(task=task, inputs=inputs, labels=tuple((label.id, label.display_name) for label in labels.labels))

    @property
    def label_set(self) -> LabelSet:
        """The labels, in the order of the logits."""
        return LabelSet(tuple(Label(*label) for label in self.labels))


def save_trained(
    folder: Path, weights: dict[str, Tensor], config: MBTConfig, preprocessor: Preprocessor, about: str = ""
) -> None:
    """Write the files of a model and preprocessor_config.json to `folder`, each atomically."""
    write_text(folder / PREPROCESSOR, preprocessor.model_dump_json(indent=2) + "\n")
    for name, content in folder_files(config, weights, about).items():
        write_bytes(folder / name, content)


def load_trained(path: Path) -> tuple[MBT, Preprocessor]:
    """Load a model and its preprocessor from a run folder (its best model, else its last) or a model folder.

    Returns:
        The model, on the CPU and in evaluation mode, and its preprocessor.

    Raises:
        ConfigError: there is no model, a file is damaged, or the weights do not fit the configuration.
    """
    folder = next((f for f in (path, *(path / name for name in CHOICES)) if (f / WEIGHTS).is_file()), None)
    if folder is None:
        raise ConfigError(f"no trained model in {path}", "Give the folder of a finished `mbt train` run, or a model folder")
    with as_config_error("Copy the files of the model again"):
        model = MBT.from_pretrained(folder)
    try:
        preprocessor = Preprocessor.model_validate_json((folder / PREPROCESSOR).read_bytes())
    except OSError:
        fix = "Copy it from the training run; for an imported model, run mbt import-scenic with --data FOLDER"
        raise ConfigError(f"{folder} has no {PREPROCESSOR}, so the inputs and labels of the model are unknown", fix) from None
    except ValidationError as error:
        what = str(error).splitlines()[0]
        raise ConfigError(f"{folder / PREPROCESSOR} is damaged: {what}", "Copy the files of the model again") from None
    preprocessor.inputs.check_model(model.config)
    return model, preprocessor
