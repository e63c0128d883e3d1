"""`mbt shards show`, `stats` and `explode`."""

import io
import json
import os
import shutil
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from matplotlib.figure import Figure
from PIL import Image

from mbt.prep.media.ffmpeg import ClipError
from mbt.prep.media.frames import count_decodable, decode_frames
from mbt.prep.shards import show
from tests.conftest import Collection, Door
from tests.media import read_counter

leaves_tars_open = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
"""webdataset leaves closing the tars that it reads to the garbage collector."""


def copy(packed: Path, out: Path) -> Path:
    return Path(shutil.copytree(packed, out, ignore=shutil.ignore_patterns("work", "raw", "clips.parquet")))


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def row_of(folder: Path, key: str) -> tuple[str, int, dict]:
    for split in ("train", "eval"):
        for number, row in enumerate(pq.read_table(folder / f"{split}.parquet").to_pylist()):
            if row["key"] == key:
                return split, number, row
    raise KeyError(key)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures drawn during the test."""
    figures: list[Figure] = []
    draw = show.contact_sheet
    monkeypatch.setattr(show, "contact_sheet", lambda *arguments: figures.append(draw(*arguments)) or figures[-1])
    return figures


TITLES = {
    "-dash_500": ("; 0.5 to 2.5 s of -dash)", "labels: Gamma", "padding: 0 frames"),
    "tall_0": ("; 0 to 2 s of tall)", "labels: Alpha; Beta, the second; Gamma", "flags: upscaled"),
    "early_0": ("; 0 to 4 s of early)", "labels: Beta, the second", "padding: 8 frames, 0.32 s of sound"),
}


@pytest.mark.parametrize("key", TITLES)
def test_sheet_shows_the_frames_at_the_times_in_their_titles(
    key: str, packed: Path, tmp_path: Path, mbt: Door, drawn: list[Figure]
) -> None:
    out = tmp_path / "sheet.png"
    outcome = mbt("shards", "show", packed, key, "--out", out)
    assert (outcome.code, outcome.out) == (0, f"written to {out}\n"), outcome.err
    _, _, row = row_of(packed, key)
    stored = np.cumsum([0, *json.loads(members(packed)[f"{key}.json"])["frame_bytes"]])
    stream = members(packed)[f"{key}.mjpg"]
    frames = [np.asarray(Image.open(io.BytesIO(stream[a:b]))) for a, b in pairwise(stored)]
    axes = [a for a in drawn[0].get_axes() if a.get_title().endswith(" s")]
    shown = [round(float(a.get_title().removesuffix(" s")) * 25) for a in axes]
    assert (len(shown), shown[0], shown[-1]) == (12, 0, row["num_frames"] - 1)
    assert max(np.diff(shown)) - min(np.diff(shown)) <= 1
    for number, cell in zip(shown, axes, strict=True):
        picture = np.asarray(cell.images[0].get_array())
        assert picture.shape == (row["height"], row["width"], 3)
        assert read_counter(picture) == read_counter(frames[number])
    spectrogram = next(a for a in drawn[0].get_axes() if a.get_ylabel() == "mel band")
    mel = np.load(io.BytesIO(members(packed)[f"{key}.mel.npy"]))
    assert np.array_equal(np.asarray(spectrogram.images[0].get_array()), mel.T.astype("f4"))
    assert spectrogram.images[0].get_extent() == [0, row["num_frames"] / 25, 0, 128]
    with Image.open(out) as picture:
        assert picture.size[0] == 1680
    title = drawn[0].get_suptitle().splitlines()
    assert title[0].startswith(f"{key}   (custom, {row['shard']}; ")
    span, labels, last = TITLES[key]
    assert (title[0].endswith(span), title[1], last in title[2]) == (True, labels, True)


def test_sheet_of_a_row_is_named_after_its_key(
    packed: Path, tmp_path: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    split, number, _ = row_of(packed, "-dash_500")
    assert mbt("shards", "show", packed, f"{split}:{number}").out == "written to -dash_500.png\n"
    assert (tmp_path / "-dash_500.png").exists()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("-dahs_500", "has no sample '-dahs_500'. Similar keys: -dash_500."),
        ("WHOLE_330", "Similar keys: whole_3300"),
        ("zzz", "has no sample 'zzz'. Keys look like "),
        ("", "has no sample ''. Keys look like "),
        ("silent_0", "silent_0 was not packed: clip.no_audio: the file has no audio stream. See "),
        ("1", "and more than one split. To choose a row, give eval:1 or train:1."),
        ("train:6", "has no row train:6. Give a row of eval:0 to eval:1, train:0 to train:5."),
        ("test:0", "has no row test:0."),
    ],
)
def test_unknown_key_is_one_line_with_similar_keys(key: str, message: str, packed: Path, tmp_path: Path, mbt: Door) -> None:
    outcome = mbt("shards", "show", packed, key, "--out", tmp_path / "sheet.png")
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert message in line
    assert not (tmp_path / "sheet.png").exists()


def test_a_sheet_is_not_written_under_the_name_of_another_format(packed: Path, tmp_path: Path, mbt: Door) -> None:
    outcome = mbt("shards", "show", packed, "half_0", "--out", tmp_path / "x.jpg")
    assert (outcome.code, outcome.err.endswith(f"is a PNG. Give --out {tmp_path}/x.png.\n")) == (2, True)
    assert not list(tmp_path.iterdir())


def test_damaged_frame_is_an_error_without_output(packed: Path, tmp_path: Path, mbt: Door) -> None:
    folder = copy(packed, tmp_path / "copy")
    _, _, row = row_of(folder, "half_0")
    path = folder / row["shard"]
    data = bytearray(path.read_bytes())
    data[row["mjpg_offset"] + 800 : row["mjpg_offset"] + 1000] = b"\x55" * 200
    path.write_bytes(data)
    outcome = mbt("shards", "show", folder, "half_0", "--out", tmp_path / "sheet.png")
    assert (outcome.code, outcome.err.startswith("error: half_0: ")) == (2, True)
    assert "mbt shards verify --decode" in outcome.err


def test_frames_are_decoded_and_counted(packed: Path) -> None:
    stream = members(packed)["tall_0.mjpg"]
    pixels = decode_frames(stream, 256, 456)
    assert (pixels.shape, pixels.dtype) == ((50, 456, 256, 3), np.uint8)
    first = np.asarray(Image.open(io.BytesIO(stream)).convert("RGB"))
    assert np.abs(pixels[0].astype(int) - first).mean() < 3
    assert count_decodable(stream) == 50
    with pytest.raises(ClipError, match="the frames are not 250 x 456"):
        decode_frames(stream, 250, 456)


def test_stats_of_the_collection(packed: Path, mbt: Door, collection: Collection) -> None:
    stats = json.loads(mbt("shards", "stats", packed, "--json").out)
    content = members(packed)
    assert (stats["dataset"], stats["task"], stats["num_classes"]) == ("custom", "multilabel", 3)
    train, evaluation = stats["splits"]["train"], stats["splits"]["eval"]
    assert (train["samples"], evaluation["samples"]) == (6, 2)
    assert train["hours"] == pytest.approx((2 + 2 + 2 + 2 + 4 + 3) / 3600)
    assert (train["seconds"]["min"], train["seconds"]["median"], train["seconds"]["max"]) == (2, 2, 4)
    for extension in ("json", "mel.npy", "mjpg"):
        total = sum(len(data) for name, data in content.items() if name.endswith(f".{extension}"))
        assert train["member_bytes"][extension] + evaluation["member_bytes"][extension] == total
    sizes = [sum(len(data) for name, data in content.items() if name.startswith(f"{key}.")) for key in collection.content]
    assert max(train["sample_bytes"]["max"], evaluation["sample_bytes"]["max"]) == max(sizes)
    assert train["tar_bytes"] == sum(path.stat().st_size for path in packed.glob("train-*.tar"))
    assert train["frame_sizes"] == [{"width": 456, "height": 256, "samples": 5}, {"width": 256, "height": 456, "samples": 1}]
    assert train["flags"] == {"upscaled": 6, "short": 1}
    assert train["padded"] == 1
    assert (train["failures"], evaluation["failures"]) == (
        {"clip.no_audio": 1},
        {"decode.unreadable": 1, "local.missing": 1},
    )
    assert [(label["name"], label["samples"]) for label in train["classes"]] == [
        ("Beta, the second", 4),
        ("Alpha", 3),
        ("Gamma", 2),
    ]
    assert train["labels_a_sample"] == pytest.approx(9 / 6)


def test_stats_are_printed_as_a_table(packed: Path, mbt: Door) -> None:
    outcome = mbt("shards", "stats", packed)
    assert outcome.code == 0
    evaluation, train = (block.splitlines() for block in outcome.out.split("\n\n")[1:])
    assert "  no samples 2 classes: Alpha, Gamma" in evaluation
    assert "  frames     456 x 256: 5, 256 x 456: 1" in train
    assert "  most       Beta, the second 4, Alpha 3, Gamma 2" in train
    assert "  missing    1: 1 clip.no_audio" in train
    assert not [line for line in train if line.startswith(("  fewest", "  no samples"))]


@pytest.fixture(scope="module")
def exploded(packed: Path, tmp_path_factory: pytest.TempPathFactory, mbt: Door) -> Path:
    out = tmp_path_factory.mktemp("exploded") / "out"
    outcome = mbt("shards", "explode", packed, out, "--workers", 1)
    assert outcome.code == 0, outcome.err
    assert f"tars in {out}: 8 samples, 475 frames" in outcome.out
    return out


@leaves_tars_open
def test_webdataset_reads_one_member_per_frame(packed: Path, exploded: Path, collection: Collection) -> None:
    urls = [str(path) for path in sorted(exploded.glob("*.tar"))]
    samples = {sample["__key__"]: sample for sample in webdataset.WebDataset(urls, shardshuffle=False)}
    source = members(packed)
    assert set(samples) == set(collection.content)
    for key, sample in samples.items():
        frames = [sample.pop(f"{number:04d}.jpg") for number in range(json.loads(sample["json"])["num_frames"])]
        assert b"".join(frames) == source[f"{key}.mjpg"]
        assert [Image.open(io.BytesIO(frame)).format for frame in frames[:2]] == ["JPEG", "JPEG"]
        assert {name for name in sample if not name.startswith("__")} == {"json", "mel.npy"}
        assert (sample["json"], sample["mel.npy"]) == (source[f"{key}.json"], source[f"{key}.mel.npy"])


def test_exploded_tars_have_no_trace_of_the_machine(packed: Path, exploded: Path) -> None:
    assert [path.name for path in sorted(exploded.glob("*.tar"))] == [path.name for path in sorted(packed.glob("*.tar"))]
    for path in exploded.glob("*.tar"):
        assert path.read_bytes()[257:265] == b"ustar\x0000"
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mode, member.mtime, member.uid, member.gid, member.isreg()) == (0o444, 0, 0, 0, True)


def test_exploded_folder_has_labels_and_a_readme(packed: Path, exploded: Path) -> None:
    assert not (exploded / "dataset.json").exists()
    assert (exploded / "labels.csv").read_bytes() == (packed / "labels.csv").read_bytes()
    card = (exploded / "README.md").read_text()
    assert "This folder is not in that format" in card
    assert "| train | 6 | 375 | " in card
    assert "| eval | 2 | 100 | 1 | " in card


def test_finished_tars_are_skipped(packed: Path, exploded: Path, tmp_path: Path, mbt: Door) -> None:
    out = Path(shutil.copytree(exploded, tmp_path / "out"))
    for path in out.glob("*.tar"):
        os.utime(path, (1, 1))
    (out / "train-000000.tar").unlink()
    (out / "train-000001.tar").write_bytes(b"half")
    (out / ".train-000000.tar.abc.mbt.tmp").write_bytes(b"left by a killed process")
    assert mbt("shards", "explode", packed, out, "--workers", 2).code == 0
    made = {path.name for path in out.glob("*.tar") if path.stat().st_mtime > 1}
    assert made == {"train-000000.tar", "train-000001.tar"}
    assert not list(out.glob(".*.tmp"))
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == {
        path.name: path.read_bytes() for path in exploded.glob("*.tar")
    }


def test_tar_made_from_another_shard_is_replaced(packed: Path, exploded: Path, tmp_path: Path, mbt: Door) -> None:
    out = Path(shutil.copytree(exploded, tmp_path / "out"))
    folder = copy(packed, tmp_path / "copy")
    info = json.loads((folder / "dataset.json").read_text())
    info["splits"]["train"]["shards"][0]["sha256"] = "0" * 64
    (folder / "dataset.json").write_text(json.dumps(info))
    os.utime(out / "train-000000.tar", (1, 1))
    assert mbt("shards", "explode", folder, out, "--workers", 1).code == 0
    assert (out / "train-000000.tar").stat().st_mtime > 1


def test_explode_rejects_folders_of_other_datasets(packed: Path, exploded: Path, tmp_path: Path, mbt: Door) -> None:
    outcome = mbt("shards", "explode", packed, packed)
    assert (outcome.code, "is a dataset folder itself" in outcome.err) == (2, True)
    out = Path(shutil.copytree(exploded, tmp_path / "ours"))
    (out / "other-000000.tar").write_bytes(b"")
    outcome = mbt("shards", "explode", packed, out)
    assert (outcome.code, "holds other-000000.tar, which" in outcome.err) == (2, True)
    outcome = mbt("shards", "explode", exploded, tmp_path / "out")
    assert (outcome.code, "has no dataset.json" in outcome.err) == (2, True)


@pytest.mark.parametrize("name", ["README.md", "labels.csv", "train-000000.tar", "work/train-000000.tar.json"])
def test_explode_overwrites_no_files_of_others(name: str, packed: Path, tmp_path: Path, mbt: Door) -> None:
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    outcome = mbt("shards", "explode", packed, tmp_path / "mine")
    assert outcome.code == 2
    assert f"mine is not empty and was not written by mbt shards explode: it holds '{name.split('/')[0]}'. " in outcome.err
    assert outcome.err.endswith(f"Choose a new folder, for example {tmp_path}/mine/exploded.\n")
    assert [file for file in (tmp_path / "mine").rglob("*") if file.is_file()] == [path]
    assert path.read_text() == "{}"


@pytest.mark.parametrize("workers", [1, 2])
def test_damaged_shard_is_one_line_and_no_tar(workers: int, packed: Path, tmp_path: Path, mbt: Door) -> None:
    folder = copy(packed, tmp_path / "copy")
    _, _, row = row_of(folder, "half_0")
    path = folder / row["shard"]
    data = bytearray(path.read_bytes())
    data[row["mjpg_offset"]] ^= 0xFF
    path.write_bytes(data)
    outcome = mbt("shards", "explode", folder, tmp_path / "out", "--workers", workers)
    assert outcome.code == 2
    assert (
        f"{row['shard']}: half_0 is damaged: frame 0 is not a JPEG. Run `mbt shards verify {folder}`"
        in outcome.err.splitlines()[-1]
    )
    assert not (tmp_path / "out" / row["shard"]).exists()
    assert not (tmp_path / "out" / "README.md").exists()
