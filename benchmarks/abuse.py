"""What a client that does harm costs everybody else: `make bench-abuse`.

One server on a core of its own. A neighbour publishes to its diagnosis, follows it, and has others connect to it; first
quiet, then under one of the abuses, on the same server. The abuse runs in a process of its own, on the neighbour's core
and behind it, bounded in time, on loopback. At the end the server gets SIGTERM while the abuse goes on.

Exit code: 0, 2 if it could not be run. A target that is missed is said, and changes nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks import watched
from benchmarks.abuses import ABUSES, Abuse
from benchmarks.filled import fill
from benchmarks.frozen import CannotFreeze, freezable_disk
from benchmarks.generator import Generator, GeneratorError
from benchmarks.place import Place
from benchmarks.processes import cores, cpu_seconds, memory_resident_bytes, settle_on, waited_seconds
from benchmarks.servers import LONG_WAY, OURS, Running, ServerFailed, running
from benchmarks.watched import read_turns
from web.identity.keyring import load_key

SECONDS: Final = 6.0
"""How long the neighbour is watched, quiet and under each abuse."""

RATE: Final = 100.0
"""Events the neighbour publishes a second."""

PUBLISHERS: Final = 4
"""Its connections for that."""

CONNECTORS: Final = 200
"""Followers that connect to measure how fast they can."""

CONNECTORS_IN_FLIGHT: Final = 8

PREPARED_SECONDS_MAX: Final = 180.0
EXIT_SECONDS_MAX: Final = 10.0
RATIO_MAX: Final = 3.0
"""Target: the 99th percentile under abuse is at most so many times the quiet one."""

MEMORY_MIB_MAX: Final = 64
"""Target: the server grows by no more beyond what its settings allow it to take."""

ABUSE_PRIORITY: Final = 5
"""Behind the neighbour's, whose times would else be those of its core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What the neighbour saw, quiet or under an abuse. Times are in milliseconds, from when an event was due."""

    publish_p50: float
    publish_p99: float
    delivery_p99: float
    refused: int
    """Publishes that were not answered 200."""
    lost: int
    """Deliveries that did not come within ten seconds."""
    connects_per_second: float
    server_cpu: float
    """CPU seconds of the server a second."""
    server_waited: float
    """Share of the time in which its main thread could have run and its core did something else."""
    neighbour_waited: float
    """The same of the neighbour's process."""
    longest_turn: float
    """Of the server's event loop; 0: none was as long as what is noted, or another server was measured."""
    longest_turn_cpu: float
    """CPU time of the turn that took most of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """One abuse, watched once."""

    quiet: Side
    abused: Side
    grown_mib: float
    """Memory of the server at its highest under the abuse, above that before."""
    closed_seconds: float
    """From SIGTERM until the neighbour's follower was disconnected."""
    exit_seconds: float

    def ratio(self, name: str) -> float:
        """One figure under the abuse, in terms of the quiet one."""
        return float(getattr(self.abused, name) / getattr(self.quiet, name))


def main(argv: Sequence[str] | None = None) -> int:
    """Watch the neighbour under what was asked for, and print a table."""
    options = _parser().parse_args(argv)
    found: dict[str, list[Watched]] = {}
    server = LONG_WAY if options.long_way else OURS
    try:
        for turn in range(options.rounds):
            for name in options.only:
                print(f"round {turn + 1}: {name}", file=sys.stderr, flush=True)
                try:
                    found.setdefault(name, []).append(watch(name, options.server_command, options.seconds, server))
                except CannotFreeze as why:
                    print(f"not measured: {name}: {why}", file=sys.stderr)
    except (GeneratorError, ServerFailed, OSError) as failure:
        print(f"abuse: {failure}", file=sys.stderr)
        return 2
    finally:
        print(table(found))
    if options.json:
        options.json.write_text(
            json.dumps({name: [asdict(one) for one in all_] for name, all_ in found.items()}) + "\n"
        )
    return 0


def watch(name: str, command: str | None, seconds: float, server_name: str = OURS) -> Watched:
    """The neighbour of one abuse, on a fresh server.

    Args:
        command: what starts the server; `None`: this checkout's, with a watch over its event loop.
        server_name: one of `benchmarks.servers.OF_OURS`.

    Raises:
        CannotFreeze: it needs a disk that can be frozen, and there is none.
    """
    abuse = ABUSES[name]
    server_core, _ = cores()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="avicenna-abuse-")))
        disk = stack.enter_context(freezable_disk(directory)) if abuse.is_disk_frozen else None
        data = (directory if disk is None else disk.path) / "data"
        if abuse.fill is not None:
            fill(data, abuse.fill)
        notes = directory / "turns"
        notes.touch()
        server = stack.enter_context(
            running(
                server_name,
                server_core,
                command or watched.command(notes),
                data=data,
                settings=abuse.settings,
                is_log_read=abuse.is_log_read,
            )
        )
        key = load_key(data)
        assert key is not None, "a server that has started has a key"
        place = Place(server.target.port, key, None if disk is None else disk.path)
        place.register("neighbour")
        if abuse.fill is None:
            place.register("wild")
        begin, stop = stack.enter_context(_abusing(name, place))
        follower = stack.enter_context(place.following([place.follower("neighbour", "watcher")]))
        neighbour = Neighbour(place, server, follower, notes)
        quiet = neighbour.watch(seconds)
        grown = stack.enter_context(_growth(server.pid))
        begin.set()
        abused = neighbour.watch(seconds, connects=not abuse.is_disk_frozen)
        grown_mib = grown()
        closed_seconds, exit_seconds = _end(server, follower, stop)
    return Watched(
        quiet=quiet, abused=abused, grown_mib=grown_mib, closed_seconds=closed_seconds, exit_seconds=exit_seconds
    )


class Neighbour:
    """Somebody who does no harm."""

    def __init__(self, place: Place, server: Running, follower: Generator, notes: Path) -> None:
        self._place = place
        self._server = server
        self._follower = follower
        self._notes = notes

    def watch(self, seconds: float, *, connects: bool = True) -> Side:
        """Publish for so long, then let others connect."""
        began_at, ours = time.monotonic(), self._follower.pid
        before = cpu_seconds(self._server.pid), waited_seconds(self._server.pid), waited_seconds(ours)
        phase = self._follower.publish(seconds, connections=PUBLISHERS, rate=RATE)
        took = time.monotonic() - began_at
        after = cpu_seconds(self._server.pid), waited_seconds(self._server.pid), waited_seconds(ours)
        cpu, server_waited, neighbour_waited = ((now - then) / took for then, now in zip(before, after, strict=True))
        turns = [turn for turn in read_turns(self._notes) if turn.began_at >= began_at]
        post, delivery = phase.post_ms, phase.delivery_ms
        return Side(
            publish_p50=post.p50 if post else float("nan"),
            publish_p99=post.p99 if post else float("nan"),
            delivery_p99=delivery.p99 if delivery else float("nan"),
            refused=phase.refused,
            lost=phase.expected - phase.delivered - phase.missed,
            connects_per_second=self._connects_per_second() if connects else float("nan"),
            server_cpu=cpu,
            server_waited=server_waited,
            neighbour_waited=neighbour_waited,
            longest_turn=max((turn.seconds for turn in turns), default=0.0),
            longest_turn_cpu=max((turn.cpu_seconds for turn in turns), default=0.0),
        )

    def _connects_per_second(self) -> float:
        connectors = [self._place.follower("neighbour", f"connector-{number}") for number in range(CONNECTORS)]
        with self._place.generator(connectors) as generator:
            phase = generator.connect(CONNECTORS_IN_FLIGHT)
        return phase.opened / phase.seconds


@contextmanager
def _abusing(name: str, place: Place) -> Iterator[tuple[Event, Event]]:
    """The process of an abuse, prepared; an event that begins it, and one that ends it, as the block does."""
    context = multiprocessing.get_context("spawn")
    prepared, begin, stop = context.Event(), context.Event(), context.Event()
    process = context.Process(target=_abuse, args=(name, place, prepared, begin, stop), daemon=True)
    process.start()
    try:
        if not prepared.wait(PREPARED_SECONDS_MAX):
            raise GeneratorError(f"the abuse was not prepared within {PREPARED_SECONDS_MAX:g} s")
        yield begin, stop
    finally:
        begin.set()
        stop.set()
        process.join(10)
        process.kill()
        process.join()


def _abuse(name: str, place: Place, prepared: Event, begin: Event, stop: Event) -> None:
    settle_on(cores()[1], ABUSE_PRIORITY)()
    place.priority = ABUSE_PRIORITY
    ends_at = time.monotonic() + PREPARED_SECONDS_MAX + 120  # whatever happens
    acting = ABUSES[name].act(place, lambda: stop.is_set() or time.monotonic() > ends_at)
    next(acting)
    prepared.set()
    begin.wait(ends_at - time.monotonic())
    with suppress(OSError, GeneratorError):  # the server has gone
        next(acting, None)


@contextmanager
def _growth(pid: int) -> Iterator[Callable[[], float]]:
    """By how many MiB a process has grown at its highest, since the block began."""
    before = highest = memory_resident_bytes(pid)
    done = threading.Event()

    def look() -> None:
        nonlocal highest
        while not done.wait(0.05):
            with suppress(OSError, IndexError):
                highest = max(highest, memory_resident_bytes(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield lambda: (highest - before) / 2**20
    finally:
        done.set()
        thread.join()


def _end(server: Running, follower: Generator, stop: Event) -> tuple[float, float]:
    """Have the server end while the abuse goes on; when the follower was disconnected, when the process was gone."""
    began_at = time.monotonic()
    server.process.terminate()
    closed_seconds = float("inf")
    while (seconds := time.monotonic() - began_at) < 3 * EXIT_SECONDS_MAX:
        if seconds > 1.2 * EXIT_SECONDS_MAX:
            stop.set()  # a disk that hangs goes on: until then the kernel does not let the process go
        if follower.rest(0.02).closed:
            closed_seconds = min(closed_seconds, seconds)
        if server.process.poll() is not None:
            return min(closed_seconds, seconds), seconds
    return closed_seconds, float("inf")


def table(found: dict[str, list[Watched]]) -> str:
    """Markdown: medians over the rounds, and what misses a target; a ratio is the median of those of each round."""
    rows = {name: _row(ABUSES[name], rounds) for name, rounds in found.items()}
    headers = ["abuse", *next(iter(rows.values()), {})]
    lines = [headers, ["---"] * len(headers), *([name, *row.values()] for name, row in rows.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _row(abuse: Abuse, rounds: Sequence[Watched]) -> dict[str, str]:
    quiet = {name: median(getattr(one.quiet, name) for one in rounds) for name in Side.__dataclass_fields__}
    abused = {name: median(getattr(one.abused, name) for one in rounds) for name in Side.__dataclass_fields__}
    publish, delivery = (median(one.ratio(f"{what}_p99") for one in rounds) for what in ("publish", "delivery"))
    closed, exit_ = (median(getattr(one, f"{what}_seconds") for one in rounds) for what in ("closed", "exit"))
    missed = misses(abuse, rounds)
    return {
        "publish p50, p99 ms, quiet": f"{quiet['publish_p50']:.1f}, {quiet['publish_p99']:.1f}",
        "under abuse": f"{abused['publish_p50']:.1f}, {abused['publish_p99']:.1f}",
        "p99, of quiet": f"{publish:.1f}",
        "delivery p99 ms": f"{quiet['delivery_p99']:.1f}, {abused['delivery_p99']:.1f}",
        "of quiet": f"{delivery:.1f}",
        "connects/s": f"{quiet['connects_per_second']:.0f}, {abused['connects_per_second']:.0f}",
        "memory MiB": f"{median(one.grown_mib for one in rounds):.0f}",
        "longest turn ms (most CPU)": f"{abused['longest_turn'] * 1000:.0f} ({abused['longest_turn_cpu'] * 1000:.0f})",
        "server: CPU, waited": f"{abused['server_cpu']:.0%}, {abused['server_waited']:.0%}",
        "neighbour waited": f"{abused['neighbour_waited']:.0%}",
        "closed, exit s": f"{closed:.1f}, {exit_:.1f}",
        "targets": f"missed: {', '.join(missed)}" if missed else "met",
    }


def misses(abuse: Abuse, rounds: Sequence[Watched]) -> list[str]:
    """The targets that are missed, by the medians."""
    refused, lost = (sum(getattr(one.abused, name) for one in rounds) for name in ("refused", "lost"))
    ended = "closed_seconds" if abuse.is_disk_frozen else "exit_seconds"
    found = {
        "memory": median(one.grown_mib for one in rounds) > abuse.budget_mib + MEMORY_MIB_MAX,
        "exit": median(getattr(one, ended) for one in rounds) > EXIT_SECONDS_MAX,
    }
    if not abuse.is_disk_frozen:
        for what in ("publish", "delivery"):
            found[f"{what} p99"] = _is_slow(abuse, rounds, f"{what}_p99")
        found |= {f"{refused} refused": refused > 0, f"{lost} lost": lost > 0}
    return [name for name, is_missed in found.items() if is_missed]


def _is_slow(abuse: Abuse, rounds: Sequence[Watched], name: str) -> bool:
    if abuse.added_ms is None:
        return bool(median(one.ratio(name) for one in rounds) > RATIO_MAX)
    return bool(median(getattr(one.abused, name) - getattr(one.quiet, name) for one in rounds) > abuse.added_ms)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.abuse", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", type=_names, default=list(ABUSES), metavar="A,B", help=", ".join(ABUSES))
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help="for each; default %(default)s")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="default %(default)s")
    parser.add_argument("--long-way", action="store_true", help="a server with the setting short_way off")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--server-command", metavar="COMMAND", help="what starts another build of our server")
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := sorted(set(names) - set(ABUSES)):
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(ABUSES)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
