"""What `make chaos` does to an installation: each fault begins, is waited out, and ends."""

from __future__ import annotations

import os
import random
import re
import secrets
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import trio
from trio_websocket import ConnectionClosed

from tests.cluster.clients import ANSWER_SECONDS_MAX, Follower, Ledger, bearer
from tests.cluster.installation import NODES, SERVERS, Installation
from tests.cluster.links import Links
from tests.cluster.nodes import COMMAND
from tests.cluster.servers import freeze
from tests.server.cut_off import connected

GOES_ON_SECONDS_MAX: Final = 60.0
"""Longest wait for acknowledgements after a fault. Beyond: the installation does not survive it."""

READY_SECONDS_MAX: Final = 90.0
"""Longest wait until all serve again."""

DISK_KIB: Final = 2 * 1024 * 1024
"""Size of the disk of a NATS server. Reason: more than a run needs; what is not used takes no memory."""

LEFT_KIB: Final = 64
"""What is left of a disk that is about to be full."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Size:
    """How much load there is, and how long faults take."""

    diagnoses: int
    publishers: int
    followers: int
    before_events: int
    """Acknowledged before a fault and after it."""
    server_seconds: float
    """So long a NATS server is frozen or cut off."""
    node_seconds: float
    """So long one of our servers is."""


@dataclass
class World:
    """What runs, and all that is known of it."""

    its: Installation
    links: Links
    size: Size
    chance: random.Random
    ledger: Ledger
    diagnoses: Sequence[str]
    followers: Sequence[Follower]
    disks: Sequence[Path]
    """Of the NATS servers, each small; empty: none could be made."""
    notes: list[str] = field(default_factory=list)
    """What else a fault has found out."""

    async def leader(self) -> int:
        """The NATS server that leads, at last."""
        with trio.fail_after(READY_SECONDS_MAX):
            while (found := await blocking(self.its.leader)) is None:
                await trio.sleep(0.1)
        return found

    async def busiest(self) -> int:
        """The one of ours that most followers are connected to. Reason: the proxy leaves a new one without any."""
        counts, operator = list[float](), bearer(self.its.key, "operator", "operate")
        async with httpx.AsyncClient(timeout=ANSWER_SECONDS_MAX) as http:
            for number in range(len(NODES)):
                page = (await http.get(f"{self.its.url_of(number)}/metrics", headers=operator)).text
                shown = re.search(r"^avicenna_followers (\S+)$", page, re.MULTILINE)
                assert shown is not None, page
                counts.append(float(shown[1]))
        self.notes.append(f"{max(counts):g} followers were there")
        return counts.index(max(counts))

    async def goes_on(self) -> None:
        """Wait until updates are acknowledged again."""
        await self.ledger.more(self.size.before_events, GOES_ON_SECONDS_MAX)

    async def for_so_long(self, seconds: float, began_at: float) -> None:
        """Wait until a fault has lasted as long as it should."""
        await trio.sleep_until(began_at + seconds)

    async def start_server(self, number: int) -> None:
        """Start a NATS server again, and wait until it has all it should have."""
        self.its.servers[number].start()
        await blocking(self.its.servers[number].wait)

    async def start_node(self, number: int) -> None:
        """Start one of ours again, and wait until it is ready."""
        await blocking(self.its.start_node, number)
        await self.until_ready(number)

    async def until_ready(self, number: int, wanted: bool = True) -> None:
        """Wait until one of ours is ready, or is not."""
        with trio.fail_after(READY_SECONDS_MAX):
            while await blocking(self.its.is_ready, number) is not wanted:
                await trio.sleep(0.05)

    async def all_serve(self) -> None:
        """Wait until nothing is left of a fault."""
        with trio.fail_after(READY_SECONDS_MAX):
            for server in self.its.servers:
                while not await blocking(server.is_healthy):
                    await trio.sleep(0.1)
        for number in range(len(NODES)):
            await self.until_ready(number)


async def blocking(work: Callable[..., Answer], *arguments: Any) -> Answer:
    """What a function answers that waits as threads do."""
    return await trio.to_thread.run_sync(partial(work, *arguments))


async def kill_leader(world: World) -> None:
    """SIGKILL for the NATS server that leads."""
    number = await world.leader()
    await blocking(world.its.servers[number].end, signal.SIGKILL)
    await world.goes_on()
    await world.start_server(number)


async def cut_leader(world: World) -> None:
    """The NATS server that leads reaches nobody, and nobody reaches it."""
    leader, began_at = SERVERS[await world.leader()], trio.current_time()
    world.links.cut(leader, SERVERS + NODES)
    await world.goes_on()
    await world.for_so_long(world.size.server_seconds, began_at)
    world.links.mend()


async def cut_partly(world: World) -> None:
    """The NATS server that leads and one other do not reach each other; everybody else reaches both."""
    leader, began_at = await world.leader(), trio.current_time()
    world.links.cut(SERVERS[leader], SERVERS[(leader + world.chance.choice((1, 2))) % 3])
    await world.goes_on()
    await world.for_so_long(world.size.server_seconds, began_at)
    world.links.mend()


async def freeze_leader(world: World) -> None:
    """SIGSTOP for the NATS server that leads."""
    server, began_at = world.its.servers[await world.leader()], trio.current_time()
    await blocking(server.freeze)
    await world.goes_on()
    await world.for_so_long(world.size.server_seconds, began_at)
    server.thaw()


async def kill_servers(world: World) -> None:
    """SIGKILL for all NATS servers at once; they are started again."""
    async with trio.open_nursery() as nursery:
        for server in world.its.servers:
            nursery.start_soon(blocking, server.end, signal.SIGKILL)
    async with trio.open_nursery() as nursery:
        for number in range(len(SERVERS)):
            nursery.start_soon(world.start_server, number)
        await world.goes_on()


async def roll_servers(world: World) -> None:
    """SIGTERM for each NATS server, and a new start; the next one once it is healthy."""
    for number, server in enumerate(world.its.servers):
        await blocking(server.end)
        await world.start_server(number)
        await world.goes_on()


async def kill_node(world: World) -> None:
    """SIGKILL for one of our servers."""
    number = await world.busiest()
    await blocking(world.its.nodes[number].end, signal.SIGKILL)
    await world.goes_on()
    await world.start_node(number)


async def freeze_node(world: World) -> None:
    """SIGSTOP for one of our servers."""
    process, began_at = world.its.nodes[await world.busiest()].process, trio.current_time()
    await blocking(freeze, process)
    await world.goes_on()
    await world.for_so_long(world.size.node_seconds, began_at)
    process.send_signal(signal.SIGCONT)


async def roll_nodes(world: World) -> None:
    """SIGTERM for each of our servers, and a new start; the next one once it is ready."""
    for number, node in enumerate(world.its.nodes):
        if code := await blocking(node.end):
            world.ledger.wrong.append(f"server {NODES[number]} ended with {code} after SIGTERM")
        await world.start_node(number)
        await world.goes_on()


async def cut_node(world: World) -> None:
    """One of our servers reaches no NATS server; a right is taken away meanwhile."""
    number, began_at = await world.busiest(), trio.current_time()
    here, elsewhere = (world.its.url_of(one) for one in (number, (number + 1) % len(NODES)))
    token_id = f"cut-{secrets.token_hex(8)}"
    headers = bearer(world.its.key, token_id=token_id)
    async with connected(here, world.diagnoses[0], {"peek": 1}, headers) as connection, trio.open_nursery() as nursery:
        is_closed = trio.Event()

        async def until_closed() -> None:
            try:
                while True:
                    await connection.get_message()
            except ConnectionClosed:
                is_closed.set()

        nursery.start_soon(until_closed)
        world.links.cut(NODES[number], SERVERS)
        async with httpx.AsyncClient(timeout=30) as http:
            operator = bearer(world.its.key, "operator", "operate")
            made = await http.post(f"{elsewhere}/revocations", json={"jti": token_id}, headers=operator)
        if made.status_code != 201:
            world.ledger.wrong.append(f"a revocation beside a server that is cut off got {made.status_code}")
        await world.until_ready(number, wanted=False)
        await world.goes_on()
        await world.for_so_long(world.size.node_seconds, began_at)
        mended_at = trio.current_time()
        world.links.mend()
        with trio.move_on_after(GOES_ON_SECONDS_MAX):
            await is_closed.wait()
        if is_closed.is_set():
            world.notes.append(f"revoked, closed {trio.current_time() - mended_at:.2f} s after the cut")
        else:
            world.ledger.wrong.append("a connection whose token was revoked while its server was cut off stays open")
        nursery.cancel_scope.cancel()


async def fill_disk(world: World) -> None:
    """The disk of the NATS server that leads is full; it gets room, and is started again."""
    number = await world.leader()
    server, disk = world.its.servers[number], world.disks[number]
    used = os.statvfs(disk)
    _resize(disk, (used.f_blocks - used.f_bfree) * used.f_frsize // 1024 + LEFT_KIB)
    began_at = trio.current_time()
    await world.goes_on()
    await world.for_so_long(world.size.server_seconds, began_at)
    is_full = os.statvfs(disk).f_bfree * used.f_frsize < LEFT_KIB * 1024 // 2
    world.notes.append("it was full" if is_full else "it was not full: too little was written")
    _resize(disk, DISK_KIB)
    await blocking(server.end)
    await world.start_server(number)


async def upgrade(world: World) -> None:
    """Each NATS server, and then each of ours, is stopped, and one of the installed version started in its place."""
    for server in world.its.servers:
        server.program = ""
    await roll_servers(world)
    world.its.programs[:] = [COMMAND] * len(NODES)
    await roll_nodes(world)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to an installation, and what is aimed at."""

    name: str
    do: Callable[[World], Awaitable[None]]
    pause_seconds: float
    """Longest time without an acknowledgement that is aimed at."""
    closes: bool = False
    """Whether connections may end."""
    wants_disks: bool = False
    wants_former: bool = False
    """It begins with programs of former versions."""


FAULTS: Final = (
    Fault("kill-leader", kill_leader, 10),
    Fault("cut-leader", cut_leader, 10),
    Fault("cut-partly", cut_partly, 10),
    Fault("freeze-leader", freeze_leader, 10),
    Fault("kill-servers", kill_servers, 10),
    Fault("roll-servers", roll_servers, 3),
    Fault("fill-disk", fill_disk, 10, wants_disks=True),
    Fault("upgrade", upgrade, 3, closes=True, wants_former=True),
    Fault("kill-node", kill_node, 3, closes=True),
    Fault("freeze-node", freeze_node, ANSWER_SECONDS_MAX),
    Fault("roll-nodes", roll_nodes, 3, closes=True),
    Fault("cut-node", cut_node, ANSWER_SECONDS_MAX),
)


@contextmanager
def small_disks(directory: Path) -> Iterator[Sequence[Path]]:
    """A disk for each NATS server where it keeps its files; none where mounting is not allowed."""
    made: list[Path] = []
    try:
        for number in range(len(SERVERS)):
            place = directory / f"n{number + 1}" / "store"
            place.mkdir(parents=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k,mode=0700", "tmpfs", str(place)]
            if subprocess.run(command, check=False, capture_output=True).returncode:
                break
            made.append(place)
        yield made if len(made) == len(SERVERS) else []
    finally:
        for place in made:
            subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


def _resize(disk: Path, kib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kib}k", str(disk)], check=True, capture_output=True)
