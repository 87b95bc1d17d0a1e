"""One `follow`, without a clock, a socket or an event loop: frames go in, steps for the consumer and frames come out.

Pure. The shells (link.py) connect, wait and read as this says. Position arithmetic is that of PROTOCOL sections 3-5:

* Every connection begins after a number, `_written`, and each event and gap continues it without a hole.
* `_received` is up to where steps were queued, across connections: what a new one repeats up to there is dropped.
* `position` is up to where the consumer has finished, and `_resume` what the next connection asks for.
* An acknowledgement is the lower of `position` and `_written`, if both are of one epoch.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlencode

from avicenna_live.closing import (
    NO_CODE,
    NOTHING_HEARD,
    REFUSED_TOKEN,
    Backoff,
    after,
    header_seconds,
    wished_seconds,
)
from avicenna_live.errors import Ended, ProtocolFault
from avicenna_live.items import EVENT_OF, DiagnosisId, Gap, Item, Position, Reset, Status

STEPS_MAX: Final = 100
"""Most steps that are read ahead. Beyond: nothing is read until the consumer takes one."""

HEARTBEATS_MISSED: Final = 1.5
SILENCE_SECONDS_MIN: Final = 5.0
"""The server is given up when nothing was heard for so many heartbeats, and at least so long."""

GAVE_NONE: Final = "no token"
"""Why a status is as it is where the app's function raised, or returned no token."""

ANSWERS_TO_AUTH: Final = frozenset({"invalid_token", "access_denied", "rate_limited", "quarantined"})
"""Codes of `error` frames that refuse a new token and leave the connection as it is (PROTOCOL section 9)."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What one `follow` is to do."""

    diagnosis_id: DiagnosisId
    after: int | None = None
    """Resume after this number, `None`: there is no position."""
    epoch: str | None = None
    """The numbering that `after` belongs to, `None`: the server's current one."""
    start: str | None = None
    """Where to begin without a position: `oldest`, `new`, or the newest so many; `None`: the default."""
    device: str | None = None
    heartbeat_seconds: int = 20
    snapshots: bool = False
    """The app's state is loaded when there is no position, and after each gap and reset."""
    renewable: bool = False
    """Tokens come from a function."""
    backoff: Backoff = field(default_factory=Backoff)


@dataclass(frozen=True, slots=True)
class Request:
    """The upgrade to ask for."""

    target: str
    headers: dict[str, str] = field(repr=False)
    """They hold the token."""


@dataclass(frozen=True, slots=True)
class Step:
    """What the consumer does next."""

    item: Item | None
    """`None`: load the app's state, which becomes a `Snapshot` at `position`."""
    position: Position | None
    """Reached when the step is finished, `None`: nothing, the next step belongs to it."""


class Core:
    """Positions, gaps, close codes, waits and tokens of one `follow`."""

    def __init__(self, wishes: Wishes, random: Callable[[], float], report: Callable[[Status], None]) -> None:
        """Begin without a connection.

        Args:
            random: gives numbers from 0 up to 1.
            report: is told each new status.
        """
        self._wishes = wishes
        self._random = random
        self._report = report
        self.status = Status("connecting")
        self.failure: Exception | None = None
        """Why there will be no further connection; the consumer gets it after the steps that are left."""
        self.wait_seconds: float | None = 0.0
        """How long to wait before the next attempt, `None`: until there is another token."""
        self.position: Position | None = None
        """Up to where the consumer has finished, `None`: it has no position."""
        if wishes.after is not None and wishes.epoch is not None:
            self.position = Position(wishes.epoch, wishes.after)
        self._resume: tuple[int, str | None] | None = None
        if wishes.after is not None:
            self._resume = wishes.after, wishes.epoch
        self._steps: deque[Step] = deque()
        self._in_hand: Step | None = None
        self._received: Position | None = None
        self._failures = 0
        self._refusals = 0
        self._forget_connection()

    def _forget_connection(self) -> None:
        self.connected = False
        """An upgrade was answered, and the connection is not over."""
        self.admitted = False
        """The server has begun to send."""
        self.auth_due = False
        """The token ends soon, and a new one is to be fetched."""
        self._epoch = ""
        self._written = 0
        self._acknowledged = 0
        self._acknowledges = False
        self._auth_pending = False
        self._bye: dict[str, Any] = {}
        self._detail = ""

    # The connection.

    def request(self, token: str | None) -> Request:
        """The upgrade to ask for now."""
        wishes = self._wishes
        query: dict[str, object] = {"heartbeat": wishes.heartbeat_seconds}
        if token is not None or wishes.device is not None:
            # Who is nobody only looks, and has nothing to acknowledge (PROTOCOL section 3).
            query["ack"] = "app"
        if wishes.device is not None:
            query["device"] = wishes.device
        if self._resume is not None:
            seq, epoch = self._resume
            query["after"] = seq
            if epoch is not None:
                query["epoch"] = epoch
        elif wishes.start is not None:
            query["start"] = wishes.start
        elif wishes.snapshots:
            # What is older than the snapshot need not follow it.
            query["start"] = "new"
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return Request(f"/ws/{wishes.diagnosis_id}?{urlencode(query)}", headers)

    def connecting(self) -> None:
        """An attempt begins."""
        self._forget_connection()
        self._tell(Status("connecting"))

    def opened(self) -> None:
        """The upgrade was answered with 101."""
        self.connected = True

    @property
    def silence_seconds_max(self) -> float:
        """Longest wait for a frame. Beyond: the connection is dropped."""
        return max(SILENCE_SECONDS_MIN, HEARTBEATS_MISSED * self._wishes.heartbeat_seconds)

    @property
    def full(self) -> bool:
        """Whether enough is read ahead."""
        return len(self._steps) >= STEPS_MAX

    def receive(self, message: str | bytes) -> None:
        """Take a frame in. Raises `ProtocolFault`, and what `report` raises."""
        if isinstance(message, bytes):
            raise ProtocolFault("a binary frame")
        status: Status | None = None
        try:
            frame = json.loads(message)
            kind = _text(frame["type"])
            if kind in EVENT_OF:
                self._on_event(kind, frame)
            elif (take := self._takers.get(kind)) is not None:
                status = take(self, frame.get("data") or {})
            elif "seq" in frame:
                # An event of a kind that a later server has: it is passed over, and its number is no hole.
                self._continues(_number(frame["seq"]), _number(frame["seq"]))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            # Neither the frame nor what was wrong in it is told: it may be a payload.
            raise ProtocolFault(f"a frame that is none of this protocol ({type(error).__name__})") from None
        if status is not None:
            self._tell(status)

    # Each returns the status to tell, if it is a new one: what the app's function raises is no fault of the frame.

    def _on_connect(self, data: dict[str, Any]) -> None:
        self.admitted, self._refusals = True, 0
        self._epoch = _text(data["epoch"])
        self._acknowledges = data.get("ack") == "app"
        asked = self._resume
        # Another epoch is a reset, whatever else is said.
        resets = data["resume"] == "reset" or (asked is not None and asked[1] not in (None, self._epoch))
        if data["resume"] == "reset":
            begin = Position(self._epoch, _number(data["floor"]))
        elif asked is None or resets:
            queued, missed = _number(data["queued"]), _number(data["missed"])
            begin = Position(self._epoch, _number(_number(data["head"]) - queued - missed))
        else:
            begin = Position(self._epoch, asked[0])
        self._written = self._acknowledged = begin.seq
        if resets:
            # What was read ahead has the numbers of another history.
            self._steps.clear()
            self._push(Reset(begin.epoch, begin.seq), begin)
        elif asked is None and self._wishes.snapshots:
            self._steps.append(Step(None, begin))
        elif asked is None:
            self.position = begin
        elif self._received is not None and self._received.epoch == begin.epoch:
            return
        self._received = begin
        self._resume = begin.seq, begin.epoch

    def _on_event(self, kind: str, frame: dict[str, Any]) -> None:
        seq, data = _number(frame["seq"]), _object(frame["data"])
        at = datetime.fromisoformat(_text(frame["timestamp"]))
        # A frame that is none has raised by now: its number has not come, and the next connection is told it again.
        if self._continues(seq, seq):
            event = EVENT_OF[kind](self._wishes.diagnosis_id, seq, self._epoch, at, data)
            self._steps.append(Step(event, self._received))

    def _on_gap(self, data: dict[str, Any]) -> None:
        first, last, reason = _number(data["from"]), _number(data["to"]), _text(data["reason"])
        if (new := self._continues(first, last)) and self._received is not None:
            self._push(Gap(new, last, reason), self._received)

    def _continues(self, first: int, last: int) -> int:
        """Note that the connection has come to `last`; the first of these numbers that is news, 0: none is."""
        if self._received is None:
            raise ProtocolFault("a number before `connect`")
        if last <= self._written:
            return 0
        if first > self._written + 1:
            raise ProtocolFault(f"number {first} after {self._written}")
        self._written = last
        if last <= self._received.seq:
            return 0
        first = max(first, self._received.seq + 1)
        self._received = Position(self._epoch, last)
        return first

    def _push(self, item: Gap | Reset, position: Position) -> None:
        if self._wishes.snapshots:
            self._steps += (Step(item, None), Step(None, position))
        else:
            self._steps.append(Step(item, position))

    def _on_live(self, _: dict[str, Any]) -> Status:
        self._failures = 0
        return Status("live")

    def _on_bye(self, data: dict[str, Any]) -> None:
        _number(data["code"]), _text(data["reason"])
        self._bye = data

    def _on_error(self, data: dict[str, Any]) -> Status | None:
        detail = _text(data["detail"])
        if self._auth_pending and data["code"] in ANSWERS_TO_AUTH:
            self._auth_pending = False
            return Status(self.status.state, detail)
        if not self.admitted:
            self._detail = detail
        return None

    def _on_auth_expiring(self, _: dict[str, Any]) -> None:
        self.auth_due = self._wishes.renewable

    def _on_auth_ok(self, _: dict[str, Any]) -> Status | None:
        self._auth_pending = False
        return None if self.status.reason is None else Status(self.status.state)

    _takers: Final[dict[object, Callable[[Core, dict[str, Any]], Status | None]]] = {
        "connect": _on_connect,
        "gap": _on_gap,
        "live": _on_live,
        "bye": _on_bye,
        "error": _on_error,
        "auth_expiring": _on_auth_expiring,
        "auth_ok": _on_auth_ok,
    }

    def auth(self, token: str) -> str:
        """The frame that hands a new token over."""
        self.auth_due, self._auth_pending = False, True
        return json.dumps({"type": "auth", "token": token})

    def no_auth(self) -> None:
        """The function gave no new token: the connection lives on to the end of its old one."""
        self.auth_due = False
        self._tell(Status(self.status.state, GAVE_NONE))

    def ack(self) -> str | None:
        """The acknowledgement that is due, `None`: none is. It counts as sent."""
        if not self._acknowledges or self.position is None or self.position.epoch != self._epoch:
            return None
        # More than it has written on this connection the server does not take.
        seq = min(self.position.seq, self._written)
        if seq <= self._acknowledged:
            return None
        self._acknowledged = seq
        return json.dumps({"type": "ack", "seq": seq})

    # Its end.

    def closed(self, code: int, reason: str) -> None:
        """The connection is over: the server sent a Close, or it broke (1006)."""
        if code in (NO_CODE, NOTHING_HEARD) and self._bye:
            # The Close behind a `bye` did not come.
            code = self._bye["code"]
        elif code == NOTHING_HEARD:
            reason = reason or "the connection broke"
        self._end(code, reason or str(self._bye.get("reason", "")), wished_seconds(self._bye.get("retry_after_ms")))

    def refused(self, status: int, retry_after: str | None) -> None:
        """The upgrade was answered with this HTTP status."""
        self._end(status, f"HTTP status {status} instead of a WebSocket", header_seconds(retry_after))

    def no_token(self) -> None:
        """The function gave no token for the next connection."""
        self._need_token(Status("needs_auth", GAVE_NONE), None)

    def given_up(self, reason: str, code: int | None = None) -> None:
        """No connection came about, or we dropped it (`code`: as which)."""
        self.connected = False
        self._come_back(Status("offline", reason, code), None)

    def fail(self, error: Exception) -> None:
        """A function of the app has raised: the consumer gets that, and there is no further connection."""
        self.connected = False
        self.failure = error

    def _end(self, code: int, reason: str, wished: float | None) -> None:
        self.connected = False
        match after(code, reason):
            case "come_back":
                self._come_back(Status("offline", reason or None, code), wished)
            case "needs_auth":
                self._need_token(Status("needs_auth", reason or None, code), wished)
            case "ended":
                self.failure = Ended(code, reason, self._detail)
                self._tell(Status("ended", reason or None, code))

    def _come_back(self, status: Status, wished: float | None) -> None:
        self.wait_seconds = wished
        if wished is None:
            self.wait_seconds = self._wishes.backoff.seconds(self._failures, self._random())
        self._failures += 1
        self._tell(status)

    def _need_token(self, status: Status, wished: float | None) -> None:
        if not self._wishes.renewable:
            self.wait_seconds = None
        elif self.admitted:
            # The token has worked: it was not fetched for this attempt.
            self.wait_seconds = 0.0
        else:
            self.wait_seconds = REFUSED_TOKEN.seconds(self._refusals, self._random()) if wished is None else wished
            self._refusals += 1
        self._tell(status)

    def _tell(self, status: Status) -> None:
        self.status = status
        self._report(status)

    # The consumer.

    @property
    def step(self) -> Step | None:
        """What the consumer does next, `None`: nothing has come."""
        return self._steps[0] if self._steps else None

    def take(self) -> None:
        """The consumer begins `step`."""
        self._in_hand = self._steps.popleft()

    @property
    def unsaved(self) -> Position | None:
        """What to save before the step in hand counts as finished, `None`: nothing."""
        return None if self._in_hand is None else self._in_hand.position

    def finish(self) -> None:
        """The consumer has finished the step in hand."""
        if (reached := self.unsaved) is not None:
            self.position = reached
            if self._resume is not None and self._resume[1] == reached.epoch:
                self._resume = reached.seq, reached.epoch
        self._in_hand = None


def _number(value: object) -> int:
    """An integer from 0. Raises `TypeError` and `ValueError`."""
    if type(value) is not int:
        raise TypeError
    if value < 0:
        raise ValueError
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _object(value: object) -> Any:
    if not isinstance(value, dict):
        raise TypeError
    return value
