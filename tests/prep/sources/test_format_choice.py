"""Which of the formats that YouTube offers are fetched, by yt-dlp's own sorting and selection."""

from typing import Any

import pytest

from mbt.prep.sources.ytdlp import parse_ytdlp
from tests.prep.sources import format_lists as lists
from tests.prep.sources.format_lists import AAC, AV1, H264, HDR, HLS, MUXED, OPUS, PLAIN, STORYBOARDS, VP9
from tests.site import session

LANGUAGES = {"de": -1, "en-US": 10, "es": -1, "fr": 5}
"""The original language has 10, the default of the viewer's country 5."""
FIELDS = ["quality", "res", "fps", "hdr:12", "source", "vcodec", "channels", "acodec", "lang", "proto"]
"""`_format_sort_fields` of yt-dlp's extractor for YouTube."""


def chosen(formats: list[dict[str, Any]], *flags: str) -> str:
    """Ids of the chosen formats; no network is used."""
    options = parse_ytdlp(flags)
    info = {
        "id": "dQw4w9WgXcQ",
        "title": "A title",
        "extractor": "youtube",
        "extractor_key": "Youtube",
        "duration": lists.DURATION,
        "formats": [dict(each) for each in formats],
        "_format_sort_fields": FIELDS,
    }
    return str(session(**options).process_video_result(info, download=False)["format_id"])


def without(formats: list[dict[str, Any]], *itags: str) -> list[dict[str, Any]]:
    return [each for each in formats if each["format_id"] not in itags]


@pytest.mark.parametrize(
    ("formats", "itags"),
    [
        pytest.param(PLAIN, "134+140", id="plain"),
        pytest.param([*PLAIN, *HLS], "134+140", id="plain and HLS"),
        pytest.param(PLAIN[::-1], "134+140", id="reversed"),
        pytest.param([*PLAIN, *lists.drc([*AAC, *OPUS])], "134+140", id="drc"),
        pytest.param([*H264, *lists.drc(AAC), *AAC[:1]], "134+139", id="plain 139 before 140-drc"),
        pytest.param([*H264, *lists.drc(AAC)], "134+140-drc", id="only drc"),
        pytest.param([*without(PLAIN, "139", "140"), *lists.dubbed(AAC, LANGUAGES), *HLS], "134+140-1", id="dubbed"),
        pytest.param(
            [*without(PLAIN, "139", "140"), *lists.dubbed([*AAC, *lists.drc(AAC)], LANGUAGES)], "134+140-1", id="dubbed and drc"
        ),
        pytest.param([*H264, *AAC[:1], *OPUS], "134+251", id="no 140"),
        pytest.param(lists.LIVE_ARCHIVE, "134+140", id="live archive"),
        pytest.param([*STORYBOARDS, *VP9, *AV1, *AAC, *OPUS], "243+140", id="only VP9 and AV1"),
        pytest.param([*AV1, *OPUS], "396+251", id="only AV1 and Opus"),
        pytest.param([*STORYBOARDS, *HLS], "93", id="only HLS"),
        pytest.param([*STORYBOARDS, *HLS, MUXED], "18", id="HLS and 18"),
        pytest.param([*STORYBOARDS, MUXED], "18", id="only 18"),
        pytest.param([*STORYBOARDS, MUXED, *H264[:4], *AAC], "134+140", id="age-limited"),
        pytest.param([*STORYBOARDS, MUXED, *AAC], "18", id="sound and 18"),
        pytest.param(lists.at_60_fps([*PLAIN, *HLS]), "134+140", id="60 fps"),
        pytest.param([*H264[4:], *lists.at_60_fps(H264[4:]), *AAC], "136+140", id="30 fps before 60"),
        pytest.param(lists.vertical(PLAIN), "134+140", id="vertical"),
        pytest.param([*PLAIN, *HDR], "134+140", id="HDR"),
        pytest.param([*HDR, *VP9, *AAC], "243+140", id="SDR before HDR"),
        pytest.param([*HDR[3:], *AV1, *AAC], "396+140", id="SDR before HDR of one codec"),
        pytest.param([*H264[3:], *AAC], "135+140", id="no 360"),
        pytest.param([*H264[:2], *VP9[:2], *AAC], "133+140", id="at most 240"),
        pytest.param([*H264, *HLS], "93", id="no sound but in HLS"),
    ],
)
def test_the_best_formats_for_the_clips_are_chosen(formats: list[dict[str, Any]], itags: str) -> None:
    assert chosen(formats) == itags


def test_ranges_of_large_files_are_better_than_a_whole_stream() -> None:
    streams = [
        lists.hls("230", 360, 600, acodec="none"),
        lists.audio("234", "mp4a.40.2", 130, -1, protocol="m3u8_native", filesize=None),
    ]
    assert chosen([*streams, *H264[4:], *AAC]) == "136+140"
    assert chosen([*streams, *VP9[:3], *AAC]) == "243+140"
    assert chosen(streams) == "230+234"


def test_flags_of_the_user_come_first() -> None:
    assert chosen(PLAIN, "--format-sort res:720") == "136+140"
    assert chosen(PLAIN, "--format 18") == "18"
