"""A yt-dlp extractor plug-in for pages that stand in for YouTube's; `tests/mediaserver.py` serves them at /watch/ID."""

import json
from typing import Any

from yt_dlp.extractor.common import InfoExtractor
from yt_dlp.utils import ExtractorError


class StandInIE(InfoExtractor):
    """A page is JSON: `{"error": text}`, or `{"video": path, "audio": path}` with the paths of pictures and sound, or
    `{"both": path}`.

    As with YouTube, yt-dlp downloads the files in chunks of 10 MiB.
    """

    _VALID_URL = r"(?P<site>http://127\.0\.0\.1:\d+)/watch/(?P<id>[\w-]+)"
    IE_NAME = "youtube:standin"

    def _real_extract(self, url: str) -> dict[str, Any]:
        video_id = self._match_id(url)
        site = self._match_valid_url(url)["site"]
        page = json.loads(self._download_webpage(url, video_id))
        if "error" in page:
            raise ExtractorError(page["error"], expected=True, video_id=video_id)
        if "both" in page:
            whole = {"vcodec": "avc1.42001E", "acodec": "mp4a.40.2", "width": 640, "height": 360, "ext": "mp4"}
            return {"id": video_id, "title": video_id, "formats": [{"format_id": "18", "url": site + page["both"], **whole}]}
        chunks = {"downloader_options": {"http_chunk_size": 10 << 20}}
        pictures = {"vcodec": "avc1.4d401e", "acodec": "none", "width": 640, "height": 360, "ext": "mp4", **chunks}
        sound = {"vcodec": "none", "acodec": "mp4a.40.2", "ext": "m4a", **chunks}
        return {
            "id": video_id,
            "title": video_id,
            "formats": [
                {"format_id": "140", "url": site + page["audio"], **sound},
                {"format_id": "134", "url": site + page["video"], **pictures},
            ],
        }
