"""The Quart-Trio application: the routes of all operations and of WebSockets, and what turns requests into records.

Every route is made from the table of operations (`web.contract.operations`) and does the same: it has the sender of
the request authenticated, and calls the handler of that operation. Quart finds the route and sends the answer; nothing
behind this file knows it. A plain request (`web.http.short_way`) is found in the same table of routes and has the same
handler called, without a request of Quart's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final, cast
from urllib.parse import unquote

from quart import Response
from quart.ctx import RequestContext, WebsocketContext
from quart.globals import request_ctx, websocket_ctx
from quart.wrappers.base import BaseRequestWebsocket
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import MapAdapter, Rule
from werkzeug.routing.exceptions import WebsocketMismatch

from web.contract.errors import Problem
from web.contract.exchange import Answer, Body, Handler, Handlers, Headers, Query, Request
from web.contract.operations import JSON, OPERATIONS, Operation
from web.contract.trace_context import TRACEPARENT
from web.http.accepting import Address
from web.http.adoption import Adoption, adoption_of
from web.http.answers import websocket_wanted
from web.http.one_task import LeanHandshake, LeanHttp, LeanRequest, LeanWebsocket
from web.http.plain import Plain
from web.http.short_way import Serve, Take
from web.identity.access import Access
from web.identity.addresses import UNIX
from web.server.plain_records import record_of
from web.server.reception import Reception

_CODE_OF_STATUS = {
    400: ("bad_json", "the request is malformed"),
    404: ("not_found", "there is nothing at this path"),
    405: ("method_not_allowed", "this path does not take this method"),
}

AMONG_OPERATORS: Final = "avicenna.among_operators"
"""In the state of a connection (ASGI lifespan, "Lifespan State"): it came to the listener of the operators. Requests of
the short way have no state; none of theirs asks for it."""

NO_METHOD: Final = "-"
"""A method no route takes."""

NOWHERE: Final = "//"
"""A path of no route."""

NAMES_PATH: Final = "subjects"
"""First segment of the paths whose second is a name, slashes and all."""

FOLLOWING: Final = "/ws/<diagnosis_id>"
PUBLISHING: Final = "/publish"
"""The paths of WebSockets."""

SOCKET_ROUTES_MAX: Final = 1024
"""Paths of WebSockets whose routes are remembered. Reason: to find one takes 10 us. Beyond: found anew."""

Socket = Callable[[Request, Adoption], Awaitable[None]]
"""Takes the WebSocket whose handshake a request is, and answers it."""

Found = tuple[Rule, Mapping[str, str]]
"""A route, and what stands in the path where it has a name."""


@dataclass(frozen=True)
class Extra:
    """A route that is no part of the contract."""

    method: str
    path: str
    handler: Handler


class Application(QuartTrio):
    """Quart-Trio without hooks: what every request passes is `Reception`."""

    request_class = LeanRequest
    websocket_class = LeanHandshake
    asgi_http_class = LeanHttp
    asgi_websocket_class = LeanWebsocket

    def __init__(self, reception: Reception) -> None:
        super().__init__("avicenna_live", static_folder=None)
        self.url_map.merge_slashes = False  # a path with two within is another path: 404, not a redirect
        self._reception = reception
        self._operations: dict[str, Operation] = {}
        """By the endpoints of their routes."""
        self._plain: dict[str, Handler] = {}
        """What routes call that serve plain requests; by their endpoints."""
        self._sockets: dict[str, Socket] = {}
        """What routes call that take WebSockets; by their endpoints."""
        self._found: dict[tuple[str, str], Found] = {}
        """Routes without parameters that were found; by method and path."""
        self._found_for_socket = lru_cache(SOCKET_ROUTES_MAX)(partial(self._found_in_table, "ws", "GET"))

    def route_operation(self, operation: Operation, handler: Handler) -> None:
        """Have a handler serve an operation."""
        self._operations[operation.name] = operation
        is_json = operation.answer_type == operation.body_type == JSON
        if is_json and not operation.is_static and operation.access != "elsewhere":
            self._plain[operation.name] = handler
        self._route(operation.name, operation.method, _rule_of(operation), handler)

    def route_extra(self, extra: Extra) -> None:
        """Have a handler serve a path that is no part of the contract."""
        self._route(f"{extra.method} {extra.path}", extra.method, extra.path, extra.handler)

    def route_sockets(self, path: str, take: Socket) -> None:
        """Have the WebSockets of a path taken."""

        async def view(**parameters: str) -> None:
            found = cast("LeanHandshake", websocket_ctx.websocket)
            assert found.asked is not None, "it was made before the route was called"
            await take(found.asked, adoption_of(found))

        endpoint = f"WebSocket {path}"
        self.add_url_rule(path, endpoint, cast("Any", view), websocket=True)
        self._sockets[endpoint] = take

    def _route(self, endpoint: str, method: str, rule: str, handler: Handler) -> None:
        async def view(**parameters: str) -> Answer:
            asked = cast("LeanRequest", request_ctx.request).asked
            assert asked is not None, "it was made before the route was called"
            return await handler(asked)

        self.add_url_rule(rule, endpoint, cast("Any", view), methods=[method.upper()])

    # What Quart asks of an application

    def ensure_async(self, func: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        """Everything that Quart calls is a coroutine function here. Quart itself would check that at each call."""
        return func

    def create_url_adapter(self, request: BaseRequestWebsocket | None) -> MapAdapter | None:
        """Routes depend on path and method alone: no host is looked at."""
        if request is None:
            return None
        return self.url_map.bind(
            "localhost",
            url_scheme=request.scheme,
            # Werkzeug would match `post` as `POST`, past a rule in front of the server.
            default_method=request.method if request.method == request.method.upper() else NO_METHOD,
            path_info=NOWHERE if _hides_a_slash(request.scope["raw_path"]) else request.path,
            query_args=request.query_string.decode("latin1"),
        )

    async def full_dispatch_request(self, request_context: RequestContext | None = None) -> Response:
        """Answer the current request."""
        found = cast("LeanRequest", request_ctx.request)
        found.asked = asked = _record_of(found, self._operations)
        asked.at_end, asked.body = found.at_end.callback, found
        return _response_of(await self._reception.attend(asked, partial(self._answer, found)))

    async def full_dispatch_websocket(self, websocket_context: WebsocketContext | None = None) -> Response | None:
        """Have the current WebSocket taken; or the answer to one that is refused in front of its route."""
        found = cast("LeanHandshake", websocket_ctx.websocket)
        found.asked = asked = _record_of(found, self._operations)

        async def take() -> None:
            await self._routed(found)

        refused = await self._reception.attend_upgrade(asked, take)
        return None if refused is None else _response_of(refused)

    # The short way

    def serving(self, plain: Plain, client: Address | None) -> Serve | None:
        """What serves a plain request; `None`: it takes the long way."""
        found = self._found.get((plain.method, plain.path)) or self._found_for_request(plain.method, plain.path)
        handler = None if found is None else self._plain.get(found[0].endpoint)
        if found is None or handler is None:
            return None
        asked = record_of(plain, *found, self._operations[found[0].endpoint], _peer_of(client))
        return partial(self._serve_plain, asked, handler)

    async def _serve_plain(self, asked: Request, handler: Handler, body: Body) -> Answer:
        asked.body = body
        return await self._reception.attend(asked, partial(handler, asked))

    def taking(self, plain: Plain, client: Address | None) -> Take | None:
        """What takes the WebSocket of a plain handshake; `None`: it takes the long way."""
        found = self._found_for_socket(plain.path)
        take = None if found is None else self._sockets.get(found[0].endpoint)
        if found is None or take is None:
            return None
        asked = record_of(plain, *found, None, _peer_of(client))
        return partial(self._take_plain, asked, take)

    async def _take_plain(self, asked: Request, take: Socket, adoption: Adoption) -> Answer | None:
        return await self._reception.attend_upgrade(asked, partial(take, asked, adoption))

    def _found_for_request(self, method: str, path: str) -> Found | None:
        found = self._found_in_table("http", method, path)
        if found is not None and not found[0].arguments:
            self._found[method, path] = found
        return found

    def _found_in_table(self, scheme: str, method: str, path: str) -> Found | None:
        """The route that the table has; `None`: none, and the long way says why."""
        try:
            return self.url_map.bind("localhost", url_scheme=scheme).match(path, method, return_rule=True)
        except HTTPException:
            return None

    # Between Quart's records and ours

    async def _answer(self, found: LeanRequest) -> Answer:
        """What the route of a request answers."""
        adapter = request_ctx.url_adapter
        if found.method == "OPTIONS" and found.routing_exception is None and adapter is not None:
            methods = self._allowed(found.path, adapter.allowed_methods())
            return Answer(200, {"Allow": methods, "Content-Type": "text/html; charset=utf-8"})
        return cast("Answer", await self._routed(found))

    async def _routed(self, found: BaseRequestWebsocket) -> object:
        """Call the route that Quart has found.

        Raises:
            Problem: there is none.
        """
        if found.url_rule is None:
            assert found.routing_exception is not None, "either is there"
            raise self._problem_of(found, found.routing_exception)
        view = cast("Callable[..., Awaitable[object]]", self.view_functions[found.url_rule.endpoint])
        return await view(**(found.view_args or {}))

    def _problem_of(self, found: BaseRequestWebsocket, error: Exception) -> Problem:
        """Why there is no route for a request."""
        if not isinstance(error, HTTPException):
            raise error
        if isinstance(error, WebsocketMismatch):
            return websocket_wanted()
        code, detail = _CODE_OF_STATUS.get(error.code or 500, ("internal_error", "the request failed"))
        methods = error.valid_methods if isinstance(error, MethodNotAllowed) else None
        return Problem(code, detail, {"Allow": self._allowed(found.path, methods)} if methods else {})

    def _allowed(self, path: str, found: Iterable[str]) -> str:
        """The methods a path takes; a WebSocket's route takes part in no `Allow`.

        Args:
            found: what Quart says; the path of a broadcast also fits `/ws/{diagnosis_id}`, and then it says too much.
        """
        exact = [rule.methods or () for rule in self.url_map.iter_rules() if rule.rule == path and not rule.websocket]
        return ", ".join(sorted(set().union(*exact) or found))


def create_app(
    reception: Reception,
    access: Access,
    handlers: Handlers,
    follow: Socket,
    publish: Socket,
    extras: Sequence[Extra] = (),
) -> Application:
    """The application of one server.

    Args:
        handlers: one for each operation.
        follow: takes WebSockets that follow.
        publish: takes WebSockets that publish.
        extras: further routes, which are no part of the contract.
    """
    assert handlers.keys() == {one.name for one in OPERATIONS}, "an operation has one entry there, and one handler"
    app = Application(reception)
    for operation in OPERATIONS:
        app.route_operation(operation, with_sender(operation, handlers[operation.name], access))
    app.route_sockets(FOLLOWING, follow)
    app.route_sockets(PUBLISHING, publish)
    for extra in extras:
        app.route_extra(extra)
    return app


def with_sender(operation: Operation, handler: Handler, access: Access) -> Handler:
    """The handler of an operation behind the question who asks."""
    if operation.access == "nobody":
        return handler
    anonymous_allowed = operation.access == "maybe" and access.rules.allow_anonymous

    async def handle(asked: Request) -> Answer:
        if not (operation.access == "elsewhere" and asked.is_among_operators):
            asked.who = access.authenticate(asked, anonymous_allowed=anonymous_allowed)
        return await handler(asked)

    return handle


def _record_of(found: BaseRequestWebsocket, operations: Mapping[str, Operation]) -> Request:
    """Our record of what Quart has found."""
    rule = found.url_rule
    return Request(
        method=found.method,
        path=found.path,
        raw_path=found.scope["raw_path"].partition(b"?")[0],
        query=cast("Query", found.args),
        headers=cast("Headers", found.headers),
        peer=_peer_of(found.scope.get("client")),
        parameters=found.view_args or {},
        route=None if rule is None else rule.rule,
        operation=None if rule is None else operations.get(rule.endpoint),
        trace=_trace_of(found),
        is_among_operators=AMONG_OPERATORS in found.scope.get("state", {}),
    )


def _trace_of(found: BaseRequestWebsocket) -> str | None:
    """The `traceparent` of a request; of several none counts (W3C Trace Context section 3.2)."""
    given = found.headers.getlist(TRACEPARENT)
    return given[0] if len(given) == 1 else None


def _peer_of(client: Sequence[Any] | None) -> str:
    return str(client[0]) if client and client[0] else UNIX


def _rule_of(operation: Operation) -> str:
    """The path of an operation as Quart has it; a name may have slashes."""
    rule = operation.path.replace("{", "<").replace("}", ">")
    return rule.replace("<sub>", "<path:sub>")


def _response_of(answer: Answer) -> Response:
    response = Response(answer.body, answer.status, answer.headers)
    if answer.status == 304:
        del response.headers["Content-Length"]
    if "Content-Type" not in answer.headers:
        del response.headers["Content-Type"]
    return response


def _hides_a_slash(raw_path: bytes) -> bool:
    """Whether a path has an encoded slash, which is part of a name (RFC 3986 section 2.2), where no name may have one.

    Decoded, `/%2Factors` would be found as `/actors`, which a proxy may have meant to keep from the world.
    """
    if b"%2f" not in raw_path.lower():
        return False
    return unquote(raw_path.split(b"/", 2)[1].decode("ascii")) != NAMES_PATH
