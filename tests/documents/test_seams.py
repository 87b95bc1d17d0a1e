"""Clocks, chance and sockets are handed in, so that a simulation can hand in its own.

Trio's clock is one of them: `trio.current_time()` is what a test or a simulation says it is.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.documents.test_circles import ROOMS
from tests.programs import ROOT

MODULES = frozenset({"random", "secrets", "time", "uuid"})

CALLS = frozenset(
    {
        "date.today",
        "datetime.now",
        "datetime.today",
        "datetime.utcnow",
        "os.getrandom",
        "os.urandom",
        "socket.create_connection",
        "socket.create_server",
        "socket.socket",
        "socket.socketpair",
    }
)

COMMAND_LINE = ("web/cli.py", "web/commands/", "web/demo/")
"""A process of its own: nothing is handed to it."""

ALLOWED = {
    "storage/clock.py": {"time"},  # the machine's clock, which is handed in
    "storage/names.py": {"secrets"},  # random names, which are handed in
    "storage/memory_engine.py": {"random"},  # a generator with a seed, which is handed in
    "web/server/composition.py": {"random", "secrets"},  # what is handed in comes from here
    "web/server/nats_engine.py": {"random", "secrets"},  # as the composition root, for the engine of several servers
    # Listeners that the parent hands over, and the machine's clock, which processes share.
    "web/server/workers/__main__.py": {"socket.socket", "time"},
    "web/server/workers/parent.py": {"secrets", "time"},  # names of processes, and that clock
    "web/server/workers/line.py": {"time"},  # a thread that waits for the end of a process whose parent is gone
    "web/http/handed_over.py": {"socket.socket"},  # listeners that were made by whoever started the process
    "web/http/listening.py": {"socket.create_server", "socket.socket"},  # listeners, made by the composition root
    # Files and threads of the machine, which no simulation runs.
    "storage/disk/files.py": {"secrets"},  # names of files that have no name yet
    "storage/sqlite/bridge.py": {"time"},  # how long a step takes on the thread of the database
    "web/http/short_way.py": {"time"},  # the `Date` of an answer, which Hypercorn reads by itself as well
    "web/identity/download.py": {"time"},  # a download on a thread; `RemoteKeys` is handed the function
    "web/identity/keyring.py": {"secrets"},  # the local key: nobody but the machine may choose it
    "web/server/service_manager.py": {"socket.socket"},  # what systemd is told
    "web/server/log_writer.py": {"time"},  # the thread that writes log lines
    "web/server/logs.py": {"time"},  # when a line was logged, as `logging` itself reads it
}
"""Files of the server that may all the same, and what."""


def forbidden_in(source: str) -> Iterator[str]:
    """What a file imports or calls that should be handed in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if node.module in MODULES:
                yield node.module
            yield from (called for one in node.names if (called := f"{node.module}.{one.name}") in CALLS)
        elif isinstance(node, ast.Call):
            called = ".".join(ast.unparse(node.func).split(".")[-2:])
            if called in CALLS:
                yield called


def found_in(root: Path) -> dict[str, set[str]]:
    """What is forbidden, by file."""
    files = [path for room in ROOMS for path in (root / room).rglob("*.py")]
    found = {str(path.relative_to(root)): set(forbidden_in(path.read_text())) for path in files}
    return {file: names for file, names in found.items() if names and not file.startswith(COMMAND_LINE)}


def test_clocks_chance_and_sockets_are_handed_in() -> None:
    assert found_in(ROOT) == ALLOWED


def test_what_is_not_handed_in_is_found_wherever_it_stands(tmp_path: Path) -> None:
    files = {
        "actors/one.py": "def f():\n    from time import monotonic",
        "actors/two.py": "import uuid as u, random",
        "storage/three.py": "import socket\nsocket.socket().send(b'')\nsocket.SHUT_WR",
        "web/four.py": "import datetime\ndatetime.datetime.now(datetime.UTC)",
        "web/five.py": "from os import urandom",
        "web/six.py": "import trio, timeit\ntrio.current_time()\nclock.time()\nself.socket.recv(1)",
        "web/commands/seven.py": "import time",
    }
    for name, source in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    assert found_in(tmp_path) == {
        "actors/one.py": {"time"},
        "actors/two.py": {"random", "uuid"},
        "storage/three.py": {"socket.socket"},
        "web/four.py": {"datetime.now"},
        "web/five.py": {"os.urandom"},
    }
