"""`GET /console/events`: what consoles show, as an event stream that says once a second what has changed.

It is read with `fetch`, which sends the token in a header. The task of a stream is woken after each turn and writes
what its console is due; one that is not read misses turns, and nothing waits for it.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from functools import partial
from typing import Final

import trio

from actors.errors import Draining
from actors.transport import Ending
from storage.clock import Clock
from web.console.overview import Overview
from web.contract import wire
from web.contract.errors import RETRY_SPREAD_SECONDS, CloseCode, Problem, close_of, retry_after
from web.contract.exchange import Answer, Handlers, Request
from web.contract.principals import Principal
from web.following.connection_log import ConnectionLog
from web.following.streams import COMMENT, StreamCloses, message, stream_answer, with_retry
from web.identity.access import Access, require
from web.identity.expiry import Expiry
from web.identity.limits import TooMany
from web.identity.rights import OPERATE

CONSOLES_MAX: Final = 16
"""Streams at once. Reason: each gets all rows when it begins. Beyond: 429."""


class Console:
    """One stream, and the token it was opened with (`web.identity.expiry.Watched`)."""

    diagnosis_id = None
    is_live = True

    def __init__(self, who: Principal, clock: Clock) -> None:
        self.who = who
        self.warn_at = -math.inf
        self.is_gone = False
        self.ending: Ending | None = None
        self.expiring: bytes | None = None
        """The frame that says so, if it is still to be written."""
        self._clock = clock
        self._woken = trio.Event()

    def wake(self) -> None:
        """There may be something to do."""
        self._woken.set()

    async def woken(self, seconds: float) -> bool:
        """Wait for that; False: there was nothing for so long."""
        with trio.move_on_after(seconds):
            await self._woken.wait()
            self._woken = trio.Event()
            return True
        return False

    def renewed(self, who: Principal) -> None:
        """Nothing in a stream shows a newer token."""

    def end(self, ending: Ending) -> None:
        """End it, as soon as its task is woken."""
        if self.ending is None:
            self.ending, self.is_gone = ending, True
            self.wake()

    def say(self, kind: str, data: object) -> None:
        """Have something written: that its token is about to expire."""
        self.expiring = wire.frame(kind, None, self._clock.wall(), data)
        self.wake()


class Consoles:
    """Serves the streams of all consoles. One per server."""

    def __init__(
        self,
        overview: Overview,
        access: Access,
        expiry: Expiry,
        log: ConnectionLog,
        closes: StreamCloses,
        clock: Clock,
        jitter: Callable[[], float],
        stopping: trio.Event,
    ) -> None:
        """Let in until `stopping` is set."""
        self._overview = overview
        self._access = access
        self._expiry = expiry
        self._log = log
        self._closes = closes
        self._clock = clock
        self._jitter = jitter
        self._stopping = stopping
        self._live: dict[Console, None] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._live)

    def handlers(self) -> Handlers:
        """The operation."""
        return {"followConsole": self._follow}

    async def _follow(self, asked: Request) -> Answer:
        # No checkpoint until it is among those that are ended: whoever loses the right ends them.
        who = asked.who
        require(who, OPERATE)
        if asked.method == "HEAD":
            return stream_answer(b"")
        if self._stopping.is_set():
            raise Draining("the server is stopping")
        if len(self._live) >= CONSOLES_MAX:
            raise Problem("rate_limited", f"at most {CONSOLES_MAX} consoles at once", retry_after(1))
        try:
            release = self._access.limits.hold(who.sub, None, partial(self._access.address_of, asked))
        except TooMany as excess:
            raise Problem("rate_limited", str(excess), retry_after(excess.retry_after_seconds)) from None
        console, held = Console(who, self._clock), ExitStack()
        if release is not None:
            held.callback(release)
        held.callback(self._live.pop, console)
        self._live[console] = None
        held.enter_context(self._overview.looked_at(console.wake))
        assert asked.at_end is not None, "a stream is no handshake"
        asked.at_end(partial(self._over, console, held, asked.id, self._clock.monotonic()))
        self._expiry.watch(console)
        self._expiry.changed(console)
        return stream_answer(self._frames(console))

    def _over(self, console: Console, held: ExitStack, request_id: str, began_at: float) -> None:
        console.is_gone = True
        held.close()
        code, reason = (None, "its connection ended") if console.ending is None else close_of(console.ending)
        self._closes.closed(code)
        self._log.console_ended(console.who.sub, code, reason, self._clock.monotonic() - began_at, request_id)

    async def _frames(self, console: Console) -> AsyncIterator[bytes]:
        """What the console gets, until the server ends it; the client's end cancels this."""
        overview, given = self._overview, None
        while True:
            if console.ending is not None:
                yield self._goodbye(console.ending)
                return
            if console.expiring is not None:
                expiring, console.expiring = console.expiring, None
                yield message(expiring)
            if overview.is_ready and overview.turn != given:
                turn = overview.turn
                for frame in overview.since(given):
                    yield message(frame)
                    if console.is_gone:
                        break
                given = turn
            elif not await console.woken(wire.PING_INTERVAL_SECONDS):
                yield COMMENT

    def _goodbye(self, ending: Ending) -> bytes:
        code, reason = close_of(ending)
        retry_ms = round(self._jitter() * RETRY_SPREAD_SECONDS * 1000) if code is CloseCode.RESTART else None
        bye = wire.frame("bye", None, self._clock.wall(), wire.bye_data(code, reason, retry_ms))
        return with_retry(message(bye), retry_ms)

    async def end_where(self, picks: Callable[[Principal], bool], ending: Ending) -> None:
        """End the streams of those whom `picks` picks."""
        for console in [one for one in self._live if picks(one.who)]:
            console.end(ending)

    async def end_all(self) -> None:
        """The server stops: say goodbye to every console."""
        await self.end_where(lambda who: True, Ending.STOPPING)
