"""What a client that does harm costs everybody else: `make bench-abuse`.

One server on a core of its own. A neighbour publishes to its diagnosis and follows it, quiet and under each abuse in
turn; the abuse runs in a process of its own, on the neighbour's core, bounded in time, on loopback. At the end of each
the server gets SIGTERM while the abuse goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.synchronize
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.abuses import ABUSES, Place, http_request, read_answer, websocket
from benchmarks.processes import cores, memory_bytes, settle_on
from web import keyring

SECONDS: Final = 8.0
"""How long the neighbour is watched, quiet and under each abuse."""

PUBLISHES_PER_SECOND: Final = 40
EXIT_SECONDS_MAX: Final = 10.0
RATIO_MAX: Final = 3.0
"""Target: the 99th percentile under abuse is at most so many times the quiet one."""

MEMORY_MIB_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Watched:
    """What the neighbour saw, in milliseconds, and what became of the server."""

    publish_p50: float
    publish_p99: float
    delivery_p99: float
    refused: int
    grown_mib: float
    exit_seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Watch the neighbour under what was asked for, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.abuse", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", metavar="A,B", help=", ".join(ABUSES))
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help="for each; default %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    ours = shlex.join([str(Path(sys.executable).with_name("avicenna-live")), "serve"])
    parser.add_argument("--server-command", default=ours, metavar="COMMAND", help="what starts the server")
    options = parser.parse_args(argv)
    names = options.only.split(",") if options.only else list(ABUSES)
    found: dict[str, Watched] = {}
    for name in ("quiet", *names):
        print(f"watching: {name}", file=sys.stderr, flush=True)
        found[name] = watch(name, options.server_command, options.seconds)
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps({name: [*_figures(one)] for name, one in found.items()}, indent=1) + "\n")
    return 0


def watch(name: str, command: str, seconds: float) -> Watched:
    """The neighbour of one abuse (`quiet`: of none), on a fresh server."""
    server_core, client_core = cores()
    with tempfile.TemporaryDirectory() as directory, _server(command, Path(directory), server_core) as (process, port):
        place = Place(port, _token_maker(Path(directory)))
        place.register("neighbour")
        place.prepare(name)
        before = memory_bytes(process.pid)
        stop = multiprocessing.Event()
        abuse = multiprocessing.Process(target=_abuse, args=(name, place, stop, client_core), daemon=True)
        if name != "quiet":
            abuse.start()
            time.sleep(1.0)  # it is in full swing
        published, delivered, refused = _neighbour(place, seconds)
        grown = (memory_bytes(process.pid) - before) / 2**20
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(3 * EXIT_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
        took = time.monotonic() - began
        stop.set()
        if name != "quiet":
            abuse.join(5)
            abuse.kill()
    return Watched(
        _percentile(published, 50), _percentile(published, 99), _percentile(delivered, 99), refused, grown, took
    )


def _abuse(name: str, place: Place, stop: multiprocessing.synchronize.Event, core: int) -> None:
    settle_on(core)()
    ends_at = time.monotonic() + 120  # whatever happens
    with suppress(OSError):  # the server has gone
        ABUSES[name](place, lambda: stop.is_set() or time.monotonic() > ends_at)


def _neighbour(place: Place, seconds: float) -> tuple[list[float], list[float], int]:
    """Times of publishes and deliveries, and how many publishes were refused."""
    follower = websocket(place, "neighbour", device="watch")
    follower.settimeout(0.0)
    publisher = place.connect()
    published: list[float] = []
    delivered: list[float] = []
    refused = 0
    ends_at = time.perf_counter() + seconds
    due_at = time.perf_counter()
    heard = b""
    number = 0
    while (now := time.perf_counter()) < ends_at:
        if now < due_at:
            time.sleep(min(0.002, due_at - now))
            continue
        due_at = max(due_at + 1 / PUBLISHES_PER_SECOND, now - 1)
        number += 1
        body = json.dumps({"diagnosis_id": "neighbour", "feedback_id": number, "rating": 5}).encode()
        began = time.perf_counter()
        publisher.sendall(http_request("POST", "/ws/broadcast-feedback-update", place.token("owner-neighbour"), body))
        status = read_answer(publisher)
        published.append((time.perf_counter() - began) * 1000)
        if status != 200:
            refused += 1
            continue
        mark = b'"feedback_id":%d,' % number
        while mark not in heard and time.perf_counter() - began < 10:
            try:
                heard = (heard + follower.recv(1 << 16))[-(1 << 17) :]
            except BlockingIOError:
                time.sleep(0.0002)
        delivered.append((time.perf_counter() - began) * 1000)
    follower.close()
    publisher.close()
    return published, delivered or [float("nan")], refused


@contextmanager
def _server(command: str, data: Path, core: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    log = data / "log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [*shlex.split(command), "--port", "0", "--data", str(data / "data")],
            stderr=said,
            preexec_fn=settle_on(core),  # noqa: PLW1509 - there is one thread
        )
    try:
        ends_at = time.monotonic() + 20
        while b"listening on http://" not in (text := log.read_bytes()):
            if time.monotonic() > ends_at or process.poll() is not None:
                raise RuntimeError(f"the server did not start: {text.decode()}")
            time.sleep(0.05)
        yield process, int(text.partition(b"listening on http://")[2].split()[0].rpartition(b":")[2])
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _token_maker(directory: Path) -> bytes:
    key = keyring.load_key(directory / "data")
    assert key is not None, "a server that has started has a key"
    return key


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


def _figures(one: Watched) -> Iterator[float]:
    yield from (one.publish_p50, one.publish_p99, one.delivery_p99, one.refused, one.grown_mib, one.exit_seconds)


def table(found: dict[str, Watched]) -> str:
    """Markdown: the figures, and what misses a target."""
    quiet = found["quiet"]
    lines = [
        "| abuse | publish p50, p99 (ms) | p99, of quiet | delivery p99 (ms) | memory (MiB) | exit (s) | targets |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        ratio = one.publish_p99 / quiet.publish_p99
        missed = [
            *(["p99"] if ratio > RATIO_MAX else []),
            *(["memory"] if one.grown_mib > MEMORY_MIB_MAX else []),
            *(["exit"] if one.exit_seconds > EXIT_SECONDS_MAX else []),
            *([f"{one.refused} refused"] if one.refused else []),
        ]
        lines.append(
            f"| {name} | {one.publish_p50:.1f}, {one.publish_p99:.1f} | {ratio:.1f} | {one.delivery_p99:.1f} "
            f"| {one.grown_mib:.0f} | {one.exit_seconds:.1f} | {'missed: ' + ', '.join(missed) if missed else 'met'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
