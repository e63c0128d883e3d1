"""Lists of formats as YouTube offers them in 2026, in the fields that yt-dlp's extractor fills."""

from collections.abc import Iterable
from typing import Any

QUALITY = {144: 0, 240: 5, 360: 6, 480: 7, 720: 8, 1080: 9}
"""yt-dlp's rank of YouTube's quality labels, by short side."""
ULTRALOW, LOW, MEDIUM = 1, 2, 3
DURATION = 312
Format = dict[str, Any]


def _stream(itag: str, quality: float, kbps: float, **fields: Any) -> Format:
    size = round(kbps * 125 * DURATION)
    return {
        "format_id": itag,
        "url": f"https://r1.googlevideo.com/videoplayback?itag={itag}&sig=s",
        "protocol": "https",
        "quality": quality,
        "tbr": kbps,
        "filesize": size,
        "source_preference": -1,
        "language_preference": -1,
        "downloader_options": {"http_chunk_size": 10 << 20},
        **fields,
    }


def video(itag: str, height: int, codec: str, kbps: float, fps: int = 30, **fields: Any) -> Format:
    """Pictures without sound."""
    container = {"ext": "webm", "container": "webm_dash"} if codec.startswith("vp") else {"ext": "mp4", "container": "mp4_dash"}
    size = {"width": round(height * 16 / 18) * 2, "height": height, "fps": fps, "dynamic_range": "SDR"}
    codecs = {"vcodec": codec, "acodec": "none", "vbr": kbps}
    return _stream(itag, QUALITY[height], kbps, **{**codecs, **size, **container, **fields})


def audio(itag: str, codec: str, kbps: float, quality: float, **fields: Any) -> Format:
    """Sound without pictures."""
    container = {"ext": "webm", "container": "webm_dash"} if codec == "opus" else {"ext": "m4a", "container": "m4a_dash"}
    codecs = {"vcodec": "none", "acodec": codec, "abr": kbps, "audio_channels": 2}
    return _stream(itag, quality, kbps, **{**codecs, **container, **fields})


def hls(itag: str, height: int, kbps: float, **fields: Any) -> Format:
    """Pictures and sound as a stream of segments, whose size is unknown."""
    stream = {"protocol": "m3u8_native", "url": f"https://manifest.googlevideo.com/itag/{itag}/index.m3u8", "filesize": None}
    muxed = {"acodec": "mp4a.40.2", "container": None, "vbr": None, "source_preference": -2}
    return video(itag, height, "avc1.4D401E", kbps, **{**stream, **muxed, **fields})


H264 = [
    video("160", 144, "avc1.4d400c", 60),
    video("133", 240, "avc1.4d4015", 150),
    video("134", 360, "avc1.4d401e", 310),
    video("135", 480, "avc1.4d401f", 560),
    video("136", 720, "avc1.4d401f", 1100),
    video("137", 1080, "avc1.640028", 2600),
]
VP9 = [
    video("278", 144, "vp9", 70),
    video("242", 240, "vp9", 120),
    video("243", 360, "vp9", 250),
    video("244", 480, "vp9", 420),
    video("247", 720, "vp9", 900),
    video("248", 1080, "vp9", 1700),
]
AV1 = [
    video("394", 144, "av01.0.00M.08", 55),
    video("395", 240, "av01.0.00M.08", 110),
    video("396", 360, "av01.0.01M.08", 220),
    video("397", 480, "av01.0.04M.08", 380),
    video("398", 720, "av01.0.05M.08", 800),
    video("399", 1080, "av01.0.08M.08", 1500),
]
AAC = [audio("139", "mp4a.40.5", 49, LOW), audio("140", "mp4a.40.2", 130, MEDIUM)]
OPUS = [audio("249", "opus", 52, LOW), audio("250", "opus", 68, LOW), audio("251", "opus", 128, MEDIUM)]
OTHERS = [audio("599", "mp4a.40.5", 31, ULTRALOW), audio("600", "opus", 36, ULTRALOW)]
MUXED = video("18", 360, "avc1.42001E", 420, acodec="mp4a.40.2", container=None, ext="mp4", audio_channels=2)
STORYBOARDS = [
    {
        "format_id": f"sb{number}",
        "format_note": "storyboard",
        "ext": "mhtml",
        "protocol": "mhtml",
        "acodec": "none",
        "vcodec": "none",
        "url": "https://i.ytimg.com/sb/M$M.jpg",
        "width": width,
        "height": height,
        "fps": 0.1,
    }
    for number, width, height in ((3, 48, 27), (2, 80, 45), (1, 160, 90), (0, 320, 180))
]
HLS = [
    hls("91", 144, 170),
    hls("92", 240, 300),
    hls("93", 360, 700),
    hls("94", 480, 1100),
    hls("95", 720, 1900),
    hls("96", 1080, 4500),
]


def drc(formats: Iterable[Format]) -> list[Format]:
    """Twins with compressed dynamic range."""
    return [
        {**each, "format_id": f"{each['format_id']}-drc", "quality": each["quality"] - 0.5, "format_note": "DRC"}
        for each in formats
    ]


def dubbed(formats: Iterable[Format], languages: dict[str, int], smaller: float = 0.9) -> list[Format]:
    """One track per language, each smaller than the one before."""
    return [
        {
            **each,
            "format_id": f"{each['format_id']}-{number}",
            "language": language,
            "language_preference": preference,
            "filesize": round(each["filesize"] * smaller**number),
        }
        for each in formats
        for number, (language, preference) in enumerate(languages.items())
    ]


def at_60_fps(formats: Iterable[Format]) -> list[Format]:
    """What a video at 60 frames per second has: from 720 lines on, at that rate and under other itags."""
    names = {"136": "298", "137": "299", "247": "302", "248": "303"}
    return [
        {
            **each,
            "format_id": names.get(each["format_id"], each["format_id"]),
            "fps": 60 if each.get("height", 0) >= 720 else 30,
        }
        if each["vcodec"] != "none"
        else each
        for each in formats
    ]


def vertical(formats: Iterable[Format]) -> list[Format]:
    """The same formats of a portrait video: their heights are widths."""
    return [{**each, "width": each.get("height"), "height": each.get("width")} for each in formats]


HDR = [
    video("330", 144, "vp9.2", 110, 60, dynamic_range="HDR10"),
    video("332", 360, "vp9.2", 450, 60, dynamic_range="HDR10"),
    video("334", 720, "vp9.2", 1900, 60, dynamic_range="HDR10"),
    video("694", 144, "av01.0.00M.10.0.110.09.16.09.0", 90, 60, dynamic_range="HDR10"),
    video("696", 360, "av01.0.01M.10.0.110.09.16.09.0", 330, 60, dynamic_range="HDR10"),
]
PLAIN = [*STORYBOARDS, *OTHERS, *AAC, *OPUS, *H264, *VP9, *AV1, MUXED]
LIVE_ARCHIVE = [
    {key: value for key, value in each.items() if key != "filesize"} | {"available_at": 0} for each in [*AAC, *H264, MUXED]
]
