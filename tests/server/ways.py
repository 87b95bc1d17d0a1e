"""Requests by way, as the status counts them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tests.server.harness import Server


async def counts(server: Server) -> dict[str, int]:
    """How many requests took which way since the start; the question is one itself."""
    found: dict[str, int] = (await server.status())["node"]["requests"]
    return found


async def ways_of(server: Server, asking: Callable[[], Awaitable[object]]) -> dict[str, int]:
    """How many requests took which way while a client asked."""
    before = await counts(server)
    await asking()
    after = await counts(server)
    return {"short": after["short"] - before["short"] - 1, "long": after["long"] - before["long"]}
