"""Appends of several diagnoses in one request: what comes while requests are under way goes together with the next.

What comes while there is room for a request is sent with the next turn of the loop, so nothing waits for others to
come. A request is stored or refused as a whole. If it is refused, nobody knows for whose sake, and each of its parts
goes alone, and so does for a moment all that comes. If its outcome is unknown, it is so for each of its parts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

import trio

from storage.jetstream.engine import Engine
from storage.nats.connection import UNSENT_BYTES_MAX
from storage.nats.errors import Garbled, NatsError, Unanswered
from storage.nats.jetstream import BATCH_MESSAGES_MAX, Stored
from storage.nats.wire import Outgoing

REQUESTS_MAX: Final = 8
"""Requests that are under way at the same time. Reason: of all processes the engine takes 50 at once, unless it is
configured for more. Beyond: what comes goes with the next."""

PARTS_MAX: Final = 64
"""Diagnoses of one request. Reason: each goes alone if it is refused. Beyond: they go in several."""

REQUEST_BYTES_MAX: Final = 1024 * 1024
"""Bodies of one request. Reason: requests wait in memory to be written. Beyond: they go in several."""

APART_SECONDS: Final = 0.02
APART_SECONDS_MAX: Final = 1.0
"""After a request for several was refused each diagnosis goes alone for so long. Grows from the first to the second
until one is stored. Reason: where conflicts are common everything would be sent twice."""

assert REQUESTS_MAX * REQUEST_BYTES_MAX <= UNSENT_BYTES_MAX / 2, "the connection takes no more"


class Combined(Protocol):
    """What one diagnosis has to store, all or none."""

    @property
    def messages(self) -> Sequence[Outgoing]:
        """At least one, and at most `BATCH_MESSAGES_MAX`."""

    @property
    def events(self) -> int:
        """How many of them are events."""

    @property
    def size(self) -> int:
        """Bytes of their bodies, about."""


Part = TypeVar("Part", bound=Combined)


class Combining(Generic[Part]):
    """The requests of this process that store events."""

    def __init__(
        self,
        engine: Engine,
        nursery: trio.Nursery,
        *,
        planned: Callable[[str], Part | None],
        stored: Callable[[Part, int], None],
        not_stored: Callable[[Part, NatsError | None], None],
    ) -> None:
        """Requests are sent by tasks in this nursery. None of the functions may raise or wait.

        Args:
            planned: what a diagnosis has to store, right before it is sent; `None`: it does not go with others.
            stored: called with a part and the position of its last message.
            not_stored: called with a part that is not stored, or perhaps not, and why; `None`: it was refused together
                with others.
        """
        self._engine = engine
        self._requests_nursery = nursery
        self._planned, self._stored, self._not_stored = planned, stored, not_stored
        self._waiting: deque[str] = deque()
        self._senders = 0
        self._is_sender_new = False
        """The sender that was started last has not run yet: it takes what comes until then."""
        self._apart_seconds, self._apart_until = APART_SECONDS, 0.0
        self.requests_max = REQUESTS_MAX
        self.requests = 0
        """That were stored."""
        self.events_peak = 0
        """The most events of one."""

    @property
    def is_apart(self) -> bool:
        """Nothing goes together now."""
        return trio.current_time() < self._apart_until

    def add(self, diagnosis_id: str) -> None:
        """A diagnosis has something to store, and nothing under way."""
        self._waiting.append(diagnosis_id)
        self._have_it_sent()

    async def store(self, messages: Sequence[Outgoing], events: int) -> Stored:
        """Store what goes together, or alone. May raise what `JetStream.store` does."""
        stored = await self._engine.jetstream.store(messages)
        self.requests += 1
        self.events_peak = max(self.events_peak, events)
        return stored

    def _have_it_sent(self) -> None:
        if self._waiting and not self._is_sender_new and self._senders < self.requests_max:
            self._senders += 1
            self._is_sender_new = True
            self._requests_nursery.start_soon(self._send)

    async def _send(self) -> None:
        """Send what waits, until nothing does."""
        self._is_sender_new = False
        while parts := self._next():
            self._have_it_sent()  # what is too much for one request
            try:
                messages = [one for part in parts for one in part.messages]
                stored = await self.store(messages, sum(part.events for part in parts))
                if stored.is_duplicate:
                    raise Unanswered("something of it was stored before")
            except NatsError as error:
                is_refused = not (isinstance(error, (Unanswered, Garbled)) or self._engine.is_passing(error))
                if is_refused and len(parts) > 1:
                    self._apart_until = trio.current_time() + self._apart_seconds
                    self._apart_seconds = min(2 * self._apart_seconds, APART_SECONDS_MAX)
                for part in parts:
                    self._not_stored(part, None if is_refused and len(parts) > 1 else error)
            else:
                if len(parts) > 1:
                    self._apart_seconds = APART_SECONDS
                pos = stored.pos
                for part in reversed(parts):
                    self._stored(part, pos)
                    pos -= len(part.messages)
        self._senders -= 1

    def _next(self) -> Sequence[Part]:
        """The parts of the next request, of those that have waited longest."""
        parts, messages, size = list[Part](), 0, 0
        while self._waiting and len(parts) < PARTS_MAX:
            part = self._planned(self._waiting[0])
            if part is not None:
                messages += len(part.messages)
                size += part.size
                if parts and (messages > BATCH_MESSAGES_MAX or size > REQUEST_BYTES_MAX):
                    break  # it is planned anew for the next
                parts.append(part)
            self._waiting.popleft()
        return parts
