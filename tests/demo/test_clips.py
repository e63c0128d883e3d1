"""The content of the rendered clips matches their labels, measured in the decoded media."""

import csv
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mbt.demo.clips import CLIP_SECONDS, COMBINATIONS, clips, labels, render
from mbt.manifests.clips import table_clips
from mbt.manifests.errors import InputError
from mbt.manifests.labels import read_labels
from mbt.manifests.lists.custom import custom_clips
from mbt.manifests.shards import FPS, SAMPLE_RATE, VideoFormat
from mbt.prep.media.decode import DecodedClip, decode_clip

pytestmark = pytest.mark.slow

SEED = 5
NUM_TRAIN, NUM_EVAL = 72, 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert render(folder, SEED, NUM_TRAIN, NUM_EVAL, workers=2) == NUM_TRAIN + NUM_EVAL
    return folder


@pytest.fixture(scope="module")
def decoded(folder: Path) -> dict[str, tuple[set[str], DecodedClip]]:
    """Label ids from the clip list, and decoded media, of each clip."""
    with (folder / "clips.csv").open(newline="") as file:
        ids = {row["video_id"]: set(row["labels"].split(";")) for row in csv.DictReader(file)}
    return {video_id: (of_clip, _decode(folder, video_id)) for video_id, of_clip in ids.items()}


def _decode(folder: Path, video_id: str) -> DecodedClip:
    return decode_clip(folder / "media" / f"{video_id}.mp4", 0, CLIP_SECONDS, VideoFormat(short_side=64))


def _pictures(clip: DecodedClip) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in clip.jpegs]).astype(float)


def _colored(pictures: np.ndarray) -> np.ndarray:
    """Pixels that are far from gray."""
    return np.ptp(pictures, axis=-1) > 70


def _centers(pictures: np.ndarray) -> np.ndarray:
    return np.stack([np.argwhere(mask).mean(0) for mask in _colored(pictures)])


def test_prep_custom_reads_the_clip_list(folder: Path) -> None:
    label_set = read_labels(folder / "labels.csv")
    assert label_set == labels()
    found = table_clips(custom_clips(folder / "clips.csv", label_set, "multilabel"))
    assert [clip.split for clip in found] == ["train"] * NUM_TRAIN + ["eval"] * NUM_EVAL
    assert all(clip.duration_ms == 2400 and len(clip.labels) == 6 for clip in found)
    assert {clip.video_id for clip in found} == {path.stem for path in (folder / "media").iterdir()}


def test_media_are_complete(decoded: dict[str, tuple[set[str], DecodedClip]]) -> None:
    for _, clip in decoded.values():
        assert (clip.num_frames, clip.padded_frames, clip.padded_samples) == (round(CLIP_SECONDS * FPS), 0, 0)
        assert not clip.short
        assert not clip.upscaled


def test_matched_labels_are_independent_of_every_single_factor() -> None:
    ids = [set(factors.label_ids()) for factors in COMBINATIONS]
    assert len({frozenset(i) for i in ids}) == len(COMBINATIONS) == 72
    singles = [label.id for label in labels().labels if not label.id.startswith("matched:")]
    for single, match in itertools.product(singles, range(3)):
        having = [i for i in ids if single in i]
        assert sum(f"matched:{match}" in i for i in having) * 3 == len(having)


@pytest.mark.parametrize("count", [9, 72, 288])
def test_splits_are_balanced_over_color_and_sound(count: int) -> None:
    pairs = [(clip.factors.color, clip.factors.sound) for clip in clips(count, 0)]
    assert {pairs.count(pair) for pair in pairs} == {count // 9}
    assert len(set(pairs)) == 9


def test_no_sum_of_scores_predicts_a_matched_label(decoded: dict[str, tuple[set[str], DecodedClip]]) -> None:
    ids = [i for i, _ in decoded.values()]
    known = [label.id for label in labels().labels if not label.id.startswith("matched:")]
    scores = np.array([[label in i for label in known] for i in ids], float)
    for match in range(3):
        wanted = np.array([f"matched:{match}" in i for i in ids], float)
        fitted = scores @ np.linalg.lstsq(scores, wanted, rcond=None)[0]
        np.testing.assert_allclose(fitted, 1 / 3, atol=1e-9)


def test_color_and_sound_decide_the_matched_label(decoded: dict[str, tuple[set[str], DecodedClip]]) -> None:
    square = {"red": "012", "green": "201", "blue": "120"}
    for ids, _ in decoded.values():
        color = next(c for c in square if f"seen:{c}" in ids)
        sound = next(k for k, s in enumerate(("low-tone", "high-tone", "noise")) if f"heard:{s}" in ids)
        assert f"matched:{square[color][sound]}" in ids


def test_color_matches_the_label(decoded: dict[str, tuple[set[str], DecodedClip]]) -> None:
    for ids, clip in decoded.values():
        picture = _pictures(clip)[10]
        strongest = picture[_colored(picture[None])[0]].mean(0).argmax()
        assert f"seen:{('red', 'green', 'blue')[strongest]}" in ids


def test_shape_matches_the_label(decoded: dict[str, tuple[set[str], DecodedClip]]) -> None:
    for ids, clip in decoded.values():
        pictures = _pictures(clip)
        row, column = _centers(pictures)[10].round().astype(int)
        filled = _colored(pictures)[10, row - 1 : row + 2, column - 1 : column + 2].all()
        assert ("seen:disc" in ids) == filled


def test_motion_matches_the_label(decoded: dict[str, tuple[set[str], DecodedClip]]) -> None:
    for ids, clip in decoded.values():
        way = np.linalg.norm(np.ptp(_centers(_pictures(clip)), axis=0))
        assert ("seen:swinging" in ids) == (way > 10)
        assert ("seen:resting" in ids) == (way < 3)


def test_sound_matches_the_label(decoded: dict[str, tuple[set[str], DecodedClip]]) -> None:
    for ids, clip in decoded.values():
        power = np.abs(np.fft.rfft(clip.audio)) ** 2
        peak_hz = power.argmax() * SAMPLE_RATE / len(clip.audio)
        around = power[max(power.argmax() - 40, 0) : power.argmax() + 41].sum() / power.sum()
        assert ("heard:noise" in ids) == (around < 0.5)
        assert ("heard:low-tone" in ids) == (around >= 0.5 and 240 < peak_hz < 410)
        assert ("heard:high-tone" in ids) == (around >= 0.5 and 1490 < peak_hz < 2410)


def test_rhythm_matches_the_label(decoded: dict[str, tuple[set[str], DecodedClip]]) -> None:
    for ids, clip in decoded.values():
        loudness = np.sqrt((clip.audio.reshape(-1, 320) ** 2).mean(1))[5:-5]
        silent = (loudness < 0.3 * loudness.max()).mean()
        assert ("heard:pulsed" in ids) == (silent > 0.2)
        assert ("heard:steady" in ids) == (silent == 0)


def test_the_seed_decides_the_files(folder: Path, tmp_path: Path) -> None:
    render(tmp_path / "same", SEED, 2, 1, workers=1)
    render(tmp_path / "other", SEED + 1, 2, 1, workers=1)
    for name in ("train-0000.mp4", "train-0001.mp4", "eval-0000.mp4"):
        files = [where / "media" / name for where in (folder, tmp_path / "same", tmp_path / "other")]
        first, same, other = (file.read_bytes() for file in files)
        assert first == same != other


def test_splits_differ(folder: Path) -> None:
    train, held_out = (_pictures(_decode(folder, f"{split}-0000")) for split in ("train", "eval"))
    assert np.abs(train - held_out).mean() > 5


def test_existing_clips_are_not_rendered_again(tmp_path: Path) -> None:
    assert render(tmp_path, SEED, 2, 0, workers=1) == 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "media").iterdir()}
    (tmp_path / "media" / "train-0002.tmp").write_bytes(b"cut short")
    assert render(tmp_path, SEED, 3, 0, workers=1) == 1
    assert render(tmp_path, SEED, 3, 0, workers=1) == 0
    assert before.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / "media").iterdir()}.items()
    assert not list((tmp_path / "media").glob("*.tmp"))


def test_a_folder_refuses_another_seed(tmp_path: Path) -> None:
    render(tmp_path, SEED, 1, 0, workers=1)
    with pytest.raises(InputError, match="another seed"):
        render(tmp_path, SEED + 1, 1, 0, workers=1)
