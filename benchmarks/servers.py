"""The servers that are measured: how each is started, prepared and ended."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Final

from benchmarks.generator import Subscriber, Target
from benchmarks.peers.listening import POST_PATH
from benchmarks.processes import settle_on
from web.identity.keyring import load_key
from web.identity.tokens import issue
from web.server.settings import Settings

THIS_CHECKOUT: Final = shlex.join([str(Path(sys.executable).with_name("avicenna-live")), "serve"])
"""What starts our server as it is here."""

ROOT: Final = Path(__file__).parent.parent
BUILT: Final = ROOT / "build" / "benchmarks"
"""Where `make` puts what is compiled."""
NODE_PEERS: Final = ROOT / "build" / "peers"
"""Where `make` puts the peers on Node.js."""

OURS: Final = "avicenna"
FASTAPI: Final = "fastapi"
UVICORN_WORKERS: Final = "uvicorn-workers-"
"""The application of `FASTAPI` in so many processes as the number behind says."""
WEBSOCKETS: Final = "websockets"
QUART: Final = "quart"
LOOP: Final = "loop"
FLOOR: Final = "floor"
PICOWS: Final = "picows"
WS: Final = "ws"

LONG_WAY: Final = "avicenna-long"
"""Our server with the setting `short_way` off: every request goes through Hypercorn and Quart-Trio."""

OF_OURS: Final = frozenset({OURS, LONG_WAY})
"""The names under which our server is measured."""

SHORT_WAY: Final = "short_way"
"""The setting that is off in `LONG_WAY`."""

START_SECONDS_MAX: Final = 30.0
STOP_SECONDS_MAX: Final = 15.0
TOKEN_SECONDS: Final = 3600


class ServerFailed(Exception):
    """A server did not start; its last words are in the text."""


def why_missing(name: str) -> str | None:
    """Why a server cannot be measured here; `None`: it can."""
    if name == WS and shutil.which("node") is None:
        return "Node.js is not installed"
    if name == WS and not (NODE_PEERS / "node_modules").is_dir():
        return "its package is not installed: install npm, then run make"
    if name == LONG_WAY and SHORT_WAY not in {field.name for field in fields(Settings)}:
        return f"our server has no setting {SHORT_WAY}"
    return None


def those_here(names: Sequence[str]) -> list[str]:
    """The servers of these that can be measured here; of each other one stderr says why not."""
    reasons = {name: why_missing(name) for name in names}
    for name, reason in reasons.items():
        if reason is not None:
            print(f"{name}: skipped: {reason}", file=sys.stderr, flush=True)
    return [name for name in names if reasons[name] is None]


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

    def subscribers(self, diagnoses: int, each: int, prefix: str = "bench") -> list[Subscriber]:
        """So many subscribers of so many diagnoses, neighbours on different ones; our server knows them by tokens."""
        names = self.register(diagnoses, prefix)
        return [
            Subscriber(diagnosis=name, path=f"/ws/{name}", token=self.token(f"user-{name}-{turn}", "monitor"))
            for turn in range(each)
            for name in names
        ]

    def register(self, diagnoses: int, prefix: str = "bench") -> list[str]:
        """The names of so many diagnoses, which our server knows from now on."""
        names = [f"{prefix}-{number}" for number in range(diagnoses)]
        if self.data is not None:
            _register(self, names)
        return names

    def token(self, sub: str, scope: str) -> str | None:
        """A token of this subject with this scope; none for another server than ours."""
        return None if self.data is None else token_for(self.data, sub, scope)


@contextmanager
def running(
    name: str,
    core: int | None,
    our_command: str,
    *,
    data: Path | None = None,
    port: int = 0,
    settings: Mapping[str, str] | None = None,
    is_log_read: bool = True,
) -> Iterator[Running]:
    """A fresh server on its own core; ended with the block.

    Args:
        core: `None`: on all.
        data: our server's data directory; `None`: a new temporary one.
        port: where our server listens; 0: any free one.
        settings: further variables of its environment.
        is_log_read: False: once it listens nobody reads what it writes any more.
    """
    with tempfile.TemporaryDirectory(prefix="avicenna-bench-") as directory:
        data = (data or Path(directory) / "data") if name in OF_OURS else None
        chosen = {f"AVICENNA_{SHORT_WAY.upper()}": "false"} if name == LONG_WAY else {}
        command = [*shlex.split(our_command), "--port", str(port), "--data", str(data)] if data else _peer(name)
        said = Path(directory) / "output"
        with said.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={key: value for key, value in os.environ.items() if not key.startswith("AVICENNA_")}
                | chosen
                | dict(settings or {}),
                stdin=subprocess.DEVNULL,
                stdout=output if is_log_read else subprocess.PIPE,
                stderr=subprocess.STDOUT,
                preexec_fn=settle_on(core),  # noqa: PLW1509 - we have one thread
            )
        try:
            found_port, publish_port = announced(process, said)
            yield Running(process, target_at(found_port, publish_port, data), data, said)
        finally:
            _stop(process)


def _peer(name: str) -> list[str]:
    if name == FLOOR:
        return [str(BUILT / "floor")]
    if name == WS:
        return ["node", str(NODE_PEERS / "ws_broadcast.mjs")]
    if name.startswith(UVICORN_WORKERS):
        python, count = str(ROOT / ".venv-bench" / "bin" / "python"), name.removeprefix(UVICORN_WORKERS)
        return [python, "-m", "benchmarks.peers.fastapi_workers", count]
    modules = {
        FASTAPI: "fastapi_manager",
        WEBSOCKETS: "websockets_broadcast",
        QUART: "quart_stock",
        LOOP: "bare_loop",
        PICOWS: "picows_broadcast",
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


def target_at(port: int, publish_port: int, data: Path | None) -> Target:
    """What is reached at these ports of this machine: our server with this directory, or another one (`None`)."""
    return Target(
        address="127.0.0.1",
        port=port,
        publish_port=publish_port,
        publish_path=POST_PATH,
        publish_token=None if data is None else token_for(data, "publisher", "broadcast"),
        ready=None if data is None else '"type":"live"',
    )


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
