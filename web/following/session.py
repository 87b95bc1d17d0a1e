"""One client's side of the conversation after it was admitted: its frames and what answers them.

Knows no socket: frames go out through `Speaker.say`. The transport that carries the bytes calls `received`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, assert_never

from actors.reading import Due, Live, RenderedEvent
from actors.registry import Registry
from actors.ring import Gap
from actors.roster import Subscriber
from actors.transport import Ending
from storage.clock import Clock
from storage.records import AcknowledgedBy, Seq
from web.contract import wire
from web.contract.errors import RETRY_SPREAD_SECONDS, CloseCode
from web.contract.principals import Principal
from web.contract.records import Ack, Auth, Ping
from web.identity.expiry import Expiry
from web.websocket.flood import Cost

LONG_AGO: Final = -math.inf
"""Shared: written out, it is a number of its own in each session."""


class Speaker(Protocol):
    """Carries frames other than events."""

    def say(self, frame: bytes) -> None:
        """Queue a frame for this client; never waits."""


@dataclass(frozen=True, slots=True)
class Services:
    """What all sessions of one server use. One object: a session is one of ten thousand."""

    registry: Registry
    expiry: Expiry
    """Watches the tokens of the sessions."""
    clock: Clock


class Session:
    """The state of one admitted connection above its transport."""

    __slots__ = (
        "_acknowledged",
        "_services",
        "_speaker",
        "_subscriber",
        "ack",
        "warn_at",
    )

    def __init__(
        self,
        subscriber: Subscriber,
        *,
        ack: AcknowledgedBy | None,
        speaker: Speaker,
        services: Services,
    ) -> None:
        """A conversation that begins now; it says nothing before the subscriber is attached.

        Args:
            subscriber: the connection, of a `Principal`.
            ack: what moves the cursor of this connection, `None`: nothing does, it peeks.
            speaker: carries what the session says.
        """
        self.ack = ack
        self.warn_at = LONG_AGO
        """Wall seconds before which the client is not told that its token is about to expire; infinite: it was told."""
        self._acknowledged = Seq(0)
        """The highest number the client has acknowledged here."""
        self._subscriber = subscriber
        self._speaker = speaker
        self._services = services
        services.expiry.watch(self)

    @property
    def who(self) -> Principal:
        """Whose connection it is, by the newest token."""
        principal = self._subscriber.principal
        assert isinstance(principal, Principal), "the actors do not look at it"
        return principal

    @property
    def diagnosis_id(self) -> str:
        """The diagnosis it follows."""
        assert self._subscriber.roster is not None, "it is attached"
        return self._subscriber.roster.diagnosis_id

    @property
    def is_live(self) -> bool:
        """Whether the replay is complete."""
        return self._subscriber.is_live

    def received(self, message: str | bytes) -> Cost:
        """Answer a message of the client; a wrong one gets an `error` frame and the connection stays.

        Returns:
            What it costs: an acknowledgement of something new costs nothing.
        """
        try:
            if isinstance(message, bytes):
                raise wire.FrameError("bad_frame", "a frame must be JSON text, not binary")
            return self._act_on(wire.decode_client_frame(message))
        except wire.FrameError as error:
            self.say("error", wire.error_data(error.code, error.detail))
            return Cost.FRAME

    def _act_on(self, frame: Ping | Ack | Auth) -> Cost:
        match frame:
            case Ping():
                self.say("pong", frame.data)
            case Ack():
                return self._take_ack(Seq(frame.seq))
            case Auth():
                self._services.expiry.renew(self, frame.token)
            case _:
                assert_never(frame)
        return Cost.FRAME

    def _take_ack(self, seq: Seq) -> Cost:
        if self.ack is None:
            raise wire.FrameError("invalid_field", "ack is not for a connection that peeks: it has no cursor")
        if not self._services.registry.acknowledge(self._subscriber, seq, "app", answer=True):
            raise wire.FrameError("invalid_field", "seq must not be above the last one sent to this connection")
        if seq <= self._acknowledged:
            return Cost.REPEAT
        self._acknowledged = seq
        return Cost.NOTHING

    def renewed(self, who: Principal) -> None:
        """A newer token of the same subject was accepted (PROTOCOL section 9)."""
        assert who.expires_at is not None, "every token has an end"
        self._subscriber.principal = who
        self.say("auth_ok", {"expires_at": wire.timestamp(who.expires_at)})

    @property
    def is_gone(self) -> bool:
        """Whether the connection has ended."""
        return self._subscriber.gone

    def end(self, ending: Ending) -> None:
        """End the connection from this side. A connection that is still being admitted is judged by the admission."""
        if self._subscriber.roster is not None:
            self._subscriber.roster.end(self._subscriber, ending)

    def reached(self, seq: Seq) -> bool:
        """The transport's receipt: everything up to `seq` has reached the client. False: `seq` was never sent."""
        return self._services.registry.acknowledge(self._subscriber, seq, "transport")

    def received_all(self) -> None:
        """The transport's receipt after the goodbye: everything that was written has reached the client."""
        self._services.registry.settle(self._subscriber, "transport")

    def acknowledged(self, seq: Seq) -> None:
        """The cursor is stored."""
        self.say("acked", wire.seq_data(seq))

    def text_of(self, due: Due) -> bytes:
        """The JSON text of something that is due."""
        match due:
            case RenderedEvent():
                return due.text
            case Gap():
                return self.frame("gap", wire.gap_data(due))
            case Live():
                self._services.expiry.changed(self)
                return self.frame("live", wire.seq_data(due.seq))
            case _:
                assert_never(due)

    def goodbye(self, code: CloseCode, reason: str, jitter: Callable[[], float]) -> tuple[bytes, int | None]:
        """The `bye` frame before a close, and when the client is told to come back, in milliseconds; `None`: not."""
        retry = None
        if code in (CloseCode.RESTART, CloseCode.TRY_LATER):
            rest_seconds = self._services.registry.rest_seconds(self.diagnosis_id)
            retry = round((rest_seconds + jitter() * RETRY_SPREAD_SECONDS) * 1000)
        return self.frame("bye", wire.bye_data(code, reason, retry)), retry

    def say(self, kind: str, data: object) -> None:
        """Queue a server frame that is no event."""
        self._speaker.say(self.frame(kind, data))

    def frame(self, kind: str, data: object) -> bytes:
        """A server frame that is no event."""
        return wire.frame(kind, self.diagnosis_id, self._services.clock.wall(), data)
