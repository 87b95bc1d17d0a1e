"""A WebSocket's socket is taken out of Hypercorn: quietly, completely, and only while nothing has been said."""

from __future__ import annotations

import gc
import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from tests.edge.peers import KEY, EdgeUnderTest, connect, living_tasks, open_descriptors, request, running_edge, upgrade
from tests.edge.test_http1 import short
from web.http.adoption import HANDLE, Adoption, NotAdoptable
from web.http.connection import Connection

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


class Taker:
    """An application that adopts every WebSocket."""

    def __init__(self) -> None:
        self.taken: list[socket.socket] = []
        self.refused: list[NotAdoptable] = []
        self.waits = trio.Event()
        self.waits.set()
        self.arrived = trio.Event()
        self.fails = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            await short(scope, receive, send)
            return
        adoption = scope["state"][HANDLE]
        assert isinstance(adoption, Adoption)
        assert adoption.key == KEY
        self.arrived.set()
        await self.waits.wait()
        try:
            taken = adoption.adopt()
        except NotAdoptable as refusal:
            self.refused.append(refusal)
            return
        assert isinstance(taken, socket.socket)
        self.taken.append(taken)
        taken.send(SWITCHING)
        with pytest.raises(NotAdoptable):
            adoption.adopt()
        if self.fails:
            raise ValueError("a-payload-is-never-logged")
        # What a route sends after adopting goes nowhere.
        await send({"type": "websocket.send", "text": "lost", "bytes": None})

    def close(self) -> None:
        for one in self.taken:
            one.close()
        self.taken.clear()


async def settled(edge: EdgeUnderTest, tasks: int) -> None:
    """Wait until no more tasks run than this."""
    with trio.fail_after(10):
        while living_tasks() > tasks:
            await trio.sleep(0.01)


async def test_an_adopted_socket_belongs_to_its_new_owner_alone(caplog: pytest.LogCaptureFixture) -> None:
    app = Taker()
    async with running_edge(app) as edge:
        tasks = living_tasks()
        async with await connect(edge.url) as peer:
            await peer.send(upgrade())
            assert (await peer.answer()).status == 101
            await settled(edge, tasks)
            (taken,) = app.taken
            assert not taken.getblocking()
            await peer.send(b"from the client")
            await trio.lowlevel.wait_readable(taken)
            assert taken.recv(100) == b"from the client"
            taken.send(b"from its owner")
            taken.close()
            assert await peer.end() == b"from its owner"
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


def connections() -> list[Connection]:
    """All that are in memory."""
    return [one for one in gc.get_objects() if isinstance(one, Connection)]


@pytest.fixture
def collector() -> Iterator[None]:
    """The collector works again afterwards."""
    yield
    gc.enable()


@pytest.mark.usefixtures("collector")
async def test_fifty_adoptions_leave_fifty_descriptors_and_no_task_and_no_connection_behind() -> None:
    app = Taker()
    async with running_edge(app) as edge:
        tasks, descriptors = living_tasks(), open_descriptors()
        of_others = connections()  # of tests before this one, which wait for the collector
        gc.disable()  # what is left must not need it
        peers = [await connect(edge.url) for _ in range(50)]
        for peer in peers:
            await peer.send(upgrade())
            assert (await peer.answer()).status == 101
        await settled(edge, tasks)
        assert open_descriptors() == descriptors + 100
        app.close()
        for peer in peers:
            assert await peer.end() == b""
            await trio.aclose_forcefully(peer.stream)
        assert (living_tasks(), open_descriptors()) == (tasks, descriptors)
        left = [one for one in connections() if not any(one is other for other in of_others)]
        assert len(left) <= 1, "the task that ended last may still be held"


async def test_a_route_that_fails_after_adopting_harms_nothing() -> None:
    app = Taker()
    app.fails = True
    async with running_edge(app) as edge:
        tasks = living_tasks()
        async with await connect(edge.url) as peer:
            await peer.send(upgrade())
            assert (await peer.answer()).status == 101
            await settled(edge, tasks)
            app.taken[0].send(b"still here")
            app.close()
            assert await peer.end() == b"still here"


async def test_a_peer_that_left_before_cannot_be_adopted() -> None:
    app = Taker()
    app.waits = trio.Event()
    async with running_edge(app) as edge:
        tasks, descriptors = living_tasks(), open_descriptors()
        async with await connect(edge.url) as peer:
            await peer.send(upgrade())
            await app.arrived.wait()
        await trio.sleep(0.05)  # the server reads the end of the connection
        app.waits.set()
        await settled(edge, tasks)
        assert (len(app.taken), open_descriptors()) == (0, descriptors)
        assert len(app.refused) == 1


async def test_a_handle_that_outlives_its_connection_adopts_nothing() -> None:
    kept: list[Adoption] = []

    async def keeping(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            kept.append(scope["state"][HANDLE])
        else:
            await short(scope, receive, send)

    async with running_edge(keeping) as edge, await connect(edge.url) as peer:
        await peer.send(upgrade())
        assert (await peer.answer()).status == 500
        await peer.end()
    with pytest.raises(NotAdoptable):
        kept[0].adopt()


async def test_bytes_that_come_before_the_answer_are_answered_400_and_never_adopted() -> None:
    app = Taker()
    app.waits = trio.Event()
    async with running_edge(app) as edge, await connect(edge.url) as peer:
        await peer.send(upgrade())
        await app.arrived.wait()
        await peer.send(b"\x81\x80\0\0\0\0")
        answer = await peer.answer()
        app.waits.set()
        assert await peer.end() == b""
    assert answer.status == 400
    assert (len(app.taken), len(app.refused)) == (0, 1)


async def test_bytes_still_in_the_kernel_are_left_for_the_new_owner() -> None:
    """A client is silent until the 101; what comes in the same moment must not be lost between two owners."""
    app = Taker()
    async with running_edge(app) as edge:
        for _ in range(20):
            async with await connect(edge.url) as peer:
                await peer.send(upgrade())
                assert (await peer.answer()).status == 101
                await peer.send(b"first")
                taken = app.taken[-1]
                with trio.fail_after(10):
                    await trio.lowlevel.wait_readable(taken)
                assert taken.recv(100) == b"first"
        app.close()


async def test_a_route_that_returns_without_a_word_is_answered_500() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            await short(scope, receive, send)

    async with running_edge(silent) as edge, await connect(edge.url) as peer:
        await peer.send(upgrade())
        answer = await peer.answer()
        assert await peer.end() == b""
    assert answer.status == 500
    assert answer.problem["code"] == "internal_error"


async def test_a_request_that_is_no_upgrade_has_no_handle() -> None:
    seen: list[bool] = []

    async def looking(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.append(HANDLE in scope["state"])
        await short(scope, receive, send)

    async with running_edge(looking) as edge, await connect(edge.url) as peer:
        await peer.send(request())
        assert (await peer.answer()).status == 200
    assert seen == [False]
