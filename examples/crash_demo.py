"""Kills a server again and again while somebody publishes and somebody follows, and counts what arrived.

    python crash_demo.py [--updates 60] [--kills 3]

It starts a server of its own on a temporary directory, and leaves nothing behind. It ends with 0 if every number came,
once and in order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from avicenna_live import AsyncBroadcaster, Backoff, Event, Follower

COMMAND = str(Path(__file__).parents[1] / ".venv" / "bin" / "avicenna-live")
START_SECONDS_MAX = 30
WAITS = Backoff(first_seconds=0.05, max_seconds=0.5)


class Server:
    """A server that is killed and started again, on the port it had."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._port = "0"
        self.url = ""

    async def start(self) -> None:
        """Start it, and wait until it says where it listens."""
        command = (COMMAND, "serve", "--port", self._port, "--data", str(self._data))
        self._process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
        assert self._process.stderr is not None
        async with asyncio.timeout(START_SECONDS_MAX):
            while b"listening on" not in (line := await self._process.stderr.readline()):
                if not line:
                    raise SystemExit("the server did not start")
        (self.url, *_) = json.loads((self._data / "listening.json").read_text())["urls"]
        self._port = self.url.rpartition(":")[2]
        self._reading = asyncio.create_task(self._process.stderr.read())

    async def kill(self) -> None:
        """End it as a power button would."""
        self._process.kill()
        await self._process.wait()
        await self._reading

    def ask(self, *arguments: str) -> str:
        """What a command says, with the key in the data directory."""
        command = (COMMAND, *arguments, "--data", str(self._data))
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


async def publish(server: Server, count: int, published: asyncio.Queue[int]) -> None:
    """Publish one update after the other; a call that finds no server goes on trying, with the same key."""
    token = server.ask("token", "--sub", "service", "--scope", "broadcast")
    async with AsyncBroadcaster(server.url, token=token) as broadcaster:
        for number in range(1, count + 1):
            receipt = await broadcaster.broadcast_feedback_update(42, feedback_id=number, rating=5)
            published.put_nowait(receipt.seq)


async def follow(server: Server, count: int) -> list[int]:
    """The numbers that came, up to the last one."""
    numbers: list[int] = []
    token = server.ask("token", "--sub", "amira")
    async with Follower(server.url, token=token, device="demo", backoff=WAITS) as live:
        async for item in live.follow(42):
            if isinstance(item, Event):
                numbers.append(item.seq)
            else:
                print(f"not an update: {item}")
            if len(numbers) >= count:
                break
    return numbers


async def main(updates: int, kills: int) -> int:
    """Have it all happen; the exit code."""
    with tempfile.TemporaryDirectory(prefix="avicenna-crashes-") as directory:
        server = Server(Path(directory))
        await server.start()
        try:
            server.ask("diagnoses", "add", "42", "--owner", "amira")
            published: asyncio.Queue[int] = asyncio.Queue()
            following = asyncio.create_task(follow(server, updates))
            publishing = asyncio.create_task(publish(server, updates, published))
            for kill in range(1, kills + 1):
                while published.qsize() < updates * kill // (kills + 1) and not publishing.done():
                    await asyncio.sleep(0.001)
                await server.kill()
                print(f"kill -9 after update {published.qsize()}")
                await server.start()
            await publishing
            numbers = await following
        finally:
            await server.kill()
    is_whole = numbers == list(range(1, updates + 1))
    print(f"{updates} updates, {kills} kills: {'each number came once, in order' if is_whole else numbers}")
    return 0 if is_whole else 1


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--updates", type=int, default=60)
    options.add_argument("--kills", type=int, default=3)
    chosen = options.parse_args()
    sys.exit(asyncio.run(main(chosen.updates, chosen.kills)))
