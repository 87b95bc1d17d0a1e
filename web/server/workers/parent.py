"""The parent of `serve --workers`: it holds the listeners, starts the store and the workers, and ends them.

A child that ends is started again, after a pause that grows; more than `restart_intensity_max` ends of one kind within
`restart_intensity_seconds` end the server with 1. While the store is away workers keep their connections. A worker that
is replaced leaves its listener, with what waits in it, to the next one: the parent keeps it open.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from actors.intensity import Intensity
from storage.disk import files
from storage.errors import CannotOpen
from web.http.handed_over import HandedOver
from web.http.listening import listen_on_tcp, listening_on_unix, url_of
from web.server import composition
from web.server.listening_file import announced
from web.server.logs import set_up_logging
from web.server.service_manager import NOBODY, ServiceManager
from web.server.settings import Settings
from web.server.signals import Signals
from web.server.workers import children, orders, store_process
from web.server.workers.children import Child
from web.server.workers.orders import Order

DRAIN_SECONDS_MAX: Final = 9.5
"""Longest time from the signal until workers have ended, and after that until the database is closed. Beyond: killed.
Reason: each of them ends by itself within 9 s."""

logger = logging.getLogger("avicenna.server")


class Escalation(Exception):
    """Children end too often: the server ends."""


class CannotBegin(Exception):
    """A child could not begin, and would not if it were started again."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """What the workers accept on."""

    of_workers: Sequence[Sequence[socket.socket]]
    """Of each worker its own (`SO_REUSEPORT`)."""
    shared: Sequence[socket.socket]
    """All workers accept on these."""
    operators: Sequence[socket.socket]
    urls: Sequence[str]


class Place:
    """Where one child is, and another one after it."""

    def __init__(self, order: Callable[[], Order], descriptors: Sequence[int]) -> None:
        self.order = order
        """Makes the order of the next one."""
        self.descriptors = descriptors
        self.serving = trio.Event()
        """Set once the first one serves."""
        self.replacing = trio.Event()
        """Set to have it replaced."""
        self.replaced = trio.Event()


class Parent:
    """Keeps the children up while `run` runs. One per server."""

    def __init__(
        self,
        settings: Settings,
        config: str | None,
        options: dict[str, str | None],
        listeners: Listeners,
        ready: Callable[[str], None],
        manager: ServiceManager,
    ) -> None:
        self._settings = settings
        self._config = config
        self._options = options
        self._listeners = listeners
        self._ready = ready
        self._manager = manager
        self._drain = trio.Event()
        self._store_end = trio.Event()
        """Set once no worker needs the store."""
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
        """
        descriptor = store_listener.fileno()
        store = Place(partial(self._order, None, store=descriptor), [descriptor])
        workers = [self._place(number) for number in range(self._settings.workers)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep, store, self._store_end, nursery)
            await _first(store.serving, self._drain)
            if not self._drain.is_set():
                for place in workers:
                    nursery.start_soon(self._keep, place, self._drain, nursery)
                for place in workers:
                    await _first(place.serving, self._drain)
            if not self._drain.is_set():
                self._begin(workers, nursery)
                await self._drain.wait()
            self._manager.stopping()
            await self._end(nursery.cancel_scope)

    def _begin(self, workers: Sequence[Place], nursery: trio.Nursery) -> None:
        nursery.start_soon(self._manager.watch)
        nursery.start_soon(self._replace_when_asked, workers)
        logger.info("%d workers serve, and a process has the database", self._settings.workers)
        for url in self._listeners.urls:
            logger.info("listening on %s", url)
        self._ready(self._listeners.urls[0])
        self._manager.ready(f"listening on {', '.join(self._listeners.urls)}")

    async def _end(self, scope: trio.CancelScope) -> None:
        """End the workers, and then the store, which begins again until then if it is killed."""
        with trio.move_on_after(DRAIN_SECONDS_MAX):
            await self._ended([child for name, child in self._children.items() if name != orders.STORE])
        self._store_end.set()
        with trio.move_on_after(DRAIN_SECONDS_MAX):
            await self._ended([child for name, child in self._children.items() if name == orders.STORE])
        scope.cancel()

    async def _ended(self, ending: Sequence[Child]) -> None:
        for child in ending:
            child.end()
        for child in ending:
            await child.ended.wait()

    def _place(self, number: int) -> Place:
        own = [*self._listeners.of_workers[number], *self._listeners.shared]
        public, operators = (tuple(one.fileno() for one in some) for some in (own, self._listeners.operators))

        def order() -> Order:
            node = f"worker-{number + 1}-{secrets.token_hex(3)}"
            return self._order(node, public=public, operators=operators)

        return Place(order, [*public, *operators])

    def _order(
        self,
        node: str | None,
        *,
        store: int | None = None,
        public: tuple[int, ...] = (),
        operators: tuple[int, ...] = (),
    ) -> Order:
        return Order(
            node=node, config=self._config, options=self._options, store=store, public=public, operators=operators
        )

    async def _keep(self, place: Place, end: trio.Event, nursery: trio.Nursery) -> None:
        """Have a child in a place, and another one whenever it ends or is to be replaced; until `end`."""
        settings = self._settings
        intensity = Intensity(settings.restart_intensity_max, settings.restart_intensity_seconds)
        child = await self._start(place, nursery)
        while not end.is_set():
            await _first(child.ended, place.replacing)
            if not child.ended.is_set():
                child = await self._replaced(place, child, nursery)
                continue
            if end.is_set():
                return
            if not place.serving.is_set() and child.code == composition.CANNOT_START:
                raise CannotBegin(f"{child.name} has said why")
            logger.error("process %s (%d) has ended: %s", child.name, child.pid, _reason(child.code))
            if intensity.crashed(trio.current_time()):
                raise Escalation(f"{child.name} has ended too often")
            with trio.move_on_after(intensity.backoff_seconds(lambda: 1.0)):
                await end.wait()
                return
            child = await self._start(place, nursery)
        child.end()  # it was started meanwhile

    async def _start(self, place: Place, nursery: trio.Nursery) -> Child:
        child = await children.start(place.order(), place.descriptors)
        self._children[child.name] = child
        nursery.start_soon(self._tend, place, child)
        return child

    async def _tend(self, place: Place, child: Child) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._limit_start, place, child)
            await child.run(self._said)
            nursery.cancel_scope.cancel()
        del self._children[child.name]

    async def _limit_start(self, place: Place, child: Child) -> None:
        with trio.move_on_after(children.START_SECONDS_MAX):
            await child.ready.wait()
            place.serving.set()
            return
        logger.error("process %s does not serve after %g s: it is ended", child.name, children.START_SECONDS_MAX)
        child.kill()

    async def _replaced(self, place: Place, child: Child, nursery: trio.Nursery) -> Child:
        """The child that takes the place of another, which drains once that one serves."""
        new = await self._start(place, nursery)
        await _first(new.ready, new.ended)
        is_serving = not new.ended.is_set()
        if is_serving:
            child.end()
            await child.ended.wait()
        else:
            logger.error("process %s stays: the one in its place could not start", child.name)
        place.replacing = trio.Event()
        place.replaced.set()
        return new if is_serving else child

    def _said(self, child: Child, word: str, rest: str) -> None:
        match word:
            case orders.DRAIN:
                self._drain.set()
            case orders.UNCONFIRMED if (worker := self._children.get(rest)) is not None:
                logger.error("process %s did not confirm a change in time: it is ended", rest)
                worker.kill()

    async def _replace_when_asked(self, places: Sequence[Place]) -> None:
        while True:
            await self._reload.wait()
            self._reload = trio.Event()
            for place in places:
                place.replaced = trio.Event()
                place.replacing.set()
                await place.replaced.wait()
            logger.info("the workers were replaced")


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
        except (BaseExceptionGroup, CannotOpen, OSError, Escalation, CannotBegin) as failure:
            first: BaseException = failure
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            match first:
                case Escalation():
                    logger.critical("the server ends: %s", first)
                    return 1
                case CannotOpen() | CannotBegin() | OSError():
                    logger.critical("cannot start: %s", first)
                    return composition.CANNOT_START
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
    listeners = _listen(settings, handed_over, listening)
    composition.trusted_directory(settings)
    composition.check_database(settings)
    files.make_directory(settings.data)
    store_listener = listening.enter_context(listening_on_unix(store_process.socket_of(settings), 0o600, is_ours=True))
    parent = Parent(settings, config, options, listeners, ready, manager)
    token = trio.lowlevel.current_trio_token()

    def come(act: Callable[[], None]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(act)

    def begin(first: str) -> None:
        logger.info("draining after %s", first)
        parent.drain()

    signals.when_first_comes(lambda first: come(partial(begin, first)))
    signals.when_to_reload(lambda: come(parent.reload))
    with announced(settings.data, listeners.urls):
        await parent.run(store_listener)


def _listen(settings: Settings, handed_over: HandedOver, listening: contextlib.ExitStack) -> Listeners:
    """All listeners, closed with `listening`.

    Raises:
        OSError: one of them cannot be had; the message says which.
    """
    listening.callback(handed_over.close)
    of_workers: list[list[socket.socket]] = [[] for _ in range(settings.workers)]
    shared, operators = list(handed_over.public), list(handed_over.operators)
    urls = [url_of(one) for one in shared]
    if not shared:
        if settings.tcp:
            port = settings.port
            if port:
                # Another server's workers share theirs with whoever asks for it, and would get some of our clients.
                with composition.naming(f"{settings.host}:{port}", "host, port; options --host, --port"):
                    listen_on_tcp(settings.host, port).close()
            for own in of_workers:
                with composition.naming(f"{settings.host}:{port}", "host, port; options --host, --port"):
                    listener = listen_on_tcp(settings.host, port, reuse=True)
                listening.callback(listener.close)
                port = listener.getsockname()[1]
                own.append(listener)
            urls.append(url_of(of_workers[0][0]))
        if settings.unix_socket is not None:
            with composition.naming(str(settings.unix_socket), "unix_socket"):
                shared.append(listening.enter_context(listening_on_unix(settings.unix_socket)))
            urls.append(f"unix:{settings.unix_socket}")
    if not operators:
        operators = composition.listen_for_operators(settings, listening)
    return Listeners(of_workers, shared, operators, urls)
