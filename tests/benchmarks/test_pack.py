"""The benchmark of packing at a tiny size: the contenders, the measurement of a run, and the table."""

import io
import json
import math
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import pack
from benchmarks.pack import LIMIT, OURS, USUAL, Clips, Row, limit_commands, report, table
from benchmarks.processes import ROOT, Usage, pinned, run
from mbt.manifests.errors import InputError
from mbt.manifests.shards import VideoFormat
from mbt.prep.media.decode import decode_clip
from mbt.prep.media.ffmpeg import ffmpeg

pytestmark = pytest.mark.slow

MIB = 1 << 20


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two rendered files of one second each."""
    return pack.render(tmp_path_factory.mktemp("media") / "rendered", 2, seconds=1.0)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and the usual script run in this process, because importing torch again takes longer than everything else."""

    def measured(commands: list[list[str]], at_once: int, folder: Path) -> Usage:
        if commands[0][0] != sys.executable:
            return run(commands, at_once, folder)
        (folder / "started").write_text("")
        function, clips, workers = commands[0][-3:]
        core, wall = sum(os.times()[:4]), time.perf_counter()
        getattr(pack, function)(Path(clips), int(workers))
        started = float((folder / "started").read_text())
        return Usage(sum(os.times()[:4]) - core, started, time.perf_counter() - wall, 0.0, MIB)

    monkeypatch.setattr(pack, "run", measured)


@pytest.mark.usefixtures("in_process")
def test_every_contender_has_a_row_of_finite_positive_numbers(files: list[Path], tmp_path: Path) -> None:
    text = report(files, tmp_path, count=2, repeats=1, workers=1)
    assert "2 clips of 1.0 s on average, 1 workers on 1 cores" in text
    rows = [line for line in text.splitlines() if line.startswith("(") and "%" in line and "target" not in line]
    assert [line[4:34].strip() for line in rows] == [LIMIT, OURS, USUAL]
    for line in rows:
        core, at_start, wall, busy, idle, to_limit, to_usual, _ = (float(cell.rstrip("%")) for cell in line[34:].split())
        assert all(math.isfinite(cell) and cell > 0 for cell in (core, wall, busy, to_limit, to_usual))
        assert min(at_start, idle) >= 0
    assert rows[0].split()[-3] == "1.00"
    assert rows[2].split()[-2] == "1.00"


def test_ffmpeg_alone_encodes_the_same_as_packing(files: list[Path], tmp_path: Path) -> None:
    (command,) = limit_commands(Clips.of(tmp_path / "clips", files, 1))
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    decoded = decode_clip(files[0], 0.0, 1.0, VideoFormat())
    video, thumbnails, audio = (int(size) for size in re.findall(r"(?:video|audio):([1-9]\d*)KiB", log))
    assert thumbnails == 25 * 16 * 16 // 1024
    assert abs(video - sum(map(len, decoded.jpegs)) / 1024) <= 1
    assert abs(audio - decoded.audio.nbytes / 1024) <= 1


def test_the_usual_tar_has_one_member_per_frame_the_fbank_and_a_json(files: list[Path], tmp_path: Path) -> None:
    clips = Clips.of(tmp_path / "clips", files, 3)
    pack.usual_tar((clips.folder, tmp_path / "0.tar", clips.rows[1:]))
    with tarfile.open(tmp_path / "0.tar") as archive:
        names = archive.getnames()
        description = json.loads(archive.extractfile("clip-00002.json").read())
        mel = np.load(io.BytesIO(archive.extractfile("clip-00002.mel.npy").read()))
    ends = ["mel.npy", "json", *(f"{frame:06d}.jpg" for frame in range(1, 26))]
    assert sorted(names) == sorted(f"clip-0000{number}.{end}" for number in (1, 2) for end in ends)
    assert description == {"labels": "clip", "frames": 25}
    assert mel.shape == (98, 128)
    assert np.isfinite(mel).all()


def test_a_clip_that_cannot_be_packed_ends_the_benchmark(files: list[Path], tmp_path: Path) -> None:
    silent = tmp_path / "silent.mp4"
    subprocess.run([ffmpeg(), "-loglevel", "error", "-i", str(files[0]), "-an", "-c", "copy", str(silent)], check=True)
    clips = Clips.of(tmp_path / "clips", [files[0], silent], 2)
    with pytest.raises(InputError, match="1 clips cannot be packed"):
        pack.ours(clips.folder, 1)


def test_a_measurement_includes_child_processes(tmp_path: Path) -> None:
    """Measured by a fresh process, which has no children of other tests."""
    burn = "import time; kept = bytearray(b'1') * (80 << 20)\nwhile time.process_time() < 0.25: pass"
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}], check=True)"]
    program = f"""
import dataclasses, json, pathlib
from benchmarks import processes
processes.SAMPLE_EVERY_S = 0.02
usage = processes.run([{command!r}] * 2, 1, pathlib.Path({str(tmp_path)!r}))
print(json.dumps(dataclasses.asdict(usage)))
"""
    measured = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    usage = Usage(**json.loads(measured.stdout))
    assert 0.5 <= usage.core_s < 5.0
    assert usage.wall_s >= 0.5
    assert 80 * MIB < usage.peak_bytes < 160 * MIB


def test_a_contender_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a contender failed: it is broken"):
        run([[sys.executable, "-c", "raise SystemExit('it is broken')"]], 1, tmp_path)


def test_cells_are_medians_and_ratios_are_per_round() -> None:
    def row(name: str, cores: tuple[float, ...]) -> Row:
        usages = [Usage(core_s, start_s=1.0, wall_s=8.0, idle_s=4.0, peak_bytes=300_000_000) for core_s in cores]
        return Row(name, lambda clips: usages[0], usages)

    rows = [row("limit", (4.0, 8.0, 2.0)), row("ours", (8.0, 8.0, 8.0)), row("usual", (16.0, 16.0, 32.0))]
    _, limit, ours, usual = table(rows, clips=2, workers=2).splitlines()
    assert limit.split()[2:] == ["2.000", "0.500", "4.000", "25%", "25%", "1.00", "0.25", "300"]
    assert ours.split()[2:] == ["4.000", "0.500", "4.000", "50%", "25%", "2.00", "0.50", "300"]
    assert usual.split()[2:] == ["8.000", "0.500", "4.000", "100%", "25%", "4.00", "1.00", "300"]


def test_processes_run_on_as_many_cores_as_workers() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
    with (
        pytest.raises(InputError, match=f"--workers {len(before) + 1}: only {len(before)} cores are available"),
        pinned(len(before) + 1),
    ):
        pass


def test_a_folder_without_media_is_one_line(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(pack.main, ["--clips", str(tmp_path), "--count", "1"])
    assert outcome.exit_code == 2
    assert f"{tmp_path}: no media files found" in outcome.output
