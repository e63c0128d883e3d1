"""The classification task of a dataset."""

from typing import Literal

Task = Literal["multilabel", "multiclass"]
"""`multilabel`: any number of labels per clip; `multiclass`: exactly one."""
