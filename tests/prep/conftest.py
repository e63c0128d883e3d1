"""Files as a video site serves them, rendered once per session."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mbt.prep.media.ffmpeg import ffmpeg
from tests.media import Spec
from tests.site import Site

SECONDS = 42
GOP_S = 5
CONSTANT_RATE = (
    "-b:v",
    "550k",
    "-minrate",
    "550k",
    "-maxrate",
    "550k",
    "-bufsize",
    "550k",
    "-x264-params",
    "nal-hrd=cbr:filler=1",
)
INDEXED = "+dash+global_sidx+frag_keyframe+default_base_moof"


def ffmpeg_run(*arguments: object) -> None:
    subprocess.run([ffmpeg(), "-nostdin", "-v", "error", "-y", *map(str, arguments)], check=True)


@dataclass(frozen=True)
class Served:
    """Video and audio files as they are served, by name; each is `SECONDS` seconds long."""

    folder: Path

    def content(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, rendered: Callable[[Spec], Path]) -> Served:
    """Videos of 25 and 30 frames per second at 550 kb/s and audio at 128 kb/s, with and without index and edit list."""
    folder = tmp_path_factory.mktemp("served")
    for fps in (25, 30):
        spec = Spec(f"counter{fps}.mp4", fps=str(fps), seconds=SECONDS, gop=fps * GOP_S, width=160, height=96, audio=False)
        plain = folder / f"plain{fps}.mp4"
        coder = ("-c:v", "libx264", "-preset", "ultrafast", "-bf", 2, "-sc_threshold", 0, "-g", fps * GOP_S, *CONSTANT_RATE)
        ffmpeg_run("-i", rendered(spec), *coder, plain)
        ffmpeg_run("-i", plain, "-c", "copy", "-movflags", f"{INDEXED}+empty_moov", folder / f"late{fps}.mp4")
        ffmpeg_run("-i", plain, "-c", "copy", "-movflags", f"{INDEXED}+delay_moov", folder / f"edited{fps}.mp4")
    ffmpeg_run("-i", rendered(Spec("sound.m4a", seconds=SECONDS, video=False)), "-c", "copy", folder / "plain.m4a")
    fragments = ("-frag_duration", 10_000_000, "-f", "mp4")
    for name, start in (("primed", "empty_moov"), ("edited", "delay_moov")):
        options = ("-c", "copy", "-movflags", f"+dash+global_sidx+default_base_moof+{start}", *fragments)
        ffmpeg_run("-i", folder / "plain.m4a", *options, folder / f"{name}.m4a")
    ffmpeg_run("-i", folder / "plain30.mp4", "-i", folder / "plain.m4a", "-c", "copy", folder / "both30.mp4")
    return Served(folder)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    """A fake site in place of yt-dlp."""
    site = Site()
    monkeypatch.setattr("yt_dlp.YoutubeDL", site)
    return site
