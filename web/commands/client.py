"""A client of a running server: where it is, who we are, and requests with JSON both ways.

HTTP is the standard library's: the commands send a handful of requests, one after the other, and a further dependency
of the server would be too much for that. No redirect is followed and no proxy of the environment is used, so that a
token reaches the host that `--url` names and no other. A token is never printed.
"""

from __future__ import annotations

import argparse
import http.client
import ipaddress
import json
import os
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from web import keyring, settings, tokens
from web.commands.failures import CommandFailed, Refused, Unreachable, UsageError
from web.settings import DATA_DEFAULT, TOKEN_VARIABLE, URL_VARIABLE

URL_DEFAULT: Final = "http://127.0.0.1:8000"

ANSWER_SECONDS_MAX: Final = 30
"""Longest wait for a part of an answer. Beyond: the server counts as unreachable."""

ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
"""Largest answer that is read. Beyond: refused; no page of a list comes near it."""

PAGE_ITEMS: Final = "1000"
"""Items of a list asked for at once: the most a page may have."""

LOCAL_SUB: Final = "local-operator"
LOCAL_SCOPE: Final = "operate register broadcast monitor"
LOCAL_TTL_SECONDS: Final = 600
"""Life of a token made from the local key. Long enough for a request, too short to be worth stealing."""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect to the caller, as an error."""

    def redirect_request(self, *arguments: object) -> None:
        """Follow nothing."""


class Credentials:
    """The token to send: one that was given, or made from the local key, or none."""

    def __init__(self, token: str | None = None, key: bytes | None = None) -> None:
        self._token = token
        self._key = key

    @property
    def renewable(self) -> bool:
        """Whether a new token can be made when the last one is about to expire."""
        return self._token is None and self._key is not None

    def token(self) -> str | None:
        """A token that is valid now, as far as we can tell; `None`: we are anonymous."""
        if self._token is not None or self._key is None:
            return self._token
        return tokens.issue(
            self._key,
            sub=LOCAL_SUB,
            scope=LOCAL_SCOPE,
            ttl_seconds=LOCAL_TTL_SECONDS,
            now=time.time(),
            token_id=secrets.token_hex(8),
        )

    def headers(self) -> dict[str, str]:
        """What a request carries."""
        token = self.token()
        return {} if token is None else {"Authorization": f"Bearer {token}"}


class Client:
    """Sends requests to one server."""

    def __init__(self, url: str, credentials: Credentials) -> None:
        """Talk to the server at `url`.

        Raises:
            UsageError: it is no URL of a server.
        """
        self.url = checked_url(url)
        self.credentials = credentials
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirects())

    def address(self, *path: str, query: Mapping[str, str | None] | None = None, websocket: bool = False) -> str:
        """The URL of a resource; each part of the path is quoted, query values that are `None` are left out."""
        base = "ws" + self.url.removeprefix("http") if websocket else self.url
        given = {name: value for name, value in (query or {}).items() if value is not None}
        parts = "".join(f"/{quote(part, safe='')}" for part in path)
        return base + parts + (f"?{urlencode(given)}" if given else "")

    def items(self, *path: str) -> list[dict[str, Any]]:
        """All items of a list, page by page. Raises as `request`."""
        items: list[dict[str, Any]] = []
        after: str | None = None
        while True:
            _, page = self.request("GET", *path, query={"limit": PAGE_ITEMS, "after": after})
            items.extend(page["items"])
            after = page["next"]
            # A page without items that names another would never end.
            if after is None or not page["items"]:
                return items

    def request(
        self,
        method: str,
        *path: str,
        body: object = None,
        query: Mapping[str, str | None] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Send one request; the status and the decoded body of a 2xx answer.

        Raises:
            Refused: the server answered with a problem document.
            Unreachable: nobody answered.
            CommandFailed: the answer is not one of this server.
        """
        sent = urllib.request.Request(  # noqa: S310 - the scheme was checked in `checked_url`
            self.address(*path, query=query), method=method, data=None if body is None else json.dumps(body).encode()
        )
        # "Unredirected" headers never leave for another host, even if a redirect were followed.
        for name, value in {"Accept": "application/json", **self.credentials.headers(), **(headers or {})}.items():
            sent.add_unredirected_header(name, value)
        if body is not None:
            sent.add_unredirected_header("Content-Type", "application/json")
        try:
            with self._opener.open(sent, timeout=ANSWER_SECONDS_MAX) as answer:
                return answer.status, _decoded(answer.read(ANSWER_BYTES_MAX + 1), self.url)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error, self.url, anonymous=not sent.has_header("Authorization")) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            raise unreachable(self.url, error) from None


def unreachable(url: str, error: BaseException) -> Unreachable:
    """Say in one line why there is no answer."""
    reason = getattr(error, "reason", error)
    text = str(reason) or type(reason).__name__
    if isinstance(reason, OSError) and reason.errno is not None:
        # A name that was not found has a number of its own kind (below zero), and its words stand in `strerror`.
        text = os.strerror(reason.errno) if reason.errno > 0 else reason.strerror or text
    return Unreachable(f"cannot reach {url}: {text}")


def checked_url(url: str) -> str:
    """The base URL without a trailing slash.

    Raises:
        UsageError: it is none.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc or parts.query or parts.fragment or not url.isascii() or not url.isprintable():
        raise UsageError("the URL of the server must be http://HOST[:PORT] or https://HOST[:PORT]")
    return url.rstrip("/")


def add_client_options(parser: argparse.ArgumentParser) -> None:
    """Declare what every command that talks to a server takes."""
    group = parser.add_argument_group("the server, and who you are")
    group.add_argument("--url", help=f"the server; default {URL_VARIABLE}, else {URL_DEFAULT}")
    group.add_argument(
        "--token",
        help=f"your token; default {TOKEN_VARIABLE} (which other users of the machine cannot see), "
        "else one made from the local key",
    )
    group.add_argument("--data", metavar="DIR", help="the server's data directory, where the local key is")
    group.add_argument("--json", action="store_true", help="print JSON, for programs")


def client_of(arguments: argparse.Namespace) -> Client:
    """The client that the options and the environment describe.

    Raises:
        UsageError: the URL or a setting is wrong.
    """
    url = checked_url(arguments.url or os.environ.get(URL_VARIABLE) or URL_DEFAULT)
    token = arguments.token or os.environ.get(TOKEN_VARIABLE)
    if token is not None:
        if not token.isascii() or not token.isprintable() or " " in token:
            raise UsageError("the token must be one word of ASCII characters")
        return Client(url, Credentials(token))
    return Client(url, Credentials(key=_local_key(url, arguments.data)))


def data_directory(option: str | None) -> Path:
    """Where the server of this machine keeps its data. Raises as `local_settings`."""
    return local_settings(option).data


def local_settings(data: str | None) -> settings.Settings:
    """The settings of the server of this machine, as far as this command can see them; `data` is the option.

    Raises:
        UsageError: a setting is wrong.
    """
    try:
        return settings.load(os.environ, options={"data": data})
    except settings.SettingsError as error:
        raise UsageError(str(error)) from None


def _local_key(url: str, option: str | None) -> bytes | None:
    directory = data_directory(option)
    # A key that merely lies in the current directory makes tokens for this machine's server, not for a stranger's.
    if directory == DATA_DEFAULT and option is None and not _is_loopback(url):
        return None
    try:
        return keyring.load_key(directory)
    except OSError as error:
        raise CommandFailed(f"cannot read the key in {directory}: {error.strerror}; give --token instead") from None


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _decoded(content: bytes, url: str) -> Any:
    if len(content) > ANSWER_BYTES_MAX:
        raise CommandFailed(f"the answer of {url} is larger than {ANSWER_BYTES_MAX} bytes")
    try:
        return json.loads(content) if content else None
    except ValueError:
        raise CommandFailed(f"the answer of {url} is not JSON; is it an avicenna-live server?") from None


def _refusal(error: urllib.error.HTTPError, url: str, *, anonymous: bool) -> CommandFailed:
    try:
        problem = json.loads(error.read(ANSWER_BYTES_MAX))
        code, detail = problem["code"], problem["detail"]
    except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
        return CommandFailed(f"{url} answered {error.code} {error.reason}; is it an avicenna-live server?")
    if error.code == http.HTTPStatus.UNAUTHORIZED and anonymous:
        detail = f"{detail} (no token found: give --token, or --data DIR for the key of a server on this machine)"
    return Refused(str(code), str(detail), error.code)
