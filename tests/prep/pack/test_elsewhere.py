"""Shards read without any of our code: by DALI and its index tool, webdataset, PyAV and tarfile."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import webdataset

from tests.conftest import Collection
from tests.media import Spec, container_origin, frame_times, heard_at, read_counter, sound

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
"""webdataset leaves closing the tars that it reads to the garbage collector."""

FRAMES = {"half_0": 75, "early_0": 100}
CORNERS = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 130) / 2595) - 1)


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    """Members by key, read by the webdataset library."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    return {sample["__key__"]: {k: v for k, v in sample.items() if not k.startswith("__")} for sample in found}


@pytest.fixture(scope="module")
def read(packed: Path) -> dict[str, dict[str, bytes]]:
    return samples(packed)


def test_webdataset_finds_every_sample(read: dict[str, dict[str, bytes]], collection: Collection) -> None:
    assert set(read) == set(collection.content)
    assert all(set(sample) == {"json", "mel.npy", "mjpg"} for sample in read.values())
    assert all(json.loads(sample["json"])["key"] == key for key, sample in read.items())


def test_idx_equals_the_output_of_dalis_tool(packed: Path, tmp_path: Path) -> None:
    tool = Path(sys.executable).with_name("wds2idx")
    tars = sorted(packed.glob("*.tar"))
    assert len(tars) >= 4
    for tar in tars:
        subprocess.run([sys.executable, str(tool), str(tar), str(tmp_path / "idx")], check=True, capture_output=True)
        assert (tmp_path / "idx").read_text().split() == tar.with_suffix(".idx").read_text().split()
        assert (tmp_path / "idx").read_text().strip() == tar.with_suffix(".idx").read_text().strip()


def test_dalis_reader_returns_the_members(packed: Path, read: dict[str, dict[str, bytes]]) -> None:
    from nvidia.dali import fn, pipeline_def

    tars = [str(path) for path in sorted(packed.glob("train-*.tar"))]

    @pipeline_def(batch_size=6, num_threads=1, device_id=None)
    def reading() -> tuple:
        return tuple(
            fn.readers.webdataset(
                paths=tars, index_paths=[tar.replace(".tar", ".idx") for tar in tars], ext=["json", "mel.npy", "mjpg"]
            )
        )

    pipeline = reading()
    pipeline.build()
    members = [[np.array(output.at(i)).tobytes() for i in range(6)] for output in pipeline.run()]
    keys = [json.loads(text)["key"] for text in members[0]]
    assert sorted(keys) == sorted(key for key in read if key not in ("_under_1500", "vgg_12000"))
    for i, key in enumerate(keys):
        assert [column[i] for column in members] == [read[key][name] for name in ("json", "mel.npy", "mjpg")]


def pictures(stream: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(stream), format="mjpeg") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_stream_opens_as_a_video(read: dict[str, dict[str, bytes]]) -> None:
    for key, sample in read.items():
        with av.open(io.BytesIO(sample["mjpg"]), format="mjpeg") as container:
            frames = list(container.decode(video=0))
        description = json.loads(sample["json"])
        assert len(frames) == description["num_frames"] == FRAMES.get(key, 50)
        assert {(frame.width, frame.height) for frame in frames} == {(description["width"], description["height"])}
        assert frames[0].format.name == "yuvj420p"


def content_start(collection: Collection, key: str) -> tuple[Spec, float]:
    spec, start = collection.content[key]
    return spec, start + container_origin(collection.source / spec.name)


def test_pictures_are_from_their_time(read: dict[str, dict[str, bytes]], collection: Collection) -> None:
    for key, sample in read.items():
        spec, start = content_start(collection, key)
        starts = frame_times(spec)
        for k, image in enumerate(pictures(sample["mjpg"])):
            number, now = read_counter(image), start + k / 25
            assert number == 0 or starts[number] - now <= 0.021, (key, k)
            assert number + 1 == len(starts) or now - starts[number + 1] <= 0.021, (key, k)


def spectrogram(samples: np.ndarray) -> np.ndarray:
    """Log power, rows of 10 ms, in the bands of the shards."""
    window = np.hamming(401)[:400]
    parts = np.lib.stride_tricks.sliding_window_view(np.append(samples, np.zeros(400)), 400)[::160]
    power = np.abs(np.fft.rfft(parts * window, 1024)) ** 2
    bands = np.searchsorted(CORNERS[1:-1], np.arange(513) * 16_000 / 1024)
    return np.log(np.stack([power[:, bands == b].sum(1) if (bands == b).any() else power[:, 0] for b in range(128)], 1) + 1e-6)


def test_log_mels_are_from_their_time(read: dict[str, dict[str, bytes]], collection: Collection) -> None:
    """Against the log-mel of the original audio, the best shift is zero to within one row of 10 ms."""
    for key, sample in read.items():
        spec, start = content_start(collection, key)
        mel = np.load(io.BytesIO(sample["mel.npy"])).astype(float)
        begin = start - 0.2
        times = begin + np.arange(round(16_000 * (spec.seconds + 1))) / 16_000
        wanted = spectrogram(np.where(times < spec.seconds, sound(times), 0))
        used = slice(30, 130)
        similarity = [
            np.corrcoef(mel[used, 20:90].ravel(), wanted[30 + shift : 130 + shift, 20:90].ravel())[0, 1] for shift in range(41)
        ]
        assert abs(int(np.argmax(similarity)) - 20) <= 1, key


def test_tars_open_with_tarfile_alone(packed: Path, read: dict[str, dict[str, bytes]]) -> None:
    for path in packed.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                assert tar.extractfile(member).read() == read[key][extension]  # type: ignore[union-attr]


def test_measuring_the_audio_finds_a_shift(packed: Path) -> None:
    samples_ = sound(0.25 + np.arange(8000) / 16_000)
    assert heard_at(samples_) == pytest.approx(0.25, abs=1e-4)
