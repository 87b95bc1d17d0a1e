"""`/demo`: the page of the demo, and what its buttons ask for. No part of the contract, and on no other server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio

from web.commands.failures import CommandFailed
from web.contract.errors import RETRY_AFTER_SECONDS, Problem, retry_after
from web.contract.exchange import Answer, Handler, Request, answer
from web.demo.samples import KINDS, Service
from web.http.bodies import StaticContent, whole_request
from web.server.app import Extra

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

Told = TypeVar("Told")


class Shown(Protocol):
    """What the buttons of the page act on."""

    @property
    def service(self) -> Service:
        """The service that publishes. Raises `Unreachable` before the server accepts connections."""

    def crash_next(self) -> None:
        """Have the actor crash once, over the next update."""

    def restart_server(self) -> None:
        """Begin the end of the server; another takes its place."""


def pages(shown: Shown) -> list[Extra]:
    """The routes."""

    async def begin(asked: Request) -> Answer:
        return Answer(303, {"Location": "/demo"})

    def page(name: str, media_type: str) -> Handler:
        content = StaticContent((PAGE / name).read_bytes(), media_type)

        async def show(asked: Request) -> Answer:
            found = content.answer(asked)
            found.headers["Content-Security-Policy"] = POLICY
            return found

        return show

    async def publish(asked: Request) -> Answer:
        kind, count = asked.query.get("kind"), asked.query.get("count", "1")
        if kind is not None and kind not in KINDS:
            raise Problem("invalid_field", f"kind must be one of {', '.join(KINDS)}")
        if not (count.isascii() and count.isdigit() and 1 <= int(count) <= AT_ONCE_MAX):
            raise Problem("invalid_field", f"count must be 1-{AT_ONCE_MAX}")
        await whole_request(asked)
        numbers = await _asked(shown, lambda service: [service.publish(kind) for _ in range(int(count))])
        return answer({"numbers": numbers})

    async def crash(asked: Request) -> Answer:
        await whole_request(asked)
        shown.crash_next()
        return answer({"numbers": [await _asked(shown, Service.publish)]})

    async def restart(asked: Request) -> Answer:
        await whole_request(asked)
        await _asked(shown, Service.restart_actor)
        return answer({})

    async def look(asked: Request) -> Answer:
        return answer(await _asked(shown, Service.actor))

    async def restart_all(asked: Request) -> Answer:
        await whole_request(asked)
        shown.restart_server()
        return answer({})

    return [
        Extra("get", "/", begin),
        *(Extra("get", path, page(name, media_type)) for path, (name, media_type) in FILES.items()),
        Extra("post", "/demo/publish", publish),
        Extra("post", "/demo/actor/crash", crash),
        Extra("post", "/demo/actor/restart", restart),
        Extra("get", "/demo/actor", look),
        Extra("post", "/demo/server/restart", restart_all),
    ]


async def _asked(shown: Shown, what: Callable[[Service], Told]) -> Told:
    """Run a method of the service on a thread: it asks this server, and waits for the answer.

    Raises:
        Problem: 503, it was not done.
    """
    try:
        return await trio.to_thread.run_sync(what, shown.service)
    except CommandFailed as error:
        raise Problem("storage_unavailable", str(error), retry_after(RETRY_AFTER_SECONDS)) from None
