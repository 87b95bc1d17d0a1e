"""A real server in this process, on a real socket and a real database, and clients that talk to it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import httpx
import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

from actors.diagnosis import Render
from storage.bus import Bus
from storage.clock import Clock, SystemClock
from storage.remote.client import open_remote
from storage.remote.server import StoreServer
from storage.store import Store
from tests.contract import complaint, complaint_of_headers, frame_complaint
from tests.logbook import LOGBOOK, PAYLOAD_MARKER
from web.commands import offline
from web.contract.wire import render_event
from web.http.handed_over import HandedOver
from web.http.listening import listening_on_unix, share_of_tcp
from web.identity.keyring import KEY_FILE, load_key, load_keys, load_or_create_key, will_make_key
from web.identity.tokens import issue
from web.server.composition import Engine, Worker, serve
from web.server.database import open_engine, sweep_up
from web.server.listening_file import announced
from web.server.seen import Seen
from web.server.settings import DATABASE_FILE, Settings, load, variable_of
from web.server.spans import Spans
from web.server.workers.ledger import Ledger
from web.server.workers.orders import packed
from web.server.workers.store_process import socket_of

Frame = dict[str, Any]


class Client:
    """One WebSocket, frame by frame."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self.connection = connection
        self._kinds_seen: set[str] = set()

    async def next(self) -> Frame:
        """The next frame."""
        with trio.fail_after(10):
            frame: Frame = json.loads(await self.connection.get_message())
        # Thousands of events look alike: of each connection, the first of a kind is compared with its document.
        if "seq" not in frame or frame["type"] not in self._kinds_seen:
            self._kinds_seen.add(frame["type"])
            assert (wrong := frame_complaint(frame)) is None, wrong
        return frame

    async def next_of(self, kind: str) -> Frame:
        """The next frame of this type; others in between are skipped."""
        while (frame := await self.next())["type"] != kind:
            pass
        return frame

    async def until_live(self) -> list[Frame]:
        """All frames up to and including `live`."""
        frames = [await self.next()]
        while frames[-1]["type"] != "live":
            frames.append(await self.next())
        return frames

    async def events(self, count: int) -> list[Frame]:
        """The next `count` frames that carry a number."""
        found: list[Frame] = []
        while len(found) < count:
            frame = await self.next()
            if "seq" in frame:
                found.append(frame)
        return found

    async def say(self, **frame: object) -> None:
        """Send a frame."""
        await self.connection.send_message(json.dumps(frame))

    async def close_frames(self) -> tuple[list[Frame], int, str]:
        """What comes until the server closes, the code, and the reason."""
        frames: list[Frame] = []
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                frames.append(await self.next())
        reason = closed.value.reason
        assert reason is not None, "closed without a close frame"
        return frames, reason.code, reason.reason or ""


class Server:
    """Where a running server is, and how to talk to it."""

    def __init__(self, url: str, data: Path, stopping: trio.Event | None = None) -> None:
        self.url = url
        self._stopping = stopping
        self.data = data
        self.http = httpx.AsyncClient(base_url=url, timeout=30, event_hooks={"response": [as_documented]})
        key = load_key(data)
        assert key is not None, "a server has a key"
        self.key = key
        LOGBOOK.note_key(key)

    async def __aenter__(self) -> Self:
        return self

    def stop(self) -> None:
        """Have a server of this process drain now."""
        assert self._stopping is not None, "it runs in another process"
        self._stopping.set()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with trio.CancelScope(shield=True):
            await self.http.aclose()

    def token(self, sub: str, scope: str = "", ttl_seconds: int = 600) -> str:
        """A token made with the server's key."""
        made = issue(self.key, sub=sub, scope=scope, ttl_seconds=ttl_seconds, now=time.time(), token_id="t")
        LOGBOOK.note(made, "a token")
        return made

    def bearer(self, sub: str, scope: str = "", ttl_seconds: int = 600) -> dict[str, str]:
        """The header that carries such a token."""
        return {"Authorization": f"Bearer {self.token(sub, scope, ttl_seconds)}"}

    async def register(self, diagnosis_id: object = 42, owner: str = "amira", *viewers: str) -> httpx.Response:
        """Register a diagnosis."""
        body = {"owner": owner, "viewers": list(viewers)}
        headers = self.bearer("registrar", "register")
        return await self.http.put(f"/diagnoses/{diagnosis_id}", json=body, headers=headers)

    async def until_alone(self) -> None:
        """Wait until no connection is left."""
        with trio.fail_after(5):
            while (await self.status())["total_connections"]:
                await trio.sleep(0.01)

    async def publish(
        self, number: int = 1, diagnosis_id: object = 42, sub: str = "amira", **fields: object
    ) -> httpx.Response:
        """Broadcast one feedback update with the number as its feedback id."""
        fields = {"comment": PAYLOAD_MARKER, **fields}
        body = {"diagnosis_id": diagnosis_id, "feedback_id": number, "rating": 5, **fields}
        return await self.post("feedback", body, sub)

    async def post(self, kind: str, body: object, sub: str = "amira", **headers: str) -> httpx.Response:
        """Post a broadcast."""
        path = f"/ws/broadcast-{kind}-update"
        LOGBOOK.note(headers.get("Idempotency-Key", ""), "an idempotency key")
        return await self.http.post(path, json=body, headers=self.bearer(sub) | headers)

    async def status(self) -> Frame:
        """`GET /ws/status` as an operator."""
        found: Frame = (await self.http.get("/ws/status", headers=self.bearer("op", "operate"))).json()
        return found

    @asynccontextmanager
    async def connect(
        self, diagnosis_id: object = 42, sub: str | None = "amira", scope: str = "", **parameters: str | int
    ) -> AsyncIterator[Client]:
        """A WebSocket with a token of `sub` (none if `None`)."""
        query = urlencode(parameters)
        url = self.url.replace("http://", "ws://") + f"/ws/{diagnosis_id}" + (f"?{query}" if query else "")
        headers = [] if sub is None else list(self.bearer(sub, scope).items())
        async with open_socket(url, extra_headers=headers) as client:
            yield client

    @asynccontextmanager
    async def live(
        self, diagnosis_id: object = 42, sub: str = "amira", **parameters: str | int
    ) -> AsyncIterator[Client]:
        """A WebSocket that has seen `live`."""
        async with self.connect(diagnosis_id, sub, "", **parameters) as client:
            await client.until_live()
            yield client


async def as_documented(response: httpx.Response) -> None:
    """Compare an answer with `/openapi.json`."""
    await response.aread()
    request, media_type = response.request, response.headers.get("content-type", "")
    wrong = complaint(request.method, request.url.path, response.status_code, media_type, response.content)
    assert wrong is None, wrong
    wrong = complaint_of_headers(request.method, request.url.path, response.status_code, response.headers)
    assert wrong is None, wrong


@asynccontextmanager
async def open_socket(
    url: str, *, subprotocols: Sequence[str] = (), extra_headers: Sequence[tuple[str, str]] = ()
) -> AsyncIterator[Client]:
    """A WebSocket whose TCP connection is gone afterwards: trio-websocket leaves it open when the peer closed first."""
    headers = [(name.encode(), value.encode()) for name, value in extra_headers]
    async with open_websocket_url(url, subprotocols=subprotocols, extra_headers=headers) as connection:
        try:
            yield Client(connection)
        finally:
            if connection.closed is not None:
                await trio.aclose_forcefully(connection._stream)


def begin(data: Path, key: bytes = b"k" * 32) -> None:
    """Leave what a first start leaves in a data directory: a database, and then a key."""
    # The database is made in an event loop of its own, which no thread has beside another one.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(offline.create, data / DATABASE_FILE).result()
    (data / KEY_FILE).write_bytes(key)
    (data / KEY_FILE).chmod(0o600)


@asynccontextmanager
async def running_server(
    settings: Settings,
    clock: Clock | None = None,
    *,
    render: Render = render_event,
    engine: Engine = open_engine,
    spans: Spans | None = None,
) -> AsyncIterator[Server]:
    """A server with these settings (this time, this renderer of events and this store), drained at the end.

    Where the test goes the long way (`tests/conftest.py`), so do all requests. Where it goes by workers, two servers
    share the port and the store, as the processes of `serve --workers 2` do; here they are in one process. Where it
    goes by NATS, the server has its streams there.
    """
    if os.environ.get(variable_of("short_way")) == "false":
        settings = replace(settings, short_way=False)
    if os.environ.get(variable_of("engine")) == "nats" and engine is open_engine:
        settings = _on_nats(settings)
    count = int(os.environ.get(variable_of("workers"), "1"))
    has_workers = count > 1 and engine is open_engine
    stopping = trio.Event()
    is_ready = trio.Event()
    urls: list[str] = []

    def ready(url: str) -> None:
        urls.append(url)
        if len(urls) == (count if has_workers else 1):
            is_ready.set()

    async with trio.open_nursery() as server_nursery, AsyncExitStack() as stack:
        run = partial(serve, settings, ready=ready, stopping=stopping, clock=clock, render=render, spans=spans)
        if not has_workers:
            server_nursery.start_soon(partial(run, engine=engine))
        else:
            store = await stack.enter_async_context(_served_store(settings, clock or SystemClock()))
            workers = await stack.enter_async_context(trio.open_nursery())
            together, port = Together(count, stopping, store), settings.port
            for number in range(count):
                listener = share_of_tcp(settings.host, port)
                port = listener.getsockname()[1]
                worker = together.worker(number, partial(_remote_engine, f"worker-{number + 1}"))
                handed_over = HandedOver((listener,), ())
                workers.start_soon(partial(run, engine=worker.engine, handed_over=handed_over, worker=worker))
        with trio.fail_after(10):
            await is_ready.wait()
        if has_workers:
            stack.enter_context(announced(settings.data, [*dict.fromkeys(urls)], count))
        try:
            async with Server(urls[0], settings.data, stopping) as server:
                yield server
        finally:
            stopping.set()


def _on_nats(settings: Settings) -> Settings:
    """The same server on an installation of this test's own, with a key, as none is made."""
    given = load(
        {name: os.environ[name] for name in map(variable_of, ("engine", "nats_url", "nats_name", "nats_replicas"))}
    )
    if will_make_key(settings):
        load_or_create_key(settings.data)
    return replace(
        settings,
        engine=given.engine,
        nats_url=given.nats_url,
        nats_name=given.nats_name,
        nats_replicas=given.nats_replicas,
    )


class Together:
    """What the parent does for its workers, for servers in one process."""

    def __init__(self, count: int, stopping: trio.Event, store: Store | None = None) -> None:
        self._store = store
        self._stopping = stopping
        self._ledger = Ledger()
        self._figures: list[Callable[[], Seen]] = []
        self._connections = [0] * count

    def worker(self, number: int, engine: Engine) -> Worker:
        return Worker(
            engine=engine,
            begin_drain=self._stopping.set,
            when_told_to_end=lambda end: None,
            is_replaced=lambda: False,
            others=self,
            age_seconds=0.0,
            workers=len(self._connections),
            is_replacement=False,
            tell_connections=partial(self._connections.__setitem__, number),
            connections_elsewhere=lambda: sum(self._connections) - self._connections[number],
        )

    def answer_with(self, figures: Callable[[], Seen]) -> None:
        self._figures.append(figures)

    def say_last_figures(self) -> None:
        """All of them end at once."""

    async def everywhere(self, here: Callable[[], Seen]) -> Seen:
        for figures in self._figures:
            self._ledger.worker_told(figures, packed(figures()))
        if self._store is not None:
            self._ledger.store_told(self, packed(self._store.statistics()))
        return self._ledger.together() or here()

    async def lately(self, here: Callable[[], Seen]) -> Seen:
        return await self.everywhere(here)


@asynccontextmanager
async def _served_store(settings: Settings, clock: Clock) -> AsyncIterator[Store]:
    """The store of these settings, which workers ask."""
    makes_key = will_make_key(settings)
    async with open_engine(settings, clock) as (store, _), trio.open_nursery() as nursery:
        sweep_up(settings)
        if makes_key:
            load_keys(settings)
        with listening_on_unix(socket_of(settings), 0o600, is_ours=True) as listener:
            server = StoreServer(store)
            nursery.start_soon(server.run, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))])
            yield store
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _remote_engine(node: str, settings: Settings, clock: Clock) -> AsyncIterator[tuple[Store, Bus]]:
    async with open_remote(socket_of(settings), node=node, clock=clock) as store:
        yield store, store.bus
