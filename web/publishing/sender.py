"""An adopted WebSocket that publishes: one frame an event, answered in order.

Three parts work on the frames of one client. The hub reads them (`received`), for as long as fewer than `WINDOW` are
not answered. One task decodes them in turns and puts them into the mailboxes of their actors, so that those of one turn
share a commit. Another waits for the oldest that is not answered, and hands back all that are by then, in one write.

Every way to end waits for the answers that are due, a while at most; then `bye` follows, and the Close.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol

import trio

from actors.acts import Unanswered
from actors.errors import ActorError, MailboxFull
from actors.messages import Receipt
from actors.registry import Registry
from actors.transport import Ending
from storage.errors import Failed, NoSuchDiagnosis, StorageError
from storage.pending import Pending
from web.contract import wire
from web.contract.errors import RETRY_SPREAD_SECONDS, CloseCode, Problem, close_of
from web.contract.principals import Principal
from web.contract.records import Auth, Ping, PublishFrame
from web.http.bodies import BODY_BYTES_MAX
from web.identity.expiry import Expiry
from web.publishing.broadcasts import Publisher, meant_by
from web.publishing.bulk import PAUSE_SECONDS_MAX, PAUSE_STEP_SECONDS, as_problem
from web.websocket import frames
from web.websocket.channel import Channel, State
from web.websocket.flood import Cost
from web.websocket.hub import Hub
from web.websocket.inbound import Close, head_of, unmasked

WINDOW: Final = 256
"""Frames of one client that are not answered. Beyond: its socket is not read."""

WINDOW_BYTES_MAX: Final = 1024 * 1024
"""The same in bytes. Reason: 256 of the largest frames are 16 MiB. Beyond: its socket is not read."""

ALL_BYTES_MAX: Final = 64 * 1024 * 1024
"""The same of all clients together. Beyond: only the sockets of those that have nothing under way are read."""

MESSAGE_BYTES_MAX: Final = BODY_BYTES_MAX
"""Largest frame, as large as the body of a single broadcast. Beyond: close 1009."""

READ_BYTES_MAX: Final = 32 * 1024
"""Bytes read from one socket before the others get their turn."""

FRAGMENT_BYTES_FREE: Final = 512
"""A part of a message of so many bytes costs nothing. Reason: some libraries cut every message into such parts."""

DUE_SECONDS_MAX: Final = 2.0
"""So long an end waits for the answers that are due. Beyond: they say that the outcome is unknown. Reason: a
drain gives connections three seconds."""

ANSWERS_BYTES_MAX: Final = 64 * 1024
"""After so many bytes no further answers are composed for now. Reason: they lie in memory until the client reads."""

ENDS: Final = Problem("draining", "the connection ends; nothing was stored")
"""Answers what no actor has when the time for the answers is up."""

BAD_FRAME: Final = "a frame must be a JSON object with an id, a string of 1-64 characters; or a ping, or an auth"


class SenderLog(Protocol):
    """Where it is said how a connection ended that published."""

    def sender_ended(self, sub: str | None, code: int, reason: str, seconds: float, events: int, request: str) -> None:
        """It is over; so many events were stored."""

    def sender_stalled(self, sub: str | None, why: str, request: str) -> None:
        """Its client is cut off."""


class SendersStatistics(NamedTuple):
    """The connections of one server that publish."""

    connections: int
    """Open now."""
    bytes_under_way: int
    """Of frames that were read and are not answered."""


class Senders:
    """What all senders of one server share."""

    def __init__(self, publisher: Publisher, registry: Registry, expiry: Expiry, log: SenderLog) -> None:
        self.publisher = publisher
        self.registry = registry
        self.expiry = expiry
        self.log = log
        self.live: dict[Sender, None] = {}
        """All that are open."""
        self.bytes_under_way = 0

    def statistics(self) -> SendersStatistics:
        """All senders together."""
        return SendersStatistics(len(self.live), self.bytes_under_way)


class Frame:
    """One frame that was read and is not answered."""

    __slots__ = ("came_at", "diagnosis_id", "id", "length", "pending", "problem", "text")

    def __init__(self, publish_id: str | None, text: bytes, came_at: float) -> None:
        self.id = publish_id
        """`None`: none can be read, it is answered with an `error`."""
        self.text = text
        """Empty once it is decoded."""
        self.length = len(text)
        self.came_at = came_at
        self.diagnosis_id: str | None = None
        """The diagnosis it means; `None`: not known yet, or it names none."""
        self.pending: Pending[Receipt] | None = None
        """Where the answer of the actor will be; `None`: the actor does not have it."""
        self.problem: Problem | None = None
        """Why nothing is published, or why it is unknown; `None`: not that."""

    @property
    def is_told(self) -> bool:
        """Whether an actor works on it."""
        return self.pending is not None and not self.is_settled

    @property
    def is_settled(self) -> bool:
        """Whether its answer is known."""
        return self.problem is not None or self.id is None or (self.pending is not None and self.pending.is_there)


class Sender(Channel):
    """The connection of one client that publishes."""

    __slots__ = (
        "_bytes_under_way",
        "_came",
        "_due",
        "_events",
        "_gone",
        "_is_parsing",
        "_moved",
        "_parting",
        "_parting_at",
        "_request_id",
        "_rest",
        "_said_401",
        "_senders",
        "_texts",
        "_unread",
        "_waiting",
        "released",
        "token",
    )

    _hub: Hub

    def __init__(self, hub: Hub, senders: Senders, who: Principal, request_id: str) -> None:
        super().__init__(hub)
        self._senders = senders
        self._request_id = request_id
        self.token = Token(self, who)
        self.released: Callable[[], None] | None = None
        """Gives back what was taken for it."""
        self._rest = b""
        """Read, and not looked at yet: a part of a frame, or what is beyond the window."""
        self._is_parsing = False
        self._unread = False
        """The poller was told not to report that there is something to read."""
        self._due: deque[Frame] = deque()
        """Frames that are not answered, the oldest first."""
        self._texts: deque[Frame] = deque()
        """Those of them that no actor has yet."""
        self._bytes_under_way = 0
        self._events = 0
        """Stored here."""
        self._came = trio.Event()
        """Set when a frame has come."""
        self._moved = trio.Event()
        """Set when something is to be handed back, or waited for."""
        self._waiting: trio.CancelScope | None = None
        """The wait for an answer."""
        self._parting: Callable[[], None] | None = None
        """Ends the connection once nothing is due; `None`: it does not end."""
        self._parting_at = math.inf
        """When it ends whatever is due."""
        self._gone = trio.CancelScope()
        self._said_401 = False

    # What the hub reads

    @property
    def message_bytes_max(self) -> int:
        return MESSAGE_BYTES_MAX

    @property
    def _bytes_wanted(self) -> int:
        return READ_BYTES_MAX

    @property
    def is_full(self) -> bool:
        if self._parting is not None or len(self._due) >= WINDOW or self._bytes_under_way >= WINDOW_BYTES_MAX:
            return True
        return self._bytes_under_way > 0 and self._senders.bytes_under_way >= ALL_BYTES_MAX

    def fragment(self, length: int) -> Cost:
        return Cost.NOTHING if length >= FRAGMENT_BYTES_FREE else Cost.FRAME

    @property
    def _is_at_head(self) -> bool:
        return super()._is_at_head and not self._rest

    def _watch(self) -> None:
        self._unread = self.is_unread
        super()._watch()

    def _decode(self, data: bytes) -> None:
        self._rest = self._rest + data if self._rest else data
        if self.state is State.OPEN:
            self._parse()
        else:
            self._look_for_close()

    def _look_for_close(self) -> None:
        """The connection ends: of what was read, only the client's Close still counts."""
        rest, self._rest = self._rest, b""
        if rest and self.state in (State.HELD, State.ENDING):
            super()._decode(rest)

    def _parse(self) -> None:
        """Take the frames that have come, until the window is full."""
        if self._is_parsing:
            return
        self._is_parsing = True
        data, at = self._rest, 0
        try:
            while at < len(data) and self.state is State.OPEN and not self.is_full:
                if self._inbound is not None and (missing := self._inbound.missing_bytes):
                    end = min(len(data), at + missing)
                elif (head := head_of(data, at)) is None:
                    break
                elif self._inbound is None and head.is_plain:
                    if (end := at + head.length) > len(data):
                        break
                    self._take_text(unmasked(data, head, end))
                    at = end
                    continue
                else:
                    end = min(len(data), at + head.length)
                super()._decode(data[at:end])
                at = end
        finally:
            self._is_parsing = False
            self._rest = data[at:]
        if self.state is State.OPEN and self.is_unread != self._unread:
            self._watch()

    def _take_text(self, text: bytes) -> None:
        try:
            text.decode()
        except UnicodeDecodeError:
            self._fail(CloseCode.INVALID_TEXT)
            return
        self._pay(self._received(text))

    def received(self, message: str | bytes) -> Cost:
        if isinstance(message, bytes):
            self._add(Frame(None, b"", self._hub.now))
            return Cost.FRAME
        return self._received(message.encode())

    def _received(self, text: bytes) -> Cost:
        if self._parting is not None:
            return Cost.NOTHING
        if (publish_id := wire.publish_id_of(text)) is not None:
            self._add(Frame(publish_id, text, self._hub.now))
            return Cost.NOTHING
        try:
            frame = wire.decode_sender_frame(text)
            if isinstance(frame, Auth):
                self._senders.expiry.renew(self.token, frame.token)
            else:
                assert isinstance(frame, Ping), "there is no third"
                self.token.say("pong", frame.data)
        except wire.FrameError as error:
            if error.code in ("bad_frame", "unknown_type"):
                self._add(Frame(None, b"", self._hub.now))
            else:
                self.token.say("error", wire.error_data(error.code, error.detail))
        return Cost.FRAME

    def _add(self, frame: Frame) -> None:
        self._due.append(frame)
        if frame.id is None:
            # Nobody can be told what became of the frames behind it.
            self.goodbye(CloseCode.POLICY, "invalid field")
            return
        self._bytes_under_way += frame.length
        self._senders.bytes_under_way += frame.length
        self._texts.append(frame)
        self._came.set()
        if len(self._due) == 1:
            self._moved.set()

    @property
    def is_parting(self) -> bool:
        """Whether it ends, or has ended."""
        return self.state > State.OPEN or self._parting is not None

    def frame(self, kind: str, data: object) -> bytes:
        """A server frame that is about no diagnosis."""
        return wire.frame(kind, None, self._hub.clock.wall(), data)

    # The tasks

    async def run(self) -> None:
        """Publish what comes, and hand back what becomes of it, until the connection is gone."""
        try:
            with self._gone:
                async with trio.open_nursery() as sender_nursery:
                    sender_nursery.start_soon(self._publish_all)
                    await self._hand_back_all()
                    sender_nursery.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - the boundary of a connection
            self._hub.contain(self, error)

    async def _publish_all(self) -> None:
        while True:
            while self._texts:
                frame = self._texts.popleft()
                await self._publish(frame)
                frame.text = b""
                self._moved.set()
            self._came = trio.Event()
            await self._came.wait()

    async def _publish(self, frame: Frame) -> None:
        publisher = self._senders.publisher
        try:
            publisher.access.count_event(self.token.who)
            frame.diagnosis_id, message = await publisher.decoded(self.token.who, frame.text, "the frame", _decoded)
            while frame.problem is None:
                try:
                    frame.pending = self._senders.registry.put(frame.diagnosis_id, message)
                    return
                except MailboxFull:
                    if self._hub.clock.monotonic() >= frame.came_at + PAUSE_SECONDS_MAX:
                        raise
                await trio.sleep(PAUSE_STEP_SECONDS)
                if (refused := publisher.access.refusal_of_sender(self.token.who)) is not None:
                    raise refused
        except (Problem, ActorError, StorageError) as error:
            frame.problem = frame.problem or as_problem(error)
            frame.diagnosis_id = meant_by(frame.text)

    async def _hand_back_all(self) -> None:
        while True:
            if self._due and not self._due[0].is_settled:
                await self._wait_for(self._due[0])
            elif self._due and not self.blocked:
                self.flush()
            else:
                # If the client takes no bytes, the hub writes as soon as it takes some.
                self._moved = trio.Event()
                await self._moved.wait()

    async def _wait_for(self, frame: Frame) -> None:
        """Wait until the answer of a frame is known, or is not to be waited for any longer."""
        with trio.CancelScope(deadline=self._parting_at) as self._waiting:
            if frame.pending is None:
                self._moved = trio.Event()
                await self._moved.wait()
                return
            try:
                with self._senders.publisher.acts.patience():
                    await frame.pending.done.wait()
            except Unanswered as unanswered:
                self._give_up(as_problem(unanswered))
        if self._waiting.cancelled_caught:
            self._give_up(as_problem(Failed("the connection ends")), ENDS)

    def _give_up(self, unknown: Problem, untold: Problem | None = None) -> None:
        """Wait for no answer that is due now.

        Args:
            unknown: answers what an actor has.
            untold: answers what no actor has; `None`: those wait on.
        """
        for frame in self._due:
            if frame.is_told:
                frame.problem = unknown
            elif not frame.is_settled and untold is not None:
                frame.problem = untold

    # What is handed back

    def compose_due(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        at = wire.timestamp(self._hub.clock.wall())
        while self._due and self._due[0].is_settled and size < ANSWERS_BYTES_MAX:
            frame = self._due.popleft()
            self._bytes_under_way -= frame.length
            self._senders.bytes_under_way -= frame.length
            parts.append(frames.text_frame(self._answer_to(frame, at)))
            size += len(parts[-1])
        return b"".join(parts)

    def _answer_to(self, frame: Frame, at: str) -> bytes:
        if frame.id is None:
            return self.token.frame("error", wire.error_data("bad_frame", BAD_FRAME))
        problem = frame.problem
        if problem is None:
            assert frame.pending is not None, "an actor has answered"
            assert frame.diagnosis_id is not None, "it was told which"
            try:
                receipt = frame.pending.result()
            except NoSuchDiagnosis:
                problem = self._senders.publisher.access.absent(self.token.who)
            except (Problem, ActorError, StorageError) as error:
                problem = as_problem(error)
            else:
                self._events += 1
                return wire.receipt_frame(frame.id, frame.diagnosis_id, at, receipt)
        if problem.status == HTTPStatus.UNAUTHORIZED and not self._said_401:
            # Once for each connection: hundreds of frames may be under way.
            self._said_401 = True
            self._senders.publisher.access.refused_tokens.say(problem)
        return wire.refused_frame(frame.id, frame.diagnosis_id, at, problem)

    def flush(self) -> None:
        super().flush()
        if self.state is not State.OPEN:
            return
        self._moved.set()
        if self._parting is None:
            self._parse()
        elif not self._due and not self.blocked:
            self._part()

    # The end

    def goodbye(self, code: CloseCode, reason: str, *, deaf: bool = False) -> None:
        """Close from this side, once what is due is answered, and after a `bye`."""
        retry = round(self._hub.jitter() * RETRY_SPREAD_SECONDS * 1000) if code is CloseCode.RESTART else None
        bye = frames.text_frame(self.token.frame("bye", wire.bye_data(code, reason, retry)))
        self._end_by(partial(self.close, code, reason, bye=bye, deaf=deaf))

    def break_off(self) -> None:
        if self.state is State.OPEN:
            self._give_up(as_problem(Failed("the connection failed")), ENDS)
        super().break_off()

    def _fail(self, code: CloseCode) -> None:
        self._end_by(partial(super()._fail, code))

    def _take_close(self, one: Close) -> None:
        if self.state is State.OPEN:
            self._end_by(partial(super()._take_close, one))
        else:
            super()._take_close(one)

    def _hung_up(self) -> None:
        if self.state is State.OPEN and self._parting is None and self._due:
            self._end_by(self._let_go)  # it may still read
        else:
            self._let_go()

    def _end_by(self, parting: Callable[[], None]) -> None:
        """End the connection, once what is due is answered; whoever ends it first decides how."""
        if self.state > State.OPEN or self._parting is not None:
            return
        self._parting = parting
        if not self._due:
            self._part()
            return
        self._parting_at = trio.current_time() + DUE_SECONDS_MAX
        if self._waiting is not None:
            self._waiting.deadline = self._parting_at
        self._watch()
        if self._due[0].is_settled and not self.blocked:
            self.flush()

    def _part(self) -> None:
        assert self._parting is not None, "it ends"
        self._parting()
        self._look_for_close()

    def left(self) -> None:
        self._gone.cancel()
        self._senders.live.pop(self, None)
        self._senders.bytes_under_way -= self._bytes_under_way
        self._bytes_under_way = 0
        self._due.clear()
        self._texts.clear()
        released, self.released = self.released, None
        if released is not None:
            released()

    def stalled(self, why: str) -> None:
        self._senders.log.sender_stalled(self.token.who.sub, why, self._request_id)

    def over(self, code: int, reason: str, seconds: float | None) -> None:
        if seconds is not None:
            sub, events = self.token.who.sub, self._events
            self._senders.log.sender_ended(sub, code, reason, seconds, events, self._request_id)


class Token:
    """The token of a sender, which is watched (`web.identity.expiry.Watched`)."""

    __slots__ = ("_sender", "warn_at", "who")

    diagnosis_id = None
    is_live = True

    def __init__(self, sender: Sender, who: Principal) -> None:
        self._sender = sender
        self.who = who
        self.warn_at = -math.inf

    @property
    def is_gone(self) -> bool:
        """Whether the connection has ended, or does not take anything any more."""
        return self._sender.is_parting

    def renewed(self, who: Principal) -> None:
        """A newer token of the same subject was accepted (PROTOCOL section 9)."""
        assert who.expires_at is not None, "every token has an end"
        self.who = who
        self.say("auth_ok", {"expires_at": wire.timestamp(who.expires_at)})

    def end(self, ending: Ending) -> None:
        """End the connection."""
        self._sender.goodbye(*close_of(ending))

    def say(self, kind: str, data: object) -> None:
        """Queue a server frame."""
        self._sender.say(self.frame(kind, data))

    def frame(self, kind: str, data: object) -> bytes:
        """A server frame that is about no diagnosis."""
        return self._sender.frame(kind, data)


def _decoded(text: bytes) -> tuple[PublishFrame, str | None]:
    frame = wire.decode_publish(text)
    return frame, frame.idempotency_key
