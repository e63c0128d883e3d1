"""yt-dlp's own command-line flags, parsed by yt-dlp and checked before the first request."""

import io
import ipaddress
import shlex
import ssl
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from optparse import OptParseError
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yt_dlp
from yt_dlp.networking import Request
from yt_dlp.networking.exceptions import RequestError
from yt_dlp.utils import YoutubeDLError
from yt_dlp.YoutubeDL import YoutubeDL

from mbt.manifests.errors import InputError

ALLOWED = frozenset(
    (
        *("proxy", "socket_timeout", "source_address", "impersonate", "geo_verification_proxy", "geo_bypass"),
        *("cookiefile", "cookiesfrombrowser", "username", "password", "twofactor"),
        *("videopassword", "ap_mso", "ap_username", "ap_password"),
        *("client_certificate", "client_certificate_key", "client_certificate_password"),
        *("no_check_certificate", "legacy_server_connect", "prefer_insecure", "user_agent", "referer", "headers"),
        *("sleep_interval_requests", "extractor_retries", "extractor_args", "dynamic_mpd", "encoding"),
        *("js_runtimes", "remote_components", "cachedir", "format", "format_sort"),
    )
)
"""yt-dlp's names of the flags that change how a site is asked, and which formats are taken. All others are refused: they would
write other files, run programs, skip or rename videos, or do nothing here."""
FILES = ("cookiefile", "client_certificate", "client_certificate_key")
BROWSERS = ("chrome", "edge", "firefox", "safari", "tor")
"""The clients that yt-dlp can impersonate if curl_cffi is installed."""
OFTEN = "--cookies, --cookies-from-browser, --proxy, --source-address, --impersonate, --extractor-args"
FIX = f"Give yt-dlp's flags, such as {OFTEN}"


def parse_flags(base: Sequence[str], texts: Sequence[str], where: str = "--ytdlp") -> dict[str, Any]:
    """Options of yt-dlp's Python API, for `base` flags and those in `texts`, which override them.

    Args:
        base: flags that are always given.
        texts: flags as one would type them in a shell, such as `--cookies "my file" --proxy socks5://host:1080`.
        where: where the texts were given, for messages.

    Returns:
        The options that differ from yt-dlp's defaults.

    Raises:
        InputError: yt-dlp has no such flag or refuses its value, mbt refuses the flag, or a file or browser cannot be read.
    """
    flags = [flag for text in texts for flag in _split(text, where)]
    _check_allowed(base, flags, where)
    defaults, ours, given = (_parse(yt_dlp.parse_options, each, where).ydl_opts for each in ([], base, [*base, *flags]))
    typed = {name for name, value in given.items() if value != ours[name]}
    changed = {name for name, value in ours.items() if value != defaults[name]}
    options = {name: given[name] for name in typed | changed}
    if typed:
        _check(options, where)
    return options


def _check_allowed(base: Sequence[str], flags: Sequence[str], where: str) -> None:
    (_, ours, _), (parser, given, urls) = (_parse(yt_dlp.parseOpts, each, where) for each in (base, [*base, *flags]))
    if urls:
        raise InputError(f"{where}: {urls[0].partition('=')[0]!r} is not a flag", FIX)
    for name, value in vars(given).items():
        if value != getattr(ours, name) and name not in ALLOWED:
            fix = f"Remove it; flags of network, login and formats are allowed, such as {OFTEN}"
            raise InputError(f"{where}: mbt does not take yt-dlp's {_flag(parser, name, flags)}", fix)
    for user, password in (("username", "password"), ("ap_username", "ap_password")):
        if getattr(given, user) is not None and getattr(given, password) is None:
            flag = f"--{password.replace('_', '-')}"
            raise InputError(f"{where}: --{user.replace('_', '-')} requires {flag}: nobody can be asked for it", f"Add {flag}")


def _split(text: str, where: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"{where} {text!r}: {str(error).lower()}", "Close the quotation mark") from None


def _parse(parser: Callable[[list[str]], Any], flags: Sequence[str], where: str) -> Any:
    """What a parser of yt-dlp makes of the flags; configuration files are not read."""
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            return parser(list(flags))
    except (OptParseError, SystemExit) as error:
        _, found, what = f"{said.getvalue()}{error}".rpartition("error: ")
        shown = what.strip().rstrip(".") if found else "--help and --version are not for here"
        raise InputError(f"{where}: {shown}", FIX) from None


def _flag(parser: Any, name: str, flags: Sequence[str]) -> str:
    """The flag that sets an option of this name, as it was typed if possible."""
    names = [flag for option in _all_options(parser) if option.dest == name for flag in option._long_opts + option._short_opts]
    typed = (flag.partition("=")[0] for flag in flags)
    return next((flag for flag in typed if flag in names), names[0] if names else name)


def _all_options(parser: Any) -> list[Any]:
    return [option for group in (parser, *parser.option_groups) for option in group.option_list]


def _check(options: dict[str, Any], where: str) -> None:
    """Make a session with the options, and let it load and validate what yt-dlp otherwise would at its first request."""
    for name in FILES:
        file = options.get(name)
        if file is not None and not Path(file).expanduser().exists():
            flag = "--cookies" if name == "cookiefile" else f"--{name.replace('_', '-')}"
            raise InputError(f"{where}: {flag}: the file {file} does not exist", "Give the path of an existing file")
    for flag in ("proxy", "geo_verification_proxy"):
        if options.get(flag):
            _check_proxy(options[flag], f"{where}: --{flag.replace('_', '-')}")
    if (address := options.get("source_address")) is not None:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            fix = "Give an IP address of this machine"
            raise InputError(f"{where}: --source-address: {address!r} is not an IP address", fix) from None
    try:
        with redirect_stderr(io.StringIO()):
            if certificate := options.get("client_certificate"):
                key, password = options.get("client_certificate_key"), options.get("client_certificate_password") or ""
                ssl.create_default_context().load_cert_chain(certificate, key, password)
            session = YoutubeDL({**options, "quiet": True, "logger": _Strict()}, auto_init=False)
            _ = session.cookiejar
            for scheme in ("http", "https"):
                _check_request(session, f"{scheme}://localhost/")
    except (YoutubeDLError, OSError, SyntaxError, ValueError) as error:
        text = " ".join(str(getattr(error, "cause", None) or error).removeprefix("ERROR: ").split()).rstrip(".")
        flag, fix = _blamed(options, text)
        raise InputError(f"{where}: {flag}{text}", fix) from None


def _check_proxy(url: str, flag: str) -> None:
    """Refuse a proxy without a host or with a malformed port; `_check_request` checks its kind."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        _ = parts.port
        good = bool(parts.hostname)
    except ValueError:
        good = False
    if not good:
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        fix = 'Give one such as http://HOST:PORT or socks5://HOST:PORT, or "" for none'
        raise InputError(f"{flag}: {shown} is not a proxy", fix)


def _check_request(session: YoutubeDL, url: str) -> None:
    """Raise the error of the last handler if no handler could send a request with the session's options."""
    error: RequestError | None = None
    for handler in session._request_director.handlers.values():
        try:
            return handler.validate(Request(url))
        except RequestError as refused:
            if "scheme" not in str(refused):
                error = refused
    raise error or RequestError(f"no handler for {url}")


def _blamed(options: dict[str, Any], text: str) -> tuple[str, str]:
    """The flag at fault for an error of yt-dlp, and what to do."""
    for name, flag, words, fix in (
        ("impersonate", "--impersonate", ("mpersonat",), "Run pip install 'yt-dlp[curl-cffi]', or remove it"),
        ("cookiesfrombrowser", "--cookies-from-browser", ("browser", "database", "profile", "keyring"), "Use --cookies FILE"),
        ("cookiefile", "--cookies", ("cookie", "directory"), "Export the cookies in Netscape format"),
        ("proxy", "--proxy", ("proxy",), "Give one such as http://HOST:PORT or socks5://HOST:PORT"),
        ("client_certificate", "--client-certificate", ("SSL", "PEM"), "Give a certificate in PEM format"),
    ):
        if name in options and any(word in text for word in words):
            if name == "impersonate" and options[name].client not in (None, *BROWSERS):
                fix = f"Give one of {', '.join(BROWSERS)}, or remove it"
            return f"{flag}: ", fix
    return "", "Correct the flags, then run again"


class _Strict:
    """A logger for yt-dlp that turns the warning of an ignored value into an error."""

    def debug(self, message: str) -> None:
        """Ignore."""

    def warning(self, message: str) -> None:
        """Raise ValueError if yt-dlp ignores a value."""
        if message.startswith("Ignoring unsupported"):
            raise ValueError(message)

    error = debug
