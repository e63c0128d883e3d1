"""What a model of a dataset is asked for."""

from typing import Literal

Task = Literal["multilabel", "multiclass"]
"""`multilabel`: any number of labels a clip; `multiclass`: exactly one."""
