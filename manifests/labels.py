"""Label sets: the classes of a dataset, in the order of the model outputs."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mbt.manifests.atomic import write_text
from mbt.manifests.errors import InputError

COLUMNS = ("index", "id", "display_name")
FORMAT = "Give a CSV with the header id,display_name, then one row per class"


@dataclass(frozen=True)
class Label:
    """One class: its id in the dataset, and a human-readable name."""

    id: str
    display_name: str


@dataclass(frozen=True)
class LabelSet:
    """The classes of a dataset; the index of a label is its position in `labels`."""

    labels: tuple[Label, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def index(self) -> dict[str, int]:
        """Index by label id."""
        return {label.id: i for i, label in enumerate(self.labels)}

    def ids(self, indices: Sequence[int]) -> list[str]:
        """Ids of the labels with these indices."""
        return [self.labels[i].id for i in indices]

    def names(self) -> list[str]:
        """Display names, in index order."""
        return [label.display_name for label in self.labels]

    def write(self, path: Path) -> None:
        """Write as CSV with the columns index, id, display_name, atomically."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((i, label.id, label.display_name) for i, label in enumerate(self.labels))
        write_text(path, text.getvalue())


def read_labels(path: Path) -> LabelSet:
    """Read a label CSV: a header with `id` (or `mid`) and optionally `index` and `display_name`, then one row per class.

    Raises:
        InputError: the file is missing, has no header, a row with more fields, or a duplicate id, or its indices are not
            0, 1, 2, ...
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or ()
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the label list {path}: {error}", FORMAT) from None
    if header and not {"id", "mid"} & {*header}:
        raise InputError(f"{path}: the header is missing: line 1 has no column id, but {','.join(header)!r}", FORMAT)
    labels: list[Label] = []
    for i, (line, row) in enumerate(rows):
        if None in row:
            fix = "Put a name that contains a comma in quotes"
            raise InputError(f"{path}: line {line} has more than the {len(header)} fields of the header", fix)
        label_id = row.get("id") or row.get("mid")
        if not label_id:
            raise InputError(f"{path}: line {line} has no label id", FORMAT)
        if row.get("index", str(i)) != str(i):
            raise InputError(f"{path}: line {line} has index {row['index']}, expected {i}", "Number the labels 0, 1, 2, ...")
        labels.append(Label(label_id, row.get("display_name") or label_id))
    if not labels:
        raise InputError(f"the label list {path} is empty", "Give one row per class")
    if len({label.id for label in labels}) < len(labels):
        raise InputError(f"{path} has duplicate label ids", "Give each class exactly one row")
    return LabelSet(tuple(labels))
