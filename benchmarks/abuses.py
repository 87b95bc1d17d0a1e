"""The abuses of `make bench-abuse`. Each runs in a process of its own until it is told to stop.

An abuse is a generator function: what it does before its `yield` is preparation, during which nobody is watched.
"""

from __future__ import annotations

import itertools
import json
import secrets
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Final

from benchmarks import filled
from benchmarks.filled import Fill
from benchmarks.frozen import FreezableDisk
from benchmarks.place import FAR, Place, client_frame, http_request, read_answer, websocket

Stop = Callable[[], bool]
"""Whether to stop."""

Act = Callable[[Place, Stop], Iterator[None]]

RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: closing is a reset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abuse:
    """One abuse, and what may become of the neighbour."""

    act: Act
    fill: Fill | None = None
    """What the database holds before the server starts."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Variables of the server's environment."""
    budget_mib: float = 0.0
    """Memory that the server may take for this by its settings."""
    is_log_read: bool = True
    is_disk_frozen: bool = False
    """Then publishes are refused, and the process ends only when the disk goes on; its sockets are closed before."""
    added_ms: float | None = None
    """The target of the 99th percentile is the quiet one and so much more, instead of a ratio."""


# A. Those who follow


PING: Final = client_frame(9, b"")
ACK: Final = client_frame(1, b'{"type":"ack","seq":0}')
FRAMES_AT_ONCE: Final = 600
"""What a flood sends at once. Reason: some kilobytes, as much as a server reads at once."""


def flood(stop: Stop, connect: Sequence[Callable[[], socket.socket]], frames: Sequence[bytes]) -> int:
    """Sockets send a frame each as fast as the server reads it, and come back when they are cut.

    Returns how often they were.
    """
    data = [frame * FRAMES_AT_ONCE for frame in frames]
    opened: dict[int, socket.socket] = {}
    cut = 0
    while not stop():
        for index, connect_one in enumerate(connect):
            if index in opened or stop():
                continue
            with suppress(OSError):  # it has stopped, or is about to end
                opened[index] = connect_one()
                opened[index].setblocking(False)
        for index, sock in list(opened.items()):
            try:
                sock.send(data[index % len(data)])
                sock.recv(1 << 16)
            except BlockingIOError:
                pass
            except OSError:
                cut += 1
                opened.pop(index).close()
        time.sleep(0.001)
    for sock in opened.values():
        sock.close()
    return cut


def _flood_of_one_account(place: Place, stop: Stop, frame: bytes, sockets: int) -> None:
    def connect() -> socket.socket:
        return websocket(place, "wild", source=FAR, device=f"f-{secrets.token_hex(4)}")

    flood(stop, [connect] * sockets, [frame])


def pings(place: Place, stop: Stop) -> Iterator[None]:
    """Twenty sockets send empty Pings."""
    yield
    _flood_of_one_account(place, stop, PING, 20)


def acks(place: Place, stop: Stop) -> Iterator[None]:
    """One socket acknowledges the same number again and again."""
    yield
    _flood_of_one_account(place, stop, ACK, 1)


def texts(place: Place, stop: Stop) -> Iterator[None]:
    """Twenty sockets send texts of one byte, each of which is answered."""
    yield
    _flood_of_one_account(place, stop, client_frame(1, b"x"), 20)


def _wait(stop: Stop) -> None:
    while not stop():
        time.sleep(0.05)


def deletion(place: Place, stop: Stop) -> Iterator[None]:
    """A diagnosis with 10,000 followers is deleted."""
    with place.following([place.follower("wild", f"u{number}") for number in range(10_000)]) as followers:
        yield
        place.ask("DELETE", "/diagnoses/wild", place.token("registrar", "register"))
        while not stop():
            followers.rest(0.2)


def revocation(place: Place, stop: Stop) -> Iterator[None]:
    """A subject with 5,000 sockets is revoked."""
    with place.following([place.follower("wild", "victim")] * 5_000) as followers:
        yield
        place.ask("POST", "/revocations", place.token("op", "operate"), b'{"sub":"victim"}')
        while not stop():
            followers.rest(0.2)


def vanishing(place: Place, stop: Stop) -> Iterator[None]:
    """5,000 followers are reset at once."""
    with place.following([place.follower("wild", f"u{number}") for number in range(5_000)]):
        yield
    _wait(stop)


def newcomers(place: Place, stop: Stop) -> Iterator[None]:
    """Every half a second 125 people nobody knows follow the neighbour's diagnosis, all at once, and leave."""
    yield
    for turn in itertools.count():
        due_at = time.monotonic() + 0.5
        with place.following([place.follower("neighbour", f"new-{turn}-{n}") for n in range(125)], in_flight=125):
            pass
        while time.monotonic() < due_at:
            if stop():
                return
            time.sleep(0.05)


def take_over(place: Place, stop: Stop) -> Iterator[None]:
    """Two clients take one device from each other."""
    yield
    while not stop():
        older = websocket(place, "wild", source=FAR, device="one")
        newer = websocket(place, "wild", source=FAR, device="one")
        older.close()
        newer.close()


def devices(place: Place, stop: Stop) -> Iterator[None]:
    """Clients with names of their own follow a diagnosis that knows 100,000, and leave."""
    yield
    for number in itertools.count():
        if stop():
            return
        websocket(place, "wild", sub=f"user-{number}", source=FAR, device="phone").close()


def known(place: Place, stop: Stop) -> Iterator[None]:
    """A diagnosis that knows 100,000 is loaded again and again, and asked for its deliveries."""
    yield
    operator = place.token("op", "operate")
    while not stop():
        place.ask("POST", "/actors/wild/restart", operator, source=FAR)
        place.ask("GET", "/diagnoses/wild/delivery?seq=1&limit=1000", operator, source=FAR)


def status(place: Place, stop: Stop) -> Iterator[None]:
    """Three at a time ask for the status of 100,000 diagnoses."""
    yield
    request = http_request("GET", "/ws/status", place.token("op", "operate"))
    while not stop():
        with ExitStack() as opened:
            socks = [opened.enter_context(place.connect(FAR)) for _ in range(3)]
            for sock in socks:
                sock.sendall(request)
            for sock in socks:
                read_answer(sock)


# B. Requests


def streams(place: Place, stop: Stop) -> Iterator[None]:
    """Event streams that are given up, right after the request or during the replay."""
    yield
    request = http_request("GET", "/diagnoses/neighbour/events?peek=1", place.token("owner-neighbour"))
    for number in itertools.count():
        if stop():
            return
        with suppress(OSError), place.connect(FAR) as sock:
            sock.sendall(request)
            if number % 2:
                sock.recv(1000)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        time.sleep(0.01)


HEAD_OF_LINES: Final = b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 4000
QUERY_OF_PARAMETERS: Final = b"GET /healthz?" + b"a&" * 7900 + b" HTTP/1.1\r\nHost: x\r\n"


def _requests(place: Place, stop: Stop, requests: Sequence[bytes], per_second: float) -> None:
    for request in itertools.cycle(requests):
        if stop():
            return
        began = time.monotonic()
        with suppress(OSError), place.connect(FAR) as sock:
            sock.sendall(request)
            sock.recv(1 << 16)
        time.sleep(max(0.0, 1 / per_second - (time.monotonic() - began)))


def heads(place: Place, stop: Stop) -> Iterator[None]:
    """Heads of 16 KB that are all lines, fifty a second."""
    yield
    _requests(place, stop, [HEAD_OF_LINES + b"\r\n"], 50)


def queries(place: Place, stop: Stop) -> Iterator[None]:
    """Queries of 7,900 parameters, fifty a second."""
    yield
    _requests(place, stop, [QUERY_OF_PARAMETERS + b"\r\n"], 50)


def half_heads(place: Place, stop: Stop) -> Iterator[None]:
    """900 connections with half a head of lines or parameters at a time; each sends the rest after a while."""
    opened: list[socket.socket] = []

    def open_one() -> None:
        with suppress(OSError):
            sock = place.connect(FAR)
            sock.sendall((HEAD_OF_LINES if len(opened) % 2 else QUERY_OF_PARAMETERS)[:15_000])
            opened.append(sock)

    for _ in range(900):
        open_one()
    yield
    while not stop():
        with suppress(OSError), opened.pop(0) as sock:
            sock.sendall(b"\r\n\r\n")
        open_one()
        time.sleep(0.01)


def malformed(place: Place, stop: Stop) -> Iterator[None]:
    """Requests that are none, and upgrades that are wrong, two hundred a second."""
    yield
    upgrade = http_request("GET", "/ws/wild?heartbeat=x", place.token("owner-wild"), Connection="Upgrade")
    _requests(place, stop, [b"\x16\x03\x01\r\n\r\n", b"GET x HTTP/9.9\r\n\r\n", upgrade], 200)


def unread(place: Place, stop: Stop) -> Iterator[None]:
    """Four thousand requests for the largest answer, which nobody reads."""
    yield
    opened: list[socket.socket] = []
    for number in range(4000):
        if stop():
            break
        with suppress(OSError):
            sock = place.connect(f"127.0.0.{2 + number % 4}")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
            opened.append(sock)
    _wait(stop)


def _bulk(place: Place, stop: Stop, token: str, name: str) -> None:
    line = json.dumps({"type": "recommendation_update", "diagnosis_id": name, "new_data": {"x": list(range(700))}})
    body = "\n".join([line] * 1000).encode()[: 4 * 1024 * 1024 - 1]
    while not stop():
        with suppress(OSError), ExitStack() as opened:
            socks = [opened.enter_context(place.connect(FAR)) for _ in range(4)]
            for sock in socks:
                sock.sendall(http_request("POST", "/ws/broadcast", token, body))
            for sock in socks:
                read_answer(sock)


def bulk(place: Place, stop: Stop) -> Iterator[None]:
    """Four bulk requests of 4 MiB at a time, of somebody who may."""
    yield
    _bulk(place, stop, place.token("owner-wild"), "wild")


def forbidden_bulk(place: Place, stop: Stop) -> Iterator[None]:
    """Four bulk requests of 4 MiB at a time, of somebody who owns another diagnosis."""
    yield
    _bulk(place, stop, place.token("owner-wild"), "neighbour")


def half_bodies(place: Place, stop: Stop) -> Iterator[None]:
    """Sixteen connections declare 4 MiB and send a byte; meanwhile others send bulk requests."""
    yield
    head = http_request("POST", "/ws/broadcast", place.token("owner-wild")).replace(b"Length: 0", b"Length: 4194304")
    while not stop():
        with ExitStack() as opened:
            for _ in range(16):
                with suppress(OSError):
                    opened.enter_context(place.connect(FAR)).sendall(head + b"x")
            time.sleep(1)


def one_address(place: Place, stop: Stop) -> Iterator[None]:
    """One address opens connections as long as it gets some, and goes on asking."""
    yield
    opened: list[socket.socket] = []
    while not stop():
        with suppress(OSError):
            sock = place.connect(FAR)
            sock.setblocking(False)
            opened.append(sock)
        if len(opened) > 1000:  # refused ones among them
            opened.pop(0).close()
        time.sleep(0.002)


def outboxes(place: Place, stop: Stop) -> Iterator[None]:
    """A hundred outboxes of 3 MB are followed from their beginning, again and again."""
    yield
    for number in itertools.count():
        if stop():
            return
        request = http_request("GET", f"/diagnoses/big-{number % 100}/events?peek=1", place.token("op", "monitor"))
        with suppress(OSError), place.connect(FAR) as sock:
            sock.sendall(request)
            sock.recv(1000)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


# C. Operators, the disk and the log


def _operator(place: Place, stop: Stop, *acts: tuple[str, str]) -> None:
    for method, path in itertools.cycle(acts):
        if stop():
            return
        with suppress(OSError):
            place.ask(method, path, place.token("op", "operate"), source=FAR)


def restarts(place: Place, stop: Stop) -> Iterator[None]:
    """An operator stops and restarts a diagnosis as fast as it is done."""
    yield
    _operator(place, stop, ("POST", "/actors/wild/stop"), ("POST", "/actors/wild/restart"))


def backup(place: Place, stop: Stop) -> Iterator[None]:
    """Backups of a database of 300 MB, one after the other."""
    yield
    _operator(place, stop, ("POST", "/backup"))


def check(place: Place, stop: Stop) -> Iterator[None]:
    """Checks of the same database."""
    yield
    _operator(place, stop, ("POST", "/check"))


def erasure(place: Place, stop: Stop) -> Iterator[None]:
    """A person is erased who stands in 300,000 rows of the audit trail."""
    yield
    place.ask("DELETE", "/subjects?sub=victim", place.token("op", "operate"), source=FAR, seconds=60)
    _wait(stop)


def unread_log(place: Place, stop: Stop) -> Iterator[None]:
    """Nobody reads the log, and requests fill it."""
    yield
    _requests(place, stop, [http_request("GET", "/diagnoses", place.token("nobody"))], 200)


def hung_disk(place: Place, stop: Stop) -> Iterator[None]:
    """The disk does not answer."""
    assert place.disk is not None, "the data lie on one that can be frozen"
    disk = FreezableDisk(place.disk)
    yield
    disk.freeze()
    try:
        _wait(stop)
    finally:
        disk.thaw()


MANY_CONNECTIONS: Final = {"AVICENNA_MAX_CONNECTIONS": "12000"}

ABUSES: Final[dict[str, Abuse]] = {
    "pings": Abuse(act=pings),
    "acks": Abuse(act=acks),
    "texts": Abuse(act=texts),
    "deletion": Abuse(act=deletion, settings=MANY_CONNECTIONS),
    "revocation": Abuse(act=revocation),
    "vanishing": Abuse(act=vanishing),
    "newcomers": Abuse(act=newcomers),
    "take-over": Abuse(act=take_over),
    "devices": Abuse(act=devices, fill=filled.subscribers("wild", 100_000)),
    "known": Abuse(act=known, fill=filled.subscribers("wild", 100_000)),
    "status": Abuse(act=status, fill=filled.diagnoses(100_000)),
    "streams": Abuse(act=streams),
    "heads": Abuse(act=heads),
    "queries": Abuse(act=queries),
    "half-heads": Abuse(act=half_heads),
    "malformed": Abuse(act=malformed),
    "unread": Abuse(act=unread),
    "bulk": Abuse(act=bulk, budget_mib=64),
    "forbidden-bulk": Abuse(act=forbidden_bulk, budget_mib=64),
    "half-bodies": Abuse(act=half_bodies, budget_mib=64),
    "one-address": Abuse(act=one_address, settings={"AVICENNA_MAX_CONNECTIONS": "1000"}),
    "outboxes": Abuse(act=outboxes, fill=filled.outboxes(100), budget_mib=256),
    "restarts": Abuse(act=restarts),
    "backup": Abuse(act=backup, fill=filled.outboxes(100), added_ms=50),
    "check": Abuse(act=check, fill=filled.outboxes(100), added_ms=50),
    "erasure": Abuse(act=erasure, fill=filled.audit_rows("victim", 300_000)),
    "unread-log": Abuse(act=unread_log, is_log_read=False),
    "hung-disk": Abuse(act=hung_disk, is_disk_frozen=True),
}
"""By name."""
