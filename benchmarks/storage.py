"""The store beside raw sqlite3: the same rows in the same batches in the same run; and how it starts when it is full.

`python -m benchmarks.storage` (`make bench-storage`); docs/BENCHMARKS.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import random
import secrets
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import trio

from storage.clock import SystemClock
from storage.damage import checksum
from storage.records import OUTBOX_EVENTS_MAX, Appended, NewEvent, Seq
from storage.sqlite.committer import BATCH_OPERATIONS_MAX
from storage.sqlite.opening import open_store
from storage.sqlite.runs import end_run
from storage.sqlite.schema import Opening, prepare
from storage.sqlite.store import SqliteStore
from web.server.database import share_the_processor

APPENDERS: Final = (1, 10, 100, 1000)
DIAGNOSES: Final = 1000
BODY: Final = b'{"feedback_id":4711,"rating":5,"comment":"' + b"a" * 250 + b'"}'
WARM_UP_SECONDS: Final = 0.3
DATABASE: Final = "avicenna.db"

RATE_TARGET: Final = 0.7
"""Of raw, at `RATE_TARGET_APPENDERS`."""
RATE_TARGET_APPENDERS: Final = 100
P50_TARGET: Final = 2.2
"""Times raw, for one appender."""
OPEN_TARGET_MS: Final = 50.0
OUTBOX_TARGET_MS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast appends went."""

    per_second: float
    p50_ms: float
    p99_ms: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round, and a database of a tenth")
    parser.add_argument("--directory", type=Path, help="where databases are made; default: where temporary files are")
    options = parser.parse_args(argv)
    rounds, seconds, diagnoses = (1, 1.0, 1000) if options.quick else (3, 1.5, 10_000)
    share_the_processor()
    # As the server: memory that stays is not looked at again, and in `python -m benchmarks` it has one core.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(prefix="avicenna-bench-", dir=options.directory) as directory:
        print(paces_table(measure_paces(Path(directory), rounds, seconds)))
        print()
        print(start_table(diagnoses, measure_start(Path(directory) / "full", diagnoses)))
    return 0


def measure_paces(directory: Path, rounds: int, seconds: float) -> dict[int, list[tuple[Pace, Pace]]]:
    """For each number of appenders the paces of the store and of raw sqlite3, one pair a round."""
    found: dict[int, list[tuple[Pace, Pace]]] = {appenders: [] for appenders in APPENDERS}
    numbers = itertools.count()
    for turn in range(rounds):
        for appenders in APPENDERS:
            say(f"round {turn + 1}: {appenders} appenders")
            ours = trio.run(store_pace, directory / f"ours-{next(numbers)}", appenders, seconds)
            raw = raw_pace(directory / f"raw-{next(numbers)}", min(appenders, BATCH_OPERATIONS_MAX), seconds)
            found[appenders].append((ours, raw))
    return found


async def store_pace(directory: Path, appenders: int, seconds: float) -> Pace:
    """Tasks that append one event at a time, each as soon as its last one is on disk."""
    event = NewEvent("feedback_update", BODY)
    times: list[float] = []
    async with opened(directory / DATABASE) as store:
        names = [f"d-{number}" for number in range(DIAGNOSES)]
        async with trio.open_nursery() as registering_nursery:
            for name in names:
                registering_nursery.start_soon(store.register, name, "amira", [])
        begin = time.perf_counter() + WARM_UP_SECONDS
        end = begin + seconds

        async def append(number: int) -> None:
            for turn in itertools.count():
                asked = time.perf_counter()
                if asked >= end:
                    return
                (outcome,) = await store.append_nowait(names[(number + turn * 7) % DIAGNOSES], [event]).wait()
                assert isinstance(outcome, Appended), outcome
                if asked >= begin:
                    times.append(time.perf_counter() - asked)

        async with trio.open_nursery() as appenders_nursery:
            for number in range(appenders):
                appenders_nursery.start_soon(append, number)
    return pace(times, len(times) / seconds)


def raw_pace(directory: Path, batch: int, seconds: float) -> Pace:
    """One loop over sqlite3 that writes the same rows into the same tables with the same settings, and nothing else."""
    times: list[float] = []
    appended = 0
    with raw_database(directory) as db:
        db.execute("BEGIN")
        for dx in range(1, DIAGNOSES + 1):
            db.execute("INSERT INTO diagnosis VALUES (?, ?, 'amira', 'e', 0, NULL)", (dx, f"d-{dx}"))
            db.execute("INSERT INTO head (dx) VALUES (?)", (dx,))
        db.execute("COMMIT")
        begin = time.perf_counter() + WARM_UP_SECONDS
        end = begin + seconds
        for turn in itertools.count():
            asked = time.perf_counter()
            if asked >= end:
                break
            now = time.time()
            db.execute("BEGIN IMMEDIATE")
            for number in range(batch):
                dx = (number + turn * 7) % DIAGNOSES + 1
                (head,) = db.execute("SELECT last_seq FROM head WHERE dx = ?", (dx,)).fetchone()
                seq = head + 1
                db.execute(
                    "INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?, 'feedback_update', ?, 0)",
                    (dx, seq % OUTBOX_EVENTS_MAX, seq, now, BODY),
                )
                floor = max(0, seq - OUTBOX_EVENTS_MAX)
                db.execute("UPDATE head SET last_seq = ?, floor = ? WHERE dx = ?", (seq, floor, dx))
            db.execute("COMMIT")
            if asked >= begin:
                times.append(time.perf_counter() - asked)
                appended += batch
    return pace(times, appended / seconds)


def pace(times: Sequence[float], per_second: float) -> Pace:
    """Of the durations of appends."""
    hundredths = quantiles(times, n=100)
    return Pace(per_second, hundredths[49] * 1000, hundredths[98] * 1000)


@dataclass(frozen=True, slots=True)
class Start:
    """How a store with much in it starts, the pages of its file not in memory."""

    file_bytes: int
    open_ms: float
    outbox_cold_ms: float
    """The median of the first reads of single diagnoses."""
    outbox_warm_ms: float
    open_after_kill_ms: float


def measure_start(directory: Path, diagnoses: int) -> Start:
    """Fill a database and open it several times."""
    say(f"{diagnoses} diagnoses of {OUTBOX_EVENTS_MAX} events")
    path = directory / DATABASE
    fill(directory, diagnoses)
    opens, colds, warms = [], [], []
    for _ in range(5):
        forget_pages(path)
        opening, cold, warm = trio.run(open_and_read, path, diagnoses)
        opens.append(opening)
        colds.append(cold)
        warms.append(warm)
    size = path.stat().st_size
    kill_a_holder_of(path)
    forget_pages(path)
    after_kill, _, _ = trio.run(open_and_read, path, diagnoses)
    return Start(size, median(opens), median(colds), median(warms), after_kill)


async def open_and_read(path: Path, diagnoses: int) -> tuple[float, float, float]:
    """Milliseconds to open the store, to read one outbox for the first time, and to read it again."""
    asked = time.perf_counter()
    async with opened(path) as store:
        opening = time.perf_counter() - asked
        names = [f"d-{number}" for number in random.sample(range(1, diagnoses + 1), 50)]
        cold = [await read(store, name) for name in names]
        warm = [await read(store, name) for name in names]
    return opening * 1000, median(cold) * 1000, median(warm) * 1000


async def read(store: SqliteStore, name: str) -> float:
    """Seconds to read one outbox."""
    asked = time.perf_counter()
    found = await store.read_after(name, Seq(0))
    assert len(found.events) == OUTBOX_EVENTS_MAX
    return time.perf_counter() - asked


def fill(directory: Path, diagnoses: int) -> None:
    """Make a database with full outboxes, closed in order."""
    kind, at = "feedback_update", 1_700_000_000.0

    def entries() -> Iterator[tuple[object, ...]]:
        for dx in range(1, diagnoses + 1):
            for seq in range(1, OUTBOX_EVENTS_MAX + 1):
                yield dx, seq % OUTBOX_EVENTS_MAX, seq, at, kind, BODY, checksum(seq, at, kind.encode(), BODY)

    with raw_database(directory) as db:
        db.execute("BEGIN")
        every = range(1, diagnoses + 1)
        db.executemany("INSERT INTO diagnosis VALUES (?, ?, 'amira', 'e', 0, NULL)", ((dx, f"d-{dx}") for dx in every))
        db.executemany("INSERT INTO head VALUES (?, ?, 0, 0)", ((dx, OUTBOX_EVENTS_MAX) for dx in every))
        db.executemany("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?)", entries())
        db.execute("COMMIT")
        end_run(db)


@contextmanager
def raw_database(directory: Path) -> Iterator[sqlite3.Connection]:
    """A database with our tables and settings, and none of our code above sqlite3."""
    directory.mkdir(parents=True)
    path = str(directory / DATABASE)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        prepare(db, Opening(path, "full", "", new_epoch, 0.0))
        yield db


def kill_a_holder_of(path: Path) -> None:
    """Leave the database as a server leaves it that is killed."""
    command = [sys.executable, "-c", f"import benchmarks.storage as b; b.hold({str(path)!r})"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()


def hold(path: str) -> None:
    """Open a store, say so, and wait to be killed."""

    async def run() -> None:
        async with opened(Path(path)) as store:
            await store.append_nowait("d-1", [NewEvent("feedback_update", BODY)]).wait()
            print("open", flush=True)
            await trio.sleep_forever()

    trio.run(run)


def forget_pages(path: Path) -> None:
    """Have the operating system read the file from the disk again."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def opened(path: Path) -> AbstractAsyncContextManager[SqliteStore]:
    """The store, as the server opens it."""
    return open_store(path, clock=SystemClock(), new_epoch=new_epoch)


new_epoch: Final[Callable[[], str]] = partial(secrets.token_hex, 8)


def paces_table(found: dict[int, list[tuple[Pace, Pace]]]) -> str:
    """Medians over the rounds; a ratio is the median of the ratios within a round."""
    lines = [
        "| appenders | appends/s | of raw | p50 ms | times raw | p99 ms | times raw | target |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for appenders, pairs in found.items():
        ours = [pair[0] for pair in pairs]
        rate, p50, p99 = (
            median(getattr(mine, name) / getattr(raw, name) for mine, raw in pairs)
            for name in ("per_second", "p50_ms", "p99_ms")
        )
        target = ""
        if appenders == 1:
            target = f"p50 <= {P50_TARGET} x raw: {'met' if p50 <= P50_TARGET else 'MISSED'}"
        elif appenders == RATE_TARGET_APPENDERS:
            target = f"rate >= {RATE_TARGET} x raw: {'met' if rate >= RATE_TARGET else 'MISSED'}"
        lines.append(
            f"| {appenders} | {median(one.per_second for one in ours):,.0f} | {rate:.2f}"
            f" | {median(one.p50_ms for one in ours):.2f} | {p50:.2f}"
            f" | {median(one.p99_ms for one in ours):.1f} | {p99:.2f} | {target} |"
        )
    return "\n".join(lines)


def start_table(diagnoses: int, start: Start) -> str:
    """The start of a full store."""

    def row(what: str, value: float, limit: float | None = None) -> str:
        target = "" if limit is None else f"< {limit:g}: {'met' if value < limit else 'MISSED'}"
        return f"| {what} | {value:,.2f} | {target} |"

    return "\n".join(
        [
            f"| {diagnoses:,} diagnoses of {OUTBOX_EVENTS_MAX} events, {start.file_bytes >> 20} MiB | ms | target |",
            "|---|---|---|",
            row("open after an end in order", start.open_ms, OPEN_TARGET_MS),
            row("read one outbox for the first time", start.outbox_cold_ms, OUTBOX_TARGET_MS),
            row("read it again", start.outbox_warm_ms),
            row("open after `kill -9`", start.open_after_kill_ms),
        ]
    )


def say(text: str) -> None:
    """Progress, aside from the tables."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
