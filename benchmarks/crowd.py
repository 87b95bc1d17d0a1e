"""A crowd on one server: `make bench-crowd`.

Thousands of followers rest, and then events are published to them, while some of them read slowly, some flood the
server with tiny frames, and the server's process is stopped for a while, as a machine that is paused is. Nobody who
does no harm may be cut off, and nothing may be lost.

Exit code: 0, 1 if a promise was broken, 2 if it could not be run.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Final

from benchmarks import watched
from benchmarks.abuses import ACK, PING, flood
from benchmarks.generator import Generator, GeneratorError, Phase, Subscriber, Times, plan_text
from benchmarks.place import FAR, IN_FLIGHT, client_frame, upgrade
from benchmarks.processes import CannotRun, allow_files, cores, cpu_seconds, memory_bytes
from benchmarks.servers import BUILT, OURS, Running, ServerFailed, running
from benchmarks.watched import NOTED_SECONDS, Turn, read_turns

PUBLISHERS: Final = 8
"""Connections that publish."""

REST_AT: Final = (0.1, 0.5, 1.0)
"""Shares of the crowd at which the CPU time at rest is measured."""

SETTLE_SECONDS: Final = 5.0
"""After followers have connected, until they rest: by then their receipts are in, and no Ping is due yet."""

STOPPED_AFTER_SECONDS: Final = 2.0
"""Events are published for so long before the process is stopped."""

CONNECTIONS_BESIDE: Final = 100
"""Connections to the server beside the followers."""

EXIT_SECONDS_MAX: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How many, and how long."""

    diagnoses: int = 1000
    followers: int = 10
    """Of each diagnosis."""
    slow: int = 100
    """Of all followers, those that read rarely or little."""
    floods: int = 10
    """Of all followers, those that send tiny frames as fast as they can."""
    seconds: float = 300.0
    """How long events are published, the time of the stop included."""
    rate: float = 100.0
    """Events a second."""
    stop_seconds: float = 12.0
    """How long the process is stopped."""
    rest_seconds: float = 25.0
    """How long the CPU time at rest is measured. The server pings everybody once in 25 s of silence."""

    @property
    def connections(self) -> int:
        """All followers."""
        return self.diagnoses * self.followers

    @property
    def around_stop_seconds(self) -> float:
        """How long events are published around the stop: until what has piled up by then is gone."""
        return STOPPED_AFTER_SECONDS + 2.5 * self.stop_seconds


@dataclass(frozen=True, slots=True)
class Window:
    """A part of the run, in monotonic time."""

    began_at: float
    ended_at: float


@dataclass(slots=True, kw_only=True)
class Found:
    """What was measured."""

    size: Size
    at_rest: dict[int, float] = field(default_factory=dict)
    """CPU seconds a second, by the number of followers that rest."""
    bytes_each: float = 0.0
    """Memory of the server for each follower."""
    phases: dict[str, Phase] = field(default_factory=dict)
    windows: dict[str, Window] = field(default_factory=dict)
    stop: Window = Window(inf, inf)
    """When the process was stopped."""
    load_cpu: float = 0.0
    """CPU seconds a second while events are published, without the time of the stop."""
    heads: int = 0
    """Sum of the newest numbers of all diagnoses."""
    slow_cut: int = 0
    floods_cut: int = 0
    turns: list[Turn] = field(default_factory=list)
    goodbyes: int = 0
    """Close frames that healthy followers got when the server was told to stop."""
    exit_seconds: float = 0.0
    log: str = ""

    @property
    def healthy(self) -> int:
        """Followers that do no harm."""
        return self.size.connections - self.size.slow - self.size.floods

    def total(self, name: str) -> int:
        """Sum of one counter over all phases."""
        return sum(getattr(phase, name) for phase in self.phases.values())

    @property
    def broken(self) -> list[str]:
        """The promises that were broken, each a sentence."""
        open_at_end = self.total("opened") - self.total("closed")
        lost = self.total("expected") - self.total("delivered") - self.total("missed")
        found = {
            f"{self.total('failed')} healthy clients could not connect": self.total("failed"),
            f"{self.total('closed')} healthy clients were cut": self.total("closed"),
            f"{lost} deliveries were lost": lost,
            f"{self.total('duplicates')} deliveries were repeated": self.total("duplicates"),
            f"{self.total('seq_breaks')} numbers were not one more than the one before": self.total("seq_breaks"),
            f"{self.total('refused')} publishes were not answered 200": self.total("refused"),
            f"{self.total('accepted')} publishes were accepted, and the heads sum up to {self.heads}": self.heads
            != self.total("accepted"),
            "nothing was published": not self.total("accepted"),
            f"it took {self.exit_seconds:.1f} s to exit": self.exit_seconds > EXIT_SECONDS_MAX,
            f"{open_at_end - self.goodbyes} healthy clients got no Close at the end": open_at_end > self.goodbyes,
        }
        return [sentence for sentence, is_broken in found.items() if is_broken]


class Slow:
    """A follower that reads rarely, or little at a time, and answers what it has read."""

    def __init__(self, sock: socket.socket, begun: bytes, every_seconds: float, bytes_at_once: int) -> None:
        """Take an upgraded socket.

        Args:
            begun: what has been read of it.
        """
        self._sock = sock
        self._held = begun
        self._every_seconds = every_seconds
        self._bytes_at_once = bytes_at_once
        self._due_at = 0.0
        self.is_cut = False
        sock.setblocking(False)

    def read_if_due(self, now: float) -> None:
        """Read once, if it is time to."""
        if self.is_cut or now < self._due_at:
            return
        self._due_at = now + self._every_seconds
        try:
            read = self._sock.recv(self._bytes_at_once)
            self.is_cut = not read
            self._held += read
            for opcode, payload in self._frames():
                if opcode == 9:
                    self._sock.send(client_frame(10, payload))
        except BlockingIOError:
            return
        except OSError:
            self.is_cut = True

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        """Whole frames; a server's are not masked, and none has 64 KiB."""
        while len(self._held) >= 2:
            length, head = self._held[1] & 127, 2
            if length == 126:
                length, head = int.from_bytes(self._held[2:4], "big"), 4
            if len(self._held) < head + length:
                return
            payload = self._held[head : head + length]
            yield self._held[0] & 15, payload
            self._held = self._held[head + length :]

    def close(self) -> None:
        """End it."""
        self._sock.close()


class Harm:
    """The followers that are slow, and those that flood when they are told to; on threads of this process."""

    def __init__(self, server: Running, slow: Sequence[Subscriber], floods: Sequence[Subscriber]) -> None:
        """Connect all of them; those that will flood are only slow for now."""
        self._server = server
        self._floods = floods
        self._stopping = threading.Event()
        self.slow = [self._slow(index, one) for index, one in enumerate(slow)]
        self._waiting = [self._slow(index, one) for index, one in enumerate(floods)]
        self._floods_cut = 0
        self._threads = [threading.Thread(target=self._read_slowly, daemon=True)]
        self._threads[0].start()

    def _connect(self, one: Subscriber, receive_bytes: int | None = None) -> tuple[socket.socket, bytes]:
        sock = socket.socket()
        sock.settimeout(10)
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.bind((FAR, 0))
        sock.connect((self._server.target.address, self._server.target.port))
        return sock, upgrade(sock, one.path, one.token)

    def _slow(self, index: int, one: Subscriber) -> Slow:
        """Half of them read all there is, every eight seconds; half of them a hundred bytes, every second."""
        every_seconds, bytes_at_once = (8.0, 1 << 16) if index % 2 else (1.0, 100)
        return Slow(*self._connect(one, receive_bytes=2048), every_seconds, bytes_at_once)

    def begin_floods(self) -> None:
        """Those that are to flood come again, and do."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.close()
        connect = [partial(self._flooding, one) for one in self._floods]
        thread = threading.Thread(target=self._flood, args=(connect,), daemon=True)
        thread.start()
        self._threads.append(thread)

    def _flooding(self, one: Subscriber) -> socket.socket:
        return self._connect(one)[0]

    def _flood(self, connect: Sequence[Callable[[], socket.socket]]) -> None:
        if connect:
            self._floods_cut = flood(self._stopping.is_set, connect, [PING, ACK, client_frame(1, b"x")])

    def _read_slowly(self) -> None:
        while not self._stopping.wait(0.05):
            for one in (*self.slow, *self._waiting):
                one.read_if_due(time.monotonic())

    def stop(self) -> tuple[int, int]:
        """End all of them; how many of the slow were cut by then, and how often one that floods was."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(20)
        slow_cut = sum(one.is_cut for one in self.slow)
        for one in (*self.slow, *self._waiting):
            one.close()
        return slow_cut, self._floods_cut


class Run:
    """One run, step by step."""

    def __init__(self, size: Size, server: Running, generator: Generator, say: Callable[[str], None]) -> None:
        self._size = size
        self._server = server
        self._generator = generator
        self._say = say
        self.found = Found(size=size)

    def _phase(self, name: str, act: Callable[[], Phase]) -> Phase:
        self._say(name)
        began_at = time.monotonic()
        phase = self.found.phases[name] = act()
        self.found.windows[name] = Window(began_at, time.monotonic())
        return phase

    def rest(self) -> None:
        """Followers connect in steps, and rest."""
        before = memory_bytes(self._server.pid)
        beside = self._size.slow + self._size.floods
        for share in REST_AT:
            count = round(self._size.connections * share)
            self._phase(f"connecting, to {count:,}", partial(self._generator.connect, IN_FLIGHT, count - beside))
            settling_seconds = min(SETTLE_SECONDS, self._size.rest_seconds)
            self._phase(f"settling, {count:,}", partial(self._generator.rest, settling_seconds))
            spent = cpu_seconds(self._server.pid)
            resting = self._phase(f"at rest, {count:,}", partial(self._generator.rest, self._size.rest_seconds))
            self.found.at_rest[count] = (cpu_seconds(self._server.pid) - spent) / resting.seconds
        self.found.bytes_each = (memory_bytes(self._server.pid) - before) / (self._size.connections - beside)

    def load(self) -> None:
        """Events are published; in the middle the process is stopped."""
        size = self._size
        aside_seconds = (size.seconds - size.around_stop_seconds) / 2
        spent, began_at = cpu_seconds(self._server.pid), time.monotonic()
        self._phase("before the stop", partial(self._publish, aside_seconds))
        with _stopped(self._server.pid, STOPPED_AFTER_SECONDS, size.stop_seconds) as stop:
            self._phase("around the stop", partial(self._publish, size.around_stop_seconds))
        self._phase("after the stop", partial(self._publish, aside_seconds))
        seconds = time.monotonic() - began_at - size.stop_seconds
        self.found.load_cpu = (cpu_seconds(self._server.pid) - spent) / seconds
        self.found.stop = stop[0]

    def _publish(self, seconds: float) -> Phase:
        return self._generator.publish(seconds, connections=PUBLISHERS, rate=self._size.rate)

    def look_at_heads(self, names: Sequence[str]) -> None:
        """Ask the server for the newest number of every diagnosis."""
        headers = {"Authorization": f"Bearer {self._server.token('operator', 'monitor')}"}
        connection = http.client.HTTPConnection(self._server.target.address, self._server.target.port, timeout=30)
        for name in names:
            connection.request("GET", f"/diagnoses/{name}/position", headers=headers)
            self.found.heads += int(json.load(connection.getresponse())["head"])
        connection.close()

    def end(self) -> None:
        """SIGTERM, with everybody connected."""
        self._say("the end")
        began_at = time.monotonic()
        self._server.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._server.process.wait(3 * EXIT_SECONDS_MAX)
        self.found.exit_seconds = time.monotonic() - began_at
        self.found.goodbyes = self._generator.rest(0.1).goodbyes


@contextmanager
def _stopped(pid: int, after_seconds: float, seconds: float) -> Iterator[list[Window]]:
    """SIGSTOP some time after the block began, and SIGCONT some time later; the block waits for both."""
    window: list[Window] = []

    def stop() -> None:
        time.sleep(after_seconds)
        began_at = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            window.append(Window(began_at, time.monotonic()))
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        yield window
    finally:
        thread.join()


def turns_of(turns: Sequence[Turn], window: Window, stop: Window) -> list[Turn]:
    """The turns that began in a window; one in which the process was stopped counts without the stop."""

    def without_stop(turn: Turn) -> Turn:
        stopped_seconds = min(turn.began_at + turn.seconds, stop.ended_at) - max(turn.began_at, stop.began_at)
        return replace(turn, seconds=turn.seconds - max(0.0, stopped_seconds))

    return [without_stop(turn) for turn in turns if window.began_at <= turn.began_at < window.ended_at]


def measure(size: Size, program: Path, say: Callable[[str], None]) -> Found:
    """A whole run on a fresh server.

    Args:
        program: the load generator.
        say: is told what is done now.

    Raises:
        GeneratorError, ServerFailed, OSError: it could not be run to its end.
    """
    server_core, generator_core = cores()
    with tempfile.TemporaryDirectory(prefix="avicenna-crowd-") as directory:
        turns, plan = Path(directory) / "turns", Path(directory) / "plan"
        settings = {"AVICENNA_MAX_CONNECTIONS": str(size.connections + CONNECTIONS_BESIDE)}
        with running(OURS, server_core, watched.command(turns), settings=settings) as server:
            everybody = server.subscribers(size.diagnoses, size.followers)
            healthy = everybody[: size.connections - size.slow - size.floods]
            slow, floods = everybody[len(healthy) : len(healthy) + size.slow], everybody[len(healthy) + size.slow :]
            plan.write_text(plan_text(server.target, healthy, patience_seconds=int(size.stop_seconds) + 20))
            with Generator(program, plan, generator_core) as generator:
                run = Run(size, server, generator, say)
                harm = Harm(server, slow, floods)
                try:
                    run.rest()
                    harm.begin_floods()
                    run.load()
                finally:
                    run.found.slow_cut, run.found.floods_cut = harm.stop()
                run.look_at_heads(sorted({one.diagnosis for one in everybody}))
                run.end()
            run.found.turns = read_turns(turns)
            run.found.log = server.said.read_text(errors="replace")
            return run.found


def table(found: Found) -> str:
    """Markdown: what was measured."""
    size = found.size
    rows = {
        "connections": f"{size.connections:,} ({found.healthy:,} healthy, {size.slow} slow, {size.floods} floods), "
        f"{size.diagnoses:,} diagnoses",
        **{f"CPU at rest, {count:,} connections": f"{cpu:.3f} s a second" for count, cpu in found.at_rest.items()},
        "memory of the server for each connection": f"{found.bytes_each / 1024:.1f} KB",
        "events accepted": f"{found.total('accepted'):,} at {size.rate:g} a second in {size.seconds:g} s, "
        f"the process stopped for {size.stop_seconds:g} s",
        "deliveries to healthy clients": f"{found.total('delivered'):,} of {found.total('expected'):,}, "
        f"{found.total('missed')} told to be gone, {found.total('duplicates')} repeated",
        "healthy clients cut": f"{found.total('closed')}",
        "slow clients cut": f"{found.slow_cut}",
        "times a flood was cut": f"{found.floods_cut}",
        "CPU under load": f"{found.load_cpu:.2f} s a second",
    }
    for name in ("before the stop", "around the stop", "after the stop"):
        phase = found.phases[name]
        rows[f"publish, delivery p50 / p99 / max, {name}"] = f"{_times(phase.post_ms)}, {_times(phase.delivery_ms)} ms"
    for name, window in found.windows.items():
        if not name.startswith("settling"):
            rows[f"longest turn of the loop, {name}"] = _longest(turns_of(found.turns, window, found.stop))
    rows["exit after SIGTERM"] = f"{found.exit_seconds:.1f} s, {found.goodbyes:,} healthy clients got a Close"
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _times(times: Times | None) -> str:
    return "none" if times is None else f"{times.p50:.1f} / {times.p99:.1f} / {times.max:.1f}"


def _longest(turns: Sequence[Turn]) -> str:
    if not turns:
        return f"below {NOTED_SECONDS * 1000:.0f} ms"
    longest = max(turns, key=lambda turn: turn.seconds)
    most_cpu = max(turn.cpu_seconds for turn in turns)
    step = f"its longest step {longest.step_seconds * 1000:.0f} ms, of {longest.task}"
    return (
        f"{longest.seconds * 1000:.0f} ms ({longest.cpu_seconds * 1000:.0f} ms of CPU; {step}); "
        f"most CPU in a turn {most_cpu * 1000:.0f} ms"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure a crowd, print a table, and say which promises were broken."""
    options = _parser().parse_args(argv)
    size = Size(
        diagnoses=options.diagnoses,
        followers=options.followers,
        slow=round(options.slow * options.diagnoses * options.followers),
        floods=options.floods,
        seconds=options.seconds,
        rate=options.rate,
        stop_seconds=options.stop,
        rest_seconds=options.rest,
    )
    try:
        check_size(size)
        allow_files(size.connections)
        found = measure(size, BUILT / "load", lambda text: print(text, file=sys.stderr, flush=True))
    except (CannotRun, GeneratorError, ServerFailed, OSError) as failure:
        print(f"crowd: {failure}", file=sys.stderr)
        return 2
    print(table(found))
    for sentence in found.broken:
        print(f"BROKEN: {sentence}")
    if options.log:
        options.log.write_text(found.log)
    return 1 if found.broken else 0


def check_size(size: Size) -> None:
    """Raises `CannotRun` where the numbers do not fit together."""
    if min(size.diagnoses, size.followers) < 1 or size.slow + size.floods >= size.connections * min(REST_AT):
        raise CannotRun(f"{size.slow} slow clients and {size.floods} floods leave too few of {size.connections} others")
    if size.seconds < size.around_stop_seconds + 1:
        raise CannotRun(
            f"a stop of {size.stop_seconds:g} s needs at least {size.around_stop_seconds + 1:g} seconds of events"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowd", description=(__doc__ or "").split("\n\n")[0])
    default = Size()
    for name, kind, value, what in (
        ("diagnoses", int, default.diagnoses, "diagnoses"),
        ("followers", int, default.followers, "followers of each"),
        ("slow", float, 0.01, "share of followers that read slowly"),
        ("floods", int, default.floods, "followers that flood"),
        ("seconds", float, default.seconds, "how long events are published"),
        ("rate", float, default.rate, "events a second"),
        ("stop", float, default.stop_seconds, "seconds the process is stopped"),
        ("rest", float, default.rest_seconds, "seconds the CPU time at rest is measured"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=value, metavar="N", help=f"{what}; default %(default)s")
    parser.add_argument("--log", type=Path, metavar="FILE", help="write what the server logged")
    return parser


if __name__ == "__main__":
    sys.exit(main())
