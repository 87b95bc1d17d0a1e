"""Connections that end, hang, refuse and lie, on both event loops; and leaving, which never hangs."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest
import trio
from websockets.sync.server import ServerConnection

import avicenna_live.shell
import avicenna_live.trio_shell
from avicenna_live import Backoff, Ended, Follower, Following, MemoryStore, Position, Snapshot, Status
from avicenna_live.items import Event
from tests.frames import EPOCH, bye, connect, error, feedback, frame, live
from tests.scripted import Scripted, close, deaf, say

pytestmark = pytest.mark.anyio

TOKEN = "tkn-not-to-be-logged"
AT_ONCE = Backoff(0.001, 0.001)
LEAVING_SECONDS_MAX = 2.5
"""The 2 s that are promised, and a loaded machine."""


@pytest.fixture(autouse=True)
def _no_token_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    assert TOKEN not in caplog.text


async def seqs(items: Following, count: int) -> list[int]:
    """The numbers of the next events."""
    found: list[int] = []
    while len(found) < count:
        item = await anext(items)
        assert isinstance(item, Event)
        found.append(item.seq)
    return found


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """The body takes no longer."""
    begin = anyio.current_time()
    yield
    assert anyio.current_time() - begin < seconds


async def test_it_comes_back_with_its_position_after_an_end_that_allows_it(scripted: Scripted) -> None:
    statuses: list[Status] = []
    scripted.play(
        close(1012, "restart", connect(head=2, queued=2), feedback(1), feedback(2), bye(1012, "restart", 1)),
        503,
        say(connect(resume="exact", head=3, queued=2), feedback(2), feedback(3), live(3)),
    )
    async with Follower(
        scripted.url, token=TOKEN, on_state=lambda _, status: statuses.append(status), backoff=AT_ONCE
    ) as live_:
        items = live_.follow(42)
        assert await seqs(items, 3) == [1, 2, 3]
        assert items.position == Position(EPOCH, 2)
        while items.status.state != "live":
            await anyio.sleep(0.01)

    assert scripted.requests[0].path == "/ws/42?heartbeat=20&ack=app"
    assert scripted.requests[0].headers["Authorization"] == f"Bearer {TOKEN}"
    assert f"epoch={EPOCH}" in scripted.requests[2].path
    assert [(status.state, status.code) for status in statuses] == [
        ("connecting", None),
        ("offline", 1012),
        ("connecting", None),
        ("offline", 503),
        ("connecting", None),
        ("live", None),
    ]


async def test_what_came_before_an_end_for_good_comes_first(scripted: Scripted) -> None:
    scripted.play(close(4000, "replaced", connect(head=2, queued=2), feedback(1), feedback(2), bye(4000, "replaced")))
    async with Follower(scripted.url, token=TOKEN) as live_:
        items = live_.follow(42)
        assert await seqs(items, 2) == [1, 2]
        for _ in range(2):
            with pytest.raises(Ended) as caught:
                await anext(items)
        assert (caught.value.code, caught.value.reason) == (4000, "replaced")
        assert items.status == Status("ended", "replaced", 4000)


async def test_a_fault_of_the_protocol_is_closed_1002_and_opened_anew(scripted: Scripted) -> None:
    scripted.play(
        say(connect(head=1, queued=1), feedback(1), feedback(3)),
        say(connect(resume="exact", head=3, queued=2), feedback(2), feedback(3)),
    )
    async with Follower(scripted.url, token=TOKEN, backoff=AT_ONCE) as live_:
        assert await seqs(live_.follow(42), 3) == [1, 2, 3]
        assert await scripted.next_close() == 1002


async def test_silence_is_a_dead_network(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avicenna_live.core.SILENCE_SECONDS_MIN", 0.2)
    monkeypatch.setattr("avicenna_live.core.HEARTBEATS_MISSED", 0.02)
    statuses: list[Status] = []
    scripted.play(
        say(connect(head=1, queued=1), feedback(1)),
        *[say(connect(resume="exact", head=2, queued=1), feedback(2))] * 50,
    )
    async with Follower(
        scripted.url, token=TOKEN, heartbeat=5, on_state=lambda _, status: statuses.append(status), backoff=AT_ONCE
    ) as live_:
        assert await seqs(live_.follow(42), 2) == [1, 2]
    assert statuses[1] == Status("offline", "nothing heard for 0.2 s", 1006)


async def test_an_event_loop_that_stood_still_is_no_silence(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avicenna_live.core.SILENCE_SECONDS_MIN", 2.0)
    monkeypatch.setattr("avicenna_live.core.HEARTBEATS_MISSED", 0.02)
    still = threading.Event()

    def script(connection: ServerConnection) -> None:
        connection.send(connect(head=1, queued=1))
        connection.send(feedback(1))
        still.wait(10)
        connection.send(feedback(2))

    scripted.play(script)
    async with Follower(scripted.url, token=TOKEN, heartbeat=5) as live_:
        items = live_.follow(42)
        assert await seqs(items, 1) == [1]
        still.set()
        time.sleep(3.2)  # noqa: ASYNC251 - the app does what it should not
        assert await seqs(items, 1) == [2]
        assert items.status == Status("connecting")


@pytest.mark.parametrize("state", ["connecting", "live", "offline", "needs_auth", "ended"])
async def test_what_on_state_raises_leaves_the_iterator(scripted: Scripted, state: str) -> None:
    codes = {"offline": (1012, "restart"), "needs_auth": (1008, "revoked"), "ended": (4000, "replaced")}

    def on_state(_: object, status: Status) -> None:
        if status.state == state:
            raise ZeroDivisionError

    scripted.play(close(*codes.get(state, (1000, "")), connect(head=0), live(0)))
    async with Follower(scripted.url, token=TOKEN, on_state=on_state) as live_:
        items = live_.follow(42)
        with pytest.raises(ZeroDivisionError):
            await anext(items)
        assert items.status.state == state


async def test_the_code_of_a_status_is_a_plain_number(scripted: Scripted) -> None:
    scripted.play(close(4000, "replaced", connect(head=0)), close(1008, "access denied"))
    async with Follower(scripted.url, token=TOKEN) as live_:
        for diagnosis_id in (1, 2):
            items = live_.follow(diagnosis_id)
            with pytest.raises(Ended) as caught:
                await anext(items)
            assert type(items.status.code) is int
            assert type(caught.value.code) is int


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancellation_that_nobody_asked_for_ends_the_iterator_and_not_in_silence(scripted: Scripted) -> None:
    async def token() -> str:
        # As an app does which waits for a task that somebody else has cancelled.
        raise asyncio.CancelledError

    async with Follower(scripted.url, token=token) as live_:
        with anyio.fail_after(5), pytest.raises(RuntimeError, match="cancelled"):
            await anext(live_.follow(42))


async def test_a_slow_consumer_is_no_silence_and_reading_ahead_is_bounded(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avicenna_live.core.SILENCE_SECONDS_MIN", 2.0)
    monkeypatch.setattr("avicenna_live.core.HEARTBEATS_MISSED", 0.05)
    sent = 0

    def script(connection: ServerConnection) -> None:
        nonlocal sent
        connection.send(connect(head=500, queued=500))
        for seq in range(1, 501):
            text = frame("feedback_update", {"feedback_id": 1, "rating": 3, "comment": "x" * 50_000}, seq=seq)
            connection.send(text)
            sent = seq

    scripted.play(script)
    statuses: list[Status] = []
    async with Follower(
        scripted.url, token=TOKEN, heartbeat=5, on_state=lambda _, status: statuses.append(status)
    ) as live_:
        items = live_.follow(42)
        assert await seqs(items, 1) == [1]
        await anyio.sleep(2.5)
        # 100 items, and what the buffers of the two sockets hold: a few megabytes.
        assert sent < 450
        assert await seqs(items, 250) == list(range(2, 252))
    assert statuses == [Status("connecting")]


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 502 Bad\r\nContent-Length: 0\r\n\r\n"])
async def test_what_is_no_websocket_is_come_back_to_at_once(answer: bytes) -> None:
    found: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                found.append(connection.recv(4096))
                connection.sendall(answer)

    states: list[Status] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with anyio.move_on_after(3) as patience:
            async with (
                Follower(url, token=TOKEN, on_state=lambda _, status: states.append(status), backoff=AT_ONCE) as (
                    live_
                ),
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(anext, live_.follow(42))
                while sum(status.state == "offline" for status in states) < 2:
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()
        thread.join()
    assert not patience.cancelled_caught
    assert len(found) == 2


@pytest.mark.parametrize("anyio_backend", ["trio"])  # websockets notices by itself
async def test_a_connection_that_is_reset_before_the_upgrade_is_sent_is_come_back_from_at_once(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_open = avicenna_live.trio_shell._open_stream
    statuses: list[Status] = []

    async def open_stream(url: str) -> avicenna_live.trio_shell.Stream:
        if len(statuses) > 1:
            return await really_open(url)
        ours, theirs = trio.socket.socketpair()
        theirs.close()
        return trio.SocketStream(ours)

    monkeypatch.setattr(avicenna_live.trio_shell, "_open_stream", open_stream)
    scripted.play(say(connect(head=1, queued=1), feedback(1)))
    with at_most(3):
        async with Follower(
            scripted.url, token=TOKEN, on_state=lambda _, status: statuses.append(status), backoff=AT_ONCE
        ) as live_:
            assert await seqs(live_.follow(42), 1) == [1]
    assert statuses[1].state == "offline"


async def test_nobody_there_is_come_back_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    states: list[Status] = []

    def on_state(_: object, status: Status) -> None:
        states.append(status)
        if len(states) == 4:
            raise ZeroDivisionError

    async with Follower(url, on_state=on_state, backoff=AT_ONCE) as live_:
        with pytest.raises(ZeroDivisionError):
            await anext(live_.follow(42))
    assert [status.state for status in states] == ["connecting", "offline"] * 2
    assert {status.code for status in states} == {None}


async def test_an_answer_that_does_not_come_is_waited_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("asyncio", "trio"):
        monkeypatch.setattr(f"avicenna_live.{library}_shell.OPEN_SECONDS_MAX", 0.2)
    states: list[Status] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        follower = Follower(url, token=TOKEN, on_state=lambda _, status: states.append(status))
        async with follower as live_, anyio.create_task_group() as tasks:
            tasks.start_soon(anext, live_.follow(42))
            while len(states) < 2:
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
    assert states[1].state == "offline"


async def test_a_refused_text_waits_for_another_which_is_used_from_then_on(scripted: Scripted) -> None:
    scripted.play(
        close(1008, "invalid token", error("invalid_token")),
        401,
        say(connect(head=1, queued=1), feedback(1)),
    )
    states: list[str] = []
    async with Follower(scripted.url, token=TOKEN, on_state=lambda _, status: states.append(status.state)) as live_:
        items = live_.follow(42)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(seqs, items, 1)
            for attempt in (1, 2):
                while states.count("needs_auth") < attempt:
                    await anyio.sleep(0.01)
                assert len(scripted.requests) == attempt
                live_.use_token(f"{TOKEN}-{attempt}")
        # The connection that is open gets it, too.
        live_.use_token(f"{TOKEN}-3")
        assert f"{TOKEN}-3" in await scripted.next_received()
    assert [request.headers["Authorization"][-2:] for request in scripted.requests[1:]] == ["-1", "-2"]


async def test_a_function_is_asked_before_each_connection_and_before_the_token_ends(scripted: Scripted) -> None:
    asked = 0

    async def token() -> str:
        nonlocal asked
        await anyio.lowlevel.checkpoint()
        asked += 1
        return f"{TOKEN}-{asked}"

    received: list[str] = []

    def renewed(connection: ServerConnection) -> None:
        connection.send(connect(head=0))
        connection.send(live(0))
        connection.send(frame("auth_expiring", {"expires_at": "x", "seconds_left": 60}))
        received.append(str(connection.recv()))
        connection.send(frame("auth_ok", {"expires_at": "x"}))
        connection.close(1008, "token expired")

    scripted.play(renewed, say(connect(resume="exact", head=1, queued=1), feedback(1)))
    async with Follower(scripted.url, token=token) as live_:
        with anyio.fail_after(5):
            assert await seqs(live_.follow(42), 1) == [1]
    assert f"{TOKEN}-2" in received[0]
    assert [request.headers["Authorization"][-2:] for request in scripted.requests] == ["-1", "-3"]


class Failing(MemoryStore):
    """Raises once."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self._at = at

    def load(self, diagnosis_id: object) -> Position | None:
        self._fail("load")
        return super().load(42)

    def save(self, diagnosis_id: object, position: Position) -> None:
        self._fail("save")
        super().save(42, position)

    def _fail(self, at: str) -> None:
        if at == self._at:
            self._at = ""
            raise ZeroDivisionError


@pytest.mark.parametrize("at", ["load", "save"])
async def test_what_the_store_raises_leaves_the_iterator_and_the_step_comes_again(scripted: Scripted, at: str) -> None:
    scripted.play(*[say(connect(head=2, queued=2), feedback(1), feedback(2))] * 2)
    async with Follower(scripted.url, token=TOKEN, store=Failing(at)) as live_:
        items = live_.follow(42)
        if at == "save":
            assert await seqs(items, 1) == [1]
        with pytest.raises(ZeroDivisionError):
            await anext(items)
        assert await seqs(live_.follow(42), 2) == [1, 2]


async def test_what_get_state_raises_leaves_the_iterator_and_it_is_called_again(scripted: Scripted) -> None:
    scripted.play(*[say(connect(head=2), feedback(3))] * 2)
    called = 0

    async def get_state(diagnosis_id: int | str) -> str:
        nonlocal called
        await anyio.lowlevel.checkpoint()
        called += 1
        return {1: ""}.get(called) or f"state {1 // (called - 1)} of {diagnosis_id}"

    async with Follower(scripted.url, token=TOKEN, get_state=get_state) as live_:
        with pytest.raises(ZeroDivisionError):
            await anext(live_.follow(42))
        items = live_.follow(42)
        assert await anext(items) == Snapshot(EPOCH, 2, "state 1 of 42")
        assert items.position is None
        assert await seqs(items, 1) == [3]
        assert items.position == Position(EPOCH, 2)


async def test_a_function_that_gives_no_token_is_asked_again(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("avicenna_live.core.REFUSED_TOKEN", AT_ONCE)
    answers = iter([f"{TOKEN} has spaces", "", 5, TOKEN])

    def token() -> str:
        answer = next(answers)
        if not answer:
            raise ZeroDivisionError(TOKEN)
        return answer  # type: ignore[return-value] # it is not always a text

    statuses: list[Status] = []
    scripted.play(say(connect(head=1, queued=1), feedback(1)))
    async with Follower(scripted.url, token=token, on_state=lambda _, status: statuses.append(status)) as live_:
        assert await seqs(live_.follow(42), 1) == [1]
    assert statuses[:-1] == [Status("connecting"), Status("needs_auth", "no token")] * 3
    assert "the token function gave no token: ZeroDivisionError" in caplog.text


async def test_a_token_that_is_not_renewed_in_time_leaves_the_connection(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([TOKEN])
    scripted.play(
        say(connect(head=1, queued=1), live(1), frame("auth_expiring", {"expires_at": "x"}), feedback(1)),
    )
    async with Follower(scripted.url, token=lambda: next(answers)) as live_:
        items = live_.follow(42)
        assert await seqs(items, 1) == [1]
        while items.status.reason is None:
            await anyio.sleep(0.01)
        assert items.status == Status("live", "no token")


async def test_what_the_app_raises_leaves_the_follower_as_it_is(scripted: Scripted) -> None:
    scripted.play(say(connect(head=1, queued=1), feedback(1)))
    with pytest.raises(ZeroDivisionError):
        async with Follower(scripted.url, token=TOKEN) as live_:
            async for _ in live_.follow(42):
                raise ZeroDivisionError
    assert await scripted.next_close() == 1000


async def test_a_break_closes_with_1000_as_soon_as_nothing_refers_to_it(scripted: Scripted) -> None:
    scripted.play(*[say(connect(head=2, queued=2), feedback(1), feedback(2))] * 2)
    async with Follower(scripted.url, token=TOKEN) as live_:
        async for _ in live_.follow(42):
            break
        gc.collect()
        assert await scripted.next_close() == 1000
        # The step was not finished.
        async with live_.follow(42) as items:
            assert await seqs(items, 1) == [1]
        assert await scripted.next_close() == 1000
        with pytest.raises(StopAsyncIteration):
            await anext(items)


async def test_a_finished_step_is_acknowledged_before_the_close(scripted: Scripted) -> None:
    scripted.play(say(connect(head=1, queued=1), feedback(1)))
    async with Follower(scripted.url, token=TOKEN) as live_:
        items = live_.follow(42)
        assert await seqs(items, 1) == [1]
        with anyio.move_on_after(0):
            await anext(items)
    assert await scripted.next_received() == '{"type": "ack", "seq": 1}'
    assert await scripted.next_close() == 1000


async def test_leaving_by_cancellation_closes_with_1000(scripted: Scripted) -> None:
    scripted.play(say(connect(head=1, queued=1), feedback(1), live(1)))
    with at_most(LEAVING_SECONDS_MAX), anyio.CancelScope() as scope:
        async with Follower(scripted.url, token=TOKEN) as live_:
            async for _ in live_.follow(42):
                scope.cancel()
    assert scope.cancelled_caught
    assert await scripted.next_close() == 1000


async def test_a_wait_that_was_cancelled_loses_nothing(scripted: Scripted) -> None:
    proceed = threading.Event()

    def script(connection: ServerConnection) -> None:
        connection.send(connect(head=1, queued=1))
        connection.send(feedback(1))
        proceed.wait(5)
        connection.send(feedback(2))

    scripted.play(script)
    async with Follower(scripted.url, token=TOKEN) as live_:
        items = live_.follow(42)
        assert await seqs(items, 1) == [1]
        for _ in range(3):
            with anyio.move_on_after(0.02):
                await anext(items)
        proceed.set()
        assert await seqs(items, 1) == [2]


@pytest.mark.parametrize("hangs", ["close", "token", "opening", "waiting"])
async def test_leaving_takes_2_s_at_most(hangs: str) -> None:
    async def hang() -> str:
        await anyio.sleep_forever()
        raise AssertionError

    with deaf(connect(head=1, queued=1), feedback(1)) as url, socket.create_server(("127.0.0.1", 0)) as silent:
        urls = {"opening": f"http://127.0.0.1:{silent.getsockname()[1]}", "waiting": "http://127.0.0.1:1"}
        follower = Follower(urls.get(hangs, url), token=hang if hangs == "token" else TOKEN, backoff=Backoff(100, 100))
        async with follower as live_:
            with anyio.move_on_after(0.5):
                await anext(live_.follow(42))
            begin = anyio.current_time()
        seconds = anyio.current_time() - begin
        if hangs != "close":
            socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))).close()
    assert (1.9 if hangs == "close" else 0) <= seconds < LEAVING_SECONDS_MAX


async def test_a_close_that_hangs_is_given_2_s_also_when_cancelled_again_and_again() -> None:
    hearing_nothing = deaf(connect(head=1, queued=1), feedback(1))
    with (
        hearing_nothing as url,
        at_most(LEAVING_SECONDS_MAX),
        anyio.CancelScope() as outer,
        anyio.CancelScope() as inner,
    ):
        async with Follower(url, token=TOKEN) as live_:
            async for _ in live_.follow(42):
                inner.cancel()
                outer.cancel()


async def test_an_iterator_ends_with_its_follower(scripted: Scripted) -> None:
    scripted.play(say(connect(head=0), live(0)))
    ended = anyio.Event()
    async with anyio.create_task_group() as tasks:
        async with Follower(scripted.url, token=TOKEN) as live_:
            items = live_.follow(42)

            async def consume() -> None:
                async for _ in items:
                    pass
                ended.set()

            tasks.start_soon(consume)
            while items.status.state != "live":
                await anyio.sleep(0.01)
        with anyio.fail_after(1):
            await ended.wait()
    with pytest.raises(RuntimeError, match="belongs into"):
        live_.follow(42)


async def test_a_second_follow_of_a_diagnosis_takes_over(scripted: Scripted) -> None:
    scripted.play(
        say(connect(head=2, queued=2), feedback(1), feedback(2)),
        say(connect(resume="exact", head=2, queued=1), feedback(2)),
    )
    async with Follower(scripted.url, token=TOKEN) as live_:
        older, newer = live_.follow(42), live_.follow("42")
        assert await seqs(older, 2) == [1, 2]
        assert await seqs(newer, 1) == [2]
        with pytest.raises(Ended, match="4000 replaced"):
            await anext(older)
    assert "after=1" in scripted.requests[1].path


async def test_of_two_follows_that_begin_at_once_one_takes_over(scripted: Scripted) -> None:
    scripted.play(*[say(connect(head=1, queued=1), feedback(1))] * 2)
    found: list[object] = []

    async def one(items: Following) -> None:
        try:
            found.append((await seqs(items, 1))[0])
        except Ended as ended:
            found.append(ended.reason)

    async with Follower(scripted.url, token=TOKEN) as live_:
        older, newer = live_.follow(42), live_.follow(42)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, older)
            tasks.start_soon(one, newer)
    assert sorted(map(str, found)) == ["1", "replaced"]


class Slow(MemoryStore):
    """Takes a while to load."""

    async def load(self, diagnosis_id: object) -> None:  # type: ignore[override] # a store may be async
        await anyio.sleep(0.1)


async def test_an_iterator_that_is_closed_while_it_begins_ends(scripted: Scripted) -> None:
    scripted.play(say(connect(head=1, queued=1), feedback(1)))
    async with Follower(scripted.url, token=TOKEN, store=Slow()) as live_:
        items = live_.follow(42)
        found: list[object] = []

        async def consume() -> None:
            with pytest.raises(StopAsyncIteration):
                found.append(await anext(items))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consume)
            await anyio.sleep(0.02)
            await items.aclose()
        assert not found


async def test_several_diagnoses_are_followed_at_a_time(scripted: Scripted) -> None:
    scripted.play(*[say(connect(head=1, queued=1), feedback(1))] * 3)
    found: list[int] = []
    async with Follower(scripted.url, token=TOKEN) as live_:

        async def one(diagnosis_id: int) -> None:
            found.extend(await seqs(live_.follow(diagnosis_id), 1))

        async with anyio.create_task_group() as tasks:
            for diagnosis_id in (1, 2, 3):
                tasks.start_soon(one, diagnosis_id)
    assert found == [1, 1, 1]
    assert sorted(request.path[:5] for request in scripted.requests) == ["/ws/1", "/ws/2", "/ws/3"]


async def test_two_tasks_cannot_wait_for_one_iterator(scripted: Scripted) -> None:
    scripted.play(say(connect(head=0), live(0)))
    async with Follower(scripted.url, token=TOKEN) as live_:
        items = live_.follow(42)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anext, items)
            while items.status.state != "live":
                await anyio.sleep(0.01)
            with pytest.raises(RuntimeError, match="another task waits"):
                await anext(items)
            tasks.cancel_scope.cancel()


async def test_a_follower_in_use_is_not_entered_again(scripted: Scripted) -> None:
    async with Follower(scripted.url) as live_:
        with pytest.raises(RuntimeError, match="in use"):
            await live_.__aenter__()


def test_a_follower_needs_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match="a running event loop"):
        Follower("http://127.0.0.1:1").__aenter__().send(None)


def test_limits_fit_together() -> None:
    assert avicenna_live.shell.CLOSE_SECONDS_MAX == 2
    assert avicenna_live.shell.OPEN_SECONDS_MAX == 10
