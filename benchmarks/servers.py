"""The servers that are measured: how each is started, prepared and ended."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from benchmarks.generator import Subscriber, Target
from benchmarks.peers.listening import POST_PATH
from benchmarks.processes import settle_on
from web.identity.keyring import load_key
from web.identity.tokens import issue

THIS_CHECKOUT: Final = shlex.join([str(Path(sys.executable).with_name("avicenna-live")), "serve"])
"""What starts our server as it is here."""

ROOT: Final = Path(__file__).parent.parent
BUILT: Final = ROOT / "build" / "benchmarks"
"""Where `make` puts what is compiled."""

OURS: Final = "avicenna"
FASTAPI: Final = "fastapi"
WEBSOCKETS: Final = "websockets"
QUART: Final = "quart"
LOOP: Final = "loop"
FLOOR: Final = "floor"

START_SECONDS_MAX: Final = 30.0
STOP_SECONDS_MAX: Final = 15.0
TOKEN_SECONDS: Final = 3600


class ServerFailed(Exception):
    """A server did not start; its last words are in the text."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that accepts connections."""

    process: subprocess.Popen[bytes]
    target: Target
    data: Path | None
    """Our server's data directory; `None`: another server."""
    said: Path
    """Everything it has written to stdout and stderr."""

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid

    def subscribers(self, diagnoses: int, each: int) -> list[Subscriber]:
        """So many subscribers of so many diagnoses, neighbours on different ones; our server knows them by tokens."""
        names = [f"bench-{number}" for number in range(diagnoses)]
        if self.data is not None:
            _register(self, names)
        return [
            Subscriber(diagnosis=name, path=f"/ws/{name}", token=self.token(f"user-{name}-{turn}", "monitor"))
            for turn in range(each)
            for name in names
        ]

    def token(self, sub: str, scope: str) -> str | None:
        """A token of this subject with this scope; none for another server than ours."""
        return None if self.data is None else token_for(self.data, sub, scope)


@contextmanager
def running(
    name: str,
    core: int,
    our_command: str,
    *,
    data: Path | None = None,
    settings: Mapping[str, str] | None = None,
    is_log_read: bool = True,
) -> Iterator[Running]:
    """A fresh server on its own core; ended with the block.

    Args:
        data: our server's data directory; `None`: a new temporary one.
        settings: further variables of its environment.
        is_log_read: False: once it listens nobody reads what it writes any more.
    """
    with tempfile.TemporaryDirectory(prefix="avicenna-bench-") as directory:
        data = (data or Path(directory) / "data") if name == OURS else None
        command = [*shlex.split(our_command), "--port", "0", "--data", str(data)] if data else _peer(name)
        said = Path(directory) / "output"
        with said.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={key: value for key, value in os.environ.items() if not key.startswith("AVICENNA_")}
                | dict(settings or {}),
                stdin=subprocess.DEVNULL,
                stdout=output if is_log_read else subprocess.PIPE,
                stderr=subprocess.STDOUT,
                preexec_fn=settle_on(core),  # noqa: PLW1509 - we have one thread
            )
        try:
            port, publish_port = announced(process, said)
            target = Target(
                address="127.0.0.1",
                port=port,
                publish_port=publish_port,
                publish_path=POST_PATH,
                publish_token=None if data is None else token_for(data, "publisher", "broadcast"),
                ready=None if data is None else '"type":"live"',
            )
            yield Running(process, target, data, said)
        finally:
            _stop(process)


def _peer(name: str) -> list[str]:
    if name == FLOOR:
        return [str(BUILT / "floor")]
    modules = {
        FASTAPI: "fastapi_manager",
        WEBSOCKETS: "websockets_broadcast",
        QUART: "quart_stock",
        LOOP: "bare_loop",
    }
    return [str(ROOT / ".venv-bench" / "bin" / "python"), "-m", f"benchmarks.peers.{modules[name]}"]


def announced(process: subprocess.Popen[bytes], said: Path) -> tuple[int, int]:
    """The ports of subscribers and of publishers, once the server has said that it listens."""
    until = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < until and process.poll() is None:
        if process.stdout is not None:
            _take_log(process.stdout, said)
        text = said.read_text(errors="replace")
        if listening := re.search(r"listening on http://\S+?:(\d+)", text):
            publishing = re.search(r"publishing on http://\S+?:(\d+)", text)
            return int(listening[1]), int((publishing or listening)[1])
        time.sleep(0.02)
    raise ServerFailed(f"{process.args!r} did not start: {said.read_text(errors='replace')[-2000:]}")


def _take_log(pipe: IO[bytes], said: Path) -> None:
    """Move what a server has written so far from its pipe to the file."""
    os.set_blocking(pipe.fileno(), False)
    with said.open("ab") as output, suppress(BlockingIOError):
        output.write(os.read(pipe.fileno(), 1 << 16))


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def token_for(data: Path, sub: str, scope: str) -> str:
    key = load_key(data)
    assert key is not None, "a running server has a key"
    return issue(key, sub=sub, scope=scope, ttl_seconds=TOKEN_SECONDS, now=time.time(), token_id=sub)


def _register(server: Running, names: Sequence[str]) -> None:
    assert server.data is not None, "only our server has a registry"
    headers = {"Authorization": f"Bearer {token_for(server.data, 'registrar', 'register')}"}
    connection = http.client.HTTPConnection(server.target.address, server.target.port, timeout=START_SECONDS_MAX)
    try:
        for name in names:
            body = json.dumps({"owner": "owner", "viewers": []})
            connection.request("PUT", f"/diagnoses/{name}", body, headers | {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status not in (200, 201):
                raise ServerFailed(f"registering a diagnosis was answered {answer.status}")
    finally:
        connection.close()
