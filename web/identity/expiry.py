"""The tokens of live connections: warned about in time, renewed in band, and ended when they expire (PROTOCOL 9).

One task for all connections, of those who follow and of those who publish, which looks at each of them twice a second.
Knows no transport, and of a connection no more than `Watched` says.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from actors.transport import Ending
from storage.clock import Clock
from storage.errors import StorageError
from web.contract import wire
from web.contract.principals import Principal
from web.identity.refusals import detail_of_revoked
from web.identity.tokens import LEEWAY_SECONDS, KeysMissing, TokenError, TokenRevoked, Verifier

WARNING_SECONDS: Final = 60
"""`auth_expiring` is sent so long before a token expires."""

WARNING_AGAIN_SECONDS_MIN: Final = 5
"""After a token that was accepted in band with little time left, the next warning comes when half of that time has
passed, and not before so many seconds. Reason: a login service may hand out the same token until it ends; whoever is
warned at once each time asks for it without a pause."""

LOOK_SECONDS: Final = 0.5
"""How often the connections are looked at. Reason: tokens end at whole seconds, and nobody counts on tenths."""

LOOK_CHUNK: Final = 1024
"""Connections looked at between two checkpoints."""

RENEWALS_MAX: Final = 1000
"""Tokens being verified for `auth` frames, most of them waiting for a key. Beyond: refused, the client may send it
again."""

logger = logging.getLogger("avicenna.web")

MayFollow = Callable[[Principal, str], Awaitable[bool]]
"""Whether somebody may follow the diagnosis with this id."""


class Watched(Protocol):
    """A live connection, as far as its token is concerned."""

    warn_at: float
    """When, on the wall clock, it may be told that its token is about to expire."""

    @property
    def who(self) -> Principal:
        """Whose connection it is, by the newest token."""

    @property
    def is_live(self) -> bool:
        """Whether the replay is complete."""

    @property
    def diagnosis_id(self) -> str | None:
        """The diagnosis it follows; `None`: it follows none, so a newer token needs no right to one."""

    @property
    def is_gone(self) -> bool:
        """Whether the connection has ended."""

    def renewed(self, who: Principal) -> None:
        """A newer token of the same subject was accepted."""

    def end(self, ending: Ending) -> None:
        """End the connection, whatever carries it."""

    def say(self, kind: str, data: object) -> None:
        """Queue a server frame."""


class Expiry:
    """Watches the tokens of all live connections. One per server."""

    def __init__(
        self, verifier: Verifier, clock: Clock, *, may_follow: MayFollow, prepare: Callable[[str], Awaitable[None]]
    ) -> None:
        """A watch that begins with `run`.

        Args:
            may_follow: asked before a newer token is accepted for a connection that follows.
            prepare: called with a newer token before it is verified; may fetch its key.
        """
        self._verifier = verifier
        self._clock = clock
        self._may_follow = may_follow
        self._prepare = prepare
        self._sessions: list[Watched] = []
        """All watched connections, and those that have ended since the last look."""
        self._at_once: list[Watched] = []
        """Connections whose warning is overdue."""
        self._hurry = trio.Event()
        self._renewing: dict[Watched, None] = {}
        self._send, self._receive = trio.open_memory_channel[tuple[Watched, str]](RENEWALS_MAX)

    # Called by sessions; nothing here waits.

    def watch(self, session: Watched) -> None:
        """Look after the token of this connection from now on, until the connection ends."""
        if session.who.expires_at is not None:
            self._sessions.append(session)

    def changed(self, session: Watched) -> None:
        """The replay is complete: a warning may have been due for long."""
        expires_at = session.who.expires_at
        if expires_at is not None and self._clock.wall() >= expires_at - WARNING_SECONDS:
            self._at_once.append(session)
            self._hurry.set()

    def renew(self, session: Watched, token: str) -> None:
        """Judge a newer token; the session is told (`renewed` or an `error` frame) when that is done.

        Raises:
            wire.FrameError: an earlier one is being judged, or too many are.
        """
        if session in self._renewing:
            raise wire.FrameError("rate_limited", "the token before this one is still being verified")
        if len(self._renewing) >= RENEWALS_MAX:
            raise wire.FrameError("rate_limited", "too many tokens are being verified; send it again")
        self._renewing[session] = None
        self._send.send_nowait((session, token))  # its buffer has room for that many

    async def run(self) -> None:
        """Watch until cancelled."""
        async with trio.open_nursery() as expiry_nursery:
            expiry_nursery.start_soon(self._renew_all)
            while True:
                with trio.move_on_after(LOOK_SECONDS):
                    while True:
                        await self._hurry.wait()
                        self._hurry = trio.Event()
                        hurried, self._at_once = self._at_once, []
                        await self._look_at(hurried)
                watched, self._sessions = self._sessions, []
                await self._look_at(watched)
                self._sessions += [session for session in watched if not session.is_gone]
                del watched  # it would stay in memory until the next look

    async def _look_at(self, sessions: list[Watched]) -> None:
        now = self._clock.wall()
        for index, session in enumerate(sessions, start=1):
            try:
                self._judge(session, now)
            except Exception as error:  # noqa: BLE001  # here the failure of one connection stays its own
                logger.error("a connection with an expiring token failed: %s", type(error).__name__)
            if index % LOOK_CHUNK == 0:
                await trio.lowlevel.checkpoint()

    def _judge(self, session: Watched, now: float) -> None:
        """Warn or end a connection whose time for it has come."""
        expires_at = session.who.expires_at
        assert expires_at is not None, "only connections with a token are watched"
        if now < expires_at - WARNING_SECONDS or session.is_gone:
            return
        if now >= expires_at + LEEWAY_SECONDS:
            session.end(Ending.TOKEN_EXPIRED)
        elif session.is_live and now >= session.warn_at:
            session.warn_at = math.inf
            left = max(0, round(expires_at - now))
            session.say("auth_expiring", {"expires_at": wire.timestamp(expires_at), "seconds_left": left})

    async def _renew_all(self) -> None:
        # Side by side: a token whose key is being fetched holds up no other.
        async with trio.open_nursery() as renewals_nursery:
            async for session, token in self._receive:
                renewals_nursery.start_soon(self._renew_one, session, token)

    async def _renew_one(self, session: Watched, token: str) -> None:
        try:
            await self._renew(session, token)
        except Exception as error:  # noqa: BLE001  # as above
            logger.error("a token could not be renewed: %s", type(error).__name__)
        finally:
            del self._renewing[session]

    async def _renew(self, session: Watched, token: str) -> None:
        try:
            who = await self._newer(session, token)
        except wire.FrameError as error:
            session.say("error", wire.error_data(error.code, error.detail))
        else:
            # No checkpoint since the right was checked: a right that is taken away later ends the connection itself.
            if not session.is_gone:
                assert who.expires_at is not None, "every token has an end"
                now = self._clock.wall()
                session.warn_at = now + max((who.expires_at - now) / 2, WARNING_AGAIN_SECONDS_MIN)
                session.renewed(who)

    async def _newer(self, session: Watched, token: str) -> Principal:
        await self._prepare(token)
        try:
            who = self._verifier.verify(token, self._clock.wall())
            if who.sub != session.who.sub:
                raise wire.FrameError("invalid_token", "the token must be of the same subject")
            followed = session.diagnosis_id
            may_follow = followed is None or await self._may_follow(who, followed)
            self._verifier.check(who, self._clock.wall())
        except KeysMissing:
            raise wire.FrameError("quarantined", "the token cannot be verified right now; send it again") from None
        except TokenError as error:
            followed = session.diagnosis_id
            where = followed or "one who publishes"
            logger.info("a newer token was not accepted on a connection of %s: %s%.0s", where, error, followed)
            detail = detail_of_revoked(error) if isinstance(error, TokenRevoked) else "the token is not valid"
            raise wire.FrameError("invalid_token", detail) from None
        except StorageError:
            raise wire.FrameError("quarantined", "the token cannot be checked right now; send it again") from None
        if not may_follow:
            raise wire.FrameError("access_denied", "this token may not follow this diagnosis")
        return who
