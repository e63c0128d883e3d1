"""Every row of the table of failure codes, by real messages of YouTube and yt-dlp and by yt-dlp's own exceptions."""

import io
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yt_dlp
from yt_dlp.extractor.common import InfoExtractor
from yt_dlp.networking import Response
from yt_dlp.networking.exceptions import (
    CertificateVerifyError,
    HTTPError,
    IncompleteRead,
    ProxyError,
    SSLError,
    TransportError,
)
from yt_dlp.utils import ContentTooShortError, DownloadError, ExtractorError, GeoRestrictedError, UnsupportedError

from mbt.prep.sources.problems import problem_of
from mbt.prep.state.failure_codes import TABLE, UNEXPECTED, Action, Problem, Verdict, classify, plain
from tests.conftest import LoopbackServer

ROOT = Path(__file__).parents[3]
VIDEO = "dQw4w9WgXcQ"
LOGIN = " Use --cookies-from-browser or --cookies for the authentication. See  https://github.com/yt-dlp/yt-dlp/wiki/FAQ"
NO_FORMAT = "Requested format is not available. Use --list-formats for a list of available formats"
MEDIA = "unable to download video data: "

TEXTS = {
    "input.truncated_id": (
        "input",
        "Incomplete YouTube ID dQw4. URL https://www.youtube.com/watch?v=dQw4 looks truncated.",
    ),
    "input.bad_url": ("input", "'dQw4' is not a valid URL", "Unsupported URL: http://127.0.0.1/page"),
    "input.playlist": ("input", "the URL gives several videos, not one"),
    "rate.session": (
        "cool",
        "Video unavailable. This content isn’t available, try again later",
        "Video unavailable. This content is not here. The current session has been rate-limited by YouTube for up to an hour.",
    ),
    "rate.429": (
        "cool",
        "Unable to download API page: HTTP Error 429: Too Many Requests (caused by <HTTPError 429: Too Many Requests>)",
        "Unable to download webpage: HTTP Error 402: Payment Required (caused by <HTTPError 402: Payment Required>)",
    ),
    "rate.limit_text": (
        "cool",
        "You've hit the request limit.. Your limits will reset soon, usually within an hour.",
    ),
    "block.bot": ("block", f"Sign in to confirm you’re not a bot.{LOGIN}"),
    "block.captcha": ("block", "Video unavailable. YouTube is requiring a captcha challenge before playback"),
    "block.ip": ("block", "All player responses are invalid. Your IP is likely being blocked by Youtube"),
    "block.session": ("block", "Video unavailable. This content isn’t available."),
    "block.please_sign_in": ("block", f"Please sign in.{LOGIN}"),
    "creds.cookies_stale": ("block",),
    "perm.private": (
        "permanent",
        f"Private video. Sign in if you’ve been granted access to this video.{LOGIN}",
        "This video is private",
        "This is a private video. Please sign in to verify that you may see it.",
    ),
    "creds.age": (
        "credentials",
        f"Sign in to confirm your age.{LOGIN}",
        "This video is age-restricted and only available on YouTube",
        "This video may be inappropriate for some users.",
    ),
    "creds.members": (
        "credentials",
        "Join this channel to get access to members-only content like this video, and other exclusive perks.",
        "This video is available to this channel’s members on level: Fans (or any higher level).",
    ),
    "creds.paid": (
        "credentials",
        "This video requires payment to watch",
        "This video is only available to Music Premium members",
        "To watch this video, purchase it",
    ),
    "creds.login": (
        "credentials",
        f"This video is only available for registered users.{LOGIN}",
        "Login details are needed to download this content",
        "Unable to download webpage: HTTP Error 401: Unauthorized (caused by <HTTPError 401: Unauthorized>)",
        f"Sign in to see it.{LOGIN}",
    ),
    "region.uploader": ("region", "Video unavailable. The uploader has not made this video available in your country"),
    "region.copyright": (
        "region",
        "Video unavailable. This video contains content from SME, who has blocked it in your country on copyright grounds",
    ),
    "region.other": (
        "region",
        "Video unavailable. This video is not available in your country",
        "This video is not available from your location due to geo restriction",
        "This content is not available on this country domain",
        "This content is not available due to a legal complaint from the government",
    ),
    "perm.copyright": (
        "permanent",
        "This video is no longer available due to a copyright claim by SME",
        "Video unavailable. This video contains content from SME, who has blocked it on copyright grounds",
    ),
    "perm.privacy_claim": (
        "permanent",
        "This video is no longer available due to a privacy claim by a third party",
        "This video is no longer available due to a trademark claim by a third party",
        "This video is no longer available due to a court order",
    ),
    "perm.terms": (
        "permanent",
        "Video unavailable. This video has been removed for violating YouTube's Terms of Service",
        "This video has been removed for violating YouTube’s policy on hate speech.",
    ),
    "perm.account_terminated": (
        "permanent",
        "Video unavailable. This video is no longer available because the YouTube account associated with this video has been "
        "terminated.",
        "This video is no longer available because the YouTube account has been terminated.",
    ),
    "perm.account_closed": (
        "permanent",
        "This video is no longer available because the uploader has closed their YouTube account.",
    ),
    "perm.removed_by_uploader": ("permanent", "Video unavailable. This video has been removed by the uploader"),
    "perm.recording_gone": ("permanent", "This live stream recording is not available."),
    "perm.gone": ("permanent",),
    "later.upcoming": (
        "later",
        "This live event will begin in 3 hours.",
        "Premieres in 5 days",
        "This live stream will begin in a few moments.",
    ),
    "later.live": ("later", "This live event has ended."),
    "later.processing": (
        "later",
        "We're processing this video. Check back later.",
        "This video is still being processed.",
    ),
    "env.reload": ("environment", "The page needs to be reloaded."),
    "env.client": (
        "confirm",
        "The following content is not available on this app.",
        "Video unavailable. Playback on other websites has been disabled by the video owner",
        "Watch on the latest version of YouTube.",
    ),
    "env.js": ("environment",),
    "env.sabr": ("later",),
    "env.drm": ("permanent", "This video is DRM protected"),
    "env.format": ("confirm", NO_FORMAT, "No video formats found!", "Only images are available for download."),
    "env.extractor": (
        "later",
        "Failed to extract any player response",
        "Unable to extract yt initial data",
        "Precondition check failed.",
        "Unable to download API page: HTTP Error 400: Bad Request (caused by <HTTPError 400: Bad Request>)",
    ),
    "env.ffmpeg": (
        "environment",
        "Postprocessing: ffprobe and ffmpeg not found. Please install or provide the path using --ffmpeg-location",
        "You have requested merging of multiple formats but ffmpeg is not installed. Aborting due to --abort-on-error",
    ),
    "confirm.unavailable": (
        "confirm",
        "Video unavailable",
        "This video is unavailable",
        "This video is no longer available",
        "This video is not available",
        "The channel does not exist",
    ),
    "bytes.403": ("again", f"{MEDIA}HTTP Error 403: Forbidden"),
    "bytes.gone": (
        "bytes",
        f"{MEDIA}HTTP Error 404: Not Found",
        f"{MEDIA}HTTP Error 410: Gone",
        "fragment 7 not found, unable to continue",
    ),
    "bytes.416": ("bytes", f"{MEDIA}HTTP Error 416: Requested range not satisfiable"),
    "bytes.short": (
        "bytes",
        "content too short (expected 1000 bytes and served 10)",
        "[download] Got error: Downloaded 10 bytes, expected 1000 bytes. Giving up after 5 retries",
        "[download] Got error: 10 bytes read, 990 more expected. Giving up after 5 retries",
        "Did not get any data blocks",
        "The downloaded file is empty",
    ),
    "bytes.slow": ("bytes", "The download speed is below throttle limit"),
    "net.proxy": (
        "block",
        "Unable to download webpage: HTTP Error 407: Proxy Authentication Required",
        "Unable to download webpage: ('Unable to connect to proxy', OSError('Tunnel connection failed: 503'))",
    ),
    "net.tls": (
        "environment",
        "Unable to download webpage: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate is not yet valid",
    ),
    "net.dns": (
        "network",
        "<urlopen error [Errno -2] Name or service not known>",
        "<urlopen error [Errno -3] Temporary failure in name resolution>",
        "<urlopen error [Errno 11001] getaddrinfo failed>",
        "HTTPSConnection(host='www.youtube.com', port=443): Failed to resolve 'www.youtube.com'",
    ),
    "net.unreachable": (
        "network",
        "<urlopen error [Errno 101] Network is unreachable>",
        "<urlopen error [Errno 113] No route to host>",
        "<urlopen error [Errno 111] Connection refused>",
    ),
    "net.reset": (
        "network",
        "[Errno 104] Connection reset by peer",
        "('Connection aborted.', RemoteDisconnected('Remote end closed connection without response'))",
        "EOF occurred in violation of protocol (_ssl.c:1000)",
        "[Errno 32] Broken pipe",
        "BrokenPipeError",
    ),
    "net.timeout": ("network", "Unable to download API page: The read operation timed out"),
    "net.5xx": (
        "network",
        "Unable to download webpage: HTTP Error 503: Service Unavailable",
        "Unable to download webpage: HTTP Error 408: Request Timeout",
    ),
    "net.404_page": (
        "later",
        "Unable to download webpage: HTTP Error 404: Not Found",
        "Unable to download webpage: HTTP Error 410: Gone",
    ),
    "net.other": ("network", "[download] Got error: [SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)"),
    "unknown": ("later", "Something quite new happened."),
}
"""For each code: its action, and messages that match by text alone, one for each alternative in the row's pattern."""

OTHERS = {
    "rate.429": [
        Problem("Video unavailable. This video has been removed by the uploader", status=429),
        Problem("Failed to extract any player response", warnings=("API page: HTTP Error 429: Too Many Requests",)),
    ],
    "creds.cookies_stale": [
        Problem(
            "Video unavailable",
            warnings=("The provided YouTube account cookies are no longer valid. They have likely been rotated",),
        )
    ],
    "region.uploader": [Problem("Private video", frozenset({"ExtractorError", "GeoRestrictedError"}))],
    "perm.gone": [
        Problem("Unable to download webpage: HTTP Error 404: Not Found", extractor="generic"),
        Problem("Unable to download webpage: HTTP Error 410: Gone", extractor="generic"),
        Problem("no", status=404, extractor="vimeo"),
    ],
    "later.live": [Problem("it is on air", frozenset({"is_live"})), Problem("just over", frozenset({"post_live"}))],
    "env.js": [
        Problem(NO_FORMAT, warnings=(text,))
        for text in (
            "No supported JavaScript runtime could be found. Only deno is enabled by default; to use another runtime",
            "n challenge solving failed: Some formats may be missing.",
            "Signature solving failed: Some formats may be missing.",
            "Ensure you have a supported JavaScript runtime and challenge solver script distribution installed.",
        )
    ],
    "env.sabr": [
        Problem(text, warnings=(warning,))
        for text, warning in (
            (NO_FORMAT, "Some web client https formats have been skipped. YouTube is forcing SABR streaming for this client"),
            ("No video formats found!", "Some tv client https formats have been skipped as they are missing a URL."),
            ("Only images are available", "mweb client https formats require a GVS PO Token which was not provided."),
        )
    ],
    "env.format": [Problem("No video formats found!", frozenset({"ExtractorError", UNEXPECTED}))],
    "env.extractor": [
        Problem("Video unavailable", frozenset({"ExtractorError", UNEXPECTED})),
        Problem("An extractor error has occurred.", frozenset({"ExtractorError", UNEXPECTED})),
    ],
    "net.timeout": [Problem("?", frozenset({"TransportError", "TimeoutError"}))],
    "net.other": [Problem("decompression failed", frozenset({"TransportError"}))],
    "unknown": [Problem("Unable to download webpage: HTTP Error 403: Forbidden", status=403)],
}
"""Problems that match by more than their message."""


def by_text(text: str) -> Problem:
    return Problem(plain(f"ERROR: [youtube] {VIDEO}: {text}"), url_is_media=text.startswith((MEDIA, "fragment")))


def fixtures() -> list[tuple[str, str, Problem]]:
    texts = [(code, action, by_text(text)) for code, (action, *own) in TEXTS.items() for text in own]
    return texts + [(code, TEXTS[code][0], problem) for code, problems in OTHERS.items() for problem in problems]


@pytest.mark.parametrize(("code", "action", "problem"), fixtures())
def test_each_failure_has_its_code(code: str, action: str, problem: Problem) -> None:
    verdict = classify(problem)
    assert (verdict.code, verdict.action.label) == (code, action)


def alternatives(pattern: str) -> list[str]:
    return re.split(r"\|(?![^(]*\))", pattern)


def test_no_row_and_no_alternative_is_shadowed() -> None:
    assert [row.code for row in TABLE] == list(TEXTS)
    found = [(problem, code) for code, _, problem in fixtures()]
    for number, row in enumerate(TABLE):
        own = [problem for problem, code in found if code == row.code]
        assert own, row.code
        for problem in own:
            earlier = [other for other in TABLE[:number] if other.applies_to(problem)]
            if row.matches_kind(problem):
                assert not any(other.matches_kind(problem) for other in earlier), row.code
            else:
                assert not any(other.matches_kind(problem) for other in TABLE if other.applies_to(problem)), row.code
                assert not any(other.matches_text(problem) for other in earlier), row.code
        for pattern in filter(None, (row.text, row.anywhere)):
            for part in alternatives(pattern):
                texts = [text for problem in own for text in (problem.message, *problem.warnings)]
                assert any(re.search(part, text, re.IGNORECASE) for text in texts), (row.code, part)


@pytest.mark.parametrize(
    ("action", "uses_attempt", "hours", "stops"),
    [
        (Action.PERMANENT, True, None, ""),
        (Action.CONFIRM, True, 24, ""),
        (Action.REGION, True, None, ""),
        (Action.CREDENTIALS, True, None, ""),
        (Action.LATER, True, 1, ""),
        (Action.COOL, False, 1, "lane"),
        (Action.BLOCK, False, 6, "lane"),
        (Action.ENVIRONMENT, False, 0, "run"),
        (Action.NETWORK, False, 0, ""),
        (Action.AGAIN, False, 0, ""),
        (Action.BYTES, True, 1, ""),
        (Action.INPUT, True, None, ""),
    ],
)
def test_what_each_action_means(action: Action, uses_attempt: bool, hours: float | None, stops: str) -> None:
    assert len(Action) == 12
    wait_s = None if hours is None else hours * 3600
    assert (action.uses_attempt, action.retry_after_s, action.stops) == (uses_attempt, wait_s, stops)


@pytest.mark.parametrize(("text", "hours"), [("Premieres in 5 days", 24), ("still being processed", 6), ("whatever", 1)])
def test_some_rows_have_their_own_wait(text: str, hours: float) -> None:
    assert classify(Problem(text)).retry_after_s == hours * 3600


def test_codes_that_stop_have_a_remedy_and_the_others_are_in_the_specification() -> None:
    specification = (ROOT / "docs/shards.md").read_text()
    for row in TABLE:
        assert bool(row.remedy) == (bool(row.action.stops) or row.code.startswith("env.")), row.code
        assert (f"`{row.code}`" in specification) == (not row.action.stops), row.code


def test_the_message_includes_the_decisive_warning() -> None:
    warning = "n challenge solving failed: Some formats may be missing."
    verdict = classify(Problem("Requested format is not available", warnings=("irrelevant", warning)))
    assert verdict.message == f"Requested format is not available ({warning})"


def test_plain_text() -> None:
    raw = f"\x1b[0;31mERROR:\x1b[0m [youtube] {VIDEO}: It isn’t\n there; please report this issue on  https://github.com/yt-dlp"
    assert plain(raw) == "It isn't there"


Extraction = Callable[["Fake"], Any]


class Fake(InfoExtractor):
    """An extractor in place of YouTube's, which does what a test says."""

    IE_NAME = "youtube"
    _VALID_URL = r"fake:(?P<id>.+)"

    def __init__(self, extraction: Extraction) -> None:
        super().__init__()
        self.extraction = extraction

    def _real_extract(self, url: str) -> Any:
        return self.extraction(self)


class Warnings:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def debug(self, message: str) -> None:
        pass

    def warning(self, message: str) -> None:
        self.texts.append(message)

    def error(self, message: str) -> None:
        pass


Run = Callable[..., tuple[Problem, Verdict]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs yt-dlp itself with a fake extractor, and returns the classified error."""

    def extract(extraction: Extraction, **options: Any) -> tuple[Problem, Verdict]:
        warnings = Warnings()
        defaults = {"logger": warnings, "noprogress": True, "retries": 0, "extractor_retries": 0, "socket_timeout": 0.3}
        output = {"outtmpl": {"default": str(tmp_path / "%(id)s")}, "geo_bypass": False}
        with yt_dlp.YoutubeDL({**defaults, **output, **options}, auto_init=False) as downloader:
            downloader.add_info_extractor(Fake(extraction))
            try:
                downloader.extract_info(f"fake:{VIDEO}")
            except Exception as error:
                problem = problem_of(error, warnings.texts)
                return problem, classify(problem)
        raise AssertionError("nothing was raised")

    return extract


def raising(error: Exception) -> Extraction:
    def extraction(_: Fake) -> None:
        raise error

    return extraction


def page(url: str) -> Extraction:
    return lambda fake: fake._download_webpage(url, VIDEO)


def media(url: str) -> Extraction:
    return lambda _: {"id": VIDEO, "title": "t", "url": url, "ext": "mp4"}


def status(code: int, reason: str, url: str = "https://www.youtube.com/youtubei/v1/player") -> HTTPError:
    return HTTPError(Response(io.BytesIO(), url, {}, status=code, reason=reason))


def failing_page(error: Exception) -> Extraction:
    """A page whose request fails with this error, which yt-dlp then reports."""

    def extraction(fake: Fake) -> Any:
        fake._downloader.urlopen = raising(error)
        return fake._download_webpage("https://www.youtube.com/watch", VIDEO)

    return extraction


@pytest.mark.parametrize(
    "code", ["perm.private", "rate.session", "block.bot", "creds.age", "perm.account_terminated", "confirm.unavailable"]
)
def test_youtubes_reasons_survive_yt_dlp(run: Run, code: str) -> None:
    _, text = TEXTS[code][:2]
    problem, verdict = run(lambda fake: fake.raise_no_formats(text, expected=True))
    assert (verdict.code, verdict.message) == (code, " ".join(text.replace("’", "'").split()))
    assert UNEXPECTED not in problem.kind


def test_a_region_lock_wins_over_a_misleading_message_and_names_the_countries(run: Run) -> None:
    for extraction in (
        lambda fake: fake.raise_geo_restricted("This video is private", ["DE", "FR"]),
        raising(GeoRestrictedError("This video is private", countries=["DE", "FR"])),
    ):
        problem, verdict = run(extraction)
        assert (problem.message, problem.countries) == ("This video is private", ("DE", "FR"))
        assert (verdict.code, verdict.message) == ("region.uploader", "This video is private (available in DE, FR)")
    problem, verdict = run(lambda fake: fake.raise_geo_restricted())
    assert (verdict.code, problem.countries) == ("region.uploader", ())


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("rate.429", status(429, "Video unavailable. This video has been removed by the uploader")),
        ("rate.429", status(402, "Payment Required")),
        ("creds.login", status(401, "Unauthorized")),
        ("env.extractor", status(400, "Bad Request")),
        ("net.5xx", status(503, "Service Unavailable")),
        ("net.404_page", status(404, "Not Found")),
        ("net.proxy", status(407, "Proxy Authentication Required")),
        ("bytes.403", status(403, "Forbidden", "https://rr4---sn-4g5e6nsz.googlevideo.com/videoplayback?expire=1")),
        ("unknown", status(403, "Forbidden")),
        ("net.tls", CertificateVerifyError("certificate has expired")),
        ("net.proxy", ProxyError("no")),
        ("net.reset", IncompleteRead(10, 990)),
        ("net.reset", SSLError("wrong version number")),
        ("net.timeout", TransportError("The read operation timed out")),
        ("net.timeout", TransportError(cause=TimeoutError("no"))),
        ("net.reset", TransportError(cause=ConnectionResetError(104, "no"))),
        ("net.other", TransportError("what is this")),
    ],
)
def test_network_errors_of_yt_dlp(run: Run, code: str, error: Exception) -> None:
    problem, verdict = run(failing_page(error))
    assert (verdict.code, problem.status) == (code, getattr(error, "status", None))
    assert {type(error).__name__, "ExtractorError"} <= problem.kind
    assert UNEXPECTED not in problem.kind


def test_an_error_raised_while_handling_another_is_not_taken_for_it(run: Run) -> None:
    def extraction(fake: Fake) -> None:
        try:
            failing_page(status(404, "Not Found"))(fake)
        except ExtractorError:
            raise ExtractorError("This video has been removed by the uploader", expected=True) from None

    assert run(extraction)[1].code == "perm.removed_by_uploader"


@pytest.mark.parametrize(
    ("code", "extraction", "kind"),
    [
        ("env.extractor", raising(ExtractorError("This video is private")), "ExtractorError"),
        ("env.extractor", lambda _: {}["streamingData"], "KeyError"),
        ("env.extractor", lambda fake: fake._search_regex("a", "b", "player"), "RegexNotFoundError"),
        ("env.extractor", raising(TypeError("'NoneType' object is not iterable")), "TypeError"),
        ("env.format", lambda _: {"id": VIDEO, "title": "t", "formats": []}, "ExtractorError"),
    ],
)
def test_a_fault_of_the_extractor_is_never_the_videos_own(run: Run, code: str, extraction: Extraction, kind: str) -> None:
    problem, verdict = run(extraction)
    assert verdict.code == code
    assert {kind, UNEXPECTED} <= problem.kind
    assert "please report" not in verdict.message


def test_an_unsupported_url(run: Run) -> None:
    assert run(raising(UnsupportedError("https://example.org/removed by the uploader")))[1].code == "input.bad_url"


def test_the_reason_is_found_in_the_warnings(run: Run) -> None:
    def extraction(fake: Fake) -> None:
        fake.report_warning("n challenge solving failed: Some formats may be missing.", VIDEO)
        fake.raise_no_formats("Video unavailable", expected=True)

    problem, verdict = run(extraction)
    assert problem.warnings == ("n challenge solving failed: Some formats may be missing.",)
    assert verdict.code == "env.js"


@pytest.mark.parametrize(
    ("code", "url", "options"),
    [
        ("net.unreachable", "http://127.0.0.1:9/", {}),
        ("net.dns", "http://nowhere.invalid/", {}),
        ("net.proxy", "http://nowhere.invalid/", {"proxy": "http://127.0.0.1:9"}),
    ],
)
def test_real_connections_that_fail(run: Run, code: str, url: str, options: dict[str, str]) -> None:
    assert run(page(url), **options)[1].code == code
    assert run(media(url), **options)[1].code == code


@pytest.mark.parametrize(("number", "code"), [(403, "bytes.403"), (410, "bytes.gone"), (416, "bytes.416"), (429, "rate.429")])
def test_refused_media(server: LoopbackServer, run: Run, number: int, code: str) -> None:
    server.answer = lambda request: request.send_error(number)
    problem, verdict = run(media(f"{server.url}/v.mp4"))
    assert (verdict.code, problem.status, problem.url_is_media) == (code, number, True)


def test_media_that_break_off(server: LoopbackServer, run: Run) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(b"only this")

    server.answer = answer
    assert run(media(f"{server.url}/v.mp4"))[1].code == "bytes.short"
    assert run(page(f"{server.url}/v"))[1].code == "net.reset"


def test_a_server_without_a_response_or_without_tls(server: LoopbackServer, run: Run) -> None:
    server.answer = lambda request: None
    assert run(page(f"{server.url}/v"))[1].code == "net.reset"
    assert run(media(server.url.replace("http:", "https:") + "/v.mp4"))[1].code == "net.other"


def test_an_error_without_a_context_is_read_from_its_exc_info() -> None:
    cause = ContentTooShortError(10, 1000)
    error = DownloadError("ERROR: no", (ContentTooShortError, cause, None))
    assert problem_of(error).kind == {"DownloadError", "ContentTooShortError"}
    assert classify(problem_of(error)).code == "bytes.short"
    bug = DownloadError("ERROR: [youtube] x: Odd; please report this issue on  https://github.com/yt-dlp/yt-dlp/issues")
    assert classify(problem_of(bug)).code == "env.extractor"


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("Unable to connect to http://me:pw1@proxy:1 (no route)", "Unable to connect to http://proxy:1 (no route)"),
        ("Max retries exceeded with url: /videoplayback?ip=1.2.3.4&sig=AOq (x)", "with url: /videoplayback?... (x)"),
        ("HTTPSConnection('/watch?v=dQw4w9WgXcQ')", "HTTPSConnection('/watch?v=dQw4w9WgXcQ')"),
        ("Is it live? It is.", "Is it live? It is."),
    ],
)
def test_messages_hold_no_credentials_and_no_signed_urls(message: str, kept: str) -> None:
    problem = problem_of(DownloadError(f"ERROR: {message}"), [message])
    assert kept in problem.message
    assert kept in problem.warnings[0]
    assert not {"pw1", "AOq"} & set(re.findall(r"\w+", f"{problem.message} {problem.warnings}"))
