"""The dataset registry: datasets and subsets of `mbt prep NAME --subset SUBSET`, and the sources of their official lists."""

import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from mbt.manifests.balance import AS500K_CAP
from mbt.manifests.errors import InputError
from mbt.manifests.lists import audioset
from mbt.manifests.lists.download import download
from mbt.manifests.tasks import Task

YOUTUBE_URL = "https://www.youtube.com/watch?v={video_id}"


@dataclass(frozen=True)
class PublishedFile:
    """A published file, with the size in bytes and the SHA-256 that verify a copy."""

    url: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Subset:
    """A subset of a dataset.

    Attributes:
        split: split of its clips.
        list_file: the published list; None if the list is part of this package.
        cap: maximum number of clips per class.
    """

    split: str
    list_file: PublishedFile | None = None
    cap: int | None = None


@dataclass(frozen=True)
class Dataset:
    """A dataset that can be prepared by name."""

    name: str
    task: Task
    subsets: dict[str, Subset]
    url_template: str


UNBALANCED = PublishedFile(
    "http://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/unbalanced_train_segments.csv",
    101_468_408,
    "bb2dfd5e4f1ced39db9480633c510f813d7899f4b7472aa83a411b4a43a12698",
)

AUDIOSET = Dataset(
    name="audioset",
    task="multilabel",
    subsets={
        "balanced": Subset("train"),
        "eval": Subset("eval"),
        "unbalanced": Subset("train", UNBALANCED),
        "as500k": Subset("train", UNBALANCED, AS500K_CAP),
    },
    url_template=YOUTUBE_URL,
)


def cache_folder() -> Path:
    """Folder of downloaded lists: $MBT_CACHE, or `mbt` in $XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("MBT_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mbt"


def find_subset(dataset: Dataset, name: str) -> Subset:
    """The subset with this name.

    Raises:
        InputError: the dataset has no such subset.
    """
    if name not in dataset.subsets:
        raise InputError(f"{dataset.name} has no subset {name!r}", f"Choose one of: {', '.join(dataset.subsets)}")
    return dataset.subsets[name]


def audioset_clips(subset_name: str, list_path: Path | None) -> pa.Table:
    """Clip table of an AudioSet subset: from `list_path`, from this package, or from the cache (downloaded if missing).

    Raises:
        InputError: unknown subset, invalid list, or failed download.
    """
    subset = find_subset(AUDIOSET, subset_name)
    if list_path is not None:
        return audioset.segments_table(list_path, subset.split)
    if subset.list_file is None:
        return audioset.shipped_segments(subset_name)
    path = cache_folder() / "audioset" / subset.list_file.url.rsplit("/", 1)[1]
    download(subset.list_file.url, path, subset.list_file.size, subset.list_file.sha256)
    return audioset.segments_table(path, subset.split)
