"""The tokens of live connections: warned about in time, renewed in band, and ended when they expire (PROTOCOL 9).

One task for all connections, and one heap entry for each. Knows no transport: frames go out through
`Session.say`, and a connection is ended through its roster, whatever carries it.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from actors.subscriber import Ending
from storage.clock import Clock
from storage.errors import StorageError
from web import wire
from web.tokens import LEEWAY_SECONDS, Principal, TokenError, Verifier

if TYPE_CHECKING:
    from web.session import Session

WARNING_SECONDS: Final = 60
"""`auth_expiring` is sent so long before a token expires."""

LOOK_AGAIN_SECONDS: Final = 1.0
"""Longest sleep while a connection is watched. Reason: tokens follow the wall clock, which may be set anew."""

COMPACT_AT: Final = 1024
"""Heap entries from which on those of closed connections are looked for, each time their number has doubled."""

RENEWALS_MAX: Final = 1000
"""Tokens being verified for `auth` frames. Beyond: refused, the client may send it again."""

logger = logging.getLogger("avicenna.web")

MayFollow = Callable[[Principal, str], Awaitable[bool]]
"""Whether somebody may follow the diagnosis with this id."""


class Expiry:
    """Watches the tokens of all live connections. One per server."""

    def __init__(
        self, verifier: Verifier, clock: Clock, *, may_follow: MayFollow, prepare: Callable[[str], Awaitable[None]]
    ) -> None:
        """A watch that begins with `run`.

        Args:
            may_follow: asked before a newer token is accepted.
            prepare: called with a newer token before it is verified; may fetch its key.
        """
        self._verifier = verifier
        self._clock = clock
        self._may_follow = may_follow
        self._prepare = prepare
        self._heap: list[tuple[float, int, Session]] = []
        self._numbers = itertools.count()
        self._compact_at = COMPACT_AT
        self._earlier = trio.Event()
        self._renewing: dict[Session, None] = {}
        self._send, self._receive = trio.open_memory_channel[tuple["Session", str]](RENEWALS_MAX)

    # Called by sessions; nothing here waits.

    def watch(self, session: Session) -> None:
        """Look at this connection when its token is about to expire."""
        expires_at = session.who.expires_at
        if expires_at is not None:
            self._look_at(session, expires_at - WARNING_SECONDS)

    def live(self, session: Session) -> None:
        """The replay is complete: a warning that was held back for it can follow."""
        expires_at = session.who.expires_at
        if expires_at is not None and session.look_at is not None and session.look_at > expires_at:
            self._look_at(session, expires_at - WARNING_SECONDS)

    def renew(self, session: Session, token: str) -> None:
        """Judge a newer token; the session is told (`renewed` or an `error` frame) when that is done.

        Raises:
            wire.FrameError: an earlier one is being judged, or too many are.
        """
        if session in self._renewing:
            raise wire.FrameError("rate_limited", "the token before this one is still being verified")
        try:
            self._send.send_nowait((session, token))
        except trio.WouldBlock:
            raise wire.FrameError("rate_limited", "too many tokens are being verified; send it again") from None
        self._renewing[session] = None

    async def run(self) -> None:
        """Watch until cancelled."""
        async with trio.open_nursery() as expiry_nursery:
            expiry_nursery.start_soon(self._renew_all)
            while True:
                self._earlier = trio.Event()
                now = self._clock.wall()
                while self._heap and self._heap[0][0] <= now:
                    at, _, session = heapq.heappop(self._heap)
                    if session.look_at == at and not session.is_gone:
                        self._judge_one(session, now)
                wait = min(self._heap[0][0] - now, LOOK_AGAIN_SECONDS) if self._heap else math.inf
                with trio.move_on_after(wait):
                    await self._earlier.wait()

    def _judge_one(self, session: Session, now: float) -> None:
        try:
            self._judge(session, now)
        except Exception as error:  # noqa: BLE001  # here the failure of one connection stays its own
            logger.error("a connection with an expiring token failed: %s", type(error).__name__)

    def _judge(self, session: Session, now: float) -> None:
        """Warn or end a connection whose time for it has come."""
        expires_at = session.who.expires_at
        assert expires_at is not None, "only connections with a token are watched"
        if now >= expires_at + LEEWAY_SECONDS:
            session.end(Ending.TOKEN_EXPIRED)
            return
        if session.is_live:
            left = max(0, round(expires_at - now))
            session.say("auth_expiring", {"expires_at": wire.timestamp(expires_at), "seconds_left": left})
        self._look_at(session, expires_at + LEEWAY_SECONDS)

    def _look_at(self, session: Session, at: float) -> None:
        session.look_at = at
        heapq.heappush(self._heap, (at, next(self._numbers), session))
        if self._heap[0][2] is session:
            self._earlier.set()
        if len(self._heap) >= self._compact_at:
            self._heap = [entry for entry in self._heap if entry[2].look_at == entry[0] and not entry[2].is_gone]
            heapq.heapify(self._heap)
            self._compact_at = max(COMPACT_AT, 2 * len(self._heap))

    async def _renew_all(self) -> None:
        # One after the other: verifying takes microseconds, and a key is fetched at most once a minute.
        async for session, token in self._receive:
            try:
                await self._renew(session, token)
            except Exception as error:  # noqa: BLE001  # as above
                logger.error("a token could not be renewed: %s", type(error).__name__)
            finally:
                del self._renewing[session]

    async def _renew(self, session: Session, token: str) -> None:
        try:
            who = await self._newer(session, token)
        except wire.FrameError as error:
            session.say("error", wire.error_data(error.code, error.detail))
        else:
            # No checkpoint since the right was checked: what is taken away later ends the connection itself.
            if not session.is_gone:
                session.renewed(who)
                self.watch(session)

    async def _newer(self, session: Session, token: str) -> Principal:
        await self._prepare(token)
        try:
            who = self._verifier.verify(token, self._clock.wall())
            if who.sub != session.who.sub:
                raise wire.FrameError("invalid_token", "the token must be of the same subject")
            may_follow = await self._may_follow(who, session.diagnosis_id)
            self._verifier.check(who, self._clock.wall())
        except TokenError:
            raise wire.FrameError("invalid_token", "the token is not valid") from None
        except StorageError:
            raise wire.FrameError("quarantined", "the token cannot be checked right now; send it again") from None
        if not may_follow:
            raise wire.FrameError("access_denied", "this token may not follow this diagnosis")
        return who
