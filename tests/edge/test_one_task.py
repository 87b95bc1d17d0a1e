"""How a request is served: in one task, told more by an inbox, and finished though its client has left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing
from quart import Quart, Response
from quart.globals import request_ctx
from quart_trio import QuartTrio
from werkzeug.exceptions import ClientDisconnected

from tests.edge.peers import connect, living_tasks, request, running_edge
from web.http.one_task import LeanHttp, LeanRequest
from web.http.tasks import MESSAGES_MAX, Inbox


def asked() -> LeanRequest:
    """The request whose route this is."""
    found = request_ctx.request
    assert isinstance(found, LeanRequest)
    return found


def body_of(data: bytes, *, more: bool = False) -> Any:
    return {"type": "http.request", "body": data, "more_body": more}


async def test_an_inbox_gives_messages_in_order_and_waits_for_the_next() -> None:
    inbox = Inbox()
    await inbox.put(body_of(b"1", more=True))
    await inbox.put(body_of(b"2"))
    assert [(await inbox.receive())["body"] for _ in range(2)] == [b"1", b"2"]  # type: ignore[typeddict-item]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.put, body_of(b"3"))
        with trio.fail_after(5):
            assert await inbox.receive() == body_of(b"3")


async def test_a_body_nobody_reads_holds_up_its_sender_and_the_end_of_the_peer_does_not() -> None:
    inbox = Inbox()
    for _ in range(MESSAGES_MAX):
        await inbox.put(body_of(b"x", more=True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.put, body_of(b"one too many"))
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        await inbox.put({"type": "http.disconnect"})
        with trio.fail_after(5):
            received = [await inbox.receive() for _ in range(MESSAGES_MAX + 2)]
    assert {"type": "http.disconnect"} in received
    assert body_of(b"one too many") in received


class Routes:
    """An application whose routes wait for the test."""

    def __init__(self) -> None:
        self.app = QuartTrio("lean", static_folder=None)
        self.app.asgi_http_class = LeanHttp
        self.app.request_class = LeanRequest
        self.entered, self.may_end, self.ended = trio.Event(), trio.Event(), trio.Event()
        self.failed: list[Exception] = []
        self._add(self.app)

    def _add(self, app: Quart) -> None:
        @app.post("/work")
        async def work() -> bytes:
            await asked().receive_body(100, 10)
            self.entered.set()
            await self.may_end.wait()
            self.ended.set()
            return b"done"

        @app.post("/half")
        async def half() -> bytes:
            self.entered.set()
            try:
                await asked().receive_body(100, 10)
            except ClientDisconnected as error:
                self.failed.append(error)
                self.ended.set()
                raise
            return b"done"

        @app.get("/stream")
        async def stream() -> Response:
            asked().at_end.callback(self.ended.set)
            self.entered.set()
            return Response(self._chunks())

        @app.get("/broken")
        async def broken() -> Response:
            asked().at_end.callback(self.ended.set)
            raise ValueError("of the test")

    async def _chunks(self) -> AsyncIterator[bytes]:
        yield b"first"
        await trio.sleep_forever()


async def test_what_a_route_has_begun_is_finished_though_its_client_leaves() -> None:
    routes = Routes()
    async with running_edge(routes.app) as edge:
        tasks = living_tasks()
        async with await connect(edge.url) as peer:
            await peer.send(request(b"/work", b"POST", b"abc"))
            await routes.entered.wait()
        with trio.fail_after(10):
            routes.may_end.set()
            await routes.ended.wait()
            while living_tasks() > tasks:
                await trio.sleep(0.01)


async def test_a_client_that_leaves_within_its_body_ends_the_request() -> None:
    routes = Routes()
    async with running_edge(routes.app) as edge:
        async with await connect(edge.url) as peer:
            await peer.send(request(b"/half", b"POST", Content_Length=b"10") + b"abc")
            await routes.entered.wait()
        with trio.fail_after(10):
            await routes.ended.wait()
        assert len(routes.failed) == 1


@pytest.mark.parametrize("path", [b"/stream", b"/broken"])
async def test_what_is_to_be_undone_at_the_end_of_a_request_is(path: bytes) -> None:
    routes = Routes()
    async with running_edge(routes.app) as edge:
        async with await connect(edge.url) as peer:
            await peer.send(request(path))
            assert (await peer.answer(has_body=False)).status == (200 if path == b"/stream" else 500)
            assert not (path == b"/stream" and routes.ended.is_set())
        with trio.fail_after(10):
            await routes.ended.wait()
