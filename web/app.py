"""The Quart-Trio application: routes from every file of this room, and problem documents for everything that fails."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final
from urllib.parse import unquote

from quart import Blueprint, Response, has_request_context, request
from quart.globals import request_ctx
from quart.wrappers.base import BaseRequestWebsocket
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import MapAdapter
from werkzeug.routing.exceptions import WebsocketMismatch

from actors.errors import ActorError
from storage.errors import StorageError
from web import gate
from web.bodies import problem_response
from web.broadcasts import broadcasts
from web.bulk import bulk
from web.client_file import client_file
from web.diagnoses import diagnoses
from web.edge.answers import websocket_wanted
from web.edge.lean import LeanHandshake, LeanHttp, LeanRequest, LeanWebsocket
from web.errors import Asked, Problem, problem_of
from web.maintenance import maintenance
from web.openapi import openapi
from web.operators import operators
from web.positions import positions
from web.request_log import log_requests
from web.revocations import revocations
from web.services import Services
from web.sockets import sockets
from web.status import status
from web.stream_refusals import goodbye_instead
from web.streams import streams
from web.subjects import subjects
from web.trails import trails

logger = logging.getLogger("avicenna.web")

_CODE_OF_STATUS = {
    400: ("bad_json", "the request is malformed"),
    404: ("not_found", "there is nothing at this path"),
    405: ("method_not_allowed", "this path does not take this method"),
}

NO_METHOD: Final = "-"
"""A method no route takes."""

NOWHERE: Final = "//"
"""A path of no route."""

Routes = Callable[[Services], Blueprint]
"""Makes the routes of one file."""

NAMES_PATH: Final = "subjects"
"""First segment of the paths whose second is a name, slashes and all."""

PUBLISHING: Final = ("broadcasts", "bulk")
"""The blueprints whose requests publish."""


class Application(QuartTrio):
    """Quart-Trio, except for `Allow`: the routes of WebSockets do not count in it."""

    request_class = LeanRequest
    websocket_class = LeanHandshake
    asgi_http_class = LeanHttp
    asgi_websocket_class = LeanWebsocket

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

    async def make_default_options_response(self) -> Response:
        adapter = request_ctx.url_adapter
        return Response("", headers={"Allow": self.allowed(request.path, adapter.allowed_methods() if adapter else ())})

    def allowed(self, path: str, found: Iterable[str]) -> str:
        """The methods a path takes.

        Args:
            found: what Quart says; the path of a broadcast also fits `/ws/{diagnosis_id}`, and then it says too much.
        """
        exact = [rule.methods or () for rule in self.url_map.iter_rules() if rule.rule == path and not rule.websocket]
        return ", ".join(sorted(set().union(*exact) or found))


def _hides_a_slash(raw_path: bytes) -> bool:
    """Whether a path has an encoded slash, which is part of a name (RFC 3986 section 2.2), where no name may have one.

    Decoded, `/%2Factors` would be found as `/actors`, which a proxy may have meant to keep from the world.
    """
    if b"%2f" not in raw_path.lower():
        return False
    return unquote(raw_path.split(b"/", 2)[1].decode("ascii")) != NAMES_PATH


def create_app(services: Services, routes_beside: Routes | None = None) -> QuartTrio:
    """The application of one server.

    Args:
        routes_beside: further ones, which are no part of the contract.
    """
    app = Application("avicenna_live", static_folder=None)
    app.url_map.merge_slashes = False  # a path with two within is another path: 404, not a redirect
    log_requests(app, services)
    for routes in (
        sockets,
        streams,
        broadcasts,
        bulk,
        diagnoses,
        positions,
        operators,
        subjects,
        maintenance,
        revocations,
        trails,
        status,
    ):
        app.register_blueprint(routes(services))
    app.register_blueprint(openapi())
    app.register_blueprint(client_file())
    if routes_beside is not None:
        app.register_blueprint(routes_beside(services))
    gate.put_up(app, services)

    def answer_to(problem: Problem) -> Response:
        # Not for an upgrade that is refused in front of its route: it did not ask for a stream.
        instead = goodbye_instead(services, problem) if has_request_context() else None
        return instead or problem_response(problem)

    @app.errorhandler(Problem)
    async def refused(problem: Problem) -> Response:
        return answer_to(problem)

    @app.errorhandler(ActorError)
    @app.errorhandler(StorageError)
    async def answered(error: Exception) -> Response:
        asked = Asked.TO_PUBLISH if request.blueprint in PUBLISHING else Asked.TO_ACT
        problem = problem_of(error, Asked.TO_READ if request.method in ("GET", "HEAD") else asked)
        return await unexpected(error) if problem is None else answer_to(problem)

    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Response:
        if isinstance(error, WebsocketMismatch):
            return problem_response(websocket_wanted())
        code, detail = _CODE_OF_STATUS.get(error.code or 500, ("internal_error", "the request failed"))
        found = error.valid_methods if isinstance(error, MethodNotAllowed) else None
        headers = {"Allow": app.allowed(request.path, found)} if found else {}
        return problem_response(Problem(code, detail, headers))

    @app.errorhandler(Exception)
    async def unexpected(error: Exception) -> Response:
        logger.error("a request failed unexpectedly: %s", type(error).__name__, exc_info=error)
        return problem_response(Problem("internal_error", "the request failed unexpectedly"))

    return app
