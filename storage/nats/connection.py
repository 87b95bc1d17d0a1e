"""One connection to a cluster of NATS servers, kept up: it moves to another server when one is gone.

`run` holds the connection until it is cancelled. Everybody else publishes, subscribes and asks, and never touches the
stream: what they say is composed whole and appended to what waits, and one task writes it. So whoever gives up, in
whatever moment, leaves no half frame behind.

A server is left when it ends the connection, when it says nothing for `SILENT_SECONDS_MAX`, when it is about to shut
down, and when it has not answered a request: one that answers PING may still not reach whoever it needs. Whatever was
asked of it then has an unknown outcome (`Unanswered`). Subscriptions are made anew at the next server, before anything
is sent there; messages between the two are missed, which `on_up` tells.
"""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Final

import trio

from storage.nats import wire
from storage.nats.auth import Credentials
from storage.nats.errors import Away, CannotConnect, Denied, Garbled, NatsError, NoResponders, Unanswered
from storage.nats.wire import Info, Message, Outgoing, Wire

CONNECT_SECONDS_MAX: Final = 3.0
"""From looking up a name to the first PONG. Beyond: the next server is tried."""

ANSWER_SECONDS_MAX: Final = 2.0
"""A request waits so long, unless said otherwise. Beyond: `Unanswered`, and the server is left."""

PING_SECONDS: Final = 1.0
"""Between two PINGs."""

SILENT_SECONDS_MAX: Final = 3.0
"""A server that says nothing for so long is left."""

BACKOFF_SECONDS: Final = 0.05
BACKOFF_SECONDS_MAX: Final = 1.0
"""Between two rounds in which no server took us. Grows from the first to the second."""

UNSENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""What waits to be written. Reason: a silent server is left before more comes. Beyond: `Away`."""

RECEIVE_BYTES: Final = 64 * 1024
"""Read from the stream at once."""

DENIED_KEPT_MAX: Final = 100
"""Refusals of subscriptions that are remembered. Beyond: they are only logged."""

SERVERS_MAX: Final = 64
"""Servers that are known. Reason: a cluster has fewer. Beyond: those that are told of last are left out."""

PORT: Final = 4222
"""Where a server listens that does not say so."""

_ADDRESS: Final = re.compile(r"(?:nats://|tls://)?(?:\[([0-9a-fA-F:.]+)\]|([^\[\]:/@\s]+))(?::([0-9]{1,5}))?/?")

logger = logging.getLogger("avicenna.storage")

Dial = Callable[[str, int], Awaitable[trio.abc.Stream]]
"""Opens a stream to a host and a port."""

Hears = Callable[[Message], None]
"""Called with each message of a subscription. Must not raise or wait."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int
    name: str = ""
    """Whom its certificate names, where that is not the host."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Of `host:port`, with or without `nats://` or `tls://` before it; without a port, `PORT`.

        Raises:
            CannotConnect: it is none of this.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None or not 0 < (port := int(found[3] or PORT)) < 65536:
            # The text is not shown: somebody may have put a password in it.
            raise CannotConnect("the address of a NATS server is HOST:PORT, perhaps with nats:// or tls:// before it")
        return cls(found[1] or found[2], port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _Session:
    """The time with one server, from its first PONG on."""

    __slots__ = ("_is_left", "address", "info", "left", "reason", "unsent", "wrote")

    def __init__(self, address: Address, info: Info, unsent: bytes, is_left: Callable[[], None]) -> None:
        self._is_left = is_left
        self.address = address
        self.info = info
        self.unsent = bytearray(unsent)
        self.wrote = trio.Event()
        """There is something to be written."""
        self.left = trio.Event()
        self.reason = ""

    def write(self, data: bytes) -> None:
        if len(self.unsent) + len(data) > UNSENT_BYTES_MAX:
            self.leave("it does not take what is sent")
            raise Away(f"{len(self.unsent)} bytes wait to be written")
        self.unsent += data
        self.wrote.set()

    def leave(self, reason: str) -> None:
        if not self.left.is_set():
            self.reason = reason
            self.left.set()
            self._is_left()


class _Asked:
    """A request under way."""

    __slots__ = ("answers", "done", "error", "is_last", "subjects")

    def __init__(self, subjects: frozenset[str], is_last: Callable[[Message], bool]) -> None:
        self.subjects = subjects
        self.is_last = is_last
        self.answers: list[Message] = []
        self.done = trio.Event()
        self.error: NatsError | None = None

    def take(self, answer: Message) -> None:
        if self.done.is_set():
            return
        if answer.status == 503 and not answer.data:
            self.fail(NoResponders("nobody answers to the subject now"))
        else:
            self.answers.append(answer)
            if self.is_last(answer):
                self.done.set()

    def fail(self, error: NatsError) -> None:
        if not self.done.is_set():
            self.error = error
            self.done.set()


class Connection:
    """A connection that is kept up by `run`; see the head of this file."""

    def __init__(
        self,
        servers: Sequence[Address],
        *,
        name: str,
        new_id: Callable[[], str],
        jitter: Callable[[], float],
        tls: ssl.SSLContext | None = None,
        credentials: Credentials | None = None,
        dial: Dial = trio.open_tcp_stream,
    ) -> None:
        """A connection that is not there yet.

        Args:
            servers: at least one; of these the others of the cluster are learned.
            name: what the servers call us in their own figures.
            new_id: makes names that never repeat, of letters and digits.
            jitter: draws from 0 to 1.
            tls: `None`: in the clear. Never falls back to that.
            credentials: who we are; `None`: nobody.
        """
        self._servers = list(servers)
        self._configured = tuple(servers)
        self._turn = int(jitter() * len(self._servers))
        self._name = name
        self._jitter = jitter
        self._tls = tls
        self._credentials = credentials
        self._dial = dial
        self._session: _Session | None = None
        self._subscriptions: dict[int, tuple[str, Hears]] = {}
        self._sids = 0
        self._inbox = f"_INBOX.{new_id()}."
        self._asked: dict[str, _Asked] = {}
        self._asks = 0
        self._tells: list[Callable[[], None]] = []
        self._told: dict[Address, str] = {}
        self.up = trio.Event()
        """Set while there is a connection; another event after it has ended."""
        self.away_since: float | None = trio.current_time()
        """Since when there is no connection, on Trio's clock; `None`: there is one."""
        self.refused: CannotConnect | None = None
        """Why no server has taken us lately, if one has said so; `None`: none has, or one takes us now."""
        self.denied: dict[str, str] = {}
        """What the servers have said of each subscription that our user may not make."""
        self.sessions = 0
        """How many servers have taken us so far, those that did so again included."""
        self.subscribe(self._inbox + "*", self._answered)

    @property
    def server(self) -> str:
        """The server that we are connected to, by its own name; empty: none."""
        return "" if self._session is None else self._session.info.server_name

    @property
    def servers(self) -> Sequence[Address]:
        """The servers that are known: the configured ones, and those of which these have told."""
        return tuple(self._servers)

    @property
    def payload_bytes_max(self) -> int:
        """The longest message that the server takes, headers included."""
        return 0 if self._session is None else self._session.info.max_payload

    def on_up(self, tell: Callable[[], None]) -> None:
        """Have this function called whenever a server has taken us. It must not raise or wait."""
        self._tells.append(tell)

    def publish(self, message: Outgoing) -> None:
        """Hand a message over, to arrive once or never.

        Raises:
            Away, TooLarge: it does not.
        """
        session = self._here()
        session.write(wire.publish(message, bytes_max=session.info.max_payload))

    def subscribe(self, subject: str, hears: Hears) -> Callable[[], None]:
        """Have this function called with each message of a subject, until the function returned is called.

        Args:
            subject: may have wildcards.
        """
        self._sids += 1
        sid = self._sids
        asking = wire.subscribe(subject, sid)
        self._subscriptions[sid] = subject, hears
        if self._session is not None:
            with suppress(Away):  # the next server is asked
                self._session.write(asking)

        def undo() -> None:
            if self._subscriptions.pop(sid, None) is not None and self._session is not None:
                with suppress(Away):
                    self._session.write(wire.unsubscribe(sid))

        return undo

    async def request(
        self, message: Outgoing, *, before: Sequence[Outgoing] = (), seconds: float = ANSWER_SECONDS_MAX
    ) -> Message:
        """The first answer to a message.

        Args:
            before: messages that are written right before it, in one piece.
            seconds: how long to wait.

        Raises:
            Away, TooLarge, Denied, NoResponders: certainly nothing has come of this message.
            Unanswered: nobody knows.

        Cancellation: what was asked for goes on.
        """
        return (await self.request_many(message, _is_any, before=before, seconds=seconds))[0]

    async def request_many(
        self,
        message: Outgoing,
        is_last: Callable[[Message], bool],
        *,
        before: Sequence[Outgoing] = (),
        seconds: float = ANSWER_SECONDS_MAX,
    ) -> Sequence[Message]:
        """The answers to a message, up to the one that is the last, with that one. For the rest see `request`."""
        session = self._here()
        self._asks += 1
        token = str(self._asks)
        frames = [wire.publish(one, bytes_max=session.info.max_payload) for one in before]
        frames.append(wire.publish(message, self._inbox + token, session.info.max_payload))
        session.write(b"".join(frames))
        asked = _Asked(frozenset((message.subject, *(one.subject for one in before))), is_last)
        self._asked[token] = asked
        try:
            with trio.move_on_after(seconds):
                await asked.done.wait()
        finally:
            del self._asked[token]
        if not asked.done.is_set():
            session.leave("it has not answered a request")
            raise Unanswered(f"no answer from {session.info.server_name} within {seconds:g} s")
        if asked.error is not None:
            raise asked.error
        return asked.answers

    def leave(self, reason: str) -> None:
        """Go to another server, if there is one: this one does not do what it should."""
        if self._session is not None:
            self._session.leave(reason)

    async def run(self) -> None:
        """Keep the connection up until cancelled."""
        failures = 0
        while True:
            address = self._servers[self._turn % len(self._servers)]
            self._turn += 1
            failures = 0 if await self._spent_with(address) >= PING_SECONDS else failures + 1
            rounds, others_are_left = divmod(failures, len(self._servers))
            if rounds and not others_are_left:
                pause = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2.0 ** min(rounds, 10))
                await trio.sleep(pause * (1 + self._jitter()) / 2)
            else:
                await trio.lowlevel.checkpoint()

    async def _spent_with(self, address: Address) -> float:
        """Spend the time with one server that it takes us for; so many seconds. 0: it has not taken us."""
        stream: trio.abc.Stream | None = None
        try:
            try:
                with trio.fail_after(CONNECT_SECONDS_MAX):
                    stream = await self._dial(address.host, address.port)
                    stream, reading, heard, info = await self._introduced(stream, address)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, NatsError) as error:
                self._not_taken(address, error)
                return 0.0
            session = self._begin(address, info)
            began_at = trio.current_time()
            try:
                await self._until_left(session, stream, reading, heard)
            finally:
                self._end(session)
            return trio.current_time() - began_at
        finally:
            if stream is not None:
                await trio.aclose_forcefully(stream)

    async def _introduced(
        self, stream: trio.abc.Stream, address: Address
    ) -> tuple[trio.abc.Stream, Wire, Sequence[wire.Heard], Info]:
        """Have a server take us: the stream from now on, what has been read of it beyond, and what the server is."""
        reading = Wire()
        heard: Sequence[wire.Heard] = ()
        while not heard:
            heard = reading.taken(await _received(stream))
        info, *beyond = heard
        if not isinstance(info, Info):
            raise Garbled("the first that it says is not INFO")
        if self._tls is not None:
            if beyond or not reading.is_between_frames or not (info.tls_required or info.tls_available):
                raise CannotConnect("it does not speak TLS, which is configured here")
            stream = trio.SSLStream(stream, self._tls, server_hostname=address.name or address.host)
            await stream.do_handshake()
        elif info.tls_required:
            raise CannotConnect("it wants TLS, which is not configured here")
        options: dict[str, object] = {
            "verbose": False,
            "pedantic": False,
            "tls_required": self._tls is not None,
            "lang": "python-trio",
            "version": "1",
            "protocol": 1,
            "name": self._name,
            "headers": True,
            "no_responders": True,
        }
        if info.nonce is not None:
            if self._credentials is None:
                raise CannotConnect("it wants to know who we are, and no user is configured here")
            options |= self._credentials.answer(info.nonce)
        await stream.send_all(wire.connect(options) + wire.PING)
        while not any(isinstance(one, wire.Pong) for one in beyond):
            for one in beyond:
                if isinstance(one, wire.Refusal):
                    raise CannotConnect(f"it says: {one.text}")
                if isinstance(one, Info):
                    info = one
            beyond = reading.taken(await _received(stream))
        return stream, reading, beyond, info

    def _begin(self, address: Address, info: Info) -> _Session:
        # No checkpoint until `up` is set: whoever subscribes now is in `_subscriptions`, or finds the session.
        again = [wire.subscribe(subject, sid) for sid, (subject, _) in self._subscriptions.items()]
        session = self._session = _Session(address, info, b"".join(again), self._be_away)
        session.wrote.set()
        self._learn(session)
        self.sessions += 1
        self.away_since = self.refused = None
        self._told.clear()
        self.denied.clear()
        logger.info("connected to the NATS server %s at %s", info.server_name, address)
        self.up.set()
        for tell in self._tells:
            tell()
        return session

    def _end(self, session: _Session) -> None:
        self._session = None
        self._be_away()
        if session.reason:
            name, address = session.info.server_name, session.address
            logger.warning("the connection to the NATS server %s at %s ended: %s", name, address, session.reason)
        for asked in self._asked.values():
            asked.fail(Unanswered(f"the connection to {session.info.server_name} ended before the answer"))

    def _be_away(self) -> None:
        if self.away_since is None:
            self.up = trio.Event()
            self.away_since = trio.current_time()

    def _not_taken(self, address: Address, error: Exception) -> None:
        cause = error.__cause__ if isinstance(error, trio.BrokenResourceError) and error.__cause__ else error
        reason = f"no answer within {CONNECT_SECONDS_MAX:g} s" if isinstance(cause, trio.TooSlowError) else str(cause)
        if isinstance(cause, (CannotConnect, ssl.SSLError)):
            self.refused = CannotConnect(f"the NATS server at {address}: {reason}")
        if self._told.get(address) != reason:  # said once, not at every attempt of an outage
            self._told[address] = reason
            logger.warning("the NATS server at %s is not used: %s", address, reason)

    async def _until_left(
        self, session: _Session, stream: trio.abc.Stream, reading: Wire, heard: Sequence[wire.Heard]
    ) -> None:
        self._hear(session, heard)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, session, stream)
            nursery.start_soon(self._read, session, stream, reading)
            nursery.start_soon(self._ask_for_life, session)
            await session.left.wait()
            nursery.cancel_scope.cancel()

    async def _write(self, session: _Session, stream: trio.abc.Stream) -> None:
        try:
            while True:
                await session.wrote.wait()
                session.wrote = trio.Event()
                # No checkpoint until `send_all`: what comes from now on is in the next piece.
                unsent, session.unsent = session.unsent, bytearray()
                await stream.send_all(unsent)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            session.leave(str(error.__cause__ or error))

    async def _read(self, session: _Session, stream: trio.abc.Stream, reading: Wire) -> None:
        heard_at = trio.current_time()
        try:
            while True:
                with trio.move_on_at(heard_at + SILENT_SECONDS_MAX) as wait:
                    data = await _received(stream)
                if wait.cancelled_caught:
                    session.leave(f"it has said nothing for {SILENT_SECONDS_MAX:g} s")
                    return
                heard_at = trio.current_time()
                self._hear(session, reading.taken(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError, NatsError) as error:
            session.leave(str(error.__cause__ or error))

    async def _ask_for_life(self, session: _Session) -> None:
        while True:
            await trio.sleep(PING_SECONDS)
            if session.info.is_lame_duck:  # it has had the time to answer what it was asked
                session.leave("it is about to shut down")
                return
            with suppress(Away):
                session.write(wire.PING)

    def _hear(self, session: _Session, heard: Sequence[wire.Heard]) -> None:
        for one in heard:
            if isinstance(one, Message):
                if (subscription := self._subscriptions.get(one.sid)) is not None:
                    subscription[1](one)
            elif isinstance(one, wire.Ping):
                session.write(wire.PONG)
            elif isinstance(one, Info):
                session.info = one
                self._learn(session)
            elif isinstance(one, wire.Refusal):
                self._be_refused(session, one.text)

    def _be_refused(self, session: _Session, text: str) -> None:
        what, _, subject = text.partition(' to "')
        subject = subject.partition('"')[0]
        if not what.lower().startswith("permissions violation"):
            session.leave(f"it says: {text}")
            return
        logger.warning("the NATS server does not let us: %s", text)
        for asked in self._asked.values():
            if subject in asked.subjects or subject == self._inbox + "*":
                asked.fail(Denied(f"the user may not publish to {subject}"))
        if "subscription" in what.lower() and len(self.denied) < DENIED_KEPT_MAX:
            self.denied[subject] = text

    def _answered(self, answer: Message) -> None:
        # One that nobody waits for is dropped: the second to a request, or one that came too late.
        if (asked := self._asked.get(answer.subject[len(self._inbox) :])) is not None:
            asked.take(answer)

    def _here(self) -> _Session:
        if self._session is None or self._session.left.is_set():
            raise Away("there is no connection to a NATS server")
        return self._session

    def _learn(self, session: _Session) -> None:
        """Know the servers of which this one tells, besides those configured."""
        servers = dict.fromkeys(self._configured)
        for text in (session.info.connect_urls or ())[:SERVERS_MAX]:
            with suppress(CannotConnect):
                one = Address.parse(text)
                if _is_ip(one.host):  # a certificate rather has the name by which we came
                    one = replace(one, name=session.address.name or session.address.host)
                if not any((one.host, one.port) == (known.host, known.port) for known in servers):
                    servers[one] = None
        self._servers = list(servers)


async def _received(stream: trio.abc.Stream) -> bytes:
    data = await stream.receive_some(RECEIVE_BYTES)
    if not data:
        raise trio.BrokenResourceError("it has ended the connection")
    return bytes(data)


def _is_any(message: Message) -> bool:
    return True


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
