"""The live line of a run."""

from pathlib import Path

import pytest

from tests.site import HandClock, Scripted, fetch_all, plan_of, refusal, videos


def test_the_line_counts_what_came_and_says_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"v01": "Private video", "v02": "Premieres in 5 days", "v03": "Something new"}
    source = Scripted(
        plan_of(tmp_path, videos(40)), lambda clip, times: refusal(texts[clip.video_id]) if clip.video_id in texts else None
    )
    fetch_all(source, HandClock(), sleep_s=36.0, note=lambda: "packed 7")
    lines = [line for line in capsys.readouterr().err.splitlines() if "asked 11," in line]
    assert lines
    assert "asked 11, available 8, dead 1, retry 2 (from " in lines[0]
    assert lines[0].startswith("fetch: asked")
    assert "packed 7, 0.0 MB/s, 0.3 h left" in lines[0]
