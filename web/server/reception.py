"""What happens around every handler, whichever door a request came by: its id and line, the front door, its problem.

A request has one line in the log, and an id that ties its other lines to it: `X-Request-ID` of the answer. The id is
ours alone: one that a client sends is not looked at. The path is logged as its route, with the diagnosis id and no
other part of it filled in, and without the query; where no route is found, as it was asked, still escaped.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from actors.errors import ActorError
from storage.clock import Clock
from storage.errors import StorageError
from web.contract.errors import Asked, Problem, problem_of
from web.contract.exchange import Answer, Request, problem_answer
from web.contract.log_fields import current_request
from web.contract.trace_context import TRACESTATE, trace_context, traced_id
from web.server.front_door import REQUEST_ID_HEADER, FrontDoor

if TYPE_CHECKING:
    from web.server.spans import RequestSpan, Spans

PATH_CHARACTERS_MAX: Final = 200
"""Longest path in a line; the rest is left out."""

lines = logging.getLogger("avicenna.access")
logger = logging.getLogger("avicenna.web")

Instead = Callable[[Request, Problem], Answer | None]
"""What a request is answered in place of a problem document; `None`: the document is the answer."""


class Reception:
    """Receives every request and sees it off. One per server."""

    def __init__(
        self, door: FrontDoor, clock: Clock, new_id: Callable[[], str], instead: Instead, spans: Spans | None = None
    ) -> None:
        """Receive with these.

        Args:
            new_id: a short text that never repeats.
            spans: is told of requests; `None`: nobody is.
        """
        self._door = door
        self._clock = clock
        self._new_id = new_id
        self._instead = instead
        self._spans = spans

    async def attend(self, asked: Request, handle: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer to a request.

        Args:
            handle: gives it, once the request has passed the front door; raises as a handler.
        """
        asked.id = self._new_id()
        span = None if asked.trace is None and self._spans is None else self._join_trace(asked)
        began_at = self._clock.monotonic()
        outside = current_request.set(asked.id)
        status = code = None
        try:
            try:
                answer = await self._door.enter(asked) or await handle()
            except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - the boundary of a request
                answer, code = self._answer_to(asked, error)
            self._door.share(asked, answer)
            answer.headers[REQUEST_ID_HEADER] = asked.id
            status = answer.status
            milliseconds = (self._clock.monotonic() - began_at) * 1000
            lines.info(
                "%s %s %d %.1f ms%.0s%.0s", asked.method, path_of(asked), status, milliseconds, _about(asked), code
            )
            return answer
        finally:
            current_request.reset(outside)
            if span is not None:
                span.end(status, _about(asked), code)

    async def attend_upgrade(self, asked: Request, handle: Callable[[], Awaitable[None]]) -> Answer | None:
        """Have a WebSocket's handshake handled; the answer to one that is refused in front of its route.

        Args:
            handle: takes the socket, or raises as a handler before it has begun.
        """
        asked.id = self._new_id()
        span = None if asked.trace is None and self._spans is None else self._join_trace(asked)
        outside = current_request.set(asked.id)
        status = code = None
        try:
            lines.info("GET %s WebSocket%.0s", path_of(asked), _about(asked))
            await self._door.enter_socket(asked)
            await handle()
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - the boundary of a request
            answer, code = self._answer_to(asked, error)
            status = answer.status
            return answer
        finally:
            current_request.reset(outside)
            if span is not None:
                span.end(status, _about(asked), code)
        return None

    def _join_trace(self, asked: Request) -> RequestSpan | None:
        """Have the id of a request belong to its trace: the one it names, or one that begins with it."""
        context = None if asked.trace is None else trace_context(asked.trace, asked.headers.getlist(TRACESTATE))
        if self._spans is not None:
            return self._spans.begin(asked, context)
        if context is not None:
            asked.id = traced_id(asked.id, context.trace_id)
        return None

    def _answer_to(self, asked: Request, error: BaseException) -> tuple[Answer, str]:
        """What a request is answered that has failed so, and the code of that; a cancellation goes on."""
        if isinstance(error, BaseExceptionGroup):
            if error.subgroup(trio.Cancelled) is not None:
                raise error
            found = error.exceptions[0]
            return self._answer_to(asked, found)
        problem = _problem_of(asked, error)
        if problem is None:
            logger.error("a request failed unexpectedly: %s", type(error).__name__, exc_info=error)
            return problem_answer(Problem("internal_error", "the request failed unexpectedly")), "internal_error"
        return self._instead(asked, problem) or problem_answer(problem), problem.code


def _problem_of(asked: Request, error: BaseException) -> Problem | None:
    match error:
        case Problem():
            return error
        case ActorError() | StorageError():
            operation = asked.operation
            publishes = operation is not None and operation.tag == "publishing"
            to_act = Asked.TO_PUBLISH if publishes else Asked.TO_ACT
            return problem_of(error, Asked.TO_READ if asked.method in ("GET", "HEAD") else to_act)
        case _:
            return None


def _about(asked: Request) -> str | None:
    """The diagnosis that a request is about; `None`: none, or it is not known which."""
    return asked.published_to or asked.parameters.get("diagnosis_id")


def path_of(asked: Request) -> str:
    """The path of a request as it may be logged: a name in it (`/subjects/...`) stays out."""
    if asked.route is None:
        if asked.path.lstrip("/").startswith("subjects/"):
            return "/subjects/..."
        return asked.raw_path[:PATH_CHARACTERS_MAX].decode("latin-1")
    if not asked.parameters:
        return asked.route
    diagnosis_id = asked.parameters.get("diagnosis_id", "")
    return asked.route.replace("<diagnosis_id>", diagnosis_id)[:PATH_CHARACTERS_MAX]
