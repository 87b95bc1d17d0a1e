"""One line for every request, and the id that ties its other lines to it: `X-Request-ID` of the answer.

The id is ours alone: one that a client sends is not looked at. The path is logged as its route, with the diagnosis
id and no other part of it filled in, and without the query; where no route is found, as it was asked, still escaped.
"""

from __future__ import annotations

import logging
from typing import Final

from quart import Response, g, request, websocket
from quart.wrappers import Request, Websocket
from quart_trio import QuartTrio

from web.server.logs import REQUEST_ID
from web.server.services import Services

REQUEST_ID_HEADER: Final = "X-Request-ID"

PATH_CHARACTERS_MAX: Final = 200
"""Longest path in a line; the rest is left out."""

logger = logging.getLogger("avicenna.access")


def log_requests(app: QuartTrio, services: Services) -> None:
    """Give every request of `app` an id and a line."""

    @app.before_request
    async def begin() -> None:
        g.setdefault(REQUEST_ID, services.new_id())
        g.began_at = services.clock.monotonic()

    @app.after_request
    async def end(response: Response) -> Response:
        milliseconds = (services.clock.monotonic() - g.began_at) * 1000
        logger.info("%s %s %d %.1f ms", request.method, path_of(request), response.status_code, milliseconds)
        response.headers[REQUEST_ID_HEADER] = g.get(REQUEST_ID)
        return response

    @app.before_websocket
    async def begin_socket() -> None:
        g.setdefault(REQUEST_ID, services.new_id())
        logger.info("GET %s WebSocket", path_of(websocket))


def path_of(asked: Request | Websocket) -> str:
    """The path of a request as it may be logged: a name in it (`/subjects/...`) stays out."""
    if asked.url_rule is None:
        if asked.path.lstrip("/").startswith("subjects/"):
            return "/subjects/..."
        return asked.scope["raw_path"].partition(b"?")[0][:PATH_CHARACTERS_MAX].decode("latin-1")
    diagnosis_id = (asked.view_args or {}).get("diagnosis_id", "")
    return asked.url_rule.rule.replace("<diagnosis_id>", diagnosis_id)[:PATH_CHARACTERS_MAX]
