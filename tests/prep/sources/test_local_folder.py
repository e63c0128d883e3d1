"""Local files as a source: folders and archives as real tools leave them."""

import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mbt.manifests.clips import Clip, clip_key
from mbt.manifests.errors import InputError
from mbt.prep.media.decode import split_jpegs
from mbt.prep.media.ffmpeg import ClipError
from mbt.prep.sources.local_folder import LocalFolder
from mbt.prep.sources.media_names import Names
from mbt.prep.state.ledger import read_ledger
from tests.conftest import Door, Outcome
from tests.media import Spec, counter_of

ID = "-_aB3_x9Y_0"
YID = "Y_bB3_x9Y_0"


def clip(video_id: str, start_ms: int, length_ms: int = 10_000) -> Clip:
    return Clip(clip_key(video_id, start_ms), video_id, start_ms, start_ms + length_ms, "train", ())


def put(folder: Path, *names: str | bytes) -> None:
    """Write files, each with its own content."""
    for name in names:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))


def found(folder: Path, wanted: Clip, *listed: str) -> tuple[str, bool]:
    file = LocalFolder(folder).find(wanted, listed)
    return str(file.path.relative_to(folder.resolve())), file.is_cut


def refused(folder: Path, wanted: Clip, *listed: str) -> tuple[str, str]:
    with pytest.raises(ClipError) as caught:
        LocalFolder(folder).find(wanted, listed)
    return caught.value.code, caught.value.message


CUTS = [
    (f"{ID}_30000", 30_000, 10_000),
    (f"{ID}_30", 30_000, 10_000),
    (f"{ID}_30.0", 30_000, 10_000),
    (f"{ID}_30.000", 30_000, 10_000),
    (f"{ID}_000030", 30_000, 10_000),
    (f"{ID}_30_40", 30_000, 10_000),
    (f"{ID}_30.0_40.0", 30_000, 10_000),
    (f"{ID}_30.000_40.000", 30_000, 10_000),
    (f"{ID}_30000_40000", 30_000, 10_000),
    (f"{ID}_000030_000040", 30_000, 10_000),
    (f"{ID}_0_10", 0, 10_000),
    (f"{ID}_7.5_12.25", 7500, 4750),
    (f"{ID}_7.50_12.25", 7500, 4750),
    (f"{ID}_7_12.25", 7000, 5250),
    (f"{ID}_7.0_12.25", 7000, 5250),
    (f"Y{ID}_30.000_40.000", 30_000, 10_000),
    (f"Y{ID}_30", 30_000, 10_000),
    ("take-1_30_40", 30_000, 10_000),
]


@pytest.mark.parametrize(("stem", "start_ms", "length_ms"), CUTS)
def test_the_name_of_a_cut_file_gives_the_times_of_its_clip(tmp_path: Path, stem: str, start_ms: int, length_ms: int) -> None:
    video_id = ID if ID in stem else "take-1"
    put(tmp_path, f"deep/er/{stem}.MP4", "unrelated.mp4")
    assert found(tmp_path, clip(video_id, start_ms, length_ms)) == (f"deep/er/{stem}.MP4", True)


@pytest.mark.parametrize(
    ("stem", "start_ms", "length_ms"),
    [
        (f"{ID}_30_41", 30_000, 10_000),
        (f"{ID}_31_40", 30_000, 10_000),
        (f"{ID}_30_40000", 30_000, 10_000),
        (f"{ID}_30000_40", 30_000, 10_000),
        (f"{ID}_30", 31_000, 10_000),
        (f"{ID}_7", 7500, 10_000),
        (f"{ID}_000030", 30_500, 10_000),
        (f"{ID}_0030", 30_000, 10_000),
        (f"{ID}x", 30_000, 10_000),
        (f"x{ID}", 30_000, 10_000),
        (ID.lower(), 30_000, 10_000),
        ("Ytake-1", 30_000, 10_000),
        ("unrelated", 30_000, 10_000),
    ],
)
def test_a_name_with_other_times_is_no_match(tmp_path: Path, stem: str, start_ms: int, length_ms: int) -> None:
    put(tmp_path, f"{stem}.mp4")
    wanted = clip("take-1" if "take" in stem else ID, start_ms, length_ms)
    assert refused(tmp_path, wanted) == ("local.missing", f"no file named {wanted.key} or {wanted.video_id} in {tmp_path}")


@pytest.mark.parametrize(
    ("files", "video_id", "best"),
    [
        ([f"{ID}.mp4"], ID, (f"{ID}.mp4", False)),
        ([f"Y{ID}.wav"], ID, (f"Y{ID}.wav", False)),
        ([f"{YID}.mp4", f"Y{YID}.wav"], YID, (f"{YID}.mp4", False)),
        ([f"{ID}.mp4", f"Y{ID}.mp4"], ID, (f"{ID}.mp4", False)),
        ([f"{ID}.mp4", f"{ID}_30.mp4"], ID, (f"{ID}_30.mp4", True)),
        ([f"{ID}_30.mp4", f"{ID}_30_40.mkv"], ID, (f"{ID}_30_40.mkv", True)),
        ([f"{ID}.m4a", f"{ID}.mp4"], ID, (f"{ID}.mp4", False)),
        ([f"audio/{ID}_30_40.wav", f"video/{ID}.webm"], ID, (f"video/{ID}.webm", False)),
        (["take.mp4", "take_30.mp4"], "take", ("take.mp4", False)),
        (["take_30.mp4"], "take", ("take_30.mp4", True)),
    ],
)
def test_the_best_name_wins(tmp_path: Path, files: list[str], video_id: str, best: tuple[str, bool]) -> None:
    put(tmp_path, *files)
    assert found(tmp_path, clip(video_id, 30_000)) == best


def test_a_listed_recording_is_no_cut_of_another(tmp_path: Path) -> None:
    put(tmp_path, "a/take_0.mp4")
    assert found(tmp_path, clip("take", 0)) == ("a/take_0.mp4", True)
    assert refused(tmp_path, clip("take", 0), "take_0")[0] == "local.missing"
    assert refused(tmp_path, clip("take", 0), "a/take_0")[0] == "local.missing"


def test_what_other_tools_leave_behind_is_ignored(tmp_path: Path) -> None:
    leftovers = [
        *(f"{ID}.{end}" for end in ("mp4.part", "mp4.ytdl", "json", "info.json", "jpg", "en.vtt", "webp", "description")),
        *(f"{ID}.{end}" for end in ("temp.mp4", "f134.mp4", "f140.m4a", "f140-drc.m4a", "f251-1.webm", "mp4.part-Frag3")),
        *(f".{ID}.mp4", f"._{ID}.mp4", f".trash/{ID}.mp4", f"__MACOSX/{ID}.mp4", f"__MACOSX/._{ID}.mp4"),
    ]
    put(tmp_path, *leftovers)
    with pytest.raises(InputError, match="holds no media file"):
        LocalFolder(tmp_path)
    put(tmp_path, f"{ID}.mp4")
    assert found(tmp_path, clip(ID, 0)) == (f"{ID}.mp4", False)


def test_two_different_files_of_a_clip_are_named(tmp_path: Path) -> None:
    put(tmp_path, "guitar/day1/001.mp4", "traffic/day1/001.mp4", f"{ID}.mp4", f"{ID}.webm", f"{YID}_5.mp4", f"{YID}_5000.mp4")
    differ = ", and these files differ"
    assert refused(tmp_path, clip("001", 0)) == (
        "local.ambiguous",
        f"001 may be guitar/day1/001.mp4 or traffic/day1/001.mp4{differ}",
    )
    assert refused(tmp_path, clip(ID, 0)) == ("local.ambiguous", f"{ID} may be {ID}.mp4 or {ID}.webm{differ}")
    assert refused(tmp_path, clip(YID, 5000))[0] == "local.ambiguous"


def test_the_same_file_in_several_folders_is_not_ambiguous(tmp_path: Path) -> None:
    for name in ("Speech", "Music"):
        put(tmp_path, f"{name}/{YID}.mp4")
        (tmp_path / f"{name}/{ID}.mp4").write_bytes(b"same")
    assert found(tmp_path, clip(ID, 0)) == (f"Music/{ID}.mp4", False)
    (tmp_path / f"Speech/{ID}.mp4").write_bytes(b"Same")
    assert refused(tmp_path, clip(ID, 0))[0] == "local.ambiguous"
    (tmp_path / "Music" / f"{YID}.mp4").unlink()
    (tmp_path / "Music" / f"{YID}.mp4").symlink_to(tmp_path / "Speech" / f"{YID}.mp4")
    assert found(tmp_path, clip(YID, 0)) == (f"Speech/{YID}.mp4", False)


def test_a_video_id_may_be_a_path(tmp_path: Path) -> None:
    put(tmp_path, "guitar/day1/001.mp4", "traffic/day1/001.mp4", "traffic/day1/001.mkv", "traffic/day1/002_5_15.mp4", "é 1.mp4")
    assert found(tmp_path, clip("guitar/day1/001", 0)) == ("guitar/day1/001.mp4", False)
    assert refused(tmp_path, clip("traffic/day1/001", 0))[0] == "local.ambiguous"
    assert found(tmp_path, clip("traffic/day1/001.mkv", 0)) == ("traffic/day1/001.mkv", False)
    assert found(tmp_path, clip("001.mkv", 0)) == ("traffic/day1/001.mkv", False)
    assert found(tmp_path, clip("traffic/day1/002", 5000)) == ("traffic/day1/002_5_15.mp4", True)
    assert found(tmp_path, clip("é 1", 0)) == ("é 1.mp4", False)
    for missing in ("day1/001", "guitar/001", "guitar/day1/002", "guitar/day1/001.mkv"):
        assert refused(tmp_path, clip(missing, 5000))[0] == "local.missing"


def test_thousands_of_folders_with_files_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, *(f"{number}/video.mp4" for number in range(1000)))
    source = LocalFolder(tmp_path)
    looked_at = []
    fit = Names.fit
    monkeypatch.setattr(Names, "fit", lambda *args: (looked_at.append(1), fit(*args))[1])
    for number in range(1000):
        assert source.find(clip(f"{number}/video", 0)).path == tmp_path.resolve() / f"{number}/video.mp4"
    assert len(looked_at) < 5000
    code, message = refused(tmp_path, clip("video", 0))
    shown = "0/video.mp4 or 1/video.mp4 or 10/video.mp4 or 997 others"
    assert (code, message) == ("local.ambiguous", f"video may be {shown}, and these files differ")


def test_links_are_followed_once(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    put(elsewhere, "abc.mp4")
    media = tmp_path / "media"
    put(media, "real/other.mp4", "folder.mp4/inside.mp4")
    (media / "train").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(media)
    (media / "real/up").symlink_to("..")
    (media / "again").symlink_to("real")
    (media / "self").symlink_to("self")
    (media / "self.mp4").symlink_to("self.mp4")
    (media / "broken.mp4").symlink_to("nothing.mp4")
    source = LocalFolder(media)
    assert source.find(clip("train/abc", 0)).path == (elsewhere / "abc.mp4").resolve()
    assert source.find(clip("real/other", 0)).path == (media / "real/other.mp4").resolve()
    assert source.has_pictures(clip("folder.mp4/inside", 0))
    for name, reason in (("broken", "No such file or directory"), ("self", "Symlink loop")):
        code, message = refused(media, clip(name, 0))
        assert code == "local.missing"
        assert f"; {name}.mp4 cannot be read: {reason}" in message
    put(media, "spare/broken.mkv")
    assert found(media, clip("broken", 0)) == ("spare/broken.mkv", False)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    put(tmp_path, b"caf\xe9/abc.mp4", b"caf\xe9.mp4", b"other/abc.mkv")
    code, message = refused(tmp_path, clip("abc", 0))
    assert (code, message.encode()) == (
        "local.ambiguous",
        b"abc may be caf\\xe9/abc.mp4 or other/abc.mkv, and these files differ",
    )
    (tmp_path / "other/abc.mkv").unlink()
    path = LocalFolder(tmp_path).find(clip("abc", 0)).path
    assert os.fsencode(path).endswith(b"/caf\xe9/abc.mp4")


def test_home_and_file_urls_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "my clips/a.mp4")
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in ("~/my clips", f"file://{tmp_path}/my%20clips", f"file:{tmp_path}/my%20clips", tmp_path / "my clips"):
        assert LocalFolder(place).place == tmp_path / "my clips"


def test_a_place_without_media_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        LocalFolder(tmp_path / "nothing")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="holds no media file"):
        LocalFolder(tmp_path)
    with pytest.raises(InputError, match="neither a folder nor an archive"):
        LocalFolder(tmp_path / "notes.txt")


def test_the_dataset_folder_is_not_part_of_the_source(tmp_path: Path) -> None:
    put(tmp_path, "media/abc.mp4", "out/raw/ab/other.mp4", "out/train-000000.tar")
    source = LocalFolder(tmp_path, tmp_path / "out")
    assert source.has_pictures(clip("abc", 0))
    assert not source.has_pictures(clip("other", 0))
    assert source.archives == []
    with pytest.raises(InputError, match="both the source and the dataset folder"):
        LocalFolder(tmp_path / "out", tmp_path / "out")
    assert LocalFolder(tmp_path / "out/raw", tmp_path / "out").has_pictures(clip("other", 0))


def test_many_files_are_indexed_without_looking_at_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, *(f"{number // 500}/{number:011}.mp4" for number in range(2000)))
    counted = []
    real = os.stat
    monkeypatch.setattr("os.stat", lambda *args, **kwargs: (counted.append(args), real(*args, **kwargs))[1])
    source = LocalFolder(tmp_path)
    assert len(counted) < 20
    assert source.has_pictures(clip(f"{1999:011}", 5000))


Prep = Callable[..., Outcome]
SECOND = Spec("second.mp4", seconds=1)
WHOLE = Spec("whole.mp4", seconds=3)


@pytest.fixture
def prep(tmp_path: Path, mbt: Door) -> Prep:
    """Runs `mbt prep custom` on the folder `media` with these rows of clips.csv."""

    def run(*rows: str, options: tuple[object, ...] = (), source: object = tmp_path / "media") -> Outcome:
        (tmp_path / "clips.csv").write_text("\n".join(["video_id,start,end,split,labels", *rows]) + "\n")
        (tmp_path / "labels.csv").write_text("id\na\nb\n")
        lists = ["--list", tmp_path / "clips.csv", "--labels", tmp_path / "labels.csv", "--source", source]
        return mbt("prep", "custom", *lists, "--out", tmp_path / "out", "--short-side", 64, *options)

    return run


def first_frames(out: Path) -> dict[str, int]:
    """By key, the number in the first picture of a sample."""
    frames = {}
    for path in out.glob("*.tar"):
        with tarfile.open(path) as tar:
            for name in tar.getnames():
                if name.endswith(".mjpg"):
                    frames[name.removesuffix(".mjpg")] = counter_of(split_jpegs(tar.extractfile(name).read())[0])
    return frames


def failed(out: Path) -> dict[str, str]:
    table = pq.read_table(out / "failures.parquet")
    return dict(zip(table["key"].to_pylist(), table["code"].to_pylist(), strict=True))


def copy(file: Path, *targets: Path) -> None:
    for target in targets:
        shutil.copy(file, target)


def test_folders_as_downloaders_leave_them_are_packed(prep: Prep, tmp_path: Path, rendered: Callable[[Spec], Path]) -> None:
    """A whole video, clips that are cut with times in their names and without, and archives, with the right pictures."""
    second, whole, media = rendered(SECOND), rendered(WHOLE), tmp_path / "media"
    (media / "eval").mkdir(parents=True)
    copy(whole, media / "whole-video.mp4", media / "eval" / f"{ID}.mp4")
    copy(second, media / f"{YID}.mp4", media / "eval/AAAAAAAAAAA_5.000_6.000.mp4")
    with tarfile.open(media / "vggsound_00.tar.gz", "w:gz") as tar:
        tar.add(second, "scratch/video/BBBBBBBBBBB_000007.mp4")
        tar.add(second, "scratch/video/BBBBBBBBBBB_000099.mp4")
        tar.add(second, "scratch/video/ZZZZZZZZZZZ_000001.mp4")
    with zipfile.ZipFile(media / "eval/more.zip", "w") as archive:
        archive.write(whole, "CCCCCCCCCCC.mp4")
    rows = ("whole-video,1,2", f"{ID},2,3", f"{YID},5,6", "AAAAAAAAAAA,5,6", "BBBBBBBBBBB,7,8", "CCCCCCCCCCC,1,2")
    done = prep(*(f"{row},train,a" for row in rows), options=("--no-keep-raw", "--stage", "plan"))
    assert done.code == 0, done.err
    assert prep(*(f"{row},train,a" for row in rows), options=("--stage", "fetch")).out == "fetch: 6 clips found, 0 missing\n"
    copies = [path for path in (tmp_path / "out/raw").rglob("*") if path.is_file()]
    assert sorted(path.stat().st_size for path in copies) == sorted(path.stat().st_size for path in (second, whole))
    before = {path: path.stat().st_size for path in media.rglob("*")}
    assert prep(*(f"{row},train,a" for row in rows), options=("--stage", "pack", "--no-keep-raw")).code == 0
    assert first_frames(tmp_path / "out") == {
        "whole-video_1000": 25, f"{ID}_2000": 50, f"{YID}_5000": 0, "AAAAAAAAAAA_5000": 0, "BBBBBBBBBBB_7000": 0,
        "CCCCCCCCCCC_1000": 25,
    }  # fmt: skip
    assert {path: path.stat().st_size for path in media.rglob("*")} == before
    assert not [path for path in copies if path.exists()]


def test_an_archive_may_be_the_source(prep: Prep, tmp_path: Path, rendered: Callable[[Spec], Path]) -> None:
    with tarfile.open(tmp_path / "media.tar", "w") as tar:
        for label, spec in (("guitar", SECOND), ("traffic", WHOLE)):
            tar.add(rendered(spec), f"./{label}/day1/001.mp4")
    rows = ("traffic/day1/001,2,3,train,a", "guitar/day1/001.mp4,0,1,train,b", "absent,0,1,train,a")
    done = prep(*rows, source=tmp_path / "media.tar")
    assert done.code == 0, done.err
    traffic, guitar = clip_key("traffic/day1/001", 2000), clip_key("guitar/day1/001.mp4", 0)
    assert first_frames(tmp_path / "out") == {traffic: 50, guitar: 0}
    assert failed(tmp_path / "out") == {"absent_0": "local.missing"}


def test_a_damaged_archive_does_not_stop_a_run(prep: Prep, tmp_path: Path, rendered: Callable[[Spec], Path]) -> None:
    (tmp_path / "media").mkdir()
    with tarfile.open(tmp_path / "media/a.tar", "w") as tar:
        for name in ("one", "two"):
            tar.add(rendered(SECOND), f"{name}.mp4")
    data = (tmp_path / "media/a.tar").read_bytes()
    (tmp_path / "media/a.tar").write_bytes(data[: rendered(SECOND).stat().st_size + 4096])
    done = prep("one,0,1,train,a", "two,0,1,train,a")
    assert (done.code, "fetch: 1 clip found, 1 missing\n" in done.out) == (0, True)
    assert f"fetch: cannot read all of {tmp_path}/media/a.tar: " in done.err
    (tmp_path / "media/a.tar").write_bytes(data)
    assert "fetch: 2 clips found, 0 missing\n" in prep("one,0,1,train,a", "two,0,1,train,a").out
    assert first_frames(tmp_path / "out") == {"one_0": 0, "two_0": 0}


def test_two_files_of_one_name_are_refused_before_packing(prep: Prep, tmp_path: Path, rendered: Callable[[Spec], Path]) -> None:
    """The video of one class is never packed under the label of another; only clips that are listed matter."""
    media = tmp_path / "media"
    for label, spec in (("guitar", SECOND), ("traffic", WHOLE)):
        (media / label / "day1").mkdir(parents=True)
        copy(rendered(spec), media / label / "day1/001.mp4", media / label / "day1/003.mp4")
    copy(rendered(SECOND), media / "traffic/002.mp4")
    refused = prep("002,0,1,train,a", "001,2,3,train,b")
    assert refused.code == 2
    assert refused.err.splitlines()[-1] == (
        "error: 1 clip is ambiguous: 001 may be guitar/day1/001.mp4 or traffic/day1/001.mp4, and these files differ. "
        "Keep one file of each, or list them by their paths relative to --source; --stage pack leaves these clips out."
    )
    assert not list((tmp_path / "out").glob("*.tar"))
    assert prep(options=("--stage", "pack")).code == 0
    assert (set(first_frames(tmp_path / "out")), failed(tmp_path / "out")) == ({"002_0"}, {"001_2000": "local.ambiguous"})
    (media / "guitar/day1/001.mp4").unlink()
    assert prep("002,0,1,train,a", "001,2,3,train,b").code == 0
    assert first_frames(tmp_path / "out") == {"002_0": 0, "001_2000": 50}


def test_a_missing_stream_is_named(prep: Prep, tmp_path: Path, rendered: Callable[[Spec], Path]) -> None:
    media = tmp_path / "media"
    media.mkdir()
    silent = rendered(Spec("silent-second.mp4", seconds=1, audio=False))
    sound = rendered(Spec("sound-second.wav", seconds=1, video=False, audio_codec="pcm_s16le"))
    copy(silent, media / "seen.mp4", media / "both.mp4")
    copy(sound, media / f"Y{ID}.wav", media / "both.wav")
    copy(rendered(SECOND), media / "good.mp4")
    copy(sound, media / "apart.wav")
    with tarfile.open(media / "mirror.tar", "w") as tar:
        tar.add(sound, f"audio/Y{YID}.wav")
        tar.add(rendered(SECOND), "video/apart.mp4")
    names = ("seen", ID, "both", "good", YID, "apart")
    assert prep(*(f"{name},0,1,train,a" for name in names)).code == 0
    assert failed(tmp_path / "out") == {
        "seen_0": "clip.no_audio", f"{ID}_0": "clip.no_video", "both_0": "clip.no_audio", f"{YID}_0": "clip.no_video"
    }  # fmt: skip
    assert set(first_frames(tmp_path / "out")) == {"good_0", "apart_0"}
    assert len(list((tmp_path / "out/raw").rglob("*.*"))) == 1


def test_a_file_that_changes_between_fetching_and_packing_is_lost_and_found_again(
    prep: Prep, tmp_path: Path, rendered: Callable[[Spec], Path]
) -> None:
    media = tmp_path / "media"
    media.mkdir()
    copy(rendered(SECOND), media / "one.mp4", media / "two.mp4")
    rows = ("one,0,1,train,a", "two,0,1,train,a")
    for stage in ("plan", "fetch"):
        assert prep(*rows, options=("--stage", stage)).code == 0
    copy(rendered(WHOLE), media / "two.mp4")
    assert prep(*rows, options=("--stage", "pack")).code == 0
    assert failed(tmp_path / "out") == {"two_0": "fetch.lost"}
    assert prep(*rows).code == 0
    assert (set(first_frames(tmp_path / "out")), failed(tmp_path / "out")) == ({"one_0", "two_0"}, {})


def test_a_clip_without_times_in_its_name_is_cut_only_if_it_lasts_as_long(
    prep: Prep, tmp_path: Path, rendered: Callable[[Spec], Path]
) -> None:
    media = tmp_path / "media"
    media.mkdir()
    names = ("AAAAAAAAAAA", "BBBBBBBBBBB", "CCCCCCCCCCC", "own-recording")
    copy(rendered(WHOLE), *(media / f"{name}.mp4" for name in names))
    rows = ("AAAAAAAAAAA,20,23", "BBBBBBBBBBB,1,3", "CCCCCCCCCCC,0,1", "CCCCCCCCCCC,20,23", "own-recording,20,23")
    assert prep(*(f"{row},train,a" for row in rows), options=("--stage", "plan")).code == 0
    assert prep(options=("--stage", "fetch")).code == 0
    offsets = {key: attempt.offset_ms for key, attempt in read_ledger(tmp_path / "out").items()}
    assert offsets == {
        "AAAAAAAAAAA_20000": 20_000, "BBBBBBBBBBB_1000": 0, "CCCCCCCCCCC_0": 0, "CCCCCCCCCCC_20000": 0, "own-recording_20000": 0
    }  # fmt: skip


def test_names_that_fit_no_clip_are_shown(prep: Prep, tmp_path: Path) -> None:
    put(tmp_path / "media", "deep/video-000001.mp4")
    done = prep("abc,3,4,train,a", options=("--stage", "plan"))
    done = prep(options=("--stage", "fetch"))
    assert done.out == "fetch: 0 clips found, 1 missing\n"
    assert (
        f"fetch: no file in {tmp_path}/media is named after a clip; deep/video-000001.mp4 is one of them, abc_3000 a clip"
        in done.err
    )


def test_files_in_folders_that_are_not_utf8_are_packed(prep: Prep, tmp_path: Path, rendered: Callable[[Spec], Path]) -> None:
    folder = tmp_path / "media" / os.fsdecode(b"caf\xe9")
    folder.mkdir(parents=True)
    copy(rendered(SECOND), folder / "abc.mp4")
    copy(rendered(Spec("silent-second.mp4", seconds=1, audio=False)), folder / "bad.mp4")
    copy(rendered(SECOND), folder / "gone.mp4")
    rows = ("abc,0,1,train,a", "bad,0,1,train,a", "gone,0,1,train,a")
    for stage in ("plan", "fetch"):
        assert prep(*rows, options=("--stage", stage)).code == 0
    (folder / "gone.mp4").unlink()
    assert prep(*rows, options=("--stage", "pack")).code == 0
    assert first_frames(tmp_path / "out") == {"abc_0": 0}
    assert failed(tmp_path / "out") == {"bad_0": "clip.no_audio", "gone_0": "fetch.lost"}


def test_a_folder_that_cannot_be_read_is_reported(prep: Prep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    media = tmp_path / "media"
    put(media, "a.mp4", "closed/b.mp4")
    scandir = os.scandir

    def deny(path: Path) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", deny)
    assert prep("a,0,1,train,a", "b,0,1,train,a", options=("--stage", "plan")).code == 0
    done = prep(options=("--stage", "fetch"))
    assert done.out == "fetch: 1 clip found, 1 missing\n"
    assert f"fetch: cannot read {media}/closed: Permission denied" in done.err.splitlines()


def test_files_of_a_source_below_raw_are_not_ours_to_delete(
    prep: Prep, tmp_path: Path, rendered: Callable[[Spec], Path]
) -> None:
    put(tmp_path / "media", "x.mp4")
    assert prep("abc,0,1,train,a", options=("--stage", "plan")).code == 0
    raw = tmp_path / "out/raw/ab"
    raw.mkdir(parents=True)
    copy(rendered(SECOND), raw / "abc.mp4")
    for stage in ("fetch", "pack"):
        assert prep(options=("--stage", stage, "--no-keep-raw"), source=tmp_path / "out/raw").code == 0
    assert (first_frames(tmp_path / "out"), (raw / "abc.mp4").exists()) == ({"abc_0": 0}, True)
