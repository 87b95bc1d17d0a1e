"""The broadcasters, their queues and the functions, against a real server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import pytest

import avicenna_live
from avicenna_live import (
    AsyncBroadcaster,
    AsyncBroadcastQueue,
    Broadcaster,
    BroadcastError,
    BroadcastQueue,
    Forbidden,
    InvalidField,
    KeyReused,
    NoAnswer,
    NotFound,
    QueueFull,
    Receipt,
    Unauthenticated,
    Update,
    aio,
    feedback_update,
    recommendation_update,
)
from tests.networks import Swallowing
from tests.served import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("served") / "data") as running:
        for diagnosis_id in range(1, 13):
            running.register(diagnosis_id)
        yield running


@pytest.fixture
def broadcaster(server: Server) -> Iterator[Broadcaster]:
    with Broadcaster(server.url, token=server.token("analytics", "broadcast"), patience_seconds=5) as made:
        yield made


def test_the_three_calls_return_receipts(broadcaster: Broadcaster) -> None:
    first = broadcaster.broadcast_recommendation_update(1, {"herb": "mint"}, {"herb": "saffron"}, "new evidence")
    second = broadcaster.broadcast_effectiveness_update(1, 5, effectiveness=0.85, confidence=0.9, sample_size=100)
    third = broadcaster.broadcast_feedback_update(1, feedback_id=10, rating=5, effectiveness=0.95, comment="خوب")
    assert [one.seq for one in (first, second, third)] == [1, 2, 3]
    assert not any(one.replayed for one in (first, second, third))
    assert third.subscribers.online == 0


def test_the_same_key_is_the_same_event(broadcaster: Broadcaster) -> None:
    first, again = (broadcaster.broadcast_feedback_update(2, 1, 5, idempotency_key="k2") for _ in range(2))
    assert (again.seq, again.replayed) == (first.seq, True)
    with pytest.raises(KeyReused):
        broadcaster.broadcast_feedback_update(2, 1, 4, idempotency_key="k2")


def test_a_refusal_names_the_field_and_its_rule(broadcaster: Broadcaster, server: Server) -> None:
    with pytest.raises(InvalidField, match="rating must be 1-5") as caught:
        broadcaster.broadcast_feedback_update(1, 1, 6)
    assert caught.value.request_id
    with pytest.raises(NotFound):
        broadcaster.broadcast_feedback_update(999, 1, 5)
    with Broadcaster(server.url, token=server.token("mallory")) as other, pytest.raises(Forbidden):
        other.broadcast_feedback_update(1, 1, 5)
    with Broadcaster(server.url, token="no-token-at-all") as other, pytest.raises(Unauthenticated) as unknown:
        other.broadcast_feedback_update(1, 1, 5)
    assert "no-token-at-all" not in repr(unknown.value)


def test_nobody_there_is_no_answer(unused_url: str) -> None:
    with Broadcaster(unused_url, token="t", patience_seconds=0.2) as lonely, pytest.raises(NoAnswer, match=unused_url):
        lonely.broadcast_feedback_update(1, 1, 5)


@pytest.fixture
def unused_url(server: Server) -> str:
    return "http://127.0.0.1:9"


def test_a_function_is_asked_for_the_token_and_again_when_one_is_refused(server: Server) -> None:
    tokens = iter(["refused", server.token("analytics", "broadcast")])
    with Broadcaster(server.url, token=lambda: next(tokens)) as renewing:
        assert renewing.broadcast_feedback_update(3, 1, 5).seq == 1
        assert renewing.broadcast_feedback_update(3, 2, 5).seq == 2


def test_a_batch_has_an_outcome_for_each(broadcaster: Broadcaster) -> None:
    updates = [feedback_update(4, number, 1 + number % 6) for number in range(1500)]
    outcomes = broadcaster.batch(updates)
    refused = [at for at, one in enumerate(outcomes) if isinstance(one, InvalidField)]
    assert refused == list(range(5, 1500, 6))
    assert [one.seq for one in outcomes if isinstance(one, Receipt)] == list(range(1, 1251))


def test_a_lost_answer_makes_no_second_event(server: Server) -> None:
    token = server.token("analytics", "broadcast")
    with Broadcaster(server.url, token=token, transport=Swallowing(2)) as unlucky:
        receipt = unlucky.broadcast_feedback_update(5, 1, 5)
        assert (receipt.seq, receipt.replayed) == (1, True)
        assert unlucky.broadcast_feedback_update(5, 2, 5).seq == 2


def test_a_queue_sends_in_the_background_and_says_when_it_is_full(broadcaster: Broadcaster) -> None:
    failed: list[tuple[Update, BroadcastError]] = []
    with BroadcastQueue(broadcaster, size=50, on_failure=lambda *one: failed.append(one)) as queue:
        for number in range(20):
            queue.put_nowait(feedback_update(6, number, 5))
        wrong = feedback_update(6, 99, 9)
        queue.put_nowait(wrong)
        assert queue.flush(20)
        assert len(queue) == 0
        assert broadcaster.broadcast_feedback_update(6, 100, 5).seq == 21
    assert [(update, type(error)) for update, error in failed] == [(wrong, InvalidField)]
    with pytest.raises(ValueError, match="closed"):
        queue.put_nowait(feedback_update(6, 101, 5))


def test_a_queue_that_cannot_send_is_full_and_tells_of_each_update_when_it_is_closed(unused_url: str) -> None:
    failed: list[Update] = []
    with Broadcaster(unused_url, token="t", patience_seconds=60) as lonely:
        queue = BroadcastQueue(lonely, size=3, on_failure=lambda update, _: failed.append(update))
        queue.put_nowait(feedback_update(1, 0, 5))
        with pytest.raises(QueueFull, match="3 updates"):
            for number in range(1, 4):
                queue.put_nowait(feedback_update(1, number, 5))
        assert not queue.close(0.1)
    assert len(failed) == 3


def test_an_answer_that_cannot_be_read_is_none(server: Server) -> None:
    def squeezed(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip"))

    with (
        Broadcaster(server.url, token="t", patience_seconds=0, transport=httpx.MockTransport(squeezed)) as made,
        pytest.raises(NoAnswer),
    ):
        made.broadcast_feedback_update(1, 1, 5)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # on Trio, httpx leaves generators behind that warn
async def test_an_answer_that_cannot_be_read_is_none_for_an_async_broadcaster_too(server: Server) -> None:
    def squeezed(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip"))

    transport = httpx.MockTransport(squeezed)
    async with AsyncBroadcaster(server.url, token="t", patience_seconds=0, transport=transport) as made:
        with pytest.raises(NoAnswer):
            await made.broadcast_feedback_update(1, 1, 5)


def test_what_is_no_update_does_not_come_into_a_queue(broadcaster: Broadcaster) -> None:
    with BroadcastQueue(broadcaster) as queue:
        with pytest.raises(TypeError, match="an Update is published, not int"):
            queue.put_nowait(5)  # type: ignore[arg-type]
        assert len(queue) == 0


def test_an_on_failure_that_raises_is_logged_and_the_queue_goes_on(
    broadcaster: Broadcaster, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Update] = []

    def on_failure(update: Update, _: BroadcastError) -> None:
        told.append(update)
        raise ZeroDivisionError

    wrong = [feedback_update(12, number, 9) for number in range(3)]
    with BroadcastQueue(broadcaster, on_failure=on_failure) as queue:
        head = broadcaster.broadcast_feedback_update(12, 0, 5).seq
        for update in wrong:
            queue.put_nowait(update)
        assert queue.flush(20)
        queue.put_nowait(feedback_update(12, 1, 5))
        assert queue.flush(20)
        assert broadcaster.broadcast_feedback_update(12, 2, 5).seq == head + 2
    assert told == wrong
    assert caplog.text.count("on_failure has failed") == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_queue_that_came_with_a_fork_says_that_it_sends_nothing(broadcaster: Broadcaster) -> None:
    with BroadcastQueue(broadcaster) as queue:
        child = os.fork()
        if child == 0:
            try:
                queue.put_nowait(feedback_update(12, 1, 5))
            except RuntimeError as error:
                os._exit(0 if "fork" in str(error) else 2)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.anyio
async def test_what_the_body_of_an_async_queue_raises_leaves_it_as_it_is(server: Server) -> None:
    async with AsyncBroadcaster(server.url, token=server.token("analytics", "broadcast")) as made:
        head = (await made.broadcast_feedback_update(12, 0, 5)).seq
        with pytest.raises(ZeroDivisionError):
            async with AsyncBroadcastQueue(made) as queue:
                queue.put_nowait(feedback_update(12, 1, 5))
                raise ZeroDivisionError
        assert (await made.broadcast_feedback_update(12, 2, 5)).seq == head + 2


@pytest.mark.anyio
async def test_the_calls_can_be_awaited(server: Server) -> None:
    async def token() -> str:
        return server.token("analytics", "broadcast")

    async with AsyncBroadcaster(server.url, token=token) as made:
        first = await made.broadcast_recommendation_update(7, None, {"herb": "fennel"})
        second = await made.broadcast_effectiveness_update(7, 5, 0.5)
        third = await made.broadcast_feedback_update(7, 1, 5)
        assert [second.seq, third.seq] == [first.seq + 1, first.seq + 2]
        found = await made.batch([recommendation_update(7, None, {"a": 1}), feedback_update(7, 1, 0)])
        assert isinstance(found[0], Receipt)
        assert isinstance(found[1], InvalidField)


@pytest.mark.anyio
async def test_an_async_queue_sends_what_is_left_at_its_end(server: Server) -> None:
    async with AsyncBroadcaster(server.url, token=server.token("analytics", "broadcast")) as made:
        async with AsyncBroadcastQueue(made, size=10) as queue:
            for number in range(10):
                queue.put_nowait(feedback_update(8, number, 5))
            with pytest.raises(QueueFull):
                queue.put_nowait(feedback_update(8, 10, 5))
        assert len(queue) == 0
        before = await made.broadcast_feedback_update(8, 11, 5)
    assert before.seq % 11 == 0


@pytest.mark.anyio
async def test_an_async_queue_sends_what_is_left_when_it_is_cancelled(server: Server) -> None:
    async with AsyncBroadcaster(server.url, token=server.token("analytics", "broadcast")) as made:
        head = (await made.broadcast_feedback_update(9, 0, 5)).seq
        with anyio.CancelScope() as scope:
            async with AsyncBroadcastQueue(made) as queue:
                queue.put_nowait(feedback_update(9, 1, 5))
                scope.cancel()
        assert (await made.broadcast_feedback_update(9, 2, 5)).seq == head + 2


def test_the_functions_are_configured_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    held = tmp_path / "token"
    held.write_text(server.token("analytics", "broadcast") + "\n")
    monkeypatch.setenv("AVICENNA_URL", server.url)
    monkeypatch.setenv("AVICENNA_TOKEN_FILE", str(held))
    assert avicenna_live.broadcast_recommendation_update(10, None, {"herb": "mint"}).seq == 1
    assert avicenna_live.broadcast_effectiveness_update(10, 5, effectiveness=0.5).seq == 2
    assert avicenna_live.broadcast_feedback_update(10, 1, 5).seq == 3
    child = os.fork()
    if child == 0:
        os._exit(avicenna_live.broadcast_feedback_update(10, 2, 5).seq)  # a forked worker has sockets of its own
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    assert avicenna_live.broadcast_feedback_update(10, 3, 5).seq == 5


@pytest.mark.anyio
async def test_the_async_functions_are_configured_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVICENNA_URL", server.url)
    monkeypatch.setenv("AVICENNA_TOKEN", server.token("analytics", "broadcast"))
    assert isinstance(await aio.broadcast_recommendation_update(11, None, {"herb": "mint"}), Receipt)
    assert isinstance(await aio.broadcast_effectiveness_update(11, 5, 0.5), Receipt)
    assert isinstance(await aio.broadcast_feedback_update(11, 1, 5), Receipt)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"url": None}, "AVICENNA_URL"),
        ({"token": None}, "AVICENNA_TOKEN"),
        ({"url": "ftp://h"}, "url must be"),
        ({"token": "a b"}, "token must be"),
        ({"timeout_seconds": 0}, "timeout_seconds must be above 0"),
        ({"patience_seconds": -1}, "patience_seconds must be 0 or more"),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    arguments: dict[str, object], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AVICENNA_URL", "AVICENNA_TOKEN", "AVICENNA_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=told):
        Broadcaster(**({"url": "http://h", "token": "t"} | arguments))  # type: ignore[arg-type]
