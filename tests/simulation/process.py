"""One run of the server: what `web.server.composition.serve` composes, from its start to its drain or its death."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from math import inf
from pathlib import Path
from random import Random
from typing import Any, cast

import trio

from actors.diagnosis import Render
from storage.bus import Bus, NoBus
from storage.clock import Clock
from storage.errors import StorageError
from storage.records import Appended, NewEvent
from storage.sqlite.opening import open_store
from storage.store import PendingAppend, Store
from tests.simulation.disk import Disk, connect
from web.operating.audit_rows import AUDIT_ROWS
from web.server.composition import Machine, serve
from web.server.reloading import ReloadRequests
from web.server.service_manager import ServiceManager
from web.server.settings import Settings


class Bug(Exception):
    """A fault in an actor."""


class WallClock:
    """A clock on the wall that people set; the monotonic one is Trio's, which jumps from deadline to deadline."""

    def __init__(self) -> None:
        self.ahead = 0.0
        """How far the wall clock was set forward."""

    def wall(self) -> float:
        return 1_000_000.0 + trio.current_time() + self.ahead

    def monotonic(self) -> float:
        return trio.current_time()


class Crashes:
    """Which messages crash their actors."""

    def __init__(self) -> None:
        self.due: dict[tuple[str, str], int] = {}
        """How often an actor crashes, by the place in its work and the diagnosis."""
        self.met: Callable[[str], object] = lambda what: None

    def maybe(self, place: str, diagnosis_id: str) -> None:
        """Crash, if that is due."""
        if self.due.get((place, diagnosis_id), 0) > 0:
            self.due[place, diagnosis_id] -= 1
            self.met(f"crash: {place}")
            raise Bug


class Outcome(PendingAppend):
    """An append whose actor may crash when it hears what became of it."""

    def __init__(self, pending: PendingAppend, crashes: Crashes, diagnosis_id: str) -> None:
        super().__init__()
        self._pending, self._crashes, self._diagnosis_id = pending, crashes, diagnosis_id

    async def wait(self) -> Sequence[Appended | StorageError]:
        outcomes = await self._pending.wait()
        self._crashes.maybe("outcome", self._diagnosis_id)
        return outcomes


class Loads:
    """What is under way at the same time."""

    def __init__(self, happens: Callable[[str], object]) -> None:
        self._happens = happens
        self._under_way: Counter[str] = Counter()

    @contextmanager
    def one(self, what: str) -> Iterator[None]:
        """Something is under way."""
        self._under_way[what] += 1
        for other in ("eviction", "erasure"):
            if self._under_way["load"] and self._under_way[other] and what in ("load", other):
                self._happens(f"{other} during a load")
        try:
            yield
        finally:
            self._under_way[what] -= 1


class Crashing:
    """The store of a server whose actors crash: what the one inside does, where nobody crashes."""

    def __init__(self, inner: Store, crashes: Crashes, loads: Loads) -> None:
        self._inner, self._crashes, self._loads = inner, crashes, loads

    def patient(self, seconds: float) -> Store:
        """The store of requests: they are no actors."""
        return self._inner.patient(seconds)

    def append_nowait(
        self, diagnosis_id: str, events: Sequence[NewEvent], spans: Sequence[object] = ()
    ) -> PendingAppend:
        self._crashes.maybe("append", diagnosis_id)
        return Outcome(self._inner.append_nowait(diagnosis_id, events, spans), self._crashes, diagnosis_id)

    async def read_after(self, diagnosis_id: str, *args: Any, **kwargs: Any) -> Any:
        self._crashes.maybe("load", diagnosis_id)
        with self._loads.one("load"):
            return await self._inner.read_after(diagnosis_id, *args, **kwargs)

    async def evict(self, *args: Any, **kwargs: Any) -> Any:
        with self._loads.one("eviction"):
            return await self._inner.evict(*args, **kwargs)

    async def erase(self, *args: Any, **kwargs: Any) -> Any:
        with self._loads.one("erasure"):
            return await self._inner.erase(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Manager(ServiceManager):
    """Hears how often a server says that it is ready: when it begins, and whenever it has read its keys anew."""

    def __init__(self, hears: Callable[[], object]) -> None:
        super().__init__()
        object.__setattr__(self, "hears", hears)

    def ready(self, status: str) -> None:
        self.hears()  # type: ignore[attr-defined]


class Process:
    """A server that runs, or has run, on the files of one directory."""

    def __init__(
        self,
        data: Path,
        clock: WallClock,
        lots: Random,
        ids: Iterator[int],
        *,
        crashes: Crashes,
        render: Render,
        settings: dict[str, Any],
        boot: str,
        events_kept_days: float | None,
    ) -> None:
        self.data = data
        self.settings = Settings(data=data, tcp=False, unix_socket=data / "s", **settings)
        object.__setattr__(self.settings, "events_kept_days", events_kept_days)  # less than an operator may set
        self.disk = Disk(data, lots, may_lose=self.settings.durability != "full")
        self.disk.dies = self._died
        self.boot = boot
        self.reload = ReloadRequests()
        self.readied = 0
        """How often it has said that it is ready: when it began, and whenever it had read its keys anew."""
        self.number = 0
        """Which run of a server it is."""
        self.was_killed = self.is_stopping = False
        self.drained_at = inf
        self.died: Callable[[Process], object] = lambda process: None
        """Called when it is killed, before anything of it ends."""
        self.ready, self.ended, self.stopping = trio.Event(), trio.Event(), trio.Event()
        self.begun = trio.Event()
        """Set once it serves, or has ended without."""
        self.error: BaseException | None = None
        """What ended it that was no drain."""
        self.tasks_at_rest: Counter[str] = Counter()
        """Those of a server that has just begun."""
        self._task: trio.lowlevel.Task | None = None
        self.happens: Callable[[str], object] = lambda what: None
        self._clock, self._crashes, self._render = clock, crashes, render
        self._scope = trio.CancelScope()
        self._machine = Machine(
            jitter=lots.random,
            new_id=lambda: f"id-{next(ids)}",
            request_ids=lambda: f"{next(ids):016x}",
            settle_memory=lambda: None,
            aside=self._aside,
        )
        self._new_epoch = lambda: f"epoch-{next(ids)}"
        self._new_id = lambda: f"id{next(ids)}"

    @property
    def is_serving(self) -> bool:
        return self.ready.is_set() and not self.ended.is_set() and not self.was_killed

    def tasks(self) -> Counter[str]:
        """The tasks it has, by name."""
        found: Counter[str] = Counter()

        def look(task: trio.lowlevel.Task) -> None:
            for nursery in task.child_nurseries:
                for child in nursery.child_tasks:
                    found[child.name] += 1
                    look(child)

        assert self._task is not None, "it runs"
        look(self._task)
        return found

    def _is_ready(self, url: str) -> None:
        self.tasks_at_rest = self.tasks()
        self.ready.set()
        self.begun.set()

    def _count_ready(self) -> None:
        self.readied += 1

    async def run(self) -> None:
        """Serve until it is drained, killed, or its store breaks."""
        self._task = trio.lowlevel.current_task()
        try:
            with self._scope:
                await serve(
                    self.settings,
                    ready=self._is_ready,
                    stopping=self.stopping,
                    clock=self._clock,
                    render=self._render,
                    engine=self._engine,
                    machine=self._machine,
                    reload_requests=self.reload,
                    manager=Manager(self._count_ready),
                )
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - what ended a server is judged by who started it
            self.error = error
            if not self.ready.is_set() and self.disk.had_trouble_since(0):
                self.disk.broke = True  # no server begins without room, or without the disk
        finally:
            self.ended.set()
            self.begun.set()

    def drain(self) -> None:
        """Have it end in order."""
        if not self.is_stopping:
            self.drained_at = trio.current_time()
        self.is_stopping = True
        self.stopping.set()

    def kill(self, *, power_fails: bool) -> None:
        """End it as `kill -9` does, or as power does that fails."""
        if not self.ended.is_set() and not self.was_killed:
            self.disk.die_now(power_fails=power_fails)
            self._died()

    def _died(self) -> None:
        self.was_killed = True
        self.died(self)
        self._scope.cancel()

    @asynccontextmanager
    async def _engine(self, settings: Settings, clock: Clock) -> AsyncIterator[tuple[Store, Bus]]:
        async with open_store(
            self.disk.path,
            clock=clock,
            new_epoch=self._new_epoch,
            durability=settings.durability,
            boot=self.boot,
            keys_max=settings.idempotency_keys_max,
            rows=AUDIT_ROWS,
            connect=partial(connect, disk=self.disk),
            aside=self._aside,
        ) as store:
            yield cast("Store", Crashing(store, self._crashes, Loads(self.happens))), NoBus()

    async def _aside(self, function: Callable[[], Any], /) -> Any:
        await self.disk.answer()
        return function()


class Complaints(logging.Handler):
    """What a server logs that no fault of a history explains."""

    UNEXPECTED = (
        "a connection failed",
        "and could not be told",
        "a request failed unexpectedly",
        "a connection ended by an unexpected error",
        "the application failed",
        "what follows from an act failed",
        "an act failed unexpectedly",
        "a connection with an expiring token failed",
        "a token could not be renewed",
        "the keys stay as they were",
    )

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []
        self.hears: Callable[[str], object] = lambda line: None

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        self.hears(line)
        if line.startswith(self.UNEXPECTED) or (line.startswith("the ") and " crashed: " in line):
            self.found.append(line)
