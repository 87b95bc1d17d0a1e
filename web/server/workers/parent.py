"""The parent of `serve --workers`: it holds the listeners, starts the store and the workers, and ends them.

A child that ends is started again, after a pause that grows; more than `restart_intensity_max` ends of one kind within
`restart_intensity_seconds` end the server with 1, after a drain. While the store is away workers keep their
connections. A worker that is replaced leaves its listener, with what waits in it, to the next one: the parent keeps it
open. The listener of one that dies is closed, so that whoever connects comes to another one at once.

A child whose loop does not turn is ended, also the store's. A disk that does not answer is no reason: the loop of the
store's process turns meanwhile, and to kill it would not make the disk answer.

The parent also asks all of them for their figures, now and then and whenever a worker wants those of all, and keeps
what those have counted that ended.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

import trio

from actors.intensity import Intensity
from storage.clock import Clock, SystemClock
from storage.disk import database_files, files
from storage.disk.unix_paths import short_path
from storage.errors import CannotOpen, first_of
from web.http.handed_over import HandedOver
from web.http.listening import is_served, listen_on_tcp, listening_on_unix, share_of_tcp, url_of
from web.operating.draining import DRAIN_REQUEST
from web.server import composition, database
from web.server.greeting import facts
from web.server.logs import set_up_logging
from web.server.service_manager import NOBODY, ServiceManager
from web.server.settings import DATABASE_FILE, Settings
from web.server.signals import Signals
from web.server.workers import children, orders, store_process
from web.server.workers.children import Child
from web.server.workers.counting import Counting, memory
from web.server.workers.ledger import Ledger
from web.server.workers.line import ORPHAN_SECONDS_MAX
from web.server.workers.orders import Order

DRAIN_SECONDS_MAX: Final = 7.5
"""Longest time from the signal until workers have ended. Beyond: killed."""

CLOSE_SECONDS_MAX: Final = 2.0
"""Longest time after that until the database is closed. Beyond: killed. Reason: the end is promised within 10 s."""

assert composition.WORKER_DRAIN_SECONDS_MAX < DRAIN_SECONDS_MAX, "each of them ends by itself"
assert DRAIN_SECONDS_MAX + CLOSE_SECONDS_MAX < 10, "the end is promised within 10 s"

ORPHANS_SECONDS_MAX: Final = 2 * ORPHAN_SECONDS_MAX
"""Longest wait at the start for processes of a parent that was killed. Beyond: another server is there."""

ORPHANS_LOOK_SECONDS: Final = 0.05

TELL_SECONDS: Final = 1.0
"""Between two askings for the figures of all children. Reason: of one that is killed counts what it told last."""

SILENT_SECONDS_MAX: Final = 3.0
"""Longest time without figures of a child, unless a service manager says how long it waits. Beyond: it is ended.
Reason: publishers wait 10 s for a store, which must be back by then."""

TOLD_SECONDS_MAX: Final = 0.5
"""Longest wait for a child to tell its figures. Beyond: those that it told last."""

ABORT_SECONDS_MAX: Final = 1.0
"""Longest time in which a child that hangs may print where. Beyond: killed."""

logger = logging.getLogger("avicenna.server")


class Escalation(Exception):
    """Children end too often: the server ends."""


class CannotBegin(Exception):
    """A child could not begin, and would not if it were started again."""


class NotClosed(Exception):
    """The process of the store had to be killed at the end."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """What the workers accept on."""

    of_workers: Sequence[list[socket.socket]]
    """Of each worker its own (`SO_REUSEPORT`); it listens once the worker does."""
    shared: Sequence[socket.socket]
    """All workers accept on these."""
    operators: Sequence[socket.socket]
    urls: Sequence[str]

    def close(self) -> None:
        """Have whoever connects refused once no worker accepts any more, not wait until this process is gone."""
        _close_all([*self.of_workers, self.shared, self.operators])
        for own in self.of_workers:
            own.clear()

    def renew(self, number: int) -> None:
        """Close what a worker has accepted on, and whoever waits there tries again at another one."""
        own = self.of_workers[number]
        for at, one in enumerate(own):
            host, port, *_ = one.getsockname()
            try:
                own[at] = share_of_tcp(host, port)
            except OSError as error:
                logger.warning("a listener is kept, with those who wait in it: %s", error.strerror or error)
            else:
                one.close()


class Place:
    """Where one child is, and another one after it."""

    def __init__(self, order: Callable[[bool], Order], renew: Callable[[], None] = lambda: None) -> None:
        self.order = order
        """Makes the order of the next one; whether it replaces one that serves."""
        self.renew = renew
        """To be called when a child has died."""
        self.serving = trio.Event()
        """Set once the first one serves."""
        self.replacing = trio.Event()
        """Set to have it replaced."""
        self.replaced = trio.Event()
        self.was_replaced = False
        """Whether the last attempt was a success."""


class Parent:
    """Keeps the children up while `run` runs. One per server."""

    def __init__(
        self,
        settings: Settings,
        config: str | None,
        options: dict[str, str | None],
        listeners: Listeners,
        counting: int,
        ready: Callable[[str], None],
        manager: ServiceManager,
        clock: Clock,
        begin_drain: Callable[[], object],
    ) -> None:
        """Nothing is started yet.

        Args:
            begin_drain: begins the end as a signal does; an operator has asked for it.
            counting: the descriptor of the memory in which workers count their connections.
        """
        self._settings = settings
        self._config = config
        # The file of settings may name another directory by now: a store that is started again has the same database.
        self._options = {**options, "data": str(settings.data.absolute())}
        self._listeners = listeners
        self._ready = ready
        self._manager = manager
        self._clock = clock
        self._begin_drain = begin_drain
        self._began_at = time.monotonic()
        self._counting = counting
        self._counts = Counting(counting, slots_of(settings))
        self._free_slots = set(range(slots_of(settings)))
        self._ledger = Ledger()
        self._question = 0
        self._has_served = trio.Event()
        """Set once there was a process of the store."""
        self._drain = trio.Event()
        self._store_end = trio.Event()
        """Set once no worker needs the store."""
        self._failure: Exception | None = None
        """Why the server ends, if nobody asked for it."""
        self._reload = trio.Event()
        self._children: dict[str, Child] = {}
        """By name; more than one in a place while one replaces another."""

    def drain(self) -> None:
        """Begin the end."""
        self._drain.set()

    def reload(self) -> None:
        """Replace the workers, one by one."""
        self._reload.set()

    async def run(self, store_listener: socket.socket) -> None:
        """Serve until the drain, and drain.

        Raises:
            Escalation: children end too often.
            CannotBegin: one could not begin.
            NotClosed: the database was not closed.
        """
        descriptor = store_listener.fileno()
        store = Place(lambda _: self._order(None, store=descriptor))
        workers = [self._place(number) for number in range(self._settings.workers)]
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            # Beside each other, as most of a start is Python's; a worker waits for the store (`open_remote`).
            await nursery.start(self._keep, store, self._store_end, nursery)
            for place in workers:
                await nursery.start(self._keep, place, self._drain, nursery)
            for place in workers:
                await _first(place.serving, self._drain)
            announcing = contextlib.ExitStack()
            try:
                if not self._drain.is_set():
                    self._begin(workers, nursery, announcing)
                    await self._drain.wait()
            finally:
                nursery.start_soon(composition.stop_announcing, announcing)
            self._manager.stopping()
            await self._end(nursery.cancel_scope)
        if self._failure is not None:
            raise self._failure

    def _begin(self, workers: Sequence[Place], nursery: trio.Nursery, announcing: contextlib.ExitStack) -> None:
        nursery.start_soon(self._manager.watch)
        nursery.start_soon(self._replace_when_asked, workers)
        nursery.start_soon(self._keep_asking)
        settings = self._settings
        composition.announce(settings, self._listeners.urls, announcing)
        for line in facts(
            settings,
            version("avicenna-live"),
            settings.max_connections,
            composition.share_of_address(settings, settings.max_connections),
        ):
            logger.info("%s", line)
        logger.info("%d workers serve, and a process has the database", settings.workers)
        for url in self._listeners.urls:
            logger.info("listening on %s", url)
        self._ready(self._listeners.urls[0])
        self._manager.ready(f"listening on {', '.join(self._listeners.urls)}")

    async def _end(self, scope: trio.CancelScope) -> None:
        """End the workers, and then the store, which begins again until then if it is killed."""
        self._listeners.close()
        with trio.move_on_after(DRAIN_SECONDS_MAX):
            await self._ended(self._workers)
        for child in self._workers():
            logger.error("process %s does not end: it is killed", child.name)
            child.kill()
        self._store_end.set()
        with trio.move_on_after(CLOSE_SECONDS_MAX):
            await self._ended(lambda: [child for name, child in self._children.items() if name == orders.STORE])
        if orders.STORE in self._children:
            self._failure = self._failure or NotClosed("the database could not be closed in time")
        scope.cancel()

    async def _ended(self, some: Callable[[], Sequence[Child]]) -> None:
        """End them, and those that were being started meanwhile."""
        while ending := some():
            for child in ending:
                child.end()
            await ending[0].ended.wait()

    def _workers(self) -> Sequence[Child]:
        return [child for name, child in self._children.items() if name != orders.STORE]

    def _place(self, number: int) -> Place:
        def order(is_replacement: bool) -> Order:
            node = f"worker-{number + 1}-{secrets.token_hex(3)}"
            own = [*self._listeners.of_workers[number], *self._listeners.shared]
            public, operators = (tuple(one.fileno() for one in some) for some in (own, self._listeners.operators))
            return self._order(node, public=public, operators=operators, is_replacement=is_replacement)

        return Place(order, partial(self._listeners.renew, number))

    def _order(
        self,
        node: str | None,
        *,
        store: int | None = None,
        public: tuple[int, ...] = (),
        operators: tuple[int, ...] = (),
        is_replacement: bool = False,
    ) -> Order:
        slot = 0 if node is None else self._free_slots.pop()
        return Order(
            node=node,
            config=self._config,
            options=self._options,
            store=store,
            nodes=() if node is not None else tuple(one.name for one in self._workers() if one.ready.is_set()),
            public=public,
            operators=operators,
            began_at=self._began_at,
            is_replacement=is_replacement,
            workers=self._settings.workers,
            counting=None if node is None else self._counting,
            slots=slots_of(self._settings),
            slot=slot,
        )

    async def _keep(
        self, place: Place, end: trio.Event, nursery: trio.Nursery, task_status: trio.TaskStatus[None]
    ) -> None:
        """Have a child in a place, and another one whenever it ends or is to be replaced; until `end`."""
        settings = self._settings
        intensity = Intensity(settings.restart_intensity_max, settings.restart_intensity_seconds)
        child: Child | None = await self._start(place, nursery)
        task_status.started()
        while child is not None and not end.is_set():
            await _first(child.ended, place.replacing)
            if not child.ended.is_set():
                child = await self._replaced(place, child, nursery)
                continue
            if end.is_set():
                return
            if not place.serving.is_set() and child.code == database.CANNOT_START:
                self._fail(CannotBegin(f"{child.name} could not start, and has said why"))
                return
            logger.error("process %s (%d) has ended: %s", child.name, child.pid, _reason(child.code))
            self._ledger.restarted("store" if child.name == orders.STORE else "worker")
            child = await self._start_again(place, child.name, intensity, end, nursery)
        if child is not None:
            child.end()  # it was started meanwhile

    async def _start_again(
        self, place: Place, former: str, intensity: Intensity, end: trio.Event, nursery: trio.Nursery
    ) -> Child | None:
        """The child that follows one that has ended; `None`: none, because of the end, or since they end too often."""
        while not intensity.crashed(trio.current_time()):
            with trio.move_on_after(intensity.backoff_seconds(lambda: 1.0)):
                await end.wait()
                return None
            try:
                return await self._start(place, nursery)
            except OSError as error:  # the machine has no memory for it, or a deploy has just taken the program away
                logger.error("no process could be started in place of %s: %s", former, error)
        self._fail(Escalation(f"{former} has ended too often"))
        return None

    def _fail(self, failure: Exception) -> None:
        """End the server: drain, and then raise this."""
        self._failure = self._failure or failure
        self._drain.set()

    async def _start(self, place: Place, nursery: trio.Nursery, *, is_replacement: bool = False) -> Child:
        order = place.order(is_replacement)
        try:
            child = await children.start(order)
        except OSError:
            if order.node is not None:
                self._free_slots.add(order.slot)
            raise
        self._children[child.name] = child
        nursery.start_soon(self._tend, place, child)
        return child

    async def _tend(self, place: Place, child: Child) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._limit_start, place, child)
            await child.run(self._said, partial(self._leave_listener, place, child))
            nursery.cancel_scope.cancel()
        if self._children.get(child.name) is child:
            del self._children[child.name]
        if child.name != orders.STORE:
            self._counts.put(child.slot, 0)
            self._free_slots.add(child.slot)
            self._ledger.worker_ended(child)
            if (store := self._children.get(orders.STORE)) is not None:
                store.say(orders.GONE, child.name)

    def _leave_listener(self, place: Place, child: Child) -> None:
        """A child that has died leaves nobody waiting where it accepted, and the next one gets another listener."""
        if child.name != orders.STORE and not child.is_ending:
            place.renew()

    async def _limit_start(self, place: Place, child: Child) -> None:
        if child.name != orders.STORE:
            await self._has_served.wait()
        with trio.move_on_after(children.START_SECONDS_MAX):
            await child.ready.wait()
            place.serving.set()
            if child.name == orders.STORE:
                self._has_served.set()
            return
        logger.error("process %s does not serve after %g s: it is ended", child.name, children.START_SECONDS_MAX)
        child.kill()

    async def _replaced(self, place: Place, child: Child, nursery: trio.Nursery) -> Child:
        """The child that takes the place of another, which drains once that one serves."""
        new = None
        try:
            new = await self._start(place, nursery, is_replacement=True)
        except OSError as error:
            logger.error("no process could be started in place of %s: %s", child.name, error)
        else:
            await _first(new.ready, new.ended, self._drain)
        is_serving = new is not None and new.ready.is_set() and not new.ended.is_set()
        if is_serving:
            child.end(is_replaced=True)
            with trio.move_on_after(DRAIN_SECONDS_MAX):
                await child.ended.wait()
            child.kill()
            await child.ended.wait()
        elif not self._drain.is_set():
            logger.error("process %s stays: the one in its place could not start", child.name)
        place.replacing = trio.Event()
        place.was_replaced = is_serving
        place.replaced.set()
        return new if new is not None and is_serving else child

    def _said(self, child: Child, word: str, rest: str) -> None:
        match word:
            case orders.DRAIN:
                self._begin_drain()
            case orders.UNCONFIRMED if (worker := self._children.get(rest)) is not None:
                logger.error("process %s did not confirm a change in time: it is ended", rest)
                worker.kill()
            case orders.TOLD:
                number, figures = orders.number_and_figures(rest)
                if child.name == orders.STORE:
                    self._ledger.store_told(child, figures)
                else:
                    self._ledger.worker_told(child, figures)
                child.has_told(number)
            case orders.FIGURES:
                self._nursery.start_soon(self._give_figures, child, int(rest))

    # Figures

    async def _keep_asking(self) -> None:
        """Ask all again and again, and end those that are silent, after as long as the manager would wait for us."""
        seconds_max = self._manager.watchdog_seconds or SILENT_SECONDS_MAX
        while True:
            asked_at = trio.current_time()
            await self._ask_all()
            await trio.sleep_until(asked_at + TELL_SECONDS)
            for child in list(self._children.values()):
                # Looks are counted, not seconds: after a pause of the machine everybody has been silent.
                child.silent += child.ready.is_set()
                if child.silent * TELL_SECONDS <= seconds_max:
                    continue
                if child.silent * TELL_SECONDS > seconds_max + ABORT_SECONDS_MAX:
                    child.kill()
                elif not child.is_aborted:
                    logger.error("process %s has told nothing for %g s: it is ended", child.name, seconds_max)
                    child.abort()

    async def _give_figures(self, child: Child, number: int) -> None:
        await self._ask_all()
        if (seen := self._ledger.together()) is not None:
            child.say(orders.FIGURES, orders.with_figures(number, seen))

    async def _ask_all(self) -> None:
        """Have all children tell their figures as they are now."""
        self._question += 1
        number, asked = self._question, [child for child in self._children.values() if child.ready.is_set()]
        for child in asked:
            child.ask(number)
        with trio.move_on_after(TOLD_SECONDS_MAX):
            for child in asked:
                await child.until_told(number)

    # Replacing

    async def _replace_when_asked(self, places: Sequence[Place]) -> None:
        while True:
            await self._reload.wait()
            self._reload = trio.Event()
            self._manager.reloading(self._clock)
            if await self._replace(places):
                logger.info("the workers were replaced")
            elif not self._drain.is_set():
                logger.error("the reload ends here: workers that were not replaced serve on as they were started")
            self._manager.ready("serving")

    async def _replace(self, places: Sequence[Place]) -> bool:
        """Replace the workers one by one; False: one could not be, and it stays, with those behind it."""
        for place in places:
            place.replaced, place.was_replaced = trio.Event(), False
            place.replacing.set()
            await place.replaced.wait()
            if not place.was_replaced:
                return False
        return True


def _close_all(of_workers: Sequence[Sequence[socket.socket]]) -> None:
    for own in of_workers:
        for one in own:
            one.close()


def slots_of(settings: Settings) -> int:
    """Workers that there may be at once: those that serve, those in their places, and those that have just ended."""
    return 3 * settings.workers


async def _first(*events: trio.Event) -> None:
    """Wait until one of them is set."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)


def _reason(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"code {code}"


def run(
    settings: Settings,
    config: str | None,
    options: dict[str, str | None],
    *,
    ready: Callable[[str], None],
    handed_over: HandedOver,
    manager: ServiceManager = NOBODY,
) -> int:
    """Serve with several processes until a signal; the exit code as of `composition.run`."""
    with Signals() as signals:
        set_up_logging(settings)
        try:
            with contextlib.ExitStack() as listening:
                trio.run(partial(_run, settings, config, options, ready, handed_over, manager, signals, listening))
        except (BaseExceptionGroup, CannotOpen, OSError, Escalation, CannotBegin, NotClosed) as failure:
            match first := first_of(failure):
                case Escalation() | NotClosed():
                    logger.critical("the server ends: %s", first)
                    return 1
                case CannotBegin():
                    logger.critical("the server ends: %s", first)
                    return database.CANNOT_START
                case CannotOpen() | OSError():
                    logger.critical("cannot start: %s", first)
                    return database.CANNOT_START
                case _:
                    logger.critical("the server failed unexpectedly", exc_info=failure)
                    return 1
    logger.info("stopped")
    return 0


async def _run(
    settings: Settings,
    config: str | None,
    options: dict[str, str | None],
    ready: Callable[[str], None],
    handed_over: HandedOver,
    manager: ServiceManager,
    signals: Signals,
    listening: contextlib.ExitStack,
) -> None:
    await _until_orphans_are_gone(store_process.socket_of(settings))
    composition.caution(settings)
    composition.trusted_directory(settings)
    database.check_database(settings)
    files.make_directory(settings.data)
    listeners = _listen(settings, handed_over, listening)
    try:
        at_store = listening_on_unix(store_process.socket_of(settings), 0o600, is_ours=True)
        store_listener = listening.enter_context(at_store)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise database_files.in_use(settings.data / DATABASE_FILE) from None
    counting = memory(slots_of(settings))
    listening.callback(os.close, counting)
    begin_drain = partial(signals.begin, DRAIN_REQUEST)
    parent = Parent(settings, config, options, listeners, counting, ready, manager, SystemClock(), begin_drain)
    token = trio.lowlevel.current_trio_token()

    def come(act: Callable[[], None]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(act)

    def begin(first: str) -> None:
        logger.info("draining after %s", first)
        parent.drain()

    signals.when_first_comes(lambda first: come(partial(begin, first)))
    signals.when_to_reload(lambda: come(parent.reload))
    await parent.run(store_listener)


async def _until_orphans_are_gone(store_socket: Path) -> None:
    """Wait until processes have left whose parent was killed; another server that is there stays, and is met later."""
    with trio.move_on_after(ORPHANS_SECONDS_MAX), contextlib.suppress(OSError), short_path(store_socket) as name:
        while is_served(name):  # noqa: ASYNC110 - another process says nothing when it goes
            await trio.sleep(ORPHANS_LOOK_SECONDS)


def _listen(settings: Settings, handed_over: HandedOver, listening: contextlib.ExitStack) -> Listeners:
    """All listeners, closed with `listening`.

    Raises:
        OSError: one of them cannot be had; the message says which.
    """
    listening.callback(handed_over.close)
    of_workers: list[list[socket.socket]] = [[] for _ in range(settings.workers)]
    listening.callback(_close_all, of_workers)
    shared = list(handed_over.public)
    urls = [url_of(one) for one in shared]
    composition.caution_about(settings, shared)
    if not shared:
        if settings.tcp:
            port = settings.port
            if port:
                # Another server's workers share theirs with whoever asks for it, and would get some of our clients.
                with composition.naming(f"{settings.host}:{port}", "host, port; options --host, --port"):
                    listen_on_tcp(settings.host, port).close()
            for own in of_workers:
                with composition.naming(f"{settings.host}:{port}", "host, port; options --host, --port"):
                    listener = share_of_tcp(settings.host, port)
                port = listener.getsockname()[1]
                own.append(listener)
            urls.append(url_of(of_workers[0][0]))
            composition.caution_about(settings, of_workers[0])
        if settings.unix_socket is not None:
            with composition.naming(str(settings.unix_socket), "unix_socket"):
                shared.append(listening.enter_context(listening_on_unix(settings.unix_socket)))
            urls.append(f"unix:{settings.unix_socket}")
    operators = composition.listen_for_operators(settings, handed_over, listening)
    return Listeners(of_workers, shared, operators, urls)
