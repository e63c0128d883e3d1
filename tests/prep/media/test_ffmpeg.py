"""Running a child: its input, its outputs, its limits, and its end together with its own children."""

import os
import re
import time
from pathlib import Path

import pytest

from mbt.manifests.errors import InputError
from mbt.prep.media import ffmpeg
from mbt.prep.media.ffmpeg import ClipError, Limits, convert, run_ffmpeg

LIMITS = Limits(wall_s=30.0)


def shell(script: str, *arguments: str) -> list[str]:
    return ["/bin/sh", "-c", script, "sh", *arguments]


def test_each_output_has_its_pipe() -> None:
    script = 'for url in "$@"; do echo "to $url" > /proc/self/fd/${url#pipe:}; done; echo this is the log >&2'
    outputs = run_ffmpeg(shell(script, "pipe:{video}", "pipe:{audio}"), LIMITS, 100)
    assert re.fullmatch(rb"to pipe:\d+\n", outputs["video"])
    assert outputs["audio"].startswith(b"to pipe:")
    assert outputs["audio"] != outputs["video"]
    assert outputs["log"] == b"this is the log\n"


def test_file_names_are_not_outputs() -> None:
    outputs = run_ffmpeg(shell('echo "$@" >&2', "file:{video}", "x pipe:{video}"), LIMITS)
    assert outputs == {"log": b"file:{video} x pipe:{video}\n"}


def test_output_beyond_its_limit_is_an_error() -> None:
    script = "head -c 101 /dev/zero > /proc/self/fd/${1#pipe:}"
    assert len(run_ffmpeg(shell(script, "pipe:{video}"), LIMITS, 101)["video"]) == 101
    with pytest.raises(ClipError, match="exceeds 100 bytes") as error:
        run_ffmpeg(shell(script, "pipe:{video}"), LIMITS, 100)
    assert error.value.code == "decode.memory"


@pytest.mark.parametrize("size", [0, 1, 65_536, 5_000_000])
def test_any_amount_of_data_is_passed_through(size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = os.urandom(size)
    imitate(monkeypatch, tmp_path, "cat > ${url#file:}")
    assert convert(data, (), (), LIMITS) == (data, "")


def test_input_that_is_not_read_is_not_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    imitate(monkeypatch, tmp_path, "echo done > ${url#file:}")
    assert convert(bytes(5_000_000), (), (), LIMITS) == (b"done\n", "")


def test_result_before_an_error_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    imitate(monkeypatch, tmp_path, "echo half > ${url#file:}; echo damaged >&2; exit 1")
    assert convert(b"", (), (), LIMITS) == (b"half\n", "damaged\n")
    imitate(monkeypatch, tmp_path, "exit 3")
    assert convert(b"", (), (), LIMITS) == (b"", "ffmpeg exited with status 3")


def test_result_in_memory_is_limited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    imitate(monkeypatch, tmp_path, "exec head -c 300000000 /dev/zero > ${url#file:}")
    result, log = convert(b"", (), (), Limits(memory_bytes=200 << 20))
    assert (len(result), log != "") == (200 << 20, True)


def test_log_of_a_conversion_is_limited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    imitate(monkeypatch, tmp_path, "head -c 3000000 /dev/zero >&2")
    assert len(convert(b"", (), (), LIMITS)[1]) == 1 << 20


@pytest.mark.parametrize("script", ["sleep 1000; exit 0", "sleep 1000 & exit 0", "exec sleep 1000"])
def test_children_of_a_wrapper_end_with_it(script: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    imitate(monkeypatch, tmp_path, f"echo $$ > {tmp_path}/group; {script}")
    for run in (lambda: convert(b"", (), (), Limits(wall_s=1.0)), lambda: run_ffmpeg([ffmpeg.ffmpeg()], Limits(wall_s=1.0))):
        with pytest.raises(ClipError, match="did not finish within 1 s") as error:
            run()
        assert error.value.code == "decode.timeout"
        assert alive(int((tmp_path / "group").read_text())) == []


def imitate(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Use a shell script as ffmpeg; its last argument is $url."""
    program = folder / "ffmpeg"
    program.write_text(f"#!/bin/sh\nfor url; do :; done\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(ffmpeg, "ffmpeg", lambda: str(program))


def alive(group: int, patience_s: float = 5.0) -> list[bytes]:
    """Command lines of the processes in this process group that are still running after a while."""
    deadline = time.monotonic() + patience_s
    while True:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                state, _, process_group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(process_group) == group and state != "Z":
                    found.append((process / "cmdline").read_bytes())
            except OSError:
                continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def test_program_that_cannot_be_started_leaves_no_descriptor(tmp_path: Path) -> None:
    def opened() -> set[str]:
        links = map(os.path.realpath, Path("/proc/self/fd").iterdir())
        return {link for link in links if "pipe:[" in link or "memfd:" in link}

    before = opened()
    with pytest.raises(InputError, match=f"cannot start {tmp_path}/missing: No such file"):
        run_ffmpeg([str(tmp_path / "missing"), "pipe:{video}"], LIMITS)
    assert opened() <= before
