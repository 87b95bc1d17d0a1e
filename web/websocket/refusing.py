"""The end of a WebSocket before `connect`: the upgrade is answered, an `error` frame says why, and a Close follows.

A refusal is sent after the upgrade, so that a browser sees it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Protocol

from web.contract import wire
from web.contract.errors import CloseCode, Refusal
from web.contract.exchange import Request
from web.http.adoption import Adoption, NotAdoptable
from web.websocket.channel import NO_CLOSE, Channel
from web.websocket.frames import text_frame
from web.websocket.hub import Hub

GONE: Final = "the client left before it was answered"

logger = logging.getLogger("avicenna.web")


class RefusalLog(Protocol):
    """Where it is said how a WebSocket ended that was not let in."""

    def refused_socket(self, asked: Request, code: int, reason: str) -> None:
        """A WebSocket ends before `connect`; said within its request."""

    def stalled_refused(self, why: str) -> None:
        """A client that was refused is cut off."""


class Refusing:
    """Turns WebSockets away. One per server."""

    def __init__(self, hub: Hub, log: RefusalLog, name_of: Callable[[Request], bytes]) -> None:
        """Give them to `hub`, and say so in `log`.

        Args:
            name_of: the name under which the refusals of a client are counted together.
        """
        self._hub = hub
        self._log = log
        self._name_of = name_of

    def left(self, asked: Request) -> None:
        """The client is gone."""
        self._log.refused_socket(asked, NO_CLOSE, GONE)

    def refuse(
        self, asked: Request, adoption: Adoption, head: bytes, refusal: Refusal, diagnosis_id: str | None
    ) -> None:
        """Answer the upgrade, say why, and close.

        Args:
            head: answers the upgrade.
            diagnosis_id: the diagnosis that was asked for, as the `error` frame names it; `None`: none was.
        """
        data = wire.error_data(refusal.code, refusal.detail)
        error = wire.frame("error", diagnosis_id, self._hub.clock.wall(), data)
        self._close(asked, adoption, head + text_frame(error), refusal.close_code, refusal.reason)

    def break_off(self, asked: Request, adoption: Adoption, head: bytes, why: str) -> None:
        """The server failed: the client is told to come back.

        Args:
            why: what failed, for the log.
        """
        logger.error("a connection failed: %s", why)
        self._close(asked, adoption, head, CloseCode.INTERNAL_ERROR, "internal error")

    def _close(self, asked: Request, adoption: Adoption, head: bytes, code: CloseCode, reason: str) -> None:
        """Answer the upgrade; the Close behind it comes later if this client was refused lately."""
        hub = self._hub
        # No checkpoint until the hub has the socket: the Close must not be due before that.
        try:
            sock = adoption.adopt()
        except NotAdoptable:
            self.left(asked)
            return
        self._log.refused_socket(asked, code, reason)
        channel = RefusedChannel(hub, self._log)
        channel.close(code, reason, hold_seconds=hub.holds.seconds(self._name_of(asked), hub.clock.monotonic()))
        channel.open(sock, head)


class RefusedChannel(Channel):
    """The WebSocket of a client that is not let in: it is told so, and nothing else."""

    __slots__ = ("_log",)

    def __init__(self, hub: Hub, log: RefusalLog) -> None:
        super().__init__(hub)
        self._log = log

    def stalled(self, why: str) -> None:
        self._log.stalled_refused(why)
