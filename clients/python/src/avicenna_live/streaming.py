"""Updates over one WebSocket: which frames are due, and what the server's frames say of them. Pure.

The server answers frames in order and reads no more than its window (PROTOCOL section 7.15). What a connection leaves
unanswered is due again on the next one, with the same key, so each update makes one event.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Final

from avicenna_live.closing import HTTP_UNAUTHORIZED, NOTHING_HEARD, wished_seconds
from avicenna_live.errors import BroadcastError, ProtocolFault, TooLarge
from avicenna_live.publishing import Receipt, error_from, line_of, receipt_from
from avicenna_live.updates import Update

FRAME_BYTES_MAX: Final = 64 * 1024
"""Largest frame (PROTOCOL section 7.15)."""

Outcome = Receipt | BroadcastError


class StreamCore:
    """What is on its way."""

    def __init__(self, *, renewable: bool = False) -> None:
        """`renewable`: the next connection may bring another token, so an update refused for this one is due again."""
        self._renewable = renewable
        self._count = 0
        self._waiting: OrderedDict[str, str] = OrderedDict()
        """Frames that were not sent over this connection, by id, the oldest first."""
        self._sent: OrderedDict[str, str] = OrderedDict()
        """Frames that were, and are not answered."""
        self._ever_sent: set[str] = set()
        """Ids of unanswered frames that any connection has carried."""
        self._window = 0
        """0: the server has not let us in."""
        self.was_admitted = False
        """The server has let us in, over this connection or an earlier one."""
        self.auth_due = False
        """The token is about to expire."""
        self._refused: set[str] = set()
        """Ids of sent frames that were refused for the token of this connection: nothing more is sent over it."""
        self.code = NOTHING_HEARD
        self.reason = ""
        """Of the end of this connection, as far as the server has said it."""
        self.wait_seconds: float | None = None
        """When to come back, if the server has said it."""

    @property
    def expects(self) -> bool:
        """Whether the server owes an answer."""
        return len(self._sent) > len(self._refused) or not self._window

    @property
    def is_spent(self) -> bool:
        """Whether this connection is of no more use: its token is refused, and no answer is due."""
        return bool(self._refused) and len(self._sent) == len(self._refused)

    def add(self, update: Update) -> str:
        """Have an update sent; the id under which its outcome comes. Raises `TooLarge`."""
        publish_id = str(self._count + 1)
        frame = b'{"id":"%b",%b' % (publish_id.encode(), line_of(update).strip()[1:])
        if len(frame) > FRAME_BYTES_MAX:
            # The server would end the connection for it.
            raise TooLarge(413, "too_large", f"an update must be at most {FRAME_BYTES_MAX} bytes as a frame")
        self._count += 1
        self._waiting[publish_id] = frame.decode()
        return publish_id

    def forget(self, publish_id: str) -> bool:
        """Nobody waits for an outcome any more; whether the update may be stored."""
        self._waiting.pop(publish_id, None)
        self._sent.pop(publish_id, None)
        self._refused.discard(publish_id)
        was_sent = publish_id in self._ever_sent
        self._ever_sent.discard(publish_id)
        return was_sent

    def opened(self) -> None:
        """A connection is open: what was not answered is due again, before what was not sent."""
        for publish_id, frame in reversed(self._sent.items()):
            self._waiting[publish_id] = frame
            self._waiting.move_to_end(publish_id, last=False)
        self._sent.clear()
        self._refused.clear()
        self._window, self.auth_due = 0, False
        self.code, self.reason, self.wait_seconds = NOTHING_HEARD, "", None

    def due(self) -> str | None:
        """The next frame to send; `None`: none for now."""
        if self._refused or not self._waiting or len(self._sent) >= self._window:
            return None
        publish_id, frame = self._waiting.popitem(last=False)
        self._sent[publish_id] = frame
        self._ever_sent.add(publish_id)
        return frame

    def receive(self, message: str | bytes) -> tuple[str, Outcome] | None:
        """Take in a frame of the server; an id and its outcome, if the frame is one.

        Raises:
            ProtocolFault: it is none of this protocol.
        """
        try:
            frame = json.loads(message)
            match frame["type"]:
                case "connect":
                    self._window = int(frame["data"]["window"])
                    self.was_admitted = True
                case "auth_expiring":
                    self.auth_due = True
                case "bye":
                    data = frame["data"]
                    self.code, self.reason = int(data["code"]), str(data["reason"])
                    self.wait_seconds = wished_seconds(data["retry_after_ms"])
                case "receipt":
                    return self._answered(frame["id"], receipt_from(frame["receipt"]))
                case "refused":
                    problem = frame["problem"]
                    if problem["status"] == HTTP_UNAUTHORIZED and self._renewable:
                        self._refused |= self._sent.keys() & {frame["id"]}
                        return None
                    return self._answered(frame["id"], error_from(int(problem["status"]), problem))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, BroadcastError):
            raise ProtocolFault("a frame that is none of this protocol") from None
        return None

    def _answered(self, publish_id: str, outcome: Outcome) -> tuple[str, Outcome]:
        self._sent.pop(publish_id, None)
        self._ever_sent.discard(publish_id)
        return publish_id, outcome
