"""Who does what in a soak: publishers, followers, clients that vanish or do harm, registrars and operators.

Each act is a short coroutine that waits for its answers, and is done again and again in a task of its own. What a
server answers goes into the `Kept`.
"""

from __future__ import annotations

import itertools
import json
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any, Final

import httpx
import trio
from trio_websocket import ConnectionClosed, HandshakeError, open_websocket_url

from benchmarks.abuses import ACK, FRAMES_AT_ONCE, HEAD_OF_LINES, PING, RESET
from benchmarks.crashing import CRASHES
from benchmarks.kept import Kept
from benchmarks.place import FAR, NEAR, Place, client_frame, http_request, upgrade_request

STEADY: Final = tuple(f"steady-{number}" for number in range(10))
"""Diagnoses that stay, with followers who stay."""

SHAKY: Final = tuple(f"shaky-{number}" for number in range(3))
"""Diagnoses that stay, and whose actors crash."""

PEOPLE: Final = 60
"""Subscribers that come and go. Reason: each is known for a month, so a server that is flat has so many of them."""

LINES: Final = 20
"""Updates of a bulk request."""

FRAMES: Final = 8
"""Updates that a publishing WebSocket has under way."""

ANSWER_SECONDS_MAX: Final = 60.0
"""Longest wait for an answer, that of a backup included."""

CLOSE_SECONDS_MAX: Final = 5.0
"""How long a client waits for the answer to its Close."""

END_SECONDS_MAX: Final = 40.0
"""How long what was begun before the end of the load may take. Reason: an update waits 30 s for a full mailbox."""

ROWS_BEFORE: Final = (
    "actor.restart", "actor.stop", "subscriber.disconnect", "outbox.read", "database.backup", "database.check",
)  # fmt: skip
"""Acts whose audit row is stored before they are done."""

BROKEN: Final = (OSError, EOFError, trio.BrokenResourceError, trio.ClosedResourceError)
GONE: Final = (*BROKEN, ConnectionClosed, HandshakeError)


@dataclass(slots=True)
class World:
    """One server, whoever talks to it, and what it has promised."""

    place: Place
    http: httpx.AsyncClient
    kept: Kept
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    """How often what was done."""
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    until: float = inf
    """When the load ends: what takes its time ends then, too."""
    positions: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    """How far the followers who stay have come: number and epoch, by diagnosis and subscriber."""

    async def ask(
        self,
        method: str,
        path: str,
        token: str,
        *,
        body: object = None,
        action: str | None = None,
        may_fail: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        """One request, and what its answer promises.

        Args:
            action: of the audit row.
            may_fail: its diagnosis may be in quarantine, or gone.
        """
        content = b"" if body is None else json.dumps(body).encode()
        kind = {} if body is None else {"Content-Type": "application/json"}
        asked = {"Authorization": f"Bearer {token}", **kind, **(headers or {})}
        response = await self.http.request(method, path, content=content, headers=asked, timeout=ANSWER_SECONDS_MAX)
        if response.status_code < 300:
            if action is not None:
                self.kept.acts[action] += 1
        else:
            if action is not None:
                self.kept.unknown_acts[action] += 1
            if not may_fail:
                self.kept.complain(f"{method} {path} was answered {response.status_code} {response.text[:200]}")
        return response.status_code, response.json()

    async def pause(self, seconds: float) -> bool:
        """Wait so long, or until the load ends; whether it goes on."""
        await trio.sleep_until(min(trio.current_time() + seconds, self.until))
        return trio.current_time() < self.until

    @property
    def operator(self) -> str:
        """The token of an operator."""
        return self.place.token("op", "operate")

    def person(self) -> str:
        """Somebody who comes and goes."""
        return f"person-{self.chance.randrange(PEOPLE)}"

    async def raw(self, receive_bytes: int | None = None) -> trio.SocketStream:
        """A connection from an address with limits of its own."""
        sock = trio.socket.socket()
        try:
            if receive_bytes is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            await sock.bind((FAR, 0))
            with trio.fail_after(ANSWER_SECONDS_MAX):
                await sock.connect((NEAR, self.place.port))
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock)

    async def visit(self, name: str, query: str = "", receive_bytes: int | None = None) -> trio.SocketStream:
        """A WebSocket of somebody who comes and goes, asked for."""
        stream = await self.raw(receive_bytes)
        await stream.send_all(upgrade_request(f"/ws/{name}?{query}", self.place.token(self.person(), "monitor")))
        return stream


async def read_for(stream: trio.SocketStream, seconds: float) -> None:
    """Read and throw away, until the time is up or the other side has ended."""
    with trio.move_on_after(seconds):
        while await stream.receive_some(1 << 16):
            pass


def vanish(stream: trio.SocketStream) -> None:
    """End a connection with a reset."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    stream.socket.close()


# Publishers


def body_of(name: str, update: int, **more: Any) -> dict[str, Any]:
    """An update of this number."""
    return {
        "diagnosis_id": name,
        "feedback_id": update,
        "rating": 1 + update % 5,
        "comment": "x" * (update % 400),
        **more,
    }


def publisher(world: World) -> str:
    """The token of a service that may publish to every diagnosis."""
    return world.place.token("service", "broadcast")


async def post(world: World) -> None:
    """Publish one update by a request, some with a key, some of these twice."""
    name, update = world.chance.choice(STEADY), next(world.numbers)
    headers = {"Idempotency-Key": f"key-{update}"} if world.chance.random() < 0.5 else {}
    for turn in range(1 + (bool(headers) and world.chance.random() < 0.2)):
        status, said = await world.ask(
            "POST", "/ws/broadcast-feedback-update", publisher(world), body=body_of(name, update), headers=headers
        )
        if status == 200:
            world.kept.acknowledge(name, update, said["seq"], said["epoch"])
            if turn and not said["replayed"]:
                world.kept.complain(f"{name}: update {update} was stored twice under one key")


async def bulk(world: World) -> None:
    """Publish many lines by one request."""
    updates = [(world.chance.choice(STEADY), next(world.numbers)) for _ in range(LINES)]
    lines = [json.dumps(body_of(name, update, type="feedback_update")) for name, update in updates]
    headers = {"Authorization": f"Bearer {publisher(world)}", "Content-Type": "application/x-ndjson"}
    answer = await world.http.post("/ws/broadcast", content="\n".join(lines), headers=headers)
    said = [json.loads(line) for line in answer.text.splitlines()]
    for (name, update), one in zip(updates, said, strict=True):
        if one["status"] == 200:
            world.kept.acknowledge(name, update, one["seq"], one["epoch"])
        elif one["status"] != 429:
            world.kept.complain(f"a line of a bulk request was answered {one}")


async def publish_socket(world: World) -> None:
    """Publish over a WebSocket for a while; half the time vanish with updates unanswered."""
    headers = [(b"Authorization", f"Bearer {publisher(world)}".encode())]
    url = f"ws://{NEAR}:{world.place.port}/publish"
    with trio.CancelScope() as staying:
        async with open_websocket_url(url, extra_headers=headers, disconnect_timeout=CLOSE_SECONDS_MAX) as link:
            await link.get_message()
            for _ in range(world.chance.randrange(1, 30)):
                updates = {f"u{update}": (world.chance.choice(STEADY), update) for update in _some(world, FRAMES)}
                for one, (name, update) in updates.items():
                    await link.send_message(json.dumps(body_of(name, update, type="feedback_update", id=one)))
                for _ in updates:
                    _take_receipt(world, updates, json.loads(await link.get_message()))
                if not await world.pause(world.chance.uniform(0, 1.0)):
                    break
            if world.chance.random() < 0.5:
                for update in _some(world, FRAMES):
                    await link.send_message(json.dumps(body_of(STEADY[0], update, type="feedback_update", id="x")))
                staying.cancel()
                await trio.lowlevel.checkpoint()


def _some(world: World, count: int) -> list[int]:
    return [next(world.numbers) for _ in range(count)]


def _take_receipt(world: World, updates: Mapping[str, tuple[str, int]], frame: Mapping[str, Any]) -> None:
    if frame["type"] == "receipt":
        name, update = updates[frame["id"]]
        world.kept.acknowledge(name, update, frame["receipt"]["seq"], frame["receipt"]["epoch"])
    else:
        world.kept.complain(f"a frame on /publish was answered {frame}")


async def crash(world: World) -> None:
    """Publish what an actor crashes over."""
    body = body_of(world.chance.choice(SHAKY), next(world.numbers), comment=CRASHES.decode())
    status, _ = await world.ask("POST", "/ws/broadcast-feedback-update", publisher(world), body=body, may_fail=True)
    world.counts[f"crash answered {status}"] += 1


async def stumble(world: World) -> None:
    """Publish what an actor with followers crashes over, once: it is stored, delivered and answered all the same."""
    name, update = STEADY[world.counts["stumble"] % len(STEADY)], next(world.numbers)
    body = body_of(name, update, comment=CRASHES.decode())
    status, said = await world.ask("POST", "/ws/broadcast-feedback-update", publisher(world), body=body)
    if status == 200:
        world.kept.acknowledge(name, update, said["seq"], said["epoch"])


# Followers


async def stay(world: World, name: str, sub: str) -> None:
    """Follow for a while, from where this follower stood, and acknowledge; every number comes once, or is in a gap."""
    with trio.move_on_at(min(trio.current_time() + world.chance.uniform(3, 20), world.until)):
        await _follow(world, name, sub, is_last=False)


async def catch_up(world: World, name: str, sub: str) -> None:
    """Follow until everything there is has come."""
    with trio.fail_after(ANSWER_SECONDS_MAX):
        while not await _follow(world, name, sub, is_last=True):
            await trio.sleep(0.5)


async def _follow(world: World, name: str, sub: str, *, is_last: bool) -> bool:
    """Follow until the server or the caller ends it, or until `live` if it is the last time: then True."""
    known = world.positions.get((name, sub))
    query = "start=new" if known is None else f"after={known[0]}&epoch={known[1]}"
    headers = [(b"Authorization", f"Bearer {world.place.token(sub, 'monitor')}".encode())]
    url = f"ws://{NEAR}:{world.place.port}/ws/{name}?ack=app&{query}"
    with suppress(ConnectionClosed):
        async with open_websocket_url(url, extra_headers=headers, disconnect_timeout=CLOSE_SECONDS_MAX) as link:
            number, epoch = known or (0, "")
            while True:
                frame = json.loads(await link.get_message())
                match frame["type"]:
                    case "connect":
                        epoch = frame["data"]["epoch"]
                        world.kept.expect_epoch(name, epoch)
                        number = frame["data"]["head"] if known is None else number
                    case "gap" if frame["data"]["from"] == number + 1:
                        number = frame["data"]["to"]
                    case "live" if is_last:
                        return True
                    case "acked":
                        acked = world.kept.cursors.get((name, sub), 0)
                        world.kept.cursors[name, sub] = max(acked, frame["data"]["seq"])
                    case "feedback_update" if frame["seq"] == number + 1:
                        number += 1
                        world.kept.see(name, frame["data"]["feedback_id"], number)
                        world.counts["deliveries to followers who stay"] += 1
                        if number % 20 == 0:
                            await link.send_message(json.dumps({"type": "ack", "seq": number}))
                    case "gap" | "feedback_update":
                        world.kept.complain(f"{sub} at {name} stood at {number} and was sent {frame}")
                        return True
                world.positions[name, sub] = number, epoch
    return False


async def visit(world: World) -> None:
    """Come, read for a moment, and leave in one of many ways."""
    lies = (
        "",
        "start=new",
        "start=7",
        "after=3",
        "after=999999999",
        "after=5&epoch=old",
        "peek=1",
        "ack=app",
        "device=a",
    )
    query = world.chance.choice(lies)
    stream = await world.visit(world.chance.choice(STEADY + SHAKY), query)
    try:
        await read_for(stream, world.chance.uniform(0, 1.5))
        match world.chance.randrange(5):
            case 0:
                vanish(stream)
            case 1:
                await stream.send_all(ACK + client_frame(8, b"\x03\xe8"))
                await read_for(stream, 5)
            case 2:
                await stream.send_eof()
                await read_for(stream, 5)
            case 3:
                await stream.send_all(client_frame(1, b'{"type":"ack","seq":7}') + client_frame(1, b"nonsense"))
            case _:
                pass
    finally:
        await trio.aclose_forcefully(stream)


async def event_stream(world: World) -> None:
    """Ask for an event stream, and give it up before, in or behind the replay."""
    name, token = world.chance.choice(STEADY), world.place.token(world.person(), "monitor")
    stream = await world.raw()
    try:
        await stream.send_all(http_request("GET", f"/diagnoses/{name}/events", token))
        await read_for(stream, world.chance.choice((0, 0.01, 0.5)))
        if world.chance.random() < 0.5:
            vanish(stream)
    finally:
        await trio.aclose_forcefully(stream)


async def slow(world: World) -> None:
    """Read a hundred bytes a second."""
    stream = await world.visit(world.chance.choice(STEADY), "start=oldest", receive_bytes=2048)
    try:
        for _ in range(world.chance.randrange(1, 25)):
            with trio.move_on_after(0.001):
                await stream.receive_some(100)
            if not await world.pause(1):
                break
    finally:
        await trio.aclose_forcefully(stream)


async def unread(world: World) -> None:
    """Ask for a large answer again and again, and read nothing."""
    stream = await world.raw(receive_bytes=2048)
    try:
        await stream.send_all(http_request("GET", "/openapi.json", None) * 3)
        await world.pause(world.chance.uniform(0, 15))
    finally:
        await trio.aclose_forcefully(stream)


async def flood(world: World) -> None:
    """Send Pings as fast as the server takes them."""
    stream = await world.visit(world.chance.choice(STEADY), "start=new")
    try:
        with trio.move_on_after(1):
            while True:
                await stream.send_all(PING * FRAMES_AT_ONCE)
    finally:
        await trio.aclose_forcefully(stream)


async def malformed(world: World) -> None:
    """Send half a head, too many lines, or no HTTP."""
    stream = await world.raw()
    try:
        await stream.send_all(
            world.chance.choice((HEAD_OF_LINES[:9000], HEAD_OF_LINES + b"\r\n", b"\x16\x03\x01\r\n\r\n"))
        )
        await read_for(stream, world.chance.uniform(0, 3))
    finally:
        await trio.aclose_forcefully(stream)


async def console(world: World) -> None:
    """Look at the console for a moment."""
    stream = await world.raw()
    try:
        await stream.send_all(http_request("GET", "/console/events", world.operator))
        await read_for(stream, world.chance.uniform(0, 4))
    finally:
        await trio.aclose_forcefully(stream)


# Registrars and operators


async def register_and_delete(world: World) -> None:
    """A diagnosis comes, is published to and followed, and goes."""
    name, owner = f"passing-{next(world.numbers)}", "owner-passing"
    registrar = world.place.token("registrar", "register")
    rights = {"owner": owner, "viewers": [world.person()]}
    await world.ask("PUT", f"/diagnoses/{name}", registrar, body=rights, action="diagnosis.register")
    stream = await world.visit(name)
    try:
        for update in _some(world, 3):
            status, said = await world.ask(
                "POST", "/ws/broadcast-feedback-update", world.place.token(owner), body=body_of(name, update)
            )
            if status == 200:
                world.kept.acknowledge(name, update, said["seq"], said["epoch"])
        await world.ask("DELETE", f"/diagnoses/{name}", registrar, action="diagnosis.delete")
        await read_for(stream, 10)
    finally:
        await trio.aclose_forcefully(stream)
    status, _ = await world.ask("GET", f"/diagnoses/{name}/position", world.operator, may_fail=True)
    if status != 404:
        world.kept.complain(f"{name} was deleted, and is answered {status}")


async def revoke_and_lift(world: World) -> None:
    """A subject is refused, and then no more; now and then a token is revoked for good."""
    sub = f"revoked-{next(world.numbers) % 5}"
    token = world.place.token(sub, "monitor")
    for_good = world.chance.random() < 0.05
    body = {"jti": f"token-{next(world.numbers)}"} if for_good else {"sub": sub}
    status, made = await world.ask("POST", "/revocations", world.operator, body=body, action="revocation.add")
    if status != 201:
        return
    world.kept.revocations.add(made["id"])
    if for_good:
        return
    status, _ = await world.ask("GET", f"/diagnoses/{STEADY[0]}/position", token, may_fail=True)
    if status != 401:
        world.kept.complain(f"{sub} was revoked, and is answered {status}")
    lifted, _ = await world.ask("DELETE", f"/revocations/{made['id']}", world.operator, action="revocation.lift")
    if lifted == 200:
        world.kept.revocations.discard(made["id"])


async def erase(world: World) -> None:
    """Somebody who comes and goes is erased."""
    await world.ask("DELETE", f"/subjects?sub={world.person()}", world.operator, action="subject.erase")


async def disconnect(world: World) -> None:
    """Somebody is sent away and forgotten."""
    path = f"/actors/{world.chance.choice(STEADY)}/subscribers?sub={world.person()}&forget=1"
    await world.ask("DELETE", path, world.operator, action="subscriber.disconnect", may_fail=True)


async def restart(world: World) -> None:
    """An actor is restarted or sent to rest."""
    what = world.chance.choice(("restart", "stop"))
    path = f"/actors/{world.chance.choice(STEADY + SHAKY)}/{what}"
    await world.ask("POST", path, world.operator, action=f"actor.{what}", may_fail=True)


async def purge(world: World) -> None:
    """An outbox is emptied."""
    path = f"/actors/{world.chance.choice(STEADY + SHAKY)}/outbox"
    await world.ask("DELETE", path, world.operator, action="outbox.purge", may_fail=True)


async def back_up(world: World) -> None:
    """A copy of the database is made."""
    await world.ask("POST", "/backup", world.operator, action="database.backup")


async def check(world: World) -> None:
    """The database is checked."""
    _, said = await world.ask("POST", "/check", world.operator, action="database.check")
    if said.get("status") != "ok":
        world.kept.complain(f"the check said {said}")


async def look(world: World) -> None:
    """An operator looks around."""
    name = world.chance.choice(STEADY)
    for path in ("/ws/status", "/actors", f"/actors/{name}", "/diagnoses", "/audit", "/revocations"):
        await world.ask("GET", path, world.operator)
    await read_outbox(world, name)


async def read_outbox(world: World, name: str) -> list[dict[str, Any]]:
    """The retained events; a look at an empty outbox shows nothing, and leaves no row."""
    _, page = await world.ask("GET", f"/actors/{name}/outbox?limit=100", world.operator)
    world.kept.acts["outbox.read"] += bool(page["items"])
    found: list[dict[str, Any]] = page["items"]
    return found


@dataclass(frozen=True, slots=True)
class Kind:
    """An act, how often it is done, and by how many at a time."""

    act: Callable[[World], Awaitable[None]]
    every_seconds: float
    """The mean of the pause between two of one task."""
    tasks: int = 1
    is_harm: bool = False
    """It may be cut at any moment."""


KINDS: Final[Sequence[Kind]] = (
    Kind(post, 0.1, tasks=2),
    Kind(bulk, 1.0),
    Kind(publish_socket, 0.5, is_harm=True),
    Kind(crash, 3.0),
    Kind(stumble, 2.0),
    Kind(visit, 0.2, tasks=4, is_harm=True),
    Kind(event_stream, 0.3, is_harm=True),
    Kind(slow, 1.0, tasks=4, is_harm=True),
    Kind(unread, 1.0, tasks=2, is_harm=True),
    Kind(flood, 10.0, is_harm=True),
    Kind(malformed, 1.0, is_harm=True),
    Kind(console, 4.0, is_harm=True),
    Kind(register_and_delete, 1.0),
    Kind(revoke_and_lift, 2.0),
    Kind(erase, 4.0),
    Kind(disconnect, 2.0),
    Kind(restart, 1.0),
    Kind(purge, 10.0),
    Kind(back_up, 30.0),
    Kind(check, 45.0),
    Kind(look, 3.0),
)


FOLLOWERS: Final = tuple((name, f"{who}-{name}") for name in STEADY for who in ("near", "far"))
"""Those who stay: diagnosis and subscriber."""


async def set_up(world: World) -> None:
    """Register the diagnoses that stay."""
    registrar = world.place.token("registrar", "register")
    for name in STEADY + SHAKY:
        rights = {"owner": f"owner-{name}", "viewers": []}
        await world.ask("PUT", f"/diagnoses/{name}", registrar, body=rights, action="diagnosis.register")


async def load(world: World, seconds: float) -> None:
    """Do everything for so long; whatever is begun by then is finished."""
    world.until = trio.current_time() + seconds
    busy: Counter[str] = Counter()

    async def once(what: str, act: Callable[[], Awaitable[None]], *, is_harm: bool) -> None:
        busy[what] += 1
        try:
            await act()
        except GONE as error:
            if not is_harm:
                world.kept.complain(f"{what} was cut: {type(error).__name__} {error}")
        except (httpx.HTTPError, trio.TooSlowError) as error:
            world.kept.complain(f"{what} was not answered: {type(error).__name__} {error}")
        busy[what] -= 1
        world.counts[what] += 1

    async def again(kind: Kind) -> None:
        while await world.pause(world.chance.expovariate(1 / kind.every_seconds)):
            await once(kind.act.__name__, partial(kind.act, world), is_harm=kind.is_harm)

    async def stays(name: str, sub: str) -> None:
        while trio.current_time() < world.until:
            await once(sub, partial(stay, world, name, sub), is_harm=False)

    async with trio.open_nursery() as load_nursery:
        # Whatever takes longer hangs. Its end is the longest wait for a Close, or for the results of updates.
        load_nursery.cancel_scope.deadline = world.until + END_SECONDS_MAX
        for kind in KINDS:
            for _ in range(kind.tasks):
                load_nursery.start_soon(again, kind)
        for name, sub in FOLLOWERS:
            load_nursery.start_soon(stays, name, sub)
    if left := +busy:
        world.kept.complain(f"these did not end: {dict(left)}")
