"""Long work that the end of the server interrupts: it is answered 503, and can be repeated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from web.contract.errors import RETRY_AFTER_SECONDS, Problem, retry_after

Answer = TypeVar("Answer")


async def unless_stopping(stopping: trio.Event, work: Callable[[], Awaitable[Answer]], detail: str) -> Answer:
    """Do something that takes long; a stop of the server cancels it.

    Args:
        stopping: set when the server stops.
        detail: what is true of it then.

    Raises:
        Problem: 503 `draining`; or as `work`.
    """
    answers: list[Answer] = []
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:

        async def interrupt() -> None:
            await stopping.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(interrupt)
        try:
            answers.append(await work())
        except Exception as error:  # noqa: BLE001 - it is raised below, outside of the nursery
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not answers:
        raise Problem("draining", f"the server is stopping; {detail}", retry_after(RETRY_AFTER_SECONDS))
    return answers[0]
