"""A client of a running server: the token to send, and requests with JSON both ways.

HTTP is the standard library's: the commands send a handful of requests, one after the other, and a further dependency
of the server would be too much for that. No redirect is followed and no proxy of the environment is used, so that a
token reaches the server that is named and no other. A token is never printed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from storage.names import new_id
from web.commands.answers import ConsoleMessage, Page, Problem, is_a
from web.commands.failures import CommandFailed, RefusedByServer, Unreachable, UsageError
from web.commands.transport import checked_url, connection_to, unreachable
from web.contract.number import as_written
from web.contract.operations import EVENT_STREAM
from web.identity import tokens
from web.identity.rights import Scope

ANSWER_SECONDS_MAX: Final = 30
"""Longest wait for a part of an answer. Beyond: the server counts as unreachable."""

ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
"""Largest answer that is read. Beyond: refused; no page of a list comes near it."""

DATA: Final = b"data: "
"""Begins the line of an event stream that has a message (PROTOCOL section 8.9)."""

PAGE_ITEMS_MAX: Final = 1000
"""Items of a list asked for at once: the most a page may have."""

T = TypeVar("T")

LOCAL_SUB: Final = "local-operator"
LOCAL_TTL_SECONDS: Final = 600
"""Life of a token made from the local key. Long enough for a request, too short to be worth stealing."""


class Credentials:
    """The token to send: one that was given, or made from the local key, or none."""

    def __init__(
        self,
        token: str | None = None,
        key: bytes | None = None,
        *,
        newer_token: Callable[[], str] | None = None,
        scopes: tuple[Scope, ...] = (),
        key_file: Path | None = None,
    ) -> None:
        """Send `token`, or tokens made with `key`.

        Args:
            newer_token: reads `token` again, where it may have been replaced. Raises `UsageError`.
            scopes: what such a token may do. Reason: whoever overhears it gets no more than the command needs.
            key_file: where the key is from.
        """
        self._token = token
        self._newer_token = newer_token
        self._key = key
        self._scope = " ".join(scopes)
        self._key_file = key_file

    @property
    def renewable(self) -> bool:
        """Whether there can be a new token when the last one is about to expire."""
        return self._newer_token is not None or (self._token is None and self._key is not None)

    @property
    def remark(self) -> str:
        """What a person should know when the token is not accepted."""
        if self._token is not None:
            return ""
        if self._key is None:
            return (
                " (no token found: give --token-file or AVICENNA_TOKEN, "
                "or --data DIR for the key of a server on this machine)"
            )
        return (
            f" (the token was made with the key {self._key_file}: "
            "if this server keeps its data elsewhere, name its directory with --data, or give a token)"
        )

    def token(self) -> str | None:
        """A token that is valid now, as far as we can tell; `None`: we are anonymous."""
        if self._newer_token is not None:
            # While the file is being replaced it may be missing: the last token is still the best there is.
            with contextlib.suppress(UsageError):
                self._token = self._newer_token()
        if self._token is not None or self._key is None:
            return self._token
        return tokens.issue(
            self._key,
            sub=LOCAL_SUB,
            scope=self._scope,
            ttl_seconds=LOCAL_TTL_SECONDS,
            now=time.time(),
            token_id=new_id(),
        )

    def headers(self) -> dict[str, str]:
        """What a request carries."""
        token = self.token()
        return {} if token is None else {"Authorization": f"Bearer {token}"}


class Client:
    """Sends requests to one server."""

    def __init__(self, url: str, credentials: Credentials, *, remark: str = "") -> None:
        """Talk to the server at `url`.

        Args:
            remark: how the URL was found; part of the message if no server answers there.

        Raises:
            UsageError: it is no URL of a server.
        """
        self.url = checked_url(url)
        self.credentials = credentials
        self._remark = remark

    def target(self, *path: str, query: Mapping[str, str | None] | None = None) -> str:
        """Path and query of a resource; each part is quoted, query values that are `None` are left out."""
        given = {name: value for name, value in (query or {}).items() if value is not None}
        parts = "".join(f"/{quote(part, safe='', errors='surrogateescape')}" for part in path)
        return parts + (f"?{urlencode(given, errors='surrogateescape')}" if given else "")

    def items(
        self,
        *path: str,
        item: type[T],
        query: Mapping[str, str | None] | None = None,
        page_items: int = PAGE_ITEMS_MAX,
        after: str | None = None,
    ) -> Iterator[T]:
        """The items of a list; a page is asked for when its first item is wanted. Raises as `request`.

        Args:
            after: begin behind the item with this mark; `None`: at the first.
        """
        while True:
            found, after = self.page(*path, item=item, query=query, page_items=page_items, after=after)
            yield from found
            if after is None:
                return

    def page(
        self,
        *path: str,
        item: type[T],
        query: Mapping[str, str | None] | None = None,
        page_items: int = PAGE_ITEMS_MAX,
        after: str | None = None,
    ) -> tuple[list[T], str | None]:
        """One page of a list, and where the next one begins; `None`: there is none. Arguments and errors as `items`."""
        asked = {**(query or {}), "limit": str(page_items), "after": after}
        _, page = self.request("GET", *path, query=asked, answer=Page)
        if not all(is_a(one, item) for one in page["items"]):
            raise self.strange()
        # A page without items that names another would never end.
        return page["items"], page["next"] if page["items"] else None

    def request(
        self,
        method: str,
        *path: str,
        answer: type[T],
        body: object = None,
        query: Mapping[str, str | None] | None = None,
        headers: Mapping[str, str] | None = None,
        seconds_max: float = ANSWER_SECONDS_MAX,
    ) -> tuple[int, T]:
        """Send one request; the status and the decoded body of a 2xx answer.

        Args:
            answer: what the body must be.
            seconds_max: longest wait for each part of the answer.

        Raises:
            RefusedByServer: the server answered with a problem document.
            Unreachable: nobody answered.
            CommandFailed: the answer is not one of this server.
            UsageError: the body holds text that is not Unicode.
        """
        sent = {"Accept": "application/json", "Connection": "close", **self.credentials.headers(), **(headers or {})}
        content = None if body is None else _encoded(body)
        if content is not None:
            sent["Content-Type"] = "application/json"
        connection = connection_to(self.url, seconds_max=seconds_max)
        try:
            connection.request(method, self.target(*path, query=query), content, sent)
            response = connection.getresponse()
            received = response.read(ANSWER_BYTES_MAX + 1)
        except (http.client.HTTPException, OSError) as error:
            raise self.unreachable(error) from None
        finally:
            connection.close()
        if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
            raise self.refusal(response.status, response.reason, received)
        decoded = self._decoded(received)
        if not is_a(decoded, answer):
            raise self.strange()
        return response.status, decoded

    def messages(self, *path: str, seconds_max: float) -> Iterator[ConsoleMessage]:
        """The messages of an event stream, until it ends. Raises as `request`.

        Args:
            seconds_max: longest wait for each part of the stream.
        """
        connection = connection_to(self.url, seconds_max=seconds_max)
        try:
            connection.request(
                "GET", self.target(*path), headers={"Accept": EVENT_STREAM, **self.credentials.headers()}
            )
            response = connection.getresponse()
            if response.status != HTTPStatus.OK:
                raise self.refusal(response.status, response.reason, response.read(ANSWER_BYTES_MAX))
            while line := response.readline(ANSWER_BYTES_MAX):
                if not line.startswith(DATA):
                    continue
                message = self._decoded(line.removeprefix(DATA))
                if not is_a(message, ConsoleMessage):
                    raise self.strange()
                yield message
        except (http.client.HTTPException, OSError) as error:
            raise self.unreachable(error) from None
        finally:
            connection.close()

    def unreachable(self, error: BaseException) -> Unreachable:
        """What to raise when nobody answered."""
        return unreachable(self.url, error, self._remark)

    def strange(self) -> CommandFailed:
        """What to raise when an answer is not the one that was asked for."""
        return CommandFailed(
            f"the answer of {self.url} is another one than was asked for; is it an avicenna-live server?"
        )

    def _decoded(self, content: bytes) -> Any:
        if len(content) > ANSWER_BYTES_MAX:
            raise CommandFailed(f"the answer of {self.url} is larger than {ANSWER_BYTES_MAX} bytes")
        try:
            return json.loads(content) if content else None
        except (ValueError, RecursionError):
            raise CommandFailed(f"the answer of {self.url} is not JSON; is it an avicenna-live server?") from None

    def refusal(self, status: int, reason: str, content: bytes) -> CommandFailed:
        """What to raise when the answer is no 2xx."""
        try:
            problem = json.loads(content)
        except (ValueError, RecursionError):
            problem = None
        if not is_a(problem, Problem):
            return CommandFailed(f"{self.url} answered {status} {reason}; is it an avicenna-live server?")
        remark = self.credentials.remark if status == HTTPStatus.UNAUTHORIZED else ""
        return RefusedByServer(problem["code"], f"{problem['detail']}{remark}")


def _encoded(body: object) -> bytes:
    try:
        return msgspec.json.encode(body, enc_hook=as_written)
    except UnicodeEncodeError:
        raise UsageError("what was given is not all text: JSON is UTF-8") from None
