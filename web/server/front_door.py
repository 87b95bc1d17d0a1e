"""What every request passes before its route: the rate of its address, its host and origin, the keys of its token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from quart import Quart, Response, request, websocket
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.exceptions import HTTPException

from web.contract.errors import Problem, retry_after
from web.contract.operations import ON_ANY_HOST
from web.contract.origins import bare_host, host_of_origin, normal_origin
from web.contract.parameters import repeated_header, repeated_parameter
from web.identity.access import bearer_token, origin_allowed, socket_token
from web.identity.addresses import UNIX, address_of, asks_known_host, client_address, is_trusted_peer
from web.identity.limits import TooMany
from web.server.request_log import REQUEST_ID_HEADER
from web.server.services import Services
from web.server.settings import Settings

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


def check_rate(services: Services, address: Callable[[], str]) -> None:
    """Count a request of this address.

    Raises:
        Problem: 429, it is one too many.
    """
    try:
        services.limits.request_from(address)
    except TooMany as excess:
        raise Problem("rate_limited", str(excess), retry_after(excess.retry_after_seconds)) from None


def excess_of(services: Services, client: tuple[str, int] | None) -> Problem | None:
    """Count a malformed request; what it is answered if it is one too many for its address.

    Nothing of it is believed, so a trusted proxy has no other address to name, and is not blamed for its clients.
    """
    trusted = services.settings.trusted_proxies
    peer = UNIX if client is None else client[0]
    if is_trusted_peer(peer, trusted):
        return None
    try:
        check_rate(services, lambda: client_address(peer, "", trusted))
    except Problem as problem:
        return problem
    return None


def put_up(app: Quart, services: Services) -> None:
    """Stand in front of every route of the application."""
    settings = services.settings
    names = host_names(settings)

    def check_host(channel: BaseRequestWebsocket) -> None:
        if channel.path in ON_ANY_HOST or asks_known_host(channel, names, settings.trusted_proxies):
            return
        detail = "where anonymous subscribers are allowed, the host of a request must be known: allowed_hosts names it"
        raise Problem("misdirected_request", detail)

    @app.before_websocket
    async def enter_socket() -> None:
        """An upgrade that no route sees is a request; the others are counted as connects there."""
        try:
            if settings.allow_anonymous:
                check_host(websocket)
            if websocket.routing_exception is not None:
                raise websocket.routing_exception
        except (Problem, HTTPException):
            check_rate(services, lambda: address_of(websocket, settings.trusted_proxies))
            raise

    @app.before_request
    async def enter() -> Response | None:
        check_rate(services, lambda: address_of(request, settings.trusted_proxies))
        if settings.allow_anonymous:
            check_host(request)
        if (repeated := repeated_header(request.headers)) is not None:
            raise Problem("invalid_field", repeated)
        is_preflight = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        if (is_preflight or request.method not in SAFE_METHODS) and not origin_allowed(services, request):
            raise Problem("origin_not_allowed", "pages of this origin may not do this")
        if is_preflight and settings.allowed_origins:
            return Response(b"", 204, _PREFLIGHT_HEADERS)
        if request.query_string and (repeated := repeated_parameter(request.args)) is not None:
            raise Problem("invalid_field", repeated)
        return None

    if settings.allowed_origins:

        @app.after_request
        async def share(response: Response) -> Response:
            """Let pages of the configured origins read the answer; no cookies are involved, so no credentials."""
            response.vary.add("Origin")
            origin = request.headers.get("Origin")
            if origin is not None and normal_origin(origin) in settings.allowed_origins:
                response.headers["Access-Control-Allow-Origin"] = origin
                response.headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
            return response

    if (remote_keys := services.remote_keys) is not None:

        @app.before_request
        async def wait_for_keys() -> None:
            token = bearer_token(request) or (settings.query_tokens and request.args.get("token"))
            if token:
                await remote_keys.ready_for(token)

        @app.before_websocket
        async def wait_for_keys_of_socket() -> None:
            if token := socket_token(services, websocket):
                await remote_keys.ready_for(token)
