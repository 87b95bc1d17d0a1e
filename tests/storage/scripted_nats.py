"""NATS servers in the process of the test, without sockets: they do what a test says, and are reached by `dial`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import trio
from trio.testing import lockstep_stream_pair


class Published(NamedTuple):
    """A message as a server gets it."""

    subject: str
    reply: str
    head: bytes
    data: bytes


class Client:
    """One client that a server has taken."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.subscriptions: dict[int, str] = {}
        self._one_at_a_time = trio.Lock()

    async def send(self, *frames: bytes) -> None:
        async with self._one_at_a_time:
            await self.stream.send_all(b"".join(frames))

    async def message(self, subject: str, data: bytes = b"", head: bytes = b"", reply: str = "") -> None:
        """Deliver a message to whoever of this client has subscribed."""
        for sid, pattern in list(self.subscriptions.items()):
            if covers(pattern, subject):
                to = f"{subject} {sid} {reply}".rstrip()
                line = f"HMSG {to} {len(head)} {len(head) + len(data)}\r\n" if head else f"MSG {to} {len(data)}\r\n"
                await self.send(line.encode(), head, data, b"\r\n")


def covers(pattern: str, subject: str) -> bool:
    """Whether a subject is one of those that a pattern means."""
    wanted, given = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(given) >= len(wanted) and wanted[:-1] == given[: len(wanted) - 1]
    return len(wanted) == len(given) and all(one in {"*", other} for one, other in zip(wanted, given, strict=True))


class Server:
    """A server of a scripted cluster."""

    def __init__(self, name: str, **info: Any) -> None:
        self.info = {"server_name": name, "version": "2.15.1", "max_payload": 1024, "headers": True, **info}
        self.options: dict[str, Any] = {}
        """What the last client said of itself."""
        self.published: list[Published] = []
        self.clients: list[Client] = []
        self.dialled = 0
        self.is_down = False
        self.is_deaf = False
        """It reads, and says nothing any more."""
        self.is_stuck = trio.Event()
        """It reads nothing until this is set."""
        self.is_stuck.set()
        self.greeting: bytes | None = None
        """What it says first instead of INFO."""
        self.refusal = ""
        """What it says to CONNECT."""

        async def echo(client: Client, message: Published) -> None:
            await client.message(message.subject, message.data, message.head, message.reply)

        self.answers: Callable[[Client, Published], Any] = echo
        """What it does with a message."""

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Take one client until it goes."""
        client = Client(stream)
        self.clients.append(client)
        try:
            info = b"INFO " + json.dumps(self.info).encode() + b"\r\n"
            await client.send(info if self.greeting is None else self.greeting)
            waiting = bytearray()
            while True:
                await self.is_stuck.wait()
                data = await stream.receive_some(100)
                if not data:
                    return
                waiting += data
                while (taken := await self._take(client, waiting)) > 0:
                    del waiting[:taken]
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.clients.remove(client)
            await trio.aclose_forcefully(stream)

    async def _take(self, client: Client, waiting: bytearray) -> int:
        """Do what the next frame says; how many bytes it has, 0: it is not there yet."""
        end = waiting.find(b"\r\n")
        if end < 0:
            return 0
        word, *parts = waiting[:end].decode().split(" ")
        end += 2
        if word in {"PUB", "HPUB"}:
            count = 2 if word == "PUB" else 3
            assert len(parts) in {count, count + 1}, parts
            size = int(parts[-1])
            head_bytes = int(parts[-2]) if word == "HPUB" else 0
            if len(waiting) < end + size + 2:
                return 0
            assert waiting[end + size : end + size + 2] == b"\r\n"
            head, data = bytes(waiting[end : end + head_bytes]), bytes(waiting[end + head_bytes : end + size])
            message = Published(parts[0], parts[1] if len(parts) > count else "", head, data)
            self.published.append(message)
            if not self.is_deaf:
                await self.answers(client, message)
            return end + size + 2
        if word == "SUB":
            client.subscriptions[int(parts[1])] = parts[0]
        elif word == "UNSUB":
            del client.subscriptions[int(parts[0])]
        elif word == "CONNECT":
            self.options = json.loads(parts[0] if len(parts) == 1 else " ".join(parts))
            if self.refusal:
                await client.send(f"-ERR '{self.refusal}'\r\n".encode())
                raise trio.ClosedResourceError
        elif word == "PING":
            if not self.is_deaf:
                await client.send(b"PONG\r\n")
        else:
            assert word == "PONG", word
        return end


class Servers:
    """A network of such servers, by host."""

    def __init__(self, nursery: trio.Nursery, *servers: Server) -> None:
        self._nursery = nursery
        self.by_host = {str(one.info["server_name"]): one for one in servers}
        self.dialled: list[str] = []

    async def dial(self, host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        self.dialled.append(host)
        server = self.by_host.get(host)
        if server is None or server.is_down:
            raise OSError(f"{host} is not there")
        ours, theirs = lockstep_stream_pair()  # nothing is taken before it is read
        self._nursery.start_soon(server.serve, theirs)
        return ours

    async def end(self, host: str) -> None:
        """A server ends as a process does that is killed."""
        server = self.by_host[host]
        server.is_down = True
        for client in list(server.clients):
            await trio.aclose_forcefully(client.stream)
