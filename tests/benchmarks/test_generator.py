"""The load generator against small servers of this process, and against the one in C."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.generator import Generator, Phase, Subscriber, Target, plan_text
from benchmarks.processes import cores

SUBSCRIBERS = [Subscriber(diagnosis="a", path="/ws/a")] * 3
PATIENCE_SECONDS = 2

Sender = Callable[[int, bytes], list[bytes]]
"""What a server sends to each subscriber for its nth message: frames."""


def text(payload: bytes) -> bytes:
    return b"\x81\x7e" + len(payload).to_bytes(2, "big") + payload


class Server(threading.Thread):
    """A broadcast server with a fault of one's choice."""

    def __init__(self, sender: Sender) -> None:
        super().__init__(daemon=True)
        self.sender = sender
        self.port = 0
        self.pongs: list[bytes] = []
        self.ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.stopping = asyncio.Event()

    def run(self) -> None:
        self.loop.run_until_complete(self.serve())
        self.loop.close()

    async def serve(self) -> None:
        self.followers: list[asyncio.StreamWriter] = []
        self.messages = 0
        server = await asyncio.start_server(self.talk, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        await self.stopping.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                if head.startswith("get"):
                    writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
                    self.followers.append(writer)
                    await self.hear_pongs(reader)
                    return
                body = await reader.readexactly(int(head.split("content-length:")[1].split("\r\n")[0]))
                self.messages += 1
                frames = b"".join(self.sender(self.messages, body))
                for follower in self.followers:
                    follower.write(frames[:5])  # a frame that spans reads
                await asyncio.sleep(0.001)
                for follower in self.followers:
                    follower.write(frames[5:])
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def hear_pongs(self, reader: asyncio.StreamReader) -> None:
        while True:
            first, second = await reader.readexactly(2)
            if first == 0x88:
                return
            assert first == 0x8A
            assert second & 0x80, "a client masks"
            mask = await reader.readexactly(4)
            payload = await reader.readexactly(second & 127)
            self.pongs.append(bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)))


@contextmanager
def serving(sender: Sender) -> Iterator[Server]:
    server = Server(sender)
    server.start()
    assert server.ready.wait(10)
    try:
        yield server
    finally:
        server.loop.call_soon_threadsafe(server.stopping.set)
        server.join(10)


@contextmanager
def generating(load_generator: Path, server: Server, directory: Path) -> Iterator[Generator]:
    target = Target(address="127.0.0.1", port=server.port, publish_port=server.port, publish_path="/post")
    plan = directory / "plan"
    plan.write_text(plan_text(target, SUBSCRIBERS, patience_seconds=PATIENCE_SECONDS))
    with Generator(load_generator, plan, cores()[1]) as generator:
        yield generator


def load(load_generator: Path, server: Server, directory: Path, outstanding: int = 1) -> Phase:
    with generating(load_generator, server, directory) as generator:
        assert generator.connect(2).opened == len(SUBSCRIBERS)
        return generator.publish(0.3, connections=1, outstanding=outstanding, rate=50)


def test_a_server_that_delivers_everything_has_no_fault(load_generator: Path, tmp_path: Path) -> None:
    with serving(lambda _, body: [text(body)]) as server:
        phase = load(load_generator, server, tmp_path)

    assert phase.accepted > 1
    assert phase.delivered == phase.expected == len(SUBSCRIBERS) * phase.accepted
    assert phase.faults == {}
    assert phase.delivery_ms is not None
    assert 0 < phase.delivery_ms.p50 <= phase.delivery_ms.p99 <= phase.delivery_ms.max


def test_a_repeated_delivery_is_counted(load_generator: Path, tmp_path: Path) -> None:
    with serving(lambda n, body: [text(body)] * (2 if n == 2 else 1)) as server:
        phase = load(load_generator, server, tmp_path)

    assert phase.faults == {"duplicates": len(SUBSCRIBERS)}


def test_a_delivery_that_is_overtaken_is_neither_lost_nor_repeated(load_generator: Path, tmp_path: Path) -> None:
    bodies: list[bytes] = []

    def overtaken(n: int, body: bytes) -> list[bytes]:
        bodies.append(body)
        return [] if n == 1 else [text(body), text(bodies[0])] if n == 2 else [text(body)]

    with serving(overtaken) as server:
        phase = load(load_generator, server, tmp_path, outstanding=0)

    assert phase.reordered == len(SUBSCRIBERS)
    assert phase.faults == {}


def test_a_lost_delivery_is_counted_after_a_bounded_wait(load_generator: Path, tmp_path: Path) -> None:
    with serving(lambda n, body: [] if n == 1 else [text(body)]) as server:
        phase = load(load_generator, server, tmp_path)

    assert phase.faults == {"lost": len(SUBSCRIBERS)}


def test_a_number_of_the_server_that_is_skipped_is_counted(load_generator: Path, tmp_path: Path) -> None:
    def numbered(n: int, body: bytes) -> list[bytes]:
        return [text(json.dumps({"seq": n + (n > 1), "data": json.loads(body)}).encode())]

    with serving(numbered) as server:
        phase = load(load_generator, server, tmp_path)

    assert phase.faults == {"seq_breaks": len(SUBSCRIBERS)}


def test_a_number_that_the_server_said_is_gone_is_missed_and_not_lost(load_generator: Path, tmp_path: Path) -> None:
    gap = b'{"type":"gap","data":{"from":2,"to":2,"count":1,"reason":"evicted"}}'

    def numbered(n: int, body: bytes) -> list[bytes]:
        return [text(gap if n == 2 else json.dumps({"seq": n, "data": json.loads(body)}).encode())]

    with serving(numbered) as server:
        phase = load(load_generator, server, tmp_path)

    assert (phase.missed, phase.expected - phase.delivered) == (len(SUBSCRIBERS), len(SUBSCRIBERS))
    assert phase.faults == {"gaps": len(SUBSCRIBERS)}


def test_a_subscriber_that_is_dropped_between_two_commands_is_counted(load_generator: Path, tmp_path: Path) -> None:
    with serving(lambda _, body: [text(body)]) as server, generating(load_generator, server, tmp_path) as generator:
        generator.connect(2)
        server.loop.call_soon_threadsafe(lambda: server.followers[0].write(b"\x88\x02\x03\xf4"))
        server.loop.call_soon_threadsafe(server.followers[1].transport.abort)
        while not server.followers[0].is_closing():
            time.sleep(0.01)
        phase = generator.rest(0.1)

    assert (phase.closed, phase.goodbyes) == (2, 1)


def test_subscribers_connect_in_steps(load_generator: Path, tmp_path: Path) -> None:
    with serving(lambda _, body: [text(body)]) as server, generating(load_generator, server, tmp_path) as generator:
        assert [generator.connect(2, up_to).opened for up_to in (1, 2, 2, 0)] == [1, 1, 0, 1]


def test_a_ping_is_answered_with_its_payload(load_generator: Path, tmp_path: Path) -> None:
    with serving(lambda n, body: [text(body), b"\x89\x02%02d" % n]) as server:
        phase = load(load_generator, server, tmp_path)

    assert phase.pings >= len(SUBSCRIBERS)
    assert server.pongs.count(b"01") == len(SUBSCRIBERS)


def test_an_address_that_is_not_loopback_is_refused(load_generator: Path, tmp_path: Path) -> None:
    target = Target(address="192.0.2.1", port=80, publish_port=80, publish_path="/post")
    (tmp_path / "plan").write_text(plan_text(target, SUBSCRIBERS))

    ended = subprocess.run([load_generator, tmp_path / "plan"], check=False, capture_output=True, text=True, timeout=10)

    assert ended.returncode == 2
    assert "loopback" in ended.stderr
