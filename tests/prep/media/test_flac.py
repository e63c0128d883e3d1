"""`mbt prep --flac`: the audio of each sample as its last member is written, read, counted and checked."""

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from mbt.manifests.errors import ShardError
from mbt.manifests.reading.reader import ShardReader
from mbt.manifests.shards import LogMelFormat, VideoFormat
from mbt.prep.media.decode import decode_clip
from mbt.prep.media.ffmpeg import ClipError, Limits
from mbt.prep.media.flac import decode_flac, encode_flac
from mbt.prep.media.log_mel import log_mel
from mbt.prep.shards.check_sound import first_mismatch
from mbt.prep.shards.verify import verify
from tests.conftest import Collection, Door
from tests.media import heard_at
from tests.prep.media.test_log_mel import expected as log_mel_by_the_formula
from tests.prep.shards.test_shards import leaves_tars_open, members
from tests.prep.shards.test_verify import Fault, edit_frames, faults, flip, replace_member

SPECIFICATION = Path(__file__).parents[3] / "docs" / "shards.md"
KEY = "-dash_500"
NOISE = np.random.default_rng(3)


@pytest.fixture(scope="module")
def with_flac(collection: Collection, mbt: Door, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection, packed with its audio; tests only read it."""
    out = tmp_path_factory.mktemp("with_flac") / "dataset"
    outcome = mbt(*collection.arguments(out, "--flac"))
    assert outcome.code == 0, outcome.err
    return out


@pytest.fixture
def folder(with_flac: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(with_flac, tmp_path / "copy", ignore=shutil.ignore_patterns("work", "raw", "clips.parquet")))


def decoded(flac: bytes) -> tuple[np.ndarray, tuple[int, str, str]]:
    """Samples of a FLAC file, and its rate, layout and format, read by PyAV."""
    with av.open(io.BytesIO(flac)) as container:
        frames = list(container.decode(audio=0))
    return np.concatenate([f.to_ndarray()[0] for f in frames]), (frames[0].rate, frames[0].layout.name, frames[0].format.name)


def test_audio_is_the_last_member_and_the_others_are_unchanged(packed: Path, with_flac: Path) -> None:
    content, without = members(with_flac), members(packed)
    assert {name: data for name, data in content.items() if not name.endswith(".flac")} == without
    for path in with_flac.glob("*.tar"):
        with tarfile.open(path) as tar:
            extensions = [name.partition(".")[2] for name in tar.getnames()]
        assert extensions == ["json", "mel.npy", "mjpg", "flac"] * (len(extensions) // 4)


def test_audio_matches_the_log_mel(with_flac: Path) -> None:
    content = members(with_flac)
    keys = {name.partition(".")[0] for name in content}
    assert len(keys) == 8
    for key in keys:
        samples, form = decoded(content[f"{key}.flac"])
        assert form == (16_000, "mono", "s16")
        assert len(samples) == 640 * json.loads(content[f"{key}.json"])["num_frames"]
        stored = np.load(io.BytesIO(content[f"{key}.mel.npy"])).astype(float)
        again = log_mel_by_the_formula(samples / 32_768)
        loud = stored > -6
        assert loud.mean() > 0.1
        np.testing.assert_allclose(stored[loud], again[loud], atol=0.03)


def test_audio_is_that_of_the_clip_with_its_padding(with_flac: Path, collection: Collection) -> None:
    content = members(with_flac)
    for key, name, start, seconds in (("whole_3300", "whole.mp4", 3.3, 2), ("early_0", "early.mp4", 0, 4)):
        samples, _ = decoded(content[f"{key}.flac"])
        audio = decode_clip(collection.source / name, start, seconds, VideoFormat(), streams=("audio",)).audio
        assert np.array_equal(samples, np.round(audio.astype(np.float64) * 32_768))
        assert heard_at(samples[1600:9600] / 32_768) == pytest.approx(start + 0.1, abs=0.002)
    assert not samples[-4000:].any()


def test_index_and_dali_index_point_at_it(packed: Path, with_flac: Path) -> None:
    for split in ("train", "eval"):
        rows = pq.read_table(with_flac / f"{split}.parquet")
        columns = pq.read_table(packed / f"{split}.parquet").column_names
        assert [name for name in rows.column_names if not name.startswith("flac_")] == columns
        assert "flac_offset" not in columns
        for row in rows.to_pylist():
            data = (with_flac / row["shard"]).read_bytes()[row["flac_offset"] :][: row["flac_size"]]
            assert data == members(with_flac)[f"{row['key']}.flac"]
            lines = (with_flac / row["shard"]).with_suffix(".idx").read_text().splitlines()
            entry = f" flac {row['flac_offset']} {row['flac_size']} {row['key']}.flac"
            assert sum(line.endswith(entry) for line in lines) == 1


def test_reader_returns_it_or_says_that_it_is_missing(packed: Path, with_flac: Path) -> None:
    with ShardReader(with_flac, "train") as reader:
        for row in range(len(reader)):
            assert reader[row].flac() == members(with_flac)[f"{reader.key(row)}.flac"]
    with ShardReader(packed, "train") as reader, pytest.raises(ShardError, match=r"have no sound\. .*--flac"):
        reader[0].flac()


@leaves_tars_open
def test_code_in_the_specification_reads_it(with_flac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(with_flac)
    (code,) = re.findall(r"```python\n(.*?)```", SPECIFICATION.read_text(), re.DOTALL)
    seen: dict = {}
    exec(code, seen)
    assert np.array_equal(seen["sound"] * 32_768, decoded(seen["sample"]["flac"])[0])
    assert len(seen["sound"]) == 640 * len(seen["ends"])


def test_flac_is_a_setting_like_the_others(packed: Path, with_flac: Path, collection: Collection, mbt: Door) -> None:
    for out, more in ((with_flac, []), (packed, ["--flac"])):
        outcome = mbt(*collection.arguments(out, *more, "--stage", "pack"))
        assert (outcome.code, "was packed with other settings" in outcome.err) == (2, True)
    digests = {json.loads((folder / "dataset.json").read_text())["config_digest"] for folder in (packed, with_flac)}
    assert len(digests) == 2


def test_other_commands_include_it(with_flac: Path, tmp_path: Path, mbt: Door) -> None:
    content = members(with_flac)
    stats = json.loads(mbt("shards", "stats", with_flac, "--json").out)["splits"]
    total = sum(len(data) for name, data in content.items() if name.endswith(".flac"))
    assert sum(split["member_bytes"]["flac"] for split in stats.values()) == total
    assert mbt("shards", "explode", with_flac, tmp_path / "out", "--workers", 1).code == 0
    exploded = members(tmp_path / "out")
    assert {n: d for n, d in exploded.items() if n.endswith(".flac")} == {
        n: d for n, d in content.items() if n.endswith(".flac")
    }
    assert "`KEY.flac`" in (tmp_path / "out" / "README.md").read_text()
    assert "`KEY.flac`" in (with_flac / "README.md").read_text()
    assert mbt("shards", "show", with_flac, KEY, "--out", tmp_path / "sheet.png").code == 0


def test_equal_audio_gives_equal_bytes_without_a_version() -> None:
    audio = NOISE.normal(0, 0.1, 16_000).astype(np.float32)
    first = encode_flac(audio)
    assert first == encode_flac(audio.copy())
    assert b"Lav" not in first


def test_samples_are_rounded_to_the_nearest_step_and_clipped() -> None:
    audio = np.array([0, 1 / 32_768, -1, 1, 1.5, -1.5, 0.4 / 32_768, 0.6 / 32_768] * 80)
    samples, _ = decoded(encode_flac(audio))
    assert samples.tolist() == [0, 1, -32_768, 32_767, 32_767, -32_768, 0, 1] * 80


def test_audio_is_encoded_and_decoded_within_limits() -> None:
    audio = np.zeros(16_000, np.float32)
    with pytest.raises(ClipError) as error:
        encode_flac(audio, Limits(wall_s=0.001))
    assert error.value.code == "decode.timeout"
    with pytest.raises(ClipError) as error:
        encode_flac(audio, Limits(memory_bytes=40 << 20))
    assert error.value.code in ("encode.flac", "decode.interrupted")
    with pytest.raises(ClipError) as error:
        decode_flac(b"not FLAC")
    assert error.value.code == "flac.decode"


def test_packed_audio_has_no_faults(with_flac: Path) -> None:
    assert verify(with_flac, workers=1, decode=True).faults == ()


def edit_audio(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Changes the samples inside the FLAC file."""

    def damage(folder: Path) -> None:
        replace_member(folder, f"{KEY}.flac", lambda data: encode_flac(change(decoded(data)[0] / 32_768)))

    return damage


def rewrite_flac(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: replace_member(folder, f"{KEY}.flac", change)


def with_rate(data: bytes) -> bytes:
    return data[:18] + bytes([data[18] ^ 1]) + data[19:]


def with_md5(data: bytes) -> bytes:
    return data[:30] + bytes([data[30] ^ 1]) + data[31:]


def with_damaged_frame(data: bytes) -> bytes:
    return data[:-9000] + bytes([data[-9000] ^ 0xFF]) + data[-8999:]


SHALLOW: dict[str, tuple[Callable[[Path], object], set[Fault]]] = {
    "a bit": (lambda f: flip(f, KEY, lambda row: row["flac_offset"] + 9000), {("sample.crc32", KEY), ("shard.sha256", None)}),
    "garbage": (rewrite_flac(lambda data: b"RIFF" + data[4:]), {("flac.header", KEY)}),
    "nothing": (rewrite_flac(lambda data: b""), {("flac.header", KEY)}),
    "another rate": (rewrite_flac(with_rate), {("flac.header", KEY)}),
    "a frame shorter": (edit_audio(lambda audio: audio[:-640]), {("flac.length", KEY)}),
    "a video frame shorter": (
        lambda f: edit_frames(f, KEY, lambda frames: frames[:-1]),
        {("json.frame_bytes", KEY)},
    ),
}
DEEP: dict[str, tuple[Callable[[Path], object], set[Fault]]] = {
    "silence": (edit_audio(np.zeros_like), {("flac.log_mel", KEY)}),
    "a sample late": (edit_audio(lambda audio: np.roll(audio, 1)), {("flac.log_mel", KEY)}),
    "a little louder": (edit_audio(lambda audio: 1.02 * audio), {("flac.log_mel", KEY)}),
    "another end": (
        edit_audio(lambda audio: np.concatenate([audio[:-640], 0.01 * NOISE.normal(0, 1, 640)])),
        {("flac.log_mel", KEY)},
    ),
    "MD5": (rewrite_flac(with_md5), {("flac.decode", KEY)}),
    "a frame": (rewrite_flac(with_damaged_frame), {("flac.decode", KEY)}),
    "cut": (rewrite_flac(lambda data: data[:-9000]), {("flac.decode", KEY)}),
}


@pytest.mark.parametrize("what", SHALLOW)
def test_damage_is_found(what: str, folder: Path) -> None:
    damage, expected = SHALLOW[what]
    damage(folder)
    assert faults(folder) == expected


@pytest.mark.parametrize("what", DEEP)
def test_only_decoding_finds_other_audio(what: str, folder: Path) -> None:
    damage, expected = DEEP[what]
    damage(folder)
    assert faults(folder) == set()
    assert faults(folder, decode=True) == expected


def test_clipped_audio_is_not_compared_with_its_log_mel() -> None:
    """A codec's overshoot beyond full scale is in the log-mel but not in the FLAC; the other rows are still compared."""
    form = LogMelFormat()
    audio = NOISE.normal(0, 0.1, 16_000).astype(np.float32)
    audio[8000:8100] = 1.7
    samples = decode_flac(encode_flac(audio))
    assert first_mismatch(samples, log_mel(audio, form), form) is None
    assert first_mismatch(samples, log_mel(np.clip(audio, -1, 1), form), form) is None
    audio[4000:4100] *= 1.2
    assert first_mismatch(samples, log_mel(audio, form), form) == 4000 // 160 - 2


@pytest.mark.parametrize("level", [1e-5, 1e-4, 1e-3, 1e-2, 0.2])
def test_rounding_is_within_the_tolerance_at_every_level(level: float) -> None:
    form = LogMelFormat()
    times = np.arange(16_000) / 16_000
    for audio in (
        NOISE.normal(0, level, 16_000),
        level * np.sin(2 * np.pi * (100 + 3000 * times) * times),
        level * (times > 0.5),
    ):
        audio = audio.astype(np.float32)
        assert first_mismatch(np.round(audio * 32_768).astype(np.int16), log_mel(audio, form), form) is None
