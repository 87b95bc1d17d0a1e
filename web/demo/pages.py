"""`/demo`: the page of the demo, and what its buttons ask for. No part of the contract, and on no other server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio
from quart import Blueprint, Response, request

from web.bodies import StaticContent, answer, whole_request
from web.commands.failures import CommandFailed
from web.demo.samples import KINDS, Service
from web.errors import RETRY_AFTER_SECONDS, Problem, retry_after

PAGE: Final = Path(__file__).with_name("page")

FILES: Final = {
    "/demo": ("demo.html", "text/html; charset=utf-8"),
    "/demo/demo.css": ("demo.css", "text/css; charset=utf-8"),
    "/demo/demo.js": ("demo.js", "text/javascript; charset=utf-8"),
}

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""The page loads nothing from elsewhere (Content Security Policy Level 3)."""

AT_ONCE_MAX: Final = 200
"""Updates published by one request. Reason: more than are kept, so that a page which is away misses some."""

Answer = TypeVar("Answer")


class Shown(Protocol):
    """What the buttons of the page act on."""

    @property
    def service(self) -> Service:
        """The service that publishes. Raises `Unreachable` before the server accepts connections."""

    def crash_next(self) -> None:
        """Have the actor crash once, over the next update."""

    def restart_server(self) -> None:
        """Begin the end of the server; another takes its place."""


def pages(shown: Shown) -> Blueprint:
    """The routes."""
    blueprint = Blueprint("demo", __name__)

    @blueprint.get("/")
    async def begin() -> Response:
        return Response(b"", 303, {"Location": "/demo"})

    def show(path: str, name: str, media_type: str) -> None:
        content = StaticContent((PAGE / name).read_bytes(), media_type)

        async def page() -> Response:
            response = content.answer()
            response.headers["Content-Security-Policy"] = POLICY
            return response

        blueprint.add_url_rule(path, name.replace(".", "_"), page, methods=["GET"])

    for path, (name, media_type) in FILES.items():
        show(path, name, media_type)

    @blueprint.post("/demo/publish")
    async def publish() -> Response:
        kind, count = request.args.get("kind"), request.args.get("count", "1")
        if kind is not None and kind not in KINDS:
            raise Problem("invalid_field", f"kind must be one of {', '.join(KINDS)}")
        if not (count.isascii() and count.isdigit() and 1 <= int(count) <= AT_ONCE_MAX):
            raise Problem("invalid_field", f"count must be 1-{AT_ONCE_MAX}")
        await whole_request()
        numbers = await _asked(shown, lambda service: [service.publish(kind) for _ in range(int(count))])
        return answer({"numbers": numbers})

    @blueprint.post("/demo/actor/crash")
    async def crash() -> Response:
        await whole_request()
        shown.crash_next()
        return answer({"numbers": [await _asked(shown, Service.publish)]})

    @blueprint.post("/demo/actor/restart")
    async def restart() -> Response:
        await whole_request()
        await _asked(shown, Service.restart_actor)
        return answer({})

    @blueprint.get("/demo/actor")
    async def look() -> Response:
        return answer(await _asked(shown, Service.actor))

    @blueprint.post("/demo/server/restart")
    async def restart_all() -> Response:
        await whole_request()
        shown.restart_server()
        return answer({})

    return blueprint


async def _asked(shown: Shown, what: Callable[[Service], Answer]) -> Answer:
    """Run a method of the service on a thread: it asks this server, and waits for the answer.

    Raises:
        Problem: 503, it was not done.
    """
    try:
        return await trio.to_thread.run_sync(what, shown.service)
    except CommandFailed as error:
        raise Problem("storage_unavailable", str(error), retry_after(RETRY_AFTER_SECONDS)) from None
