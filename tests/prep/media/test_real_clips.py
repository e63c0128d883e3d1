"""Real files: published clips with the labels of the official lists, unusual files, and broken files."""

import csv
import io
import lzma
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mbt.manifests.shards import VideoFormat
from mbt.prep.media.decode import Stream, decode_clip
from mbt.prep.media.ffmpeg import ClipError
from tests.conftest import Door, each_real_clip

pytestmark = [pytest.mark.clips, pytest.mark.slow]
BOTH: tuple[Stream, ...] = ("video", "audio")


@pytest.fixture(scope="module")
def listed(official_lists: Path, real_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of AudioSet's official lists for the files in the folder of clips, as one list."""
    with (real_clips / "labels.csv").open(newline="") as file:
        wanted = {f"{row['ytid']}, {row['start_seconds']}," for row in csv.DictReader(file)}
    rows = [line for line in _official_lines(official_lists / "audioset") if ",".join(line.split(",")[:2]) + "," in wanted]
    path = tmp_path_factory.mktemp("official") / "segments.csv"
    path.write_text("".join(rows))
    return path


def _official_lines(folder: Path) -> Iterator[str]:
    for name in ("balanced_train_segments.csv", "eval_segments.csv"):
        with (folder / name).open() as file:
            yield from file
    with lzma.open(folder / "unbalanced_train_segments.csv.xz", "rt") as packed:
        yield from packed


def test_clips_in_the_official_lists_pack_with_their_labels(
    listed: Path, real_clips: Path, official_lists: Path, tmp_path: Path, mbt: Door
) -> None:
    with (real_clips / "labels.csv").open(newline="") as file:
        published = {
            row["ytid"]: set(row["audioset_labels"].split(";")) for row in csv.DictReader(file) if row["audioset_labels"]
        }
    run = ["prep", "audioset", "--subset", "eval", "--list", listed, "--source", real_clips, "--out", tmp_path]
    assert mbt(*run).code == 0
    with (official_lists / "audioset" / "class_labels_indices.csv").open(newline="") as file:
        names = [row["display_name"] for row in csv.DictReader(file)]
    rows = pq.read_table(tmp_path / "eval.parquet").to_pylist()
    assert {row["video_id"]: {names[i] for i in row["labels"]} for row in rows} == published
    assert len(rows) == 6
    for row in rows:
        assert (row["num_frames"], row["num_mel_rows"]) == (250, 1000)
        assert min(row["width"], row["height"]) == 256
        assert row["padded_frames"] <= 12
    assert pq.read_table(tmp_path / "failures.parquet").num_rows == 0


# Streams, length in seconds, and aspect ratio (width over height) as displayed.
UNUSUAL: dict[str, tuple[tuple[Stream, ...], float, float]] = {
    "av1_video.mkv": (("video",), 5.0, 16 / 9),
    "flipping_a_pancake.mkv": (BOTH, 10.0, 426 / 240),
    "h265_10bits.mp4": (("video",), 1.0, 1.0),
    "lhotse_big_buck_bunny_small.mp4": (BOTH, 5.0, 16 / 9),
    "mmaction_part_0.mp4": (("video",), 1.0, 16 / 9),
    "moviepy_chaplin.mp4": (BOTH, 9.6, 16 / 9),
    "moviepy_no_duration.webm": (BOTH, 2.0, 16 / 9),
    "moviepy_with-attached-pic.mp3": (("audio",), 1.0, 0),
    "nasa_13013_rotated.mp4": (("video",), 0.56, 9 / 16),
    "sine_mono_s16.wav": (("audio",), 4.0, 0),
    "test_non_zero_start.mp4": (("video",), 0.4, 16 / 9),
    "testsrc2_odd_width_vp9.mp4": (("video",), 1.0, 321 / 240),
    "testsrc2_vp9.webm": (("video",), 1.0, 16 / 9),
    "video_180.mov": (("video",), 0.08, 568 / 320),
    "video_90.mov": (("video",), 0.08, 320 / 568),
}
LACKING = {("video",): "clip.no_audio", ("audio",): "clip.no_video"}


def thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((24, 24), Image.Resampling.BOX)).astype(float)


def loudest(path: Path) -> float:
    """Peak of the first audio stream, read by PyAV; one file is silent."""
    with av.open(str(path)) as container:
        to_float = av.AudioResampler("fltp")
        return max(float(np.abs(part.to_ndarray()).max()) for f in container.decode(audio=0) for part in to_float.resample(f))


def test_the_table_lists_every_unusual_file(real_clips: Path) -> None:
    assert {path.name for path in (real_clips / "odd").iterdir()} == set(UNUSUAL)


@pytest.mark.parametrize("name", each_real_clip(UNUSUAL))
def test_unusual_file_decodes_completely(real_clips: Path, name: str) -> None:
    streams, seconds, aspect = UNUSUAL[name]
    clip = decode_clip(real_clips / "odd" / name, 0, seconds, VideoFormat(), streams=streams)
    frames = round(seconds * 25)
    assert (clip.num_frames, clip.short) == (frames, False)
    assert (len(clip.jpegs), len(clip.audio)) == (frames * ("video" in streams), 640 * frames * ("audio" in streams))
    assert (clip.padded_frames, clip.padded_samples <= 800) == (0, True)
    if "audio" in streams:
        peak = loudest(real_clips / "odd" / name)
        assert 0.05 * peak <= np.abs(clip.audio).max() <= 1.05 * peak + 1e-6
    for jpeg in clip.jpegs:
        size = Image.open(io.BytesIO(jpeg)).size
        assert min(size) == 256
        assert size[0] / size[1] == pytest.approx(aspect, rel=0.005)


@pytest.mark.parametrize("name", each_real_clip(name for name, (streams, *_) in UNUSUAL.items() if "video" in streams))
def test_unusual_picture_is_upright_and_from_its_time(real_clips: Path, name: str) -> None:
    """Against PyAV's frames: the picture matches the displayed one and no rotation of it (one file is almost black)."""
    path, (streams, seconds, _) = real_clips / "odd" / name, UNUSUAL[name]
    clip = decode_clip(path, 0, seconds, VideoFormat(), streams=streams)
    with av.open(str(path)) as container:
        origin = container.start_time / av.time_base
        frames = [(frame.time - origin, frame) for frame in container.decode(video=0) if frame.time - origin < seconds]
        for k in sorted({0, len(clip.jpegs) // 2, len(clip.jpegs) - 1}):
            _, frame = max((moment, frame) for moment, frame in frames if moment <= k / 25 + 0.0195)
            turns = frame.rotation // 90
            seen = thumbnail(Image.open(io.BytesIO(clip.jpegs[k])))
            upright = thumbnail(frame.to_image().transpose(TURNS[turns % 4]) if turns % 4 else frame.to_image())
            similarity = [np.corrcoef(seen.ravel(), np.rot90(upright, turn).ravel())[0, 1] for turn in range(4)]
            assert np.abs(seen - upright).mean() < 4, k
            if seen.std() > 5:
                assert similarity[0] > 0.97, k
                assert similarity[0] > max(similarity[1:]) + 0.02, k


TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}


def test_unusual_and_broken_files_are_packed_or_fail_with_their_code(real_clips: Path, tmp_path: Path, mbt: Door) -> None:
    media = tmp_path / "media"
    media.mkdir()
    for path in [*(real_clips / "odd").iterdir(), *(real_clips / "broken").iterdir()]:
        (media / path.name).symlink_to(path)
    seconds = {name: values[1] for name, values in UNUSUAL.items()} | {
        "decord_corrupted.mp4": 5,
        "moviepy_zero_length_result.webm": 1,
    }
    rows = [f"{Path(name).stem},0,{length},train,a" for name, length in seconds.items()]
    (tmp_path / "clips.csv").write_text("\n".join(["video_id,start,end,split,labels", *rows]) + "\n")
    (tmp_path / "labels.csv").write_text("id\na\n")
    lists = ["--list", tmp_path / "clips.csv", "--labels", tmp_path / "labels.csv", "--source", media]
    assert mbt("prep", "custom", *lists, "--out", tmp_path / "out").code == 0
    packed = {row["video_id"]: row["num_frames"] for row in pq.read_table(tmp_path / "out/train.parquet").to_pylist()}
    assert packed == {Path(name).stem: round(25 * s) for name, (streams, s, _) in UNUSUAL.items() if streams == BOTH}
    failures = {row["video_id"]: row["code"] for row in pq.read_table(tmp_path / "out/failures.parquet").to_pylist()}
    assert failures == {
        **{Path(name).stem: LACKING[streams] for name, (streams, *_) in UNUSUAL.items() if streams != BOTH},
        "decord_corrupted": "clip.no_audio",
        "moviepy_zero_length_result": "decode.unreadable",
    }


@pytest.mark.parametrize(
    ("name", "code"), [("decord_corrupted.mp4", "decode.error"), ("moviepy_zero_length_result.webm", "decode.unreadable")]
)
def test_broken_file_fails_with_its_code(real_clips: Path, name: str, code: str) -> None:
    with pytest.raises(ClipError) as error:
        decode_clip(real_clips / "broken" / name, 0, 5.0, VideoFormat(), streams=("video",))
    assert error.value.code == code
