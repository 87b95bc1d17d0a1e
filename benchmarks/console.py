"""What looking costs: `make bench-console`.

10,000 diagnoses and 5,000 followers of 1,000 of them. Events are published at a steady rate, in turns without anybody
who looks, with a console, and with a console and `top`: the CPU time of the server for each delivery is compared, pair
by pair. Then how long a first turn takes, and how large it and the next ones are.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import pty
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks import filled
from benchmarks.compare import T_95
from benchmarks.generator import Generator, Subscriber, plan_text
from benchmarks.processes import CannotRun, allow_files, cores, cpu_seconds
from benchmarks.servers import BUILT, OURS, THIS_CHECKOUT, Running, running

IN_FLIGHT: Final = 32
PUBLISHERS: Final = 8
SETTLE_SECONDS: Final = 3.0

LOOKING: Final = ("a console", "a console and top")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How many, and how long."""

    diagnoses: int
    followed: int
    """Of the diagnoses, those that are followed."""
    followers: int
    """Of each of these."""
    rate: float
    """Events a second."""
    seconds: float
    """How long events are published each time."""


@dataclass(slots=True)
class Turn:
    """One turn of a stream, as it came."""

    bytes: int = 0
    rows: int = 0
    at: float = 0.0
    """When it was complete, in monotonic time."""


@dataclass(slots=True)
class Looking:
    """A console: reads its stream in a thread."""

    server: Running
    turns: list[Turn] = field(default_factory=list)
    began_at: float = 0.0
    _connection: http.client.HTTPConnection | None = None

    def read(self) -> None:
        """Read until the connection is closed."""
        target = self.server.target
        self._connection = http.client.HTTPConnection(target.address, target.port, timeout=60)
        self.began_at = time.monotonic()
        headers = {"Authorization": f"Bearer {self.server.token('op', 'operate')}"}
        self._connection.request("GET", "/console/events", headers=headers)
        turn = Turn()
        try:
            for line in self._connection.getresponse():
                turn.bytes += len(line)
                if not line.startswith(b"data: "):
                    continue
                message = json.loads(line[6:])
                turn.rows += len(message["data"].get("rows", ()))
                if message["type"] == "turn":
                    turn.at = time.monotonic()
                    self.turns.append(turn)
                    turn = Turn()
        except (OSError, ValueError, AttributeError):
            return  # it was closed

    def close(self) -> None:
        """End the stream."""
        if self._connection is not None and self._connection.sock is not None:
            self._connection.sock.shutdown(2)


@contextmanager
def console(server: Running) -> Iterator[Looking]:
    """A console that looks meanwhile."""
    looking = Looking(server)
    thread = threading.Thread(target=looking.read, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 60
        while not looking.turns:
            if time.monotonic() > until:
                raise CannotRun("the server sends a console nothing")
            time.sleep(0.01)
        yield looking
    finally:
        looking.close()
        thread.join()


@contextmanager
def top(server: Running, command: str, core: int) -> Iterator[None]:
    """`top` in a terminal of its own meanwhile."""
    keyboard, screen = pty.openpty()
    words = [*shlex.split(command)[:-1], "top", "--data", str(server.data)]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(words, stdin=screen, stdout=screen, stderr=screen, env=environment)
    os.sched_setaffinity(process.pid, {core})
    os.close(screen)

    def drain() -> None:
        try:
            while os.read(keyboard, 1 << 16):
                pass
        except OSError:
            return  # it has ended

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        thread.join()
        os.close(keyboard)


def measured(server: Running, generator: Generator, size: Size) -> tuple[float, float, float]:
    """CPU microseconds of the server for each delivery, and median and p99 of the time of a delivery in ms."""
    time.sleep(SETTLE_SECONDS)
    before = cpu_seconds(server.pid)
    phase = generator.publish(size.seconds, connections=PUBLISHERS, rate=size.rate)
    spent = cpu_seconds(server.pid) - before
    if phase.faults or phase.delivery_ms is None:
        raise CannotRun(f"not everything was delivered: {phase.faults}")
    return spent / phase.delivered * 1e6, phase.delivery_ms.p50, phase.delivery_ms.p99


def compare(size: Size, pairs: int, command: str) -> None:
    """Measure, and print."""
    server_core, generator_core = cores()
    os.sched_setaffinity(0, {generator_core})
    allow_files(size.followed * size.followers)
    with tempfile.TemporaryDirectory(prefix="avicenna-bench-") as directory, ExitStack() as stack:
        data = Path(directory) / "data"
        filled.fill(data, filled.diagnoses(size.diagnoses, "bench"))
        settings = {"AVICENNA_ADDRESS_SHARE": "1", "AVICENNA_DATABASE_MUST_EXIST": "true"}
        server = stack.enter_context(running(OURS, server_core, command, data=data, settings=settings))
        plan = Path(directory) / "plan"
        subscribers = [
            Subscriber(
                diagnosis=f"bench-{number}", path=f"/ws/bench-{number}", token=server.token(f"u{turn}", "monitor")
            )
            for turn in range(size.followers)
            for number in range(size.followed)
        ]
        plan.touch(0o600)
        plan.write_text(plan_text(server.target, subscribers))
        generator = stack.enter_context(Generator(BUILT / "load", plan, generator_core))
        generator.connect(IN_FLIGHT)
        print(
            f"{size.diagnoses} diagnoses, {len(subscribers)} followers of {size.followed}, "
            f"{size.rate:g} events a second"
        )
        show_stream(server, generator, size)
        measured(server, generator, size)
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ("nobody", *LOOKING)}
        for pair in range(pairs):
            for name in list(found) if pair % 2 == 0 else list(reversed(found)):
                with ExitStack() as looking:
                    if name != "nobody":
                        looking.enter_context(console(server))
                    if name == LOOKING[1]:
                        looking.enter_context(top(server, command, generator_core))
                    found[name].append(measured(server, generator, size))
                each = "  ".join(f"{one}: {figures[-1][0]:.1f}" for one, figures in found.items() if figures)
                print(f"pair {pair + 1}, us of CPU for each delivery: {each}", flush=True)
        report(found)


def show_stream(server: Running, generator: Generator, size: Size) -> None:
    """The first turn and later ones, and what looking costs while nothing happens."""
    rest = 10.0
    spent: list[float] = []
    for is_open in (False, True):
        with ExitStack() as looking:
            opened = looking.enter_context(console(server)) if is_open else None
            time.sleep(SETTLE_SECONDS)
            before = cpu_seconds(server.pid)
            generator.rest(rest)
            spent.append((cpu_seconds(server.pid) - before) / rest * 1000)
            if opened is not None:
                first = opened.turns[0]
                took = (first.at - opened.began_at) * 1000
                print(f"the first turn: {first.rows} rows, {first.bytes / 1024:.0f} KB, after {took:.0f} ms")
                generator.publish(5.0, connections=PUBLISHERS, rate=size.rate)
                later = opened.turns[-5:]
                sizes = [one.bytes / 1024 for one in later]
                rows = [one.rows for one in later]
                print(f"a turn under load: {statistics.median(rows):.0f} rows, {statistics.median(sizes):.1f} KB")
    print(f"at rest: {spent[0]:.0f} ms of CPU a second with nobody who looks, {spent[1]:.0f} ms with a console")


def report(found: dict[str, list[tuple[float, float, float]]]) -> None:
    """Each beside nobody who looks: the mean of the ratios, and its interval of 95 %."""
    alone = found["nobody"]
    for name, figures in found.items():
        cpu, p50, p99 = (statistics.mean(column) for column in zip(*figures, strict=True))
        text = f"{name}: {cpu:.1f} us of CPU for each delivery, delivery p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        if name != "nobody":
            ratios = [one[0] / other[0] for one, other in zip(figures, alone, strict=True)]
            text += f"; {statistics.mean(ratios):.3f} times nobody's"
            if len(ratios) > 1:
                freedom = max(one for one in T_95 if one <= len(ratios) - 1)
                half = T_95[freedom] * statistics.stdev(ratios) / len(ratios) ** 0.5
                text += f" (95 %: {statistics.mean(ratios) - half:.3f} to {statistics.mean(ratios) + half:.3f})"
        print(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.console", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--diagnoses", type=int, default=10_000)
    parser.add_argument("--followed", type=int, default=1000)
    parser.add_argument("--followers", type=int, default=5, help="of each followed diagnosis")
    parser.add_argument("--rate", type=float, default=200.0, help="events a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--ours", default=THIS_CHECKOUT, metavar="COMMAND")
    options = parser.parse_args(argv)
    size = Size(
        diagnoses=options.diagnoses,
        followed=options.followed,
        followers=options.followers,
        rate=options.rate,
        seconds=options.seconds,
    )
    try:
        compare(size, options.pairs, options.ours)
    except CannotRun as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
