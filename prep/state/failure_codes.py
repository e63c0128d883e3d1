"""Why a video was not served: one table that maps what is known about a failure to a code and an action."""

import re
from collections.abc import Collection, Container
from dataclasses import KW_ONLY, dataclass, replace
from enum import Enum
from itertools import chain
from typing import Literal

from mbt.manifests.errors import InputError

HOUR_S = 3600.0
UNEXPECTED = "unexpected"
"""Kind of a failure that is not the site's answer but a fault of the extractor, which is broken or outdated."""
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Problem:
    """What is known about a failure.

    Attributes:
        message: the error's message, as `plain` text.
        kind: class names of the exception and of its causes, a `live_status`, or UNEXPECTED.
        status: the HTTP status that caused it, if any.
        countries: where the video is available, as ISO 3166 codes.
        warnings: the warnings before it, as `plain` text: they often hold the real reason.
        url_is_media: whether the transfer of the media failed, rather than a page or an API.
        extractor: yt-dlp's name of the site.
    """

    message: str
    kind: frozenset[str] = frozenset()
    status: int | None = None
    countries: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    url_is_media: bool = False
    extractor: str = "youtube"


class Action(Enum):
    """What is done about a failure.

    Attributes:
        label: name in the ledger.
        uses_attempt: whether it counts as one of the clip's attempts; otherwise it says nothing about the clip.
        retry_after_s: seconds before a retry (on this lane for COOL and BLOCK); None: no retry.
        stops: what must stop: nothing, the lane (one network address), or the whole run.
    """

    PERMANENT = "permanent", True, None, ""
    CONFIRM = "confirm", True, 24 * HOUR_S, ""
    REGION = "region", True, None, ""
    CREDENTIALS = "credentials", True, None, ""
    LATER = "later", True, HOUR_S, ""
    COOL = "cool", False, HOUR_S, "lane"
    BLOCK = "block", False, 6 * HOUR_S, "lane"
    ENVIRONMENT = "environment", False, 0.0, "run"
    NETWORK = "network", False, 0.0, ""
    """An outage, if it meets several videos in a row; otherwise it is the video's own and becomes LATER (see `Outage`)."""
    AGAIN = "again", False, 0.0, ""
    """Asked again at once, with fresh URLs; if it fails again it becomes LATER."""
    BYTES = "bytes", True, HOUR_S, ""
    INPUT = "input", True, None, ""

    def __init__(self, label: str, uses_attempt: bool, retry_after_s: float | None, stops: Literal["", "lane", "run"]) -> None:
        self.label = label
        self.uses_attempt = uses_attempt
        self.retry_after_s = retry_after_s
        self.stops = stops


@dataclass(frozen=True)
class Verdict:
    """A classified failure.

    Attributes:
        code: stable name of the failure.
        action: what is done about it.
        message: the failure in words.
        retry_after_s: seconds before a retry; None: no retry.
        remedy: what the user can do; empty if nothing.
    """

    code: str
    action: Action
    message: str
    retry_after_s: float | None
    remedy: str = ""

    @property
    def answered(self) -> bool:
        """Whether the site explained what is wrong with this particular video."""
        vague = (Action.NETWORK, Action.AGAIN, Action.BYTES, Action.COOL, Action.BLOCK, Action.ENVIRONMENT, Action.CONFIRM)
        return self.action not in vague and self.code != UNKNOWN and not self.code.startswith(("env.", "net."))

    @property
    def as_later(self) -> "Verdict":
        """This failure as one of the clip's own, to be retried later."""
        return replace(self, action=Action.LATER, retry_after_s=Action.LATER.retry_after_s)


@dataclass(frozen=True)
class Row:
    """How one failure is recognized: by its class or HTTP status, otherwise by its message.

    Attributes:
        code: stable name of the failure.
        action: what is done about it.
        text: pattern in the message.
        anywhere: pattern in the message or a warning; if `text` is given too, both must match.
        kinds: class names that match with any message.
        weak_kinds: class names that match unless an earlier row matches the message.
        status: HTTP statuses that match.
        media: True: matches media only; False: pages only.
        youtube: True: matches YouTube only; False: other sites only.
        retry_after_s: seconds before a retry, if different from the action's.
        remedy: what the user can do.
        max_share: maximum share of a run's videos; beyond it the environment is at fault (see `Breaker`).
    """

    code: str
    action: Action
    _: KW_ONLY
    text: str | None = None
    anywhere: str | None = None
    kinds: tuple[str, ...] = ()
    weak_kinds: tuple[str, ...] = ()
    status: Container[int | None] = ()
    media: bool | None = None
    youtube: bool | None = None
    retry_after_s: float | None = None
    remedy: str = ""
    max_share: float | None = None

    def applies_to(self, problem: Problem) -> bool:
        """Whether the row is for the failure's site and kind of URL."""
        youtube = problem.extractor.startswith("youtube")
        return self.media in (None, problem.url_is_media) and self.youtube in (None, youtube)

    def matches_kind(self, problem: Problem) -> bool:
        """Whether the row matches the failure's HTTP status or one of its classes."""
        return problem.status in self.status or any(name in self.kinds for name in problem.kind)

    def matches_text(self, problem: Problem) -> bool:
        """Whether the row matches the failure's message and warnings."""
        if any(name in self.weak_kinds for name in problem.kind):
            return True
        if UNEXPECTED in problem.kind and not (self.action.stops or self.code.startswith("env.")):
            return False
        wanted = [(self.text, (problem.message,)), (self.anywhere, (problem.message, *problem.warnings))]
        given = [(pattern, texts) for pattern, texts in wanted if pattern is not None]
        found = (any(re.search(pattern, text, re.IGNORECASE) for text in texts) for pattern, texts in given)
        return bool(given) and all(found)

    def verdict(self, message: str) -> Verdict:
        """The verdict on a failure that the row matches."""
        retry_after_s = self.action.retry_after_s if self.retry_after_s is None else self.retry_after_s
        return Verdict(self.code, self.action, message, retry_after_s, self.remedy)


WAIT = "Wait an hour, then run again; fetched clips are kept"
MOVE = "Wait a few hours, or run from another network"
UPGRADE = "Run pip install --upgrade 'yt-dlp[default,deno]', then run again"
NO_FORMAT = r"Requested format is not available|No video formats found!|Only images are available"
SEVERAL_VIDEOS = "the URL gives several videos, not one"

TABLE = (
    Row("input.truncated_id", Action.INPUT, text=r"^Incomplete YouTube ID"),
    Row("input.bad_url", Action.INPUT, text=r"is not a valid URL|Unsupported URL", kinds=("UnsupportedError",)),
    Row("input.playlist", Action.INPUT, text=rf"^{SEVERAL_VIDEOS}$"),
    Row(
        "rate.session",
        Action.COOL,
        anywhere=r"content isn't available, try again later|has been rate-limited by YouTube",
        remedy=WAIT,
    ),
    Row("rate.429", Action.COOL, anywhere=r"HTTP Error 429|HTTP Error 402", status=(402, 429), remedy=WAIT),
    Row("rate.limit_text", Action.COOL, anywhere=r"hit the request limit", remedy=WAIT),
    Row("block.bot", Action.BLOCK, anywhere=r"confirm you're not a bot", remedy=MOVE),
    Row("block.captcha", Action.BLOCK, anywhere=r"requiring a captcha", remedy=MOVE),
    Row("block.ip", Action.BLOCK, anywhere=r"Your IP is likely being blocked", remedy=MOVE),
    Row("block.session", Action.BLOCK, anywhere=r"content isn't available", remedy=MOVE),
    Row("block.please_sign_in", Action.BLOCK, text=r"^Please sign in", remedy=MOVE),
    Row(
        "creds.cookies_stale",
        Action.BLOCK,
        anywhere=r"account cookies are no longer valid",
        remedy="Export the cookies again, then run again",
    ),
    Row("perm.private", Action.PERMANENT, text=r"Private video|video is private|This is a private video"),
    Row("creds.age", Action.CREDENTIALS, text=r"confirm your age|age-restricted|inappropriate for some users"),
    Row("creds.members", Action.CREDENTIALS, text=r"members-only|channel's members"),
    Row("creds.paid", Action.CREDENTIALS, text=r"requires payment to watch|only available to .*Premium|\bpurchase"),
    Row(
        "creds.login",
        Action.CREDENTIALS,
        text=r"registered users|Login details are needed|HTTP Error 401|for the authentication",
        status=(401,),
    ),
    Row("region.uploader", Action.REGION, text=r"not made this video available in your country", kinds=("GeoRestrictedError",)),
    Row("region.copyright", Action.REGION, text=r"blocked it in your country on copyright grounds"),
    Row(
        "region.other",
        Action.REGION,
        text=r"not available in your country|from your location|on this country domain|legal complaint",
    ),
    Row(
        "perm.copyright", Action.PERMANENT, text=r"no longer available due to a copyright claim|blocked it on copyright grounds"
    ),
    Row("perm.privacy_claim", Action.PERMANENT, text=r"privacy claim by a third party|trademark claim|court order"),
    Row("perm.terms", Action.PERMANENT, text=r"removed for violating YouTube's"),
    Row("perm.account_terminated", Action.PERMANENT, text=r"account( associated with this video)? has been terminated"),
    Row("perm.account_closed", Action.PERMANENT, text=r"uploader has closed their YouTube account"),
    Row("perm.removed_by_uploader", Action.PERMANENT, text=r"removed by the uploader"),
    Row("perm.recording_gone", Action.PERMANENT, text=r"live stream recording is not available"),
    Row("perm.gone", Action.PERMANENT, text=r"HTTP Error 404|HTTP Error 410", status=(404, 410), media=False, youtube=False),
    Row(
        "later.upcoming",
        Action.LATER,
        text=r"live event will begin|Premieres? (in|on)\b|will begin in a few moments",
        retry_after_s=24 * HOUR_S,
    ),
    Row("later.live", Action.LATER, text=r"live event has ended", kinds=("is_live", "post_live"), retry_after_s=24 * HOUR_S),
    Row("later.processing", Action.LATER, text=r"processing this video|still being processed", retry_after_s=6 * HOUR_S),
    Row("env.reload", Action.ENVIRONMENT, text=r"The page needs to be reloaded", remedy=UPGRADE),
    Row(
        "env.client",
        Action.CONFIRM,
        text=r"not available on this app|Playback on other websites has been disabled|latest version of YouTube",
        remedy=UPGRADE,
        max_share=0.05,
    ),
    Row(
        "env.js",
        Action.ENVIRONMENT,
        anywhere=r"No supported JavaScript runtime|challenge solving failed|Signature solving failed|challenge solver script",
        remedy=UPGRADE,
    ),
    Row(
        "env.sabr",
        Action.LATER,
        text=NO_FORMAT,
        anywhere=r"forcing SABR streaming|missing a url|require a GVS PO Token",
        remedy=UPGRADE,
        max_share=0.05,
    ),
    Row("env.drm", Action.PERMANENT, text=r"DRM protected", remedy=UPGRADE, max_share=0.01),
    Row("env.format", Action.CONFIRM, text=NO_FORMAT, remedy=UPGRADE),
    Row(
        "env.extractor",
        Action.LATER,
        text=r"Failed to extract any player response|Unable to extract|Precondition check failed|HTTP Error 400",
        weak_kinds=(UNEXPECTED,),
        status=(400,),
        remedy=UPGRADE,
        max_share=0.05,
    ),
    Row(
        "env.ffmpeg",
        Action.ENVIRONMENT,
        text=r"ffmpeg (is )?not (found|installed)",
        remedy="Run pip install --force-reinstall imageio-ffmpeg, then run again",
    ),
    Row(
        "confirm.unavailable",
        Action.CONFIRM,
        text=r"Video unavailable|This video is (unavailable|no longer available|not available)|does not exist",
    ),
    Row("bytes.403", Action.AGAIN, text=r"HTTP Error 403", status=(403,), media=True),
    Row(
        "bytes.gone", Action.BYTES, text=r"HTTP Error 404|HTTP Error 410|fragment \d+ not found", status=(404, 410), media=True
    ),
    Row("bytes.416", Action.BYTES, text=r"HTTP Error 416", status=(416,)),
    Row(
        "bytes.short",
        Action.BYTES,
        text=r"content too short|Downloaded \d+ bytes, expected|more expected"
        r"|Did not get any data blocks|downloaded file is empty",
        kinds=("ContentTooShortError",),
    ),
    Row("bytes.slow", Action.BYTES, text=r"below throttle limit", kinds=("ThrottledDownload",)),
    Row(
        "net.proxy",
        Action.BLOCK,
        text=r"HTTP Error 407|Unable to connect to proxy",
        kinds=("ProxyError",),
        status=(407,),
        remedy="Check the proxy, then run again",
    ),
    Row(
        "net.tls",
        Action.ENVIRONMENT,
        text=r"CERTIFICATE_VERIFY_FAILED",
        kinds=("CertificateVerifyError",),
        remedy="Check the system clock and any proxy or firewall, then run again",
    ),
    Row(
        "net.dns",
        Action.NETWORK,
        text=r"Name or service not known|Temporary failure in name resolution|getaddrinfo failed|Failed to resolve",
        kinds=("gaierror", "NameResolutionError"),
    ),
    Row(
        "net.unreachable",
        Action.NETWORK,
        text=r"Network is unreachable|No route to host|Connection refused",
        kinds=("ConnectionRefusedError",),
    ),
    Row(
        "net.reset",
        Action.NETWORK,
        text=r"Connection reset|Remote end closed|EOF occurred|Broken ?pipe",
        kinds=("BrokenPipeError", "ConnectionResetError", "IncompleteRead", "RemoteDisconnected", "SSLError"),
    ),
    Row("net.timeout", Action.NETWORK, text=r"timed out", kinds=("TimeoutError",)),
    Row("net.5xx", Action.NETWORK, text=r"HTTP Error 408|HTTP Error 5\d\d", status=(408, *range(500, 600))),
    Row("net.404_page", Action.LATER, text=r"HTTP Error 404|HTTP Error 410", status=(404, 410), media=False, youtube=True),
    Row("net.other", Action.NETWORK, text=r"^\[download\] Got error", weak_kinds=("TransportError",)),
    Row(UNKNOWN, Action.LATER, text=""),
)
"""All rows are tried in this order by class and status, then by message: a rate limit begins with "Video unavailable"."""

MAX_SHARES = {row.code: row.max_share for row in TABLE if row.max_share is not None}


def classify(problem: Problem) -> Verdict:
    """The verdict of the first row of TABLE that matches the problem's class or status, otherwise its message."""
    rows = [row for row in TABLE if row.applies_to(problem)]
    by_kind = (row for row in rows if row.matches_kind(problem))
    by_text = (row for row in rows if row.matches_text(problem))
    row = next(chain(by_kind, by_text))
    message = problem.message
    if problem.countries:
        message += f" (available in {', '.join(problem.countries)})"
    if row.anywhere and not re.search(row.anywhere, message, re.IGNORECASE):
        message += "".join(f" ({warning})" for warning in problem.warnings if re.search(row.anywhere, warning, re.IGNORECASE))
    return row.verdict(message)


OWN_CODES = {
    "bytes.large": Action.INPUT,
    "bytes.long": Action.INPUT,
    "bytes.protocol": Action.INPUT,
    "bytes.timeout": Action.BYTES,
    "bytes.wrong": Action.BYTES,
    "clip.no_audio": Action.PERMANENT,
    "clip.no_video": Action.PERMANENT,
    "clip.out_of_range": Action.PERMANENT,
}
"""Codes of failures that mbt itself finds in fetched bytes."""
DECODING_CODES = (
    *("clip.empty", "clip.short"),
    *("decode.error", "decode.interrupted", "decode.jpeg", "decode.memory", "decode.timeout", "decode.unreadable"),
)
KNOWN_CODES = frozenset({row.code for row in TABLE if not row.action.stops} | OWN_CODES.keys() | {*DECODING_CODES})
"""Codes of failures of clips."""


def verdict_of(code: str, message: str) -> Verdict:
    """The verdict on a failure whose code is known; a code in neither TABLE nor OWN_CODES means broken bytes."""
    row = next((row for row in TABLE if row.code == code), None) or Row(code, OWN_CODES.get(code, Action.BYTES))
    return row.verdict(message)


def recheck_codes(text: str) -> frozenset[str]:
    """The codes in a list such as `creds,region.uploader`; each is a code or the beginning of some, up to a dot.

    Raises:
        InputError: no failure has such a code.
    """
    wanted = frozenset(filter(None, (part.strip().rstrip(".") for part in text.split(","))))
    if unknown := sorted(code for code in wanted if not any(is_rechecked(known, (code,)) for known in KNOWN_CODES)):
        known = ", ".join(sorted(KNOWN_CODES))
        raise InputError(f"--recheck {unknown[0]}: no failure has this code", f"Choose from {known}; or the part before a dot")
    return wanted


def is_rechecked(code: str, recheck: Collection[str]) -> bool:
    """Whether the list of codes to recheck has a code, or its beginning."""
    return any(code == listed or code.startswith(f"{listed}.") for listed in recheck)


def plain(message: str) -> str:
    """A message of yt-dlp as one line, without color codes, prefixes, the request to report bugs and curly apostrophes."""
    message = re.sub(r"\x1b\[[0-9;]*m", "", message).replace("’", "'")
    message = re.sub(r"^((ERROR|WARNING): )?(\[[^\]]+\] )?([\w-]{11}: )?", "", message)
    return " ".join(message.partition("; please report this issue")[0].split())
