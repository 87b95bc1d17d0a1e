"""What every request passes before its handler: the rate of its address, its host and origin, the keys of its token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from web.contract.errors import Problem, retry_after
from web.contract.exchange import Answer, Request
from web.contract.operations import EVENT_STREAM, ON_ANY_HOST
from web.contract.origins import bare_host, host_of_origin, normal_origin
from web.contract.parameters import repeated_header, repeated_parameter
from web.identity.access import Access
from web.identity.addresses import UNIX, asks_known_host, client_address, is_trusted_peer
from web.identity.jwks import RemoteKeys
from web.identity.limits import TooMany
from web.server.settings import Settings

REQUEST_ID_HEADER: Final = "X-Request-ID"

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""They change nothing, and a foreign page cannot read their answers unless CORS lets it."""

PREFLIGHT_SECONDS: Final = 600
"""How long a browser may remember the answer to a preflight."""

_ALLOWED_HEADERS: Final = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "Last-Event-ID",
    # What polyfills of `EventSource` send.
    "Cache-Control",
    "X-Requested-With",
    # What a page says of the trace that its request belongs to.
    "traceparent",
    "tracestate",
)
_PREFLIGHT_HEADERS: Final = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
    "Access-Control-Allow-Headers": ", ".join(_ALLOWED_HEADERS),
    "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
}
_EXPOSED_HEADERS: Final = f"Retry-After, WWW-Authenticate, {REQUEST_ID_HEADER}"


def host_names(settings: Settings) -> frozenset[str]:
    """The names under which a server that lets everybody follow is asked."""
    own = "" if settings.public_url is None else host_of_origin(settings.public_url)
    return frozenset({"localhost", bare_host(settings.host.lower()), own, *settings.allowed_hosts}) - {""}


class FrontDoor:
    """Stands in front of every handler. One per server."""

    def __init__(self, settings: Settings, access: Access, remote_keys: RemoteKeys | None) -> None:
        """Judge by these.

        Args:
            remote_keys: keys from a JWKS URL; `None`: none is configured.
        """
        self._settings = settings
        self._access = access
        self._remote_keys = remote_keys
        self._names = host_names(settings)

    async def enter(self, asked: Request) -> Answer | None:
        """Let a request pass; or what it is answered instead.

        Raises:
            Problem: it may not pass.
        """
        settings = self._settings
        self._count(asked)
        self._check_host(asked)
        if not asked.names_headers_once and (repeated := repeated_header(asked.headers.items())) is not None:
            raise Problem("invalid_field", repeated)
        is_preflight = asked.method == "OPTIONS" and "Access-Control-Request-Method" in asked.headers
        if (is_preflight or asked.method not in SAFE_METHODS) and not self._access.origin_allowed(asked):
            raise _foreign()
        if is_preflight and settings.allowed_origins:
            return Answer(204, dict(_PREFLIGHT_HEADERS))
        if asked.query and (repeated := repeated_parameter(asked.query)) is not None:
            raise Problem("invalid_field", repeated)
        if _is_of_stream(asked) and self._access.asked_by_a_foreign_page(asked):
            # Unlike other GETs this one changes something: it may take over a connection, and acknowledge.
            raise _foreign()
        await self._await_keys(asked)
        return None

    async def enter_socket(self, asked: Request) -> None:
        """Let an upgrade pass. Its route counts it as a connect; one that no route sees is a request like another.

        Raises:
            Problem: it may not pass.
        """
        try:
            self._check_host(asked)
        except Problem:
            self._count(asked)
            raise
        if asked.route is None:
            self._count(asked)
            return
        await self._await_keys(asked)

    def share(self, asked: Request, answer: Answer) -> None:
        """Let pages of the configured origins read an answer; no cookies are involved, so no credentials."""
        if not self._settings.allowed_origins:
            return
        answer.headers["Vary"] = "Origin"
        origin = asked.headers.get("Origin")
        if origin is not None and normal_origin(origin) in self._settings.allowed_origins:
            answer.headers["Access-Control-Allow-Origin"] = origin
            answer.headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS

    def excess_of(self, client: tuple[str, int] | None) -> Problem | None:
        """Count a malformed request; what it is answered if it is one too many for its address.

        Nothing of it is believed, so a trusted proxy has no other address to name, and is not blamed for its clients.
        """
        trusted = self._settings.trusted_proxies
        peer = UNIX if client is None else client[0]
        if is_trusted_peer(peer, trusted):
            return None
        try:
            self._count_from(lambda: client_address(peer, "", trusted))
        except Problem as problem:
            return problem
        return None

    def _count(self, asked: Request) -> None:
        """Count a request for its address.

        Raises:
            Problem: 429, it is one too many.
        """
        self._count_from(partial(self._access.address_of, asked))

    def _count_from(self, address: Callable[[], str]) -> None:
        try:
            self._access.limits.request_from(address)
        except TooMany as excess:
            raise Problem("rate_limited", str(excess), retry_after(excess.retry_after_seconds)) from None

    async def _await_keys(self, asked: Request) -> None:
        """Have the key of a token fetched that is not known yet."""
        if self._remote_keys is not None and (token := self._access.token_of(asked)):
            await self._remote_keys.ready_for(token)

    def _check_host(self, asked: Request) -> None:
        settings = self._settings
        if not settings.allow_anonymous or asked.path in ON_ANY_HOST:
            return
        if not asks_known_host(asked, self._names, settings.trusted_proxies):
            detail = (
                "where anonymous subscribers are allowed, the host of a request must be known: allowed_hosts names it"
            )
            raise Problem("misdirected_request", detail)


def _is_of_stream(asked: Request) -> bool:
    """Whether a request is for an event stream, or for its head."""
    operation = asked.operation
    return operation is not None and operation.answer_type == EVENT_STREAM and asked.method in ("GET", "HEAD")


def _foreign() -> Problem:
    return Problem("origin_not_allowed", "pages of this origin may not do this")
