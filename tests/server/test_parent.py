"""The parent of `serve --workers`, with children that are no processes."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from storage.clock import SystemClock
from web.http.listening import begin_to_listen, share_of_tcp
from web.server.service_manager import NOBODY
from web.server.settings import Settings
from web.server.workers import children, orders, parent
from web.server.workers.counting import memory
from web.server.workers.orders import Order


class Child:
    """What the parent sees of a process; one that is frozen ends when it is killed."""

    def __init__(self, name: str, *, is_frozen: bool) -> None:
        self.name = name
        self.slot = 0
        self.pid = 0
        self.code = 0
        self.silent = 0
        self.is_ending = self.is_replaced = self.is_aborted = False
        self.ready = trio.Event()
        self.ended = trio.Event()
        self._is_frozen = is_frozen
        self._is_over = trio.Event()

    def end(self, *, is_replaced: bool = False) -> None:
        self.is_ending, self.is_replaced = True, is_replaced
        if not self._is_frozen:
            self._is_over.set()

    def kill(self) -> None:
        self._is_over.set()

    def say(self, word: str, rest: str = "") -> None:
        """Nobody reads it."""

    def abort(self) -> None:
        self.is_aborted = True

    def ask(self, number: int) -> None:
        if not self._is_frozen:
            self.silent = 0

    async def until_told(self, number: int) -> None:
        await trio.lowlevel.checkpoint()

    async def run(self, said: Callable[[Child, str, str], None], gone: Callable[[], None]) -> None:
        self.ready.set()
        await self._is_over.wait()
        gone()
        self.ended.set()
        for _ in range(10):  # the next one is started before this returns
            await trio.lowlevel.checkpoint()


class Installation:
    """A parent with two workers."""

    def __init__(self, data: Path, frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = Settings(data=data, workers=2)
        self.listeners: list[list[socket.socket]] = [[], []]
        nowhere = parent.Listeners(self.listeners, (), (), ("http://127.0.0.1:1",))
        counting = memory(parent.slots_of(settings))
        self.orders: list[Order] = []
        self.serving: list[Child] = []
        self.refused = 0
        """So many starts fail from now on."""
        self._frozen = frozen
        self._has_begun = trio.Event()
        self.parent = parent.Parent(
            settings, None, {}, nowhere, counting, lambda _: self._has_begun.set(), NOBODY, SystemClock(), lambda: None
        )
        monkeypatch.setattr(children, "start", self._start)

    async def _start(self, order: Order) -> Child:
        await trio.lowlevel.checkpoint()
        self.orders.append(order)
        if self.refused:
            self.refused -= 1
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        name = order.node or orders.STORE
        self.serving.append(Child(name, is_frozen=name.startswith(self._frozen)))
        return self.serving[-1]

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """It has begun; it drains at the end."""
        with socket.socket() as store:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.parent.run, store)
                await self._has_begun.wait()
                yield
                self.parent.drain()

    async def drain(self) -> float:
        """Begin, and end; how long the end took."""
        async with self.served():
            began_at = trio.current_time()
        return trio.current_time() - began_at


async def test_every_child_has_the_data_directory_with_which_the_server_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    installation = Installation(tmp_path, "nobody", monkeypatch)
    await installation.drain()
    assert [one.options["data"] for one in installation.orders] == [str(tmp_path)] * 3


async def test_a_worker_that_is_frozen_is_killed_before_the_others_have_no_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    assert await Installation(tmp_path, "worker-1", monkeypatch).drain() < parent.DRAIN_SECONDS_MAX


async def test_the_end_takes_less_than_10_s_whoever_is_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    began_at = trio.current_time()
    with pytest.RaisesGroup(parent.NotClosed):
        await Installation(tmp_path, "", monkeypatch).drain()
    assert trio.current_time() - began_at < 10


async def test_nobody_waits_in_a_listener_of_the_parent_while_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    installation = Installation(tmp_path, "worker-1", monkeypatch)
    listener = share_of_tcp("127.0.0.1", 0)
    begin_to_listen(listener)
    installation.listeners[0].append(listener)
    async with installation.served():
        installation.parent.drain()
        await installation.serving[-1].ended.wait()
        frozen = next(one for one in installation.serving if one.name.startswith("worker-1"))
        assert not frozen.ended.is_set()
        assert listener.fileno() == -1, "whoever connects is refused at once"


async def test_a_store_that_is_frozen_at_the_end_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    with pytest.RaisesGroup(parent.NotClosed):
        await Installation(tmp_path, orders.STORE, monkeypatch).drain()


async def test_a_worker_that_is_replaced_knows_that_the_server_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    installation = Installation(tmp_path, "nobody", monkeypatch)
    async with installation.served():
        installation.parent.reload()
        await trio.sleep(10)
    assert [one.is_replaced for one in installation.serving] == [False, True, True, False, False]


async def test_a_reload_that_is_asked_for_during_another_one_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    installation = Installation(tmp_path, "nobody", monkeypatch)
    async with installation.served():
        installation.parent.reload()
        while len(installation.serving) == 3:
            await trio.lowlevel.checkpoint()
        installation.parent.reload()
        await trio.sleep(10)
    assert len(installation.serving) == 3 + 2 + 2


@pytest.mark.parametrize("refused", [1, 2])
async def test_a_process_that_cannot_be_started_now_is_started_later(
    refused: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    installation = Installation(tmp_path, "nobody", monkeypatch)
    async with installation.served():
        installation.refused = refused
        installation.serving[1].kill()
        await trio.sleep(10)
        assert [one.ended.is_set() for one in installation.serving] == [False, True, False, False]
        installation.refused = refused
        installation.parent.reload()
        await trio.sleep(10)
        assert len(installation.serving) == 4


async def test_the_worker_after_one_that_died_accepts_on_another_listener(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    installation = Installation(tmp_path, "nobody", monkeypatch)
    former = share_of_tcp("127.0.0.1", 0)
    installation.listeners[0].append(former)
    async with installation.served():
        dead = next(one for one in installation.serving if one.name.startswith("worker-1"))
        dead.kill()
        await dead.ended.wait()
        await trio.sleep(10)
        (listener,) = installation.listeners[0]
        assert former.fileno() == -1, "nobody waits where nobody accepts"
        assert installation.orders[-1].public == (listener.fileno(),)
        listener.close()


async def test_a_process_that_can_never_be_started_ends_the_server_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    installation = Installation(tmp_path, "nobody", monkeypatch)
    with pytest.RaisesGroup(parent.Escalation):
        async with installation.served():
            installation.refused = 100
            installation.serving[0].kill()
            await installation.serving[1].ended.wait()
            assert installation.serving[1].is_ending
