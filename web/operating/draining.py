"""The end of the server: `POST /drain` begins it, and it interrupts long work (503, which can be repeated)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from actors.acts import Acts
from web.contract.errors import RETRY_AFTER_SECONDS, Problem, retry_after
from web.contract.exchange import Answer, Handlers, Request, answer
from web.http.bodies import whole_request
from web.identity import rights
from web.identity.access import Access, require
from web.operating.audit_rows import act, row_of

DRAIN_REQUEST: Final = "POST /drain"
"""What the log says the server drains after."""

Outcome = TypeVar("Outcome")


def drain(access: Access, acts: Acts, begin: Callable[[], object]) -> Handlers:
    """The operation that ends the server.

    Args:
        begin: begins the end, as SIGTERM does. It does nothing if the end has begun.
    """

    async def begin_drain(asked: Request) -> Answer:
        require(asked.who, rights.OPERATE)
        await whole_request(asked)

        async def carry_out() -> None:
            access.judge_token(asked.who)
            await acts.store.record(row_of(act(asked.who, "server.drain")))
            begin()

        await acts.carry_through(carry_out)
        return answer({"status": "draining"}, 202)

    return {"drainServer": begin_drain}


async def unless_stopping(stopping: trio.Event, work: Callable[[], Awaitable[Outcome]], detail: str) -> Outcome:
    """Do something that takes long; a stop of the server cancels it.

    Args:
        stopping: set when the server stops.
        detail: what is true of it then.

    Raises:
        Problem: 503 `draining`; or as `work`.
    """
    outcomes: list[Outcome] = []
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:

        async def interrupt() -> None:
            await stopping.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(interrupt)
        try:
            outcomes.append(await work())
        except Exception as error:  # noqa: BLE001 - it is raised below, outside of the nursery
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not outcomes:
        raise Problem("draining", f"the server is stopping; {detail}", retry_after(RETRY_AFTER_SECONDS))
    return outcomes[0]
