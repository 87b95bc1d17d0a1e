"""A cluster of NATS servers in memory, spoken to in the protocol of NATS: what a store on JetStream meets, from a seed.

Three servers hold the same streams (`streams.py`), and one of them leads. Clients come by the `dial` of a `Way`, speak
as to a real server, and are answered at once, late, twice or never, as `Faults` and whoever ends, freezes or cuts off
a server say. Requests come to the leader by any server; `DIRECT.GET` is answered by any that is reached, with what it
has. What was acknowledged is at every server that may lead later. Simpler than the real ones: one leader for all
streams, which decides alone; no accounts; a plain message reaches each client that listens once or never.
"""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import inf
from random import Random
from typing import Any, Final

import trio

from storage.clock import Clock
from storage.nats.connection import Address
from storage.nats.jetstream import MESSAGE_ID
from storage.nats.wire import PONG
from tests.simulation.streams import Change, Drop, Incoming, Keep, Kept, Refused, Repeated, Stream, covers

ELECTION_SECONDS: Final = (0.5, 5.0)
"""From the end of a leader to the next one."""

STALE_SECONDS_MAX: Final = 8.0
"""A leader that is cut off takes itself for one, and answers reads, for so long at most."""

BATCH_SECONDS: Final = 10.0
"""A batch of which nothing comes for so long is dropped."""

SUBJECTS_MAX: Final = 1024

PASSING: Final = Refused(503, 10008, "JetStream system temporarily unavailable")

NO_RESPONDERS: Final = b"NATS/1.0 503\r\n\r\n"

_API: Final = "$JS.API."


@dataclass(slots=True)
class Faults:
    """What goes wrong without anybody's doing; may be changed at any time."""

    late_seconds: float = 0.0
    """Bytes travel so long at most, each way."""
    lag_seconds: float = 0.0
    """A server that does not lead is behind so long at most."""
    split: float = 0.0
    """The share of what a client writes that comes in two pieces."""
    live_lost: float = 0.0
    """The share of live copies that never arrive, 0 to 1."""
    live_late_seconds: float = 0.0
    live_twice: float = 0.0
    vanished: float = 0.0
    """The share of requests that never come to the leader."""
    refused: float = 0.0
    """The share for which the leader has no room."""
    unanswered: float = 0.0
    """The share that is done and not answered."""
    twice: float = 0.0
    """The share that is answered twice."""
    short_pages: float = 0.0
    """The share of reads of which a page ends early."""

    def end(self) -> None:
        """Have nothing go wrong any more."""
        for name in self.__slots__:
            setattr(self, name, 0.0)


@dataclass
class _Server:
    name: str
    streams: dict[str, Stream] = field(default_factory=dict)
    sessions: dict[_Session, None] = field(default_factory=dict)
    behind: deque[tuple[float, str, Change | Mapping[str, Any]]] = field(default_factory=deque)
    """What it has not done yet, and when it will."""
    is_down: bool = False
    is_cut: bool = False
    """The other servers do not reach it; its clients do."""
    is_frozen: bool = False
    waiting: list[Callable[[], object]] = field(default_factory=list)
    """What it does once it thaws."""
    leads_until: float = -inf
    """So long does it take itself for the leader, which it is not any more."""

    @property
    def is_there(self) -> bool:
        return not (self.is_down or self.is_cut or self.is_frozen)

    def do(self, name: str, change: Change | Mapping[str, Any]) -> None:
        if isinstance(change, Mapping):
            self.streams[name] = Stream(change)
        else:
            self.streams[name].apply(change)

    def catch_up(self, until: float) -> None:
        while self.behind and self.behind[0][0] <= until:
            _, name, change = self.behind.popleft()
            self.do(name, change)


class _Session:
    """A client at a server, and the client's end of the way."""

    def __init__(self, server: _Server, way: Way) -> None:
        self.server, self.way = server, way
        self.subscriptions: dict[int, str] = {}
        self.is_over = False
        """The client has gone, or the server."""
        self.is_torn = False
        """Nothing more comes of what was under way then."""
        self.to_server_at = self.to_client_at = self.live_at = -inf
        """When the last that is under way arrives."""
        self._heard = bytearray()
        self.unread = bytearray()
        self.came = trio.Event()

    def frames(self, data: bytes) -> Iterable[tuple[list[str], bytes, bytes]]:
        """The frames that are whole with these bytes: the words of the line, headers, body."""
        heard = self._heard
        heard += data
        while (end := heard.find(b"\r\n")) >= 0:
            words, head, body, begin = heard[:end].decode().split(" "), b"", b"", end + 2
            if words[0] in ("PUB", "HPUB"):
                size = int(words[-1])
                if len(heard) < begin + size + 2:
                    return
                head_bytes = int(words[-2]) if words[0] == "HPUB" else 0
                head, body = bytes(heard[begin : begin + head_bytes]), bytes(heard[begin + head_bytes : begin + size])
                begin += size + 2
            del heard[:begin]
            yield words, head, body

    def push(self, data: bytes) -> None:
        """Have the client read this."""
        if not self.is_over:
            self.unread += data
            self.came.set()

    def end(self) -> None:
        """It is over, for both ends."""
        self.is_over = True
        self.came.set()
        self.server.sessions.pop(self, None)
        self.way.sessions.pop(self, None)


class _Pipe(trio.abc.Stream):
    def __init__(self, cluster: Cluster, session: _Session) -> None:
        self._cluster, self._session = cluster, session

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if self._session.is_over:
            raise trio.BrokenResourceError("connection reset")
        self._cluster.sent(self._session, bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        session = self._session
        while not session.unread:
            if session.is_over:
                await trio.lowlevel.checkpoint()
                return b""
            session.came = trio.Event()
            await session.came.wait()
        await trio.lowlevel.checkpoint()
        data = bytes(session.unread[:max_bytes])
        del session.unread[: len(data)]
        return data

    async def aclose(self) -> None:
        self._session.end()
        await trio.lowlevel.checkpoint()


class Way:
    """The network between one client and the servers."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.sessions: dict[_Session, None] = {}
        self.flows = trio.Event()
        self.flows.set()
        self.is_cut = False
        self._held: list[Callable[[], object]] = []

    async def dial(self, host: str, port: int) -> trio.abc.Stream:
        """Connect to the server of this name."""
        await trio.lowlevel.checkpoint()
        await self.flows.wait()
        server = self._cluster.by_name.get(host)
        if self.is_cut or server is None or server.is_down:
            raise OSError("connection refused")
        session = _Session(server, self)
        self.sessions[session] = None
        server.sessions[session] = None
        info = {"server_name": server.name, "version": "2.15.1", "max_payload": 1 << 20, "headers": True}
        self._cluster.say(session, b"INFO " + json.dumps(info).encode() + b"\r\n")
        return _Pipe(self._cluster, session)

    def cut(self, *, is_silent: bool) -> None:
        """Let nothing through; whoever is connected notices it at once, or by the silence."""
        if is_silent:
            self.flows = trio.Event()
        else:
            self.is_cut = True
            self.end()

    def end(self) -> None:
        """End all connections, in the midst of what is sent."""
        for session in list(self.sessions):
            session.end()

    def mend(self) -> None:
        """Let everything through again."""
        self.is_cut = False
        self.flows.set()
        held, self._held = self._held, []
        for arrive in held:
            arrive()

    def carry(self, arrive: Callable[[], object]) -> None:
        """Have something arrive, now or once it can."""
        if self.flows.is_set():
            arrive()
        else:
            self._held.append(arrive)


class Cluster:
    """The servers, and what is under way between them and their clients."""

    def __init__(self, *, clock: Clock, lots: Random, faults: Faults | None = None, servers: int = 3) -> None:
        """Servers without streams. `run` must run.

        Args:
            clock: what the servers take for the time.
        """
        self.faults = faults or Faults()
        self.servers = [_Server(f"n{number}") for number in range(1, servers + 1)]
        self.by_name = {one.name: one for one in self.servers}
        self.addresses = [Address(one.name, 4222) for one in self.servers]
        self.leader: _Server | None = self.servers[0]
        self.troubled_at = -inf
        """When something has gone wrong last, on Trio's clock."""
        self.met: Callable[[str], object] = lambda what: None
        """Told what happens."""
        self._clock, self._lots = clock, lots
        self._subjects: dict[str, Sequence[str]] = {}
        """Those of each stream."""
        self._batches: dict[tuple[str, str], tuple[float, list[Incoming]]] = {}
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()
        self._came = trio.Event()

    async def run(self) -> None:
        """Have arrive what is under way, until cancelled."""
        while True:
            self._came = trio.Event()
            while self._due and self._due[0][0] <= trio.current_time():
                heappop(self._due)[2]()
            with trio.move_on_at(self._due[0][0] if self._due else inf):
                await self._came.wait()

    def later(self, at: float, do: Callable[[], object]) -> None:
        """Do something at this time."""
        heappush(self._due, (at, next(self._numbers), do))
        self._came.set()

    # What goes wrong

    @property
    def is_troubled(self) -> bool:
        """A server is missing, or none leads."""
        return self.leader is None or not all(one.is_there for one in self.servers)

    def trouble(self, what: str) -> None:
        """Something goes wrong."""
        self.troubled_at = trio.current_time()
        self.met(what)

    def end(self, server: _Server) -> None:
        """A server dies."""
        if not server.is_down:
            self.trouble("a NATS server dies")
            server.is_down, server.waiting = True, []
            for session in list(server.sessions):
                session.end()
            self._look_for_leader()

    def freeze(self, server: _Server) -> None:
        """A server does nothing for a while, and then all that it was asked for meanwhile."""
        self.trouble("a NATS server freezes")
        server.is_frozen = True
        self._look_for_leader()

    def cut(self, server: _Server) -> None:
        """The other servers do not reach this one."""
        self.trouble("a NATS server is cut off")
        server.is_cut = True
        if server is self.leader:
            server.leads_until = trio.current_time() + self._lots.uniform(0, STALE_SECONDS_MAX)
        self._look_for_leader()

    def elect(self) -> None:
        """Another server leads, at once."""
        there = [one for one in self.servers if one.is_there and one is not self.leader]
        if there and self.leader is not None:
            self.met("another server leads")
            self._lead(self._lots.choice(there))

    def mend(self) -> None:
        """All servers are there again."""
        if self.is_troubled:
            self.trouble("all servers are there again")
        for server in self.servers:
            server.is_down = server.is_cut = False
            server.leads_until = -inf
            if server.is_frozen:
                server.is_frozen = False
                waiting, server.waiting = server.waiting, []
                for do in waiting:
                    do()
        self._look_for_leader()

    def _look_for_leader(self) -> None:
        if self.leader is not None and not self.leader.is_there:
            self.leader = None
            self._batches.clear()
        if self.leader is None:
            self.later(trio.current_time() + self._lots.uniform(*ELECTION_SECONDS), self._elect)

    def _elect(self) -> None:
        there = [one for one in self.servers if one.is_there]
        if self.leader is None and 2 * len(there) > len(self.servers):
            self.trouble("a server is elected")
            self._lead(self._lots.choice(there))

    def _lead(self, server: _Server) -> None:
        server.catch_up(inf)
        self.leader = server
        self._batches.clear()

    # What is under way

    def sent(self, session: _Session, data: bytes) -> None:
        """A client has written this."""
        at = self._lots.randint(0, len(data)) if self._lots.random() < self.faults.split else len(data)
        for piece in (data[:at], data[at:]):
            session.to_server_at = self._arrival(session.to_server_at)
            self._soon(session.to_server_at, partial(session.way.carry, partial(self._hear, session, piece)))

    def say(self, session: _Session, data: bytes) -> None:
        """A server says this to a client."""
        session.to_client_at = self._arrival(session.to_client_at)
        self._soon(session.to_client_at, lambda: session.way.carry(lambda: session.push(data)))

    def _arrival(self, before: float) -> float:
        late = self.faults.late_seconds
        return max(before, trio.current_time() + (self._lots.uniform(0, late) if late else 0.0))

    def _soon(self, at: float, do: Callable[[], object]) -> None:
        if at <= trio.current_time():
            do()
        else:
            self.later(at, do)

    def _hear(self, session: _Session, data: bytes) -> None:
        server = session.server
        if server.is_down or session.is_torn:
            return
        if server.is_frozen:
            server.waiting.append(partial(self._hear, session, data))
            return
        if session.is_over:  # some of it has arrived before
            data, session.is_torn = data[: self._lots.randint(0, len(data))], True
        for words, head, body in session.frames(data):
            match words:
                case ["PUB" | "HPUB" as word, subject, *more]:
                    reply = more[0] if len(more) > (1 if word == "PUB" else 2) else ""
                    self._published(server, Incoming(subject, head, body), reply)
                case ["SUB", subject, sid]:
                    session.subscriptions[int(sid)] = subject
                case ["UNSUB", sid]:
                    session.subscriptions.pop(int(sid), None)
                case ["PING"]:
                    self.say(session, PONG)
                case ["CONNECT", *_] | ["PONG"]:
                    pass
                case _:
                    raise AssertionError(f"no frame of a client: {words}")

    def _deliver(self, by: _Server, subject: str, head: bytes, data: bytes, reply: str = "") -> bool:
        """Have a message come to whoever listens and is reached from a server; whether somebody is."""
        found = False
        for server in self._reached(by):
            for session in list(server.sessions):
                for sid, pattern in session.subscriptions.items():
                    if covers(pattern, subject):
                        found = True
                        self._tell(session, sid, subject, head, data, reply)
        return found

    def _tell(self, session: _Session, sid: int, subject: str, head: bytes, data: bytes, reply: str = "") -> None:
        to = f"{subject} {sid} {reply}".rstrip()
        line = f"HMSG {to} {len(head)} {len(head) + len(data)}\r\n" if head else f"MSG {to} {len(data)}\r\n"
        frame = b"".join((line.encode(), head, data, b"\r\n"))
        if session.server.is_frozen:
            session.server.waiting.append(lambda: self.say(session, frame))
        else:
            self.say(session, frame)

    def _reached(self, by: _Server) -> Sequence[_Server]:
        if not by.is_there:
            return [by]
        return [one for one in self.servers if not (one.is_down or one.is_cut)]

    # What is asked for

    def _published(self, server: _Server, message: Incoming, reply: str) -> None:
        subject = message.subject
        if subject.startswith(_API):
            what = subject[len(_API) :]
            if what.startswith("DIRECT.GET."):
                self._read(server, what[len("DIRECT.GET.") :], json.loads(message.data), reply)
            else:
                self._ask_leader(server, reply, lambda leader: self._asked(leader, what, message.data))
            return
        for name, patterns in self._subjects.items():
            if any(covers(pattern, subject) for pattern in patterns):
                self._ask_leader(server, reply, partial(self._stored, name, message), message)
                return
        if not self._deliver(server, subject, message.head, message.data, reply) and reply:
            self._deliver(server, reply, NO_RESPONDERS, b"")

    def _ask_leader(
        self,
        server: _Server,
        reply: str,
        do: Callable[[_Server], Mapping[str, object] | None],
        message: Incoming | None = None,
    ) -> None:
        """Have the leader do something, and answer.

        Args:
            message: what is to be stored; `None`: it is asked for something else.
        """
        faults, lots, leader = self.faults, self._lots, self.leader
        if leader is None or leader not in self._reached(server):
            if server.leads_until > trio.current_time() and message is None:
                leader = server  # it takes itself for the leader, and answers what it knows
            elif lots.random() < 0.5:
                self._deliver(server, reply, NO_RESPONDERS, b"")
                return
            else:
                return
        elif reply and lots.random() < faults.vanished:
            self.trouble("a request vanishes")
            return
        elif reply and lots.random() < faults.refused:
            self.trouble("there is no room")
            self._answer(leader, reply, error_of(PASSING))
            return
        answer = do(leader)
        if answer is None or not reply:
            return
        if lots.random() < faults.unanswered:
            self.trouble("an answer is lost")
            return
        self._answer(leader, reply, answer)
        if lots.random() < faults.twice:
            self.met("an answer comes twice")
            self._answer(leader, reply, answer)

    def _answer(self, by: _Server, reply: str, answer: Mapping[str, object]) -> None:
        self._deliver(by, reply, b"", json.dumps(answer).encode())

    def _decide(self, name: str, change: Change | Mapping[str, Any]) -> None:
        """Have every server do what the leader has decided."""
        assert self.leader is not None, "it has decided"
        if isinstance(change, Mapping):
            self._subjects[name] = change["subjects"]
        for server in self.servers:
            if server is self.leader:
                server.do(name, change)
            else:
                before = server.behind[-1][0] if server.behind else -inf
                at = trio.current_time() + self._lots.uniform(0, self.faults.lag_seconds)
                server.behind.append((max(before, at), name, change))

    def _tidy(self, name: str, stream: Stream) -> None:
        if ended := stream.ended(trio.current_time()):
            self._decide(name, Drop(ended))

    def _stored(self, name: str, message: Incoming, leader: _Server) -> Mapping[str, object] | None:
        stream, headers = leader.streams[name], message.headers
        self._tidy(name, stream)
        now, messages, logs = trio.current_time(), [message], set[str]()
        answer: dict[str, object] = {"stream": name}
        try:
            if (batch := headers.get("Nats-Batch-Id")) is not None:
                began, before = self._batches.pop((name, batch), (now, []))
                messages = [*before, message]
                if now - began > BATCH_SECONDS or len(messages) != int(headers["Nats-Batch-Sequence"]):
                    raise Refused(400, 10176, "atomic publish batch is incomplete")
                if "Nats-Batch-Commit" not in headers:
                    self._batches[name, batch] = now, messages
                    return None
                answer |= {"batch": batch, "count": len(messages)}
            logs = {one.subject for one in messages if MESSAGE_ID in one.headers}
            stored = stream.planned(messages, now)
            if len(logs) > 1:
                self.met("appends to several logs go together")
        except Refused as refused:
            if len(logs) > 1:
                self.met("appends to several logs are refused together")
            return {**answer, "seq": 0, **error_of(refused)}
        except Repeated as repeated:
            return {**answer, "seq": repeated.pos, "duplicate": True}
        lasts = stream.last_poses(one.subject for one in stored)
        self._decide(name, Keep(stored))
        for one in stored:
            self._republish(leader, name, stream.config.get("republish"), one, lasts[one.subject])
            lasts[one.subject] = one.pos
        return {**answer, "seq": stored[-1].pos}

    def _republish(
        self, leader: _Server, name: str, republish: Mapping[str, str] | None, one: Kept, before: int
    ) -> None:
        if republish is None:
            return
        source, to = republish["src"].removesuffix(">"), republish["dest"].removesuffix(">")
        subject, head = to + one.subject.removeprefix(source), found_head(name, one, {"Nats-Last-Sequence": before})
        for server in self._reached(leader):
            for session in server.sessions:
                for sid, pattern in session.subscriptions.items():
                    if covers(pattern, subject):
                        self._tell_live(session, sid, subject, head, one.data)

    def _tell_live(self, session: _Session, sid: int, subject: str, head: bytes, data: bytes) -> None:
        faults, lots = self.faults, self._lots
        if lots.random() < faults.live_lost:
            self.met("a live copy is lost")
            return
        for _ in range(2 if lots.random() < faults.live_twice else 1):
            late = lots.uniform(0, faults.live_late_seconds)
            session.live_at = max(session.live_at, trio.current_time() + late)
            self._soon(session.live_at, lambda: self._tell(session, sid, subject, head, data))

    # The API

    def _asked(self, leader: _Server, what: str, data: bytes) -> Mapping[str, object]:
        *words, name = what.split(".")
        asked = json.loads(data) if data else {}
        stream = leader.streams.get(name)
        try:
            match words:
                case ["STREAM", "CREATE"]:
                    if stream is None:
                        self._decide(name, asked)
                    elif stream.config != asked:
                        raise Refused(400, 10058, "stream name already in use with a different configuration")
                    return {"config": asked}
                case _ if stream is None:
                    raise Refused(404, 10059, "stream not found")
                case ["STREAM", "INFO"]:
                    return self._info(leader, stream)
                case ["STREAM", "MSG", "GET"]:
                    if leader is self.leader:
                        self._tidy(name, stream)
                    found = stream.last(asked["last_by_subj"]) if "last_by_subj" in asked else stream.at(asked["seq"])
                    return {"message": _shown(found)}
                case ["STREAM", "MSG", "DELETE"] if leader is self.leader:
                    if asked["seq"] not in stream.messages:
                        raise Refused(400, 10043, "no message found")
                    self._decide(name, Drop([asked["seq"]]))
                    return {"success": True}
                case ["STREAM", "PURGE"] if leader is self.leader:
                    gone = [one.pos for one in stream.of(asked["filter"]) if one.pos < asked.get("seq", inf)]
                    self._decide(name, Drop(gone))
                    return {"success": True, "purged": len(gone)}
                case ["STREAM", "MSG", "DELETE"] | ["STREAM", "PURGE"]:
                    raise PASSING
        except Refused as refused:
            return error_of(refused)
        raise AssertionError(f"nobody has taught the simulation {what}")

    def _info(self, leader: _Server, stream: Stream) -> Mapping[str, object]:
        state = {"messages": len(stream.messages), "first_seq": stream.first_pos, "last_seq": stream.last_pos}
        others = [{"name": one.name, "current": True} for one in self.servers if one is not leader]
        ts = datetime.fromtimestamp(self._clock.wall(), UTC).isoformat()
        return {
            "config": stream.config,
            "state": state,
            "cluster": {"leader": leader.name, "replicas": others},
            "ts": ts,
        }

    def _read(self, server: _Server, name: str, asked: Mapping[str, Any], reply: str) -> None:
        """Answer with what any of the servers has that are reached."""
        answering = self._lots.choice([one for one in self._reached(server) if not one.is_frozen])
        if answering.is_there:
            answering.catch_up(trio.current_time())
        stream = answering.streams.get(name)
        if stream is None:
            self._deliver(server, reply, NO_RESPONDERS, b"")
            return
        up_to = asked.get("up_to_seq", stream.last_pos)
        if "multi_last" in asked:
            found = stream.last_of_each(asked["multi_last"], asked.get("seq", 1), up_to)
            if len(found) > SUBJECTS_MAX:
                self._deliver(server, reply, b"NATS/1.0 413 Too Many Results\r\n\r\n", b"")
                return
        else:
            found = stream.of(asked["next_by_subj"], asked["seq"])
        page = found[: asked["batch"]]
        if len(page) > 1 and self._lots.random() < self.faults.short_pages:
            page = page[: self._lots.randint(1, len(page))]
        for number, one in enumerate(page, start=1):
            before = page[number - 2].pos if number > 1 else 0
            more = {"Nats-Num-Pending": len(found) - number, "Nats-Last-Sequence": before}
            self._deliver(server, reply, found_head(name, one, more), one.data)
        if not page:
            self._deliver(server, reply, b"NATS/1.0 404 Message Not Found\r\n\r\n", b"")
            return
        end = {"Nats-Num-Pending": len(found) - len(page), "Nats-Last-Sequence": page[-1].pos}
        if "multi_last" in asked:
            end["Nats-UpTo-Sequence"] = up_to
        self._deliver(server, reply, block(b"NATS/1.0 204 EOB\r\n", end), b"")


def block(begin: bytes, headers: Mapping[str, object]) -> bytes:
    """A block of headers, with what it begins with."""
    return begin + "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode() + b"\r\n"


def found_head(name: str, one: Kept, more: Mapping[str, object]) -> bytes:
    """The headers of a stored message as it is delivered."""
    begin = one.head.removesuffix(b"\r\n") or b"NATS/1.0\r\n"
    at = datetime.fromtimestamp(one.at, UTC).isoformat()
    return block(
        begin,
        {"Nats-Stream": name, "Nats-Subject": one.subject, "Nats-Sequence": one.pos, "Nats-Time-Stamp": at, **more},
    )


def error_of(refused: Refused) -> Mapping[str, object]:
    """How a server says that it refuses."""
    return {"error": {"code": refused.code, "err_code": refused.err_code, "description": refused.description}}


def _shown(one: Kept) -> Mapping[str, object]:
    shown = {"seq": one.pos, "subject": one.subject, "data": base64.b64encode(one.data).decode()}
    return shown | ({"hdrs": base64.b64encode(one.head).decode()} if one.head else {})
