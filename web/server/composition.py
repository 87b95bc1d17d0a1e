"""The composition root: builds every part, wires them, runs them, and takes them down in the reverse order.

Reading the nested blocks of `serve` top-down gives the order of start-up, bottom-up that of shutdown.
Beside `web.commands.offline`, which works on a database without a server, this is the only file that opens a store.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import random
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import trio
from quart_trio import QuartTrio

from actors.access_trail import AccessTrail
from actors.acts import Acts
from actors.diagnosis import Render
from actors.registry import Registry
from actors.slot import ActorLimits
from actors.upkeep import restart_on_crash
from storage.aside import Aside, on_a_thread
from storage.bus import Bus
from storage.clock import Clock, SystemClock
from storage.disk import database_files, trust
from storage.errors import Busy, CannotOpen, Failed, NotThere, StoreBroken, first_of
from storage.names import new_id
from storage.store import Store, StoreUpkeep
from web.console.elsewhere import Elsewhere
from web.console.overview import Overview
from web.console.pages import console_page
from web.console.streams import Consoles
from web.contract.errors import WebError
from web.contract.wire import render_event
from web.following.admission import Entrance
from web.following.connection_log import ConnectionLog
from web.following.follower import Followers
from web.following.sockets import Sockets
from web.following.stream_refusals import goodbye_instead
from web.following.streams import StreamCloses, Streams
from web.http.bodies import TURN_BYTES
from web.http.descriptors import connections_possible
from web.http.handed_over import HandedOver
from web.http.line import Patience
from web.http.listening import begin_to_listen, listen_on_tcp, listening_on_unix, url_of
from web.http.open_connections import OpenConnections
from web.http.serving import Terms
from web.http.serving import serve as serve_http
from web.http.short_way import Ways
from web.http.turns import Turns
from web.identity.access import Access
from web.identity.addresses import sharing_address
from web.identity.expiry import Expiry
from web.identity.jwks import RemoteKeys
from web.identity.keyring import KEY_FILE, load_keys, see_that_keys_are_given, will_make_key
from web.identity.keys import KeyUnusable
from web.identity.limits import Limits
from web.identity.revoked import Revoked
from web.identity.tokens import Verifier
from web.identity.unknown_keys import UnknownKeys
from web.identity.upgrades import Upgrades
from web.operating.actors import actors
from web.operating.backups import Backups
from web.operating.consequences import Consequences
from web.operating.delivery import delivery
from web.operating.diagnoses import diagnoses
from web.operating.draining import DRAIN_REQUEST, drain
from web.operating.erasure import erasure
from web.operating.housekeeping import Housekeeper
from web.operating.isolation import Isolation
from web.operating.maintenance import maintenance
from web.operating.revocations import expire_revocations, revocations
from web.operating.status import ConnectionsOpen, Figures, status
from web.operating.trails import trails
from web.publishing.broadcasts import Publisher, broadcasts
from web.publishing.bulk import bulk
from web.publishing.sender import Senders
from web.publishing.sockets import PublishSockets
from web.server.app import AMONG_OPERATORS, Extra, create_app
from web.server.cautions import caution_about_keys, caution_about_listening, caution_about_origins
from web.server.client_file import client_file
from web.server.console_figures import figures_of, node_of
from web.server.database import CANNOT_START, open_engine, settle_memory, share_the_processor, sweep_up
from web.server.entrances import OPERATORS_CONNECTIONS_MAX, served_to_operators, served_when_full
from web.server.front_door import FrontDoor
from web.server.greeting import facts
from web.server.listening_file import LISTENING_FILE, announced
from web.server.log_writer import LogStatistics
from web.server.logs import set_up_logging
from web.server.loop_lag import LoopLag
from web.server.metrics import metrics
from web.server.openapi import openapi
from web.server.reception import Reception
from web.server.reloading import Reloading, ReloadRequests
from web.server.seen import NO_PROCESSES, Seen
from web.server.service_manager import NOBODY, ServiceManager
from web.server.setting_kinds import UNIX_PREFIX
from web.server.settings import BACKUPS_DIRECTORY, DATABASE_FILE, Settings, SettingsError
from web.server.signals import Signals
from web.server.tracing import open_spans
from web.websocket.hub import HELD_MAX, open_hub
from web.websocket.poller import open_poller
from web.websocket.refusing import Refusing

if TYPE_CHECKING:
    from web.server.spans import Spans

DRAIN_SECONDS_MAX: Final = 8.0
"""Time from the first signal until what is not finished is cut off. Reason: the exit is promised within 10 s."""

WORKER_DRAIN_SECONDS_MAX: Final = 7.0
"""The same for one of several processes. Reason: the database is closed after the last of them has ended, within the
same 10 s."""

CONNECTIONS_SECONDS_MAX: Final = 5.0
"""The part of it in which connections may end. Beyond: cut, so that time is left to store their acknowledgements."""

assert CONNECTIONS_SECONDS_MAX < WORKER_DRAIN_SECONDS_MAX < DRAIN_SECONDS_MAX, (
    "the registry drains after the connections"
)

ANNOUNCED_SECONDS_MAX: Final = 1.0
"""Longest wait for the removal of `listening.json`. Beyond: the file stays, and its lock is released."""

EXIT_SECONDS_MAX: Final = 9.0
"""Time from the first signal until the process ends, even if it still waits for a disk that does not answer. All
sockets are closed by then, and an event that is not stored by then was not acknowledged."""

assert DRAIN_SECONDS_MAX < EXIT_SECONDS_MAX, "what the drain is cut off at is still told to the store"

CHECK_RETRY_SECONDS: Final = 60.0
"""Wait before outboxes that the disk did not give out are looked at again. Reason: as often as old rows are dropped."""

REQUEST_IDS_DRAWN: Final = 256
"""Ids of requests that one system call draws. They lie in memory until they are given out."""

logger = logging.getLogger("avicenna.server")

Ready = Callable[[str], None]
"""Called with the server's URL once it accepts connections."""

Engine = Callable[[Settings, Clock], AbstractAsyncContextManager[tuple[Store, Bus]]]
"""Opens a store, and the way to other processes on it; closes it once all that was handed over is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a server takes from its machine, beside clock, store and sockets. A simulation hands in its own."""

    jitter: Callable[[], float]
    """Random numbers from 0 up to 1."""
    new_id: Callable[[], str]
    """Makes a short text that never repeats."""
    request_ids: Callable[[], str]
    """The same, for requests."""
    settle_memory: Callable[[], None]
    """Called once, when everything that lives as long as the server is made."""
    aside: Aside
    """Carries out what may wait for the disk."""


class Others(Protocol):
    """The other processes of one server, as far as figures go."""

    def answer_with(self, figures: Callable[[], Seen]) -> None:
        """Tell them these figures whenever they ask."""

    def say_last_figures(self) -> None:
        """Tell them once more: this process ends."""

    async def everywhere(self, here: Callable[[], Seen]) -> Seen:
        """The figures of all, with these of this process."""

    async def lately(self, here: Callable[[], Seen]) -> Seen:
        """As `everywhere`, for whoever asks often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """How a server differs that is one of several on one database."""

    engine: Engine
    begin_drain: Callable[[], object]
    """Has all of them drain, as an operator asks for it."""
    when_told_to_end: Callable[[Callable[[], None]], None]
    """Takes what is to be called, on any thread, once this process is to drain: beside signals."""
    is_replaced: Callable[[], bool]
    """Whether it ends because another one serves in its place."""
    others: Others
    age_seconds: float
    """For how long the server had run when this process began."""
    workers: int
    """How many there are."""
    is_replacement: bool
    """Another one serves until this one does: without the keys of a URL it must not begin."""
    tell_connections: Callable[[int], None]
    """Told how many connections are open here, whenever that changes."""
    connections_elsewhere: Callable[[], int]
    """How many are open at the others."""


class _NoOthers:
    """The others of a process that is alone."""

    def answer_with(self, figures: Callable[[], Seen]) -> None:
        """Nobody asks."""

    def say_last_figures(self) -> None:
        """Nobody wants to know."""

    async def everywhere(self, here: Callable[[], Seen]) -> Seen:
        return here()

    async def lately(self, here: Callable[[], Seen]) -> Seen:
        return here()


Extras = Callable[[trio.Event], Sequence[Extra]]
"""Makes routes that are no part of the contract; given what stops the server."""


def run(
    settings: Settings,
    *,
    ready: Ready | None = None,
    render: Render = render_event,
    extras: Extras | None = None,
    handed_over: HandedOver | None = None,
    manager: ServiceManager = NOBODY,
    worker: Worker | None = None,
) -> int:
    """Serve until a signal.

    Args:
        render: makes the text of an event that subscribers get.
        extras: further routes; given what stops the server.
        handed_over: listeners to serve, in place of those that the settings name.
        manager: is told how the server is.
        worker: this process is one of several; `None`: it is alone.

    Returns:
        The exit code: 0 after a drain, 1 after a failure, `CANNOT_START` if it could not start.
    """
    signals = Signals()
    with signals:
        code = _run(
            settings,
            ready,
            signals,
            render=render,
            extras=extras,
            handed_over=handed_over,
            manager=manager,
            worker=worker,
        )
    if code == 0 and signals.first is None:
        signals.give_back()  # somebody has ended this server, and goes on
    return code


def _run(
    settings: Settings,
    ready: Ready | None,
    signals: Signals,
    *,
    render: Render,
    extras: Extras | None,
    handed_over: HandedOver | None,
    manager: ServiceManager,
    worker: Worker | None,
) -> int:
    log = set_up_logging(settings)
    share_the_processor()
    has_started = False

    def started(url: str) -> None:
        nonlocal has_started
        has_started = True
        if ready is not None:
            ready(url)

    try:
        spans = open_spans(settings.tracing, SystemClock())
        trio.run(
            partial(
                _serve_until_signal,
                settings,
                started,
                signals,
                render=render,
                extras=extras,
                log=log.statistics,
                handed_over=handed_over,
                manager=manager,
                spans=spans,
                worker=worker,
            )
        )
    except (BaseExceptionGroup, CannotOpen, KeyUnusable, SettingsError, StoreBroken, OSError) as failure:
        return _explain(failure, has_started=has_started)
    logger.info("stopped")
    return 0


def _explain(failure: BaseException, *, has_started: bool) -> int:
    """Say in one line what ended the server; of anything unexpected kind and place, its text may hold a payload."""
    match first := first_of(failure):
        case OSError() if has_started:
            logger.critical("the server failed: %s", first)
            return 1
        case NotThere():
            logger.critical("cannot start: %s", first)
            return 1
        case CannotOpen() | KeyUnusable() | SettingsError() | OSError():
            logger.critical("cannot start: %s", first)
            return CANNOT_START
        case StoreBroken():
            logger.critical("storage failed, stopping so that nothing is lost: %s", first)
            return 1
        case _:
            logger.critical("the server failed unexpectedly", exc_info=failure)
            return 1


async def _serve_until_signal(
    settings: Settings,
    ready: Ready,
    signals: Signals,
    *,
    render: Render,
    extras: Extras | None,
    log: Callable[[], LogStatistics],
    handed_over: HandedOver | None,
    manager: ServiceManager,
    spans: Spans | None,
    worker: Worker | None,
) -> None:
    stopping, reload_requests = trio.Event(), ReloadRequests()
    token = trio.lowlevel.current_trio_token()
    # A thread, not a task: whatever hangs, also this one's, does not hold it up.
    end = threading.Timer(EXIT_SECONDS_MAX, _end_without_the_disk)
    end.daemon = True

    def begin(after: str) -> None:
        if stopping.is_set():
            return  # the parent and a signal may both say so
        logger.info("draining after %s", after)
        stopping.set()
        end.start()

    def came(first: str) -> None:
        with contextlib.suppress(trio.RunFinishedError):  # there is nothing left to drain
            token.run_sync_soon(begin, first)

    def reload() -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(reload_requests.ask, idempotent=True)

    signals.when_first_comes(came)
    signals.when_to_reload(reload)
    if worker is not None:
        worker.when_told_to_end(partial(came, "a word of the parent"))
    begin_drain = partial(signals.begin, DRAIN_REQUEST) if worker is None else worker.begin_drain
    try:
        await serve(
            settings,
            ready=ready,
            stopping=stopping,
            render=render,
            extras=extras,
            engine=open_engine if worker is None else worker.engine,
            worker=worker,
            begin_drain=begin_drain,
            log=log,
            handed_over=handed_over,
            manager=manager,
            reload_requests=reload_requests,
            spans=spans,
        )
    finally:
        end.cancel()


async def serve(
    settings: Settings,
    *,
    ready: Ready,
    stopping: trio.Event,
    clock: Clock | None = None,
    render: Render = render_event,
    extras: Extras | None = None,
    engine: Engine = open_engine,
    begin_drain: Callable[[], object] | None = None,
    log: Callable[[], LogStatistics] = LogStatistics,
    handed_over: HandedOver | None = None,
    manager: ServiceManager = NOBODY,
    reload_requests: ReloadRequests | None = None,
    spans: Spans | None = None,
    machine: Machine | None = None,
    worker: Worker | None = None,
) -> None:
    """Run one server until `stopping` is set, then drain it.

    Args:
        clock: the time; `None`: the machine's.
        render: makes the text of an event that subscribers get.
        extras: further routes; given what stops the server.
        engine: opens the store, and the way to other servers on it.
        begin_drain: has `stopping` set, as an operator asks for it; `None`: it is set at once.
        log: how the log is doing.
        handed_over: listeners to serve, in place of those that the settings name. Takes them.
        manager: is told how the server is.
        reload_requests: when to read the keys anew; `None`: never.
        spans: is told of requests, and of what becomes of what they publish; `None`: nobody is.
        machine: chance and threads; `None`: this machine's.
        worker: this process is one of several, and others look after the data directory; `None`: it is alone.

    Raises:
        CannotOpen, KeyUnusable, OSError: it could not start; the message says why.
        StoreBroken: storage failed.
    """
    clock, machine = clock or SystemClock(), machine or _this_machine()
    jitter, is_alone = machine.jitter, worker is None
    if is_alone:
        trusted_directory(settings)
    connection_log = ConnectionLog(clock, subjects=settings.log_subjects)
    followers = Followers(connection_log)
    connections_max = connections_possible(settings.max_connections)
    workers = 1 if worker is None else worker.workers
    # So that those who are refused take no one's place.
    held_max = min(HELD_MAX, max(1, connections_max // (10 * workers)))
    see_that_keys_are_given(settings)
    # The process of the store reads the keys first, and says once for all what is wrong with them.
    makes_key = not is_alone or will_make_key(settings)
    keys = [] if makes_key else load_keys(settings)
    if is_alone:
        caution(settings)
    async with (
        engine(settings, clock) as (store, bus),
        trio.open_nursery() as actors_nursery,
        open_hub(open_poller(), clock=clock, jitter=jitter, rounds=followers.rounds, held_max=held_max) as hub,
    ):
        if is_alone:
            sweep_up(settings)
        if makes_key:
            # After the database: a key without one says that a database was there.
            keys = load_keys(settings)
        limits = ActorLimits(
            passivate_after_seconds=settings.passivate_after_seconds,
            mailbox_publishes_max=settings.mailbox_messages_max,
            restart_intensity_max=settings.restart_intensity_max,
            restart_intensity_seconds=settings.restart_intensity_seconds,
            quarantine_seconds=settings.quarantine_seconds,
            escalation_quarantines_max=settings.escalation_quarantines_max,
            escalation_seconds=settings.escalation_seconds,
            ring_bytes_max=settings.ring_bytes_max,
        )
        trail = AccessTrail(store, clock) if settings.access_trail else None
        registry = Registry(
            store,
            actors_nursery,
            render=render,
            clock=clock,
            jitter=jitter,
            limits=limits,
            trail=trail,
            bus=bus,
            tracing=spans,
        )
        if spans is not None:
            store.on_commit(spans.committed)
        await actors_nursery.start(registry.run)
        actors_nursery.start_soon(_stop_when_broken, store, stopping)
        acts = Acts(store, registry, actors_nursery, settings.storage_seconds_max, refusals=WebError)
        patient = store.patient(settings.storage_seconds_max)
        revoked = Revoked()
        consequences = Consequences(
            store, registry, revoked, actors_nursery, now=clock.wall, anonymous_allowed=settings.allow_anonymous
        )
        store.tell(consequences, consequences.carried_out)
        await consequences.read_revoked()
        unknown, url = UnknownKeys(), settings.jwks if settings.jwks is not None and "://" in settings.jwks else None
        verifier = Verifier(
            keys,
            revoked,
            issuer=settings.issuer,
            audience=settings.audience,
            lifetime_seconds_max=settings.token_lifetime_seconds_max,
            unknown=None if url is None else unknown,
        )
        remote_keys = None
        if url is not None:
            remote_keys = RemoteKeys(url, verifier, unknown, clock, refresh_seconds=settings.jwks_refresh_seconds)
            await remote_keys.fetch()
            if worker is not None and worker.is_replacement and not remote_keys.has_keys:
                raise KeyUnusable("no keys could be fetched from the jwks URL")
        access = Access(
            settings,
            verifier,
            Limits(settings, clock.monotonic),
            patient,
            clock,
            lambda: 0.0 if remote_keys is None else remote_keys.retry_after_seconds,
        )
        expiry = Expiry(
            verifier,
            clock,
            may_follow=access.may_follow,
            prepare=_no_keys if remote_keys is None else remote_keys.ready_for,
        )
        turns = Turns(TURN_BYTES)
        open_connections = OpenConnections(None if worker is None else worker.tell_connections)
        entrance = Entrance(access, acts, registry, expiry, clock, stopping)
        stream_closes = StreamCloses()
        streams = Streams(access, entrance, connection_log, stream_closes, clock, jitter=jitter, hold=hub.hold_stream)
        upgrades = Upgrades(access)
        refusing = Refusing(hub, connection_log, upgrades.name_of)
        sockets = Sockets(upgrades, entrance, access, hub, followers, refusing)
        publisher = Publisher(access, acts, turns)
        senders = Senders(publisher, registry, expiry, connection_log)
        publish_sockets = PublishSockets(upgrades, access, hub, senders, refusing, actors_nursery, stopping)
        ways = Ways()
        others: Others = _NoOthers() if worker is None else worker.others
        began_at = clock.monotonic() - (0.0 if worker is None else worker.age_seconds)
        lag, release = LoopLag(), version("avicenna-live")

        def see() -> Seen:
            its = store.statistics()
            return Seen(
                release=release,
                uptime_seconds=clock.monotonic() - began_at,
                nodes=registry.nodes_known,
                restarted_processes=NO_PROCESSES,
                actors=registry.statistics(),
                is_escalated=registry.escalated,
                store=its,
                store_away_seconds=0.0 if its.away_since is None else clock.monotonic() - its.away_since,
                damaged=len(store.damaged),
                hub=hub.statistics(),
                stream_closes=stream_closes.statistics(),
                connections=open_connections.statistics(),
                ways=ways,
                senders=senders.statistics(),
                refused_tokens=access.refused_tokens.statistics(),
                tasks=trio.lowlevel.current_statistics().tasks_living,
                loop_lag=lag.statistics(),
                log=log(),
                consoles=len(consoles),
            )

        others.answer_with(see)
        everywhere, lately = partial(others.everywhere, see), partial(others.lately, see)

        async def node_figures() -> Mapping[str, object]:
            return node_of(await everywhere())

        async def console_figures() -> Mapping[str, object]:
            return figures_of(await everywhere(), store.clock_held_since)

        async def is_escalated() -> bool:
            return (await lately()).is_escalated

        def is_ending() -> bool:
            # A worker that makes way for another one is asked about the whole server.
            return stopping.is_set() and (worker is None or not worker.is_replaced())

        figures = Figures(patient, registry, clock, node_figures)
        elsewhere = Elsewhere(bus, registry)
        overview = Overview(patient, registry, clock, console_figures, elsewhere)
        consoles = Consoles(overview, access, expiry, connection_log, stream_closes, clock, jitter, stopping)
        consequences.others = (publish_sockets, consoles)
        isolation = Isolation(store, bus, registry, consequences.others, clock, jitter, settings.isolated_seconds)
        backups = Backups(settings.data / BACKUPS_DIRECTORY, settings.backups_kept)
        handlers = {
            **broadcasts(publisher),
            **bulk(publisher, registry),
            "followEvents": streams.follow,
            **diagnoses(access, acts, consequences, patient),
            **delivery(access, acts, registry, patient),
            **actors(access, acts, registry, patient),
            **erasure(access, acts, consequences, registry, stopping),
            **maintenance(access, patient, clock, machine.new_id, settings.data, backups, stopping),
            **drain(access, acts, stopping.set if begin_drain is None else begin_drain),
            **revocations(access, acts, consequences, patient),
            **trails(patient),
            **status(
                figures,
                patient,
                clock,
                ConnectionsOpen(bus, lambda: open_connections.count),
                is_escalated,
                is_ending,
                began_at,
            ),
            **metrics(everywhere),
            **consoles.handlers(),
            **console_page(),
            **openapi(),
            **client_file(),
        }
        door = FrontDoor(settings, access, remote_keys)
        instead = partial(goodbye_instead, log=connection_log, closes=stream_closes, clock=clock)
        reception = Reception(door, clock, machine.request_ids, instead, spans)
        further = () if extras is None else extras(stopping)
        app = create_app(reception, access, handlers, sockets.follow, publish_sockets.publish, further)
        kept_up: dict[str, Callable[[], Awaitable[None]]] = {
            "watch over waits for the disk": acts.watch,
            "turns of decoding": turns.run,
            "look at how late tasks are woken": lag.run,
            "housekeeper": Housekeeper(settings, store, registry, clock).run,
            "budget of events in memory": registry.keep_rings_small,
            "counts for other processes": registry.tell_peers,
            "watch over expiring tokens": expiry.run,
            "sums in the log": connection_log.run,
            "overview for consoles": overview.run,
            "what consoles of others show": elsewhere.run,
            "expiry of revocations": partial(expire_revocations, store, settings.token_lifetime_seconds_max),
            "check of all outboxes": partial(_check_once, store),
            "signs of life for the service manager": manager.watch,
            "watch over isolation": isolation.run,
        }
        if reload_requests is not None:
            reloading = Reloading(reload_requests, settings, verifier, remote_keys, manager, clock)
            kept_up["reloading of keys"] = reloading.run
        if trail is not None:
            kept_up["access trail"] = trail.run
        if remote_keys is not None:
            kept_up["fetching of keys"] = remote_keys.run
        for name, service in kept_up.items():
            actors_nursery.start_soon(restart_on_crash, name, service, clock, jitter)

        async def say_goodbye() -> None:
            await publish_sockets.end_all()
            await consoles.end_all()
            await registry.end_all()
            await hub.drain()

        address_connections_max = share_of_address(settings, connections_max, workers)

        def given_away_or_elsewhere() -> int:
            # Beside the limit of all there is that of this process, whose open files may be fewer.
            allowed_beside = settings.max_connections - connections_max
            others_have = 0 if worker is None else max(0, worker.connections_elsewhere() - allowed_beside)
            return hub.connections + others_have

        terms = Terms(
            connections_max=connections_max,
            drain_seconds_max=CONNECTIONS_SECONDS_MAX,
            patience=Patience(idle_seconds=settings.keep_alive_seconds),
            elsewhere=given_away_or_elsewhere if workers > 1 else lambda: hub.connections,
            open=open_connections,
            address_connections_max=address_connections_max,
            is_served_when_full=served_when_full(verifier, clock.wall),
            short_way=app if settings.short_way else None,
            ways=ways,
            excess=door.excess_of,
            drain=say_goodbye,
        )
        if settings.address_share < 1:
            terms = replace(terms, address_of=partial(sharing_address, trusted=settings.trusted_proxies))
        listen = partial(_listen, settings, handed_over or HandedOver(), is_alone)
        deadline = await _serve_front_end(
            app, settings, terms, listen, stopping, ready, manager, machine, is_alone=is_alone
        )
        with trio.move_on_at(deadline):
            async with trio.open_nursery() as drain_nursery:
                drain_nursery.start_soon(acts.settle)
                drain_nursery.start_soon(registry.drain)
        others.say_last_figures()
        actors_nursery.cancel_scope.cancel()


async def _stop_when_broken(store: StoreUpkeep, stopping: trio.Event) -> None:
    """Say goodbye to everybody when storage fails: whoever waits has been told that the outcome is unknown."""
    await store.broke.wait()
    stopping.set()


def caution(settings: Settings) -> None:
    """Warn of settings that are allowed, and seldom meant."""
    _warn(caution_about_keys(settings), caution_about_origins(settings))


def share_of_address(settings: Settings, connections_max: int, workers: int = 1) -> int:
    """Connections that one address may have at one of so many workers, as the kernel spreads them evenly."""
    return max(1, math.ceil(int(settings.address_share * connections_max + 1e-9) / workers))


def _warn(*texts: str | None) -> None:
    """One line each for the operator; `None`: there is nothing to say."""
    for text in texts:
        if text is not None:
            logger.warning("%s", text)


def trusted_directory(settings: Settings) -> None:
    """Look at who can write what is in the data directory.

    Raises:
        Untrusted: somebody else can, or has.
    """
    _warn(*trust.check_directory(settings.data, (KEY_FILE, *database_files.names_of(DATABASE_FILE))))


async def _check_once(store: StoreUpkeep) -> None:
    """Have all outboxes looked at, if the last run did not end in order; until cancelled."""
    while True:
        try:
            await store.look_through()
        except (Busy, Failed) as refusal:
            logger.warning("outboxes were not checked, trying again in %.0f s: %s", CHECK_RETRY_SECONDS, refusal)
            await trio.sleep(CHECK_RETRY_SECONDS)
        else:
            await trio.sleep_forever()


def _this_machine() -> Machine:
    return Machine(
        jitter=random.SystemRandom().random,
        new_id=new_id,
        request_ids=_request_ids(),
        settle_memory=settle_memory,
        aside=on_a_thread,
    )


def _request_ids() -> Callable[[], str]:
    """Ids of 64 random bits, which do not tell how many there were; drawn many at once: each costs no system call."""

    def draw() -> Iterator[str]:
        while True:
            drawn = secrets.token_hex(8 * REQUEST_IDS_DRAWN)
            for at in range(0, len(drawn), 16):
                yield drawn[at : at + 16]

    return draw().__next__


async def _no_keys(token: str) -> None:
    """Wait for the key of a token where none will come."""


async def _serve_front_end(
    app: QuartTrio,
    settings: Settings,
    terms: Terms,
    listen: Callable[[contextlib.ExitStack], _Listening],
    stopping: trio.Event,
    ready: Ready,
    manager: ServiceManager,
    machine: Machine,
    *,
    is_alone: bool,
) -> float:
    """Accept connections until the server is to stop, and end them; the time when all else must have ended too."""
    with contextlib.ExitStack() as listening:
        listeners, urls, of_operators = listen(listening)
        beside = [(one, _operators_terms(terms)) for one in of_operators]
        async with trio.open_nursery() as front_nursery:
            await front_nursery.start(partial(serve_http, app, listeners, terms, beside=beside, stop=stopping.wait))
            announcing = contextlib.ExitStack()
            try:
                if is_alone:
                    announce(settings, urls, announcing)
                    for line in facts(
                        settings, version("avicenna-live"), terms.connections_max, terms.address_connections_max
                    ):
                        logger.info("%s", line)
                    for url in urls:
                        logger.info("listening on %s", url)
                machine.settle_memory()
                ready(urls[0])
                manager.ready(f"listening on {', '.join(urls)}")
                await stopping.wait()
                manager.stopping()
            finally:
                deadline = trio.current_time() + (DRAIN_SECONDS_MAX if is_alone else WORKER_DRAIN_SECONDS_MAX)
                await stop_announcing(announcing, machine.aside)
    return deadline


_Listening = tuple[list[socket.socket], list[str], list[socket.socket]]
"""Listeners for everybody, how each is found, and those for operators."""


def _listen(settings: Settings, handed_over: HandedOver, is_alone: bool, listening: contextlib.ExitStack) -> _Listening:
    """All listeners, closed with `listening`: those that were handed over, else those of the settings, if any.

    Raises:
        OSError: one of them cannot be had; the message says which.
    """
    listening.callback(handed_over.close)
    listeners, of_operators = list(handed_over.public), list(handed_over.operators)
    if not is_alone:
        # Not before: whoever connects would wait until this process serves.
        for one in listeners:
            begin_to_listen(one)
        return listeners, [url_of(one) for one in listeners], of_operators  # the parent has said all about them
    urls = [url_of(one) for one in listeners]
    caution_about(settings, listeners)
    if not listeners:
        listeners, urls = _listen_for_everybody(settings, listening)
    of_operators = listen_for_operators(settings, handed_over, listening)
    return listeners, urls, of_operators


def caution_about(settings: Settings, listeners: Sequence[socket.socket]) -> None:
    """Warn of addresses that other machines reach, where the settings do not go with that."""
    for one in listeners:
        if one.family != socket.AF_UNIX:
            _warn(caution_about_listening(settings, one.getsockname()[0]))


def _listen_for_everybody(settings: Settings, listening: contextlib.ExitStack) -> tuple[list[socket.socket], list[str]]:
    """The listeners of the settings, and how each is found. Raises as `_listen`."""
    listeners: list[socket.socket] = []
    urls: list[str] = []
    if settings.tcp:
        with naming(f"{settings.host}:{settings.port}", "host, port; options --host, --port"):
            listener = listen_on_tcp(settings.host, settings.port)
        listening.callback(listener.close)
        listeners.append(listener)
        urls.append(url_of(listener))
        caution_about(settings, [listener])
    if settings.unix_socket is not None:
        with naming(str(settings.unix_socket), "unix_socket"):
            listeners.append(listening.enter_context(listening_on_unix(settings.unix_socket)))
        urls.append(f"unix:{settings.unix_socket}")
    return listeners, urls


def listen_for_operators(
    settings: Settings, handed_over: HandedOver, listening: contextlib.ExitStack
) -> list[socket.socket]:
    """The listeners for operators alone: those that were handed over, else that of the settings, if any.

    It is closed with `listening`. Raises as `_listen`.
    """
    listeners, place = list(handed_over.operators), settings.operators_listen
    if not listeners and place is not None:
        with naming(place, "operators_listen"):
            if place.startswith(UNIX_PREFIX):
                listener = listening.enter_context(listening_on_unix(Path(place.removeprefix(UNIX_PREFIX))))
                logger.info("listening for operators on %s", place)  # its socket knows the name it was made under
                return [listener]
            host, _, port = place.rpartition(":")
            listeners = [listen_on_tcp(host.removeprefix("[").removesuffix("]"), int(port))]
        listening.callback(listeners[0].close)
    for one in listeners:
        logger.info("listening for operators on %s", url_of(one))
    return listeners


def _operators_terms(terms: Terms) -> Terms:
    """On what terms operators are served at a listener of their own."""
    return Terms(
        connections_max=OPERATORS_CONNECTIONS_MAX,
        drain_seconds_max=terms.drain_seconds_max,
        patience=terms.patience,
        open=terms.open,
        state={AMONG_OPERATORS: True},
        is_served=served_to_operators,
        is_served_when_full=terms.is_served_when_full,
        short_way=terms.short_way,
        ways=terms.ways,
    )


def announce(settings: Settings, urls: Sequence[str], announcing: contextlib.ExitStack) -> None:
    """Tell the commands on this machine where the server is, until `announcing` ends. It serves without that, too."""
    try:
        announcing.enter_context(announced(settings.data, urls, settings.workers))
    except OSError as error:
        logger.warning("cannot write %s in %s: %s", LISTENING_FILE, settings.data, error.strerror)


async def stop_announcing(announcing: contextlib.ExitStack, aside: Aside = on_a_thread) -> None:
    """Aside, and not waited for long: where the disk hangs, so does the removal of a file."""
    with trio.move_on_after(ANNOUNCED_SECONDS_MAX, shield=True):
        await aside(announcing.close)


@contextlib.contextmanager
def naming(place: str, setting: str) -> Iterator[None]:
    """Have an error say where it could not be listened, and which setting says so."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error  # what Python itself finds wrong, a path that is too long, has no number
        raise OSError(error.errno or errno.EINVAL, f"cannot listen on {place} ({setting}): {why}") from None


def _end_without_the_disk() -> None:
    logger.critical("the database is not closed after %.0f s: ending without that", EXIT_SECONDS_MAX)
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(1)
