"""What only names other files is not decoded, whatever its suffix: scripts, playlists, sequences of pictures, protocols."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mbt.manifests.shards import VideoFormat
from mbt.prep.media.decode import decode_clip
from mbt.prep.media.ffmpeg import ClipError, ffmpeg
from mbt.prep.sources.byte_ranges import merge_whole
from tests.media import Spec

PICTURE = Spec("25.mp4", seconds=1)


def _disguised(folder: Path, rendered: Callable[[Spec], Path]) -> dict[str, bytes]:
    """Scripts and playlists by their names, all of which lead to other files."""
    inner = rendered(PICTURE)
    (folder / "inner.mp4").write_bytes(inner.read_bytes())
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    return {
        "ffconcat.mp4": b"ffconcat version 1.0\nfile inner.mp4\n",
        "playlist.mp4": playlist.format("inner.mp4").encode(),
        "remote.mp4": playlist.format("http://127.0.0.1:9/x.ts").encode(),
        "dash.mp4": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
        b'<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>inner.mp4</BaseURL>'
        b"</Representation></AdaptationSet></Period></MPD>",
        "session.mp4": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        b"m=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "text.mp4": b"file 'inner.mp4'\n",
    }


@pytest.mark.parametrize("name", ["ffconcat.mp4", "playlist.mp4", "remote.mp4", "dash.mp4", "session.mp4", "text.mp4"])
def test_scripts_and_playlists_are_not_media(name: str, tmp_path: Path, rendered: Callable[[Spec], Path]) -> None:
    path = tmp_path / name
    path.write_bytes(_disguised(tmp_path, rendered)[name])
    _is_unreadable(path)


def test_sequences_of_pictures_and_protocols_are_not_media(tmp_path: Path, rendered: Callable[[Spec], Path]) -> None:
    (tmp_path / "inner.mp4").write_bytes(rendered(PICTURE).read_bytes())
    pictures = [ffmpeg(), "-v", "error", "-i", str(tmp_path / "inner.mp4"), "-frames:v", "9", str(tmp_path / "%03d.jpg")]
    subprocess.run(pictures, check=True)
    for name in ("%03d.jpg", "001.jpg", "*.jpg", "concat:inner.mp4|inner.mp4", "subfile,,start,0,end,0,,:inner.mp4"):
        _is_unreadable(tmp_path / name)
    (tmp_path / "%03d.mp4").write_bytes((tmp_path / "inner.mp4").read_bytes())
    assert len(decode_clip(tmp_path / "%03d.mp4", 0, 1, VideoFormat(short_side=96)).jpegs) == 25


def _is_unreadable(path: Path) -> None:
    with pytest.raises(ClipError) as caught:
        decode_clip(path, 0, 1, VideoFormat(short_side=96))
    assert caught.value.code == "decode.unreadable"
    with pytest.raises(ClipError) as caught:
        merge_whole([path], path.with_name("merged.mkv"))
    assert caught.value.code == "decode.unreadable"
