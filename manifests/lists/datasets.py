"""The dataset registry: what `mbt prep NAME --subset SUBSET` knows, and where each official list comes from."""

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
class RemoteFile:
    """A published file and what proves that a copy is whole."""

    url: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Subset:
    """A subset of a dataset.

    Attributes:
        split: its split.
        remote: its list, where that does not ship inside the package.
        cap: clips that a class may have at the most.
    """

    split: str
    remote: RemoteFile | None = None
    cap: int | None = None


@dataclass(frozen=True)
class Dataset:
    """A dataset that can be prepared by name."""

    name: str
    task: Task
    subsets: dict[str, Subset]
    url_template: str


UNBALANCED = RemoteFile(
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
    """Where downloaded lists are kept: $MBT_CACHE, or `mbt` under $XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("MBT_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mbt"


def find_subset(dataset: Dataset, name: str) -> Subset:
    """The subset of this name.

    Raises:
        InputError: the dataset has no such subset.
    """
    if name not in dataset.subsets:
        raise InputError(f"{dataset.name} has no subset {name!r}", f"Choose one of: {', '.join(dataset.subsets)}")
    return dataset.subsets[name]


def audioset_clips(subset_name: str, list_path: Path | None) -> pa.Table:
    """Clip table of an AudioSet subset: from `list_path`, from the package, or from the cache (downloaded at need).

    Raises:
        InputError: unknown subset, malformed list, or a list that cannot be downloaded.
    """
    subset = find_subset(AUDIOSET, subset_name)
    if list_path is not None:
        return audioset.segments_table(list_path, subset.split)
    if subset.remote is None:
        return audioset.shipped_segments(subset_name)
    path = cache_folder() / "audioset" / subset.remote.url.rsplit("/", 1)[1]
    download(subset.remote.url, path, subset.remote.size, subset.remote.sha256)
    return audioset.segments_table(path, subset.split)
