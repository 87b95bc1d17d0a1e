"""`make cluster`: several servers on NATS JetStream to look at and to break, on this machine, until `q`.

Three NATS servers, three of our servers and HAProxy before them run in a temporary directory, on 127.0.0.1 alone. A
publisher and a follower come through the proxy, and a line each second says what lives and what the follower got.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import sys
import tempfile
import termios
import tty
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import Final

import trio

from tests.cluster.clients import OWNER, Follower, Ledger, Publisher, bearer
from tests.cluster.installation import NODES, SERVERS, CannotBegin, Installation, installed, needs, state_of
from tests.cluster.servers import freeze

DIAGNOSIS: Final = "42"

PORT: Final = 8000

PACE_SECONDS: Final = 0.5
"""Between two updates, about."""

HELP: Final = """
  1 2 3     kill a NATS server (kill -9), start it again, or let a frozen one go on
  a b c     the same for one of our servers
  f, then one of these: freeze it (SIGSTOP)
  q         end all
"""

AT_THE_END: Final = frozenset("qQ\x03\x04")
"""Keys that end it: Ctrl-C and Ctrl-D, too, where the terminal does not make a signal of them."""


class Cluster:
    """An installation, who uses it, and what the keys do to it."""

    def __init__(self, installation: Installation, say: Callable[[str], None]) -> None:
        self._its = installation
        self._say = say
        self._freezes = False
        self._ledger = Ledger()
        urls, key = installation.urls, installation.key
        self._follower = Follower(urls, key, DIAGNOSIS, say)
        self._publisher = Publisher(urls, key, [DIAGNOSIS], self._ledger, SystemRandom(), PACE_SECONDS)

    async def run(self) -> None:
        """Publish, follow, show and obey, until `q`, a signal or the end of the input."""
        async with trio.open_nursery() as nursery:
            self._ledger.begin()
            nursery.start_soon(self._until_signal, nursery.cancel_scope)
            nursery.start_soon(self._follower.run)
            nursery.start_soon(partial(self._publisher.run, keyed=1.0))
            nursery.start_soon(self._show)
            async for one in keys():
                if one in AT_THE_END:
                    break
                await trio.to_thread.run_sync(self._press, one)
            nursery.cancel_scope.cancel()

    async def _until_signal(self, scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as received:
            async for _ in received:
                scope.cancel()

    def _press(self, one: str) -> None:
        freezes, self._freezes = self._freezes, one == "f"
        if one in SERVERS:
            server = self._its.servers[SERVERS.index(one)]
            process, start = server.process, server.start
        elif one in NODES:
            number = NODES.index(one)
            process, start = self._its.nodes[number].process, partial(self._its.start_node, number)
        else:
            return
        what, state = f"NATS server {one}" if one in SERVERS else f"server {one}", state_of(process)
        if process is None or state == "dead":
            start()
            self._say(f"{what} is started")
        elif state == "frozen":
            process.send_signal(signal.SIGCONT)
            self._say(f"{what} goes on")
        elif freezes:
            freeze(process)
            self._say(f"{what} is frozen")
        else:
            process.kill()
            process.wait()
            self._say(f"{what} is killed")

    async def _show(self) -> None:
        while True:
            await trio.to_thread.run_sync(partial(show, self._status(await self._ready())))
            await trio.sleep(1)

    async def _ready(self) -> list[bool]:
        found = [False] * len(NODES)

        async def look(number: int) -> None:
            found[number] = await trio.to_thread.run_sync(self._its.is_ready, number)

        async with trio.open_nursery() as nursery:
            for number in range(len(NODES)):
                nursery.start_soon(look, number)
        return found

    def _status(self, ready: list[bool]) -> str:
        servers = [f"{name} {state_of(one.process)}" for name, one in zip(SERVERS, self._its.servers, strict=True)]
        nodes = []
        for name, one, is_ready in zip(NODES, self._its.nodes, ready, strict=True):
            state = state_of(one.process)
            nodes.append(f"{name} {state if state != 'up' else 'ready' if is_ready else 'waits'}")
        follower, ledger = self._follower, self._ledger
        return (
            f"{' '.join(servers)} | {' '.join(nodes)} | {len(ledger.acknowledged)} published, "
            f"{ledger.refused} refused | "
            f"{'live' if follower.is_live else 'away'}: {len(follower.got)} events, {follower.missing} missing, "
            f"{follower.doubled} doubled"
        )


async def keys() -> AsyncIterator[str]:
    """What is typed, until the input ends; a file that cannot be waited for says nothing."""
    while True:
        try:
            await trio.lowlevel.wait_readable(sys.stdin.fileno())
        except OSError:
            await trio.sleep_forever()
        try:
            typed = os.read(sys.stdin.fileno(), 64)
        except OSError:  # the terminal is gone
            return
        if not typed:
            return
        for one in typed.decode(errors="replace"):
            yield one


def show(line: str) -> None:
    """Put a line in place of the one before, on a terminal; else below it."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
    else:
        print(line, flush=True)


def say(line: str) -> None:
    """Say something that stays."""
    print(f"\r\x1b[K{line}" if sys.stdout.isatty() else line, flush=True)


@contextmanager
def key_by_key() -> Iterator[None]:
    """Have each key come at once and unseen, where the input is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def register(installation: Installation) -> None:
    """Register the diagnosis, whose owner follows it."""
    headers = bearer(installation.key, "registrar", "register") | {"Content-Type": "application/json"}
    body = f'{{"owner": "{OWNER}"}}'.encode()
    asked = urllib.request.Request(
        f"{installation.urls[0]}/diagnoses/{DIAGNOSIS}", data=body, headers=headers, method="PUT"
    )
    urllib.request.urlopen(asked, timeout=30).close()


def introduction(installation: Installation) -> str:
    """Where what is, and how to look at it."""
    nodes = ", ".join(f"{name} {one.url}" for name, one in zip(NODES, installation.nodes, strict=True))
    servers = ", ".join(f"{name} {one.address}" for name, one in zip(SERVERS, installation.servers, strict=True))
    where = f"proxy    {installation.urls[0]}" if installation.proxy else "proxy    none, as HAProxy is not installed"
    to = f"--url {installation.urls[0]} --data {installation.nodes[0].data}"
    command = Path(sys.executable).with_name("avicenna-live")
    return (
        f"\n  {where}\n  servers  {nodes}\n  NATS     {servers}\n\n"
        f"  {command} tail {DIAGNOSIS} --peek {to}\n  {command} top {to}\n{HELP}"
    )


def main() -> int:
    """Run it; 2: it cannot be run here."""
    parser = argparse.ArgumentParser(prog="make cluster", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--port", type=int, default=PORT, help="of the proxy; 0: any; default %(default)s")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        needs("nats-server")
        with (
            tempfile.TemporaryDirectory(prefix="avicenna-cluster-", ignore_cleanup_errors=True) as directory,
            key_by_key(),
        ):
            say("three NATS servers and three of ours start ...")
            with installed(Path(directory), secrets.token_bytes(32), port=options.port) as installation:
                register(installation)
                say(introduction(installation))
                trio.run(Cluster(installation, say).run)
            say("all have ended, and what they stored is gone")
    except CannotBegin as problem:
        print(f"make cluster: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
