"""`AsyncBroadcaster.stream()`: the pure core, and a real server that is killed and comes back."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from avicenna_live import (
    AsyncBroadcaster,
    Forbidden,
    InvalidField,
    KeyReused,
    NoAnswer,
    NotFound,
    Receipt,
    TooLarge,
    Unauthenticated,
    Update,
    feedback_update,
)
from avicenna_live.errors import ProtocolFault
from avicenna_live.streaming import StreamCore
from tests.served import Server

pytestmark = pytest.mark.anyio

CONNECT = {"type": "connect", "data": {"window": 2, "message_bytes_max": 65536, "token_expires_at": None}}


def update(number: int, diagnosis_id: int = 42) -> Update:
    return feedback_update(diagnosis_id, feedback_id=number, rating=5, idempotency_key=f"k{number}")


def said(**frame: object) -> str:
    return json.dumps(frame)


def refused(publish_id: str, status: int = 403, code: str = "forbidden") -> str:
    return said(type="refused", id=publish_id, problem={"status": status, "code": code, "detail": "no"})


async def test_no_more_is_sent_than_the_window_allows_and_a_cut_makes_it_due_again_in_order() -> None:
    core = StreamCore()
    ids = [core.add(update(number)) for number in range(1, 4)]
    core.opened()
    assert core.due() is None, "the server has not let us in"
    core.receive(said(**CONNECT))
    first, second = json.loads(core.due() or ""), json.loads(core.due() or "")
    assert [first["id"], second["id"]] == ids[:2]
    assert (first["type"], first["idempotency_key"], first["feedback_id"]) == ("feedback_update", "k1", 1)
    assert core.due() is None
    found = core.receive(refused(ids[0]))
    assert found is not None
    assert (found[0], type(found[1])) == (ids[0], Forbidden)
    core.opened()
    core.receive(said(**CONNECT))
    assert [json.loads(core.due() or "")["id"] for _ in range(2)] == ids[1:]
    assert core.forget(ids[1]), "it may be stored"


async def test_what_is_refused_for_a_token_that_may_be_renewed_is_due_again_on_the_next_connection() -> None:
    core = StreamCore(renewable=True)
    ids = [core.add(update(number)) for number in range(1, 4)]
    core.opened()
    core.receive(said(**CONNECT))
    core.due(), core.due()
    assert core.receive(refused(ids[0], 401, "token_expired")) is None
    assert core.due() is None, "the token of this connection is refused"
    assert (core.expects, core.is_spent) == (True, False), "the second one is still to be answered"
    assert core.receive(refused(ids[1])) is not None
    assert (core.expects, core.is_spent) == (False, True)
    core.opened()
    core.receive(said(**CONNECT))
    assert [json.loads(core.due() or "")["id"] for _ in range(2)] == [ids[0], ids[2]]


@pytest.mark.parametrize("message", ["", "[]", "{}", '{"type":"receipt","id":"1","receipt":{}}', '{"type":"bye"}'])
async def test_what_is_none_of_the_protocol_is_a_fault(message: str) -> None:
    with pytest.raises(ProtocolFault):
        StreamCore().receive(message)


def jti_of(token: str) -> str:
    claims = token.split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["jti"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("data")) as running:
        yield running


def broadcaster(server: Server, sub: str = "clinic", scope: str = "broadcast") -> AsyncBroadcaster:
    return AsyncBroadcaster(server.url, token=server.token(sub, scope), patience_seconds=30)


async def test_many_tasks_publish_at_once_and_each_gets_its_own_receipt(server: Server) -> None:
    server.register(1)
    seqs: dict[int, int] = {}
    async with broadcaster(server) as publisher, publisher.stream() as stream:

        async def publish(number: int) -> None:
            seqs[number] = (await stream.publish(update(number, 1))).seq

        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for number in range(600):
                    group.start_soon(publish, number)
    assert sorted(seqs.values()) == list(range(1, 601))


async def test_what_is_refused_is_raised_by_its_kind_and_the_stream_goes_on(server: Server) -> None:
    server.register(2)
    async with broadcaster(server) as publisher, publisher.stream() as stream:
        with pytest.raises(NotFound):
            await stream.publish(update(1, 999))
        with pytest.raises(InvalidField, match="rating"):
            await stream.publish(feedback_update(2, feedback_id=1, rating=9))
        with pytest.raises(TooLarge):
            await stream.publish(feedback_update(2, feedback_id=1, rating=5, comment="x" * 65536))
        first = await stream.publish(update(1, 2))
        with pytest.raises(KeyReused):
            await stream.publish(feedback_update(2, feedback_id=8, rating=5, idempotency_key="k1"))
        again = await stream.publish(update(1, 2))
        assert (first.seq, again.seq, again.replayed) == (1, 1, True)
    with pytest.raises(NoAnswer):
        await stream.publish(update(5, 2))


async def test_a_token_that_is_not_accepted_is_told_to_whoever_publishes(server: Server) -> None:
    async with AsyncBroadcaster(server.url, token="no.token.here") as publisher, publisher.stream() as stream:
        with anyio.fail_after(20), pytest.raises(Unauthenticated):
            await stream.publish(update(1))


async def test_updates_that_wait_when_their_token_is_revoked_are_published_with_the_next_one(tmp_path: Path) -> None:
    # So small a mailbox that updates wait before it when the token is revoked.
    with Server(tmp_path, AVICENNA_MAILBOX_MESSAGES_MAX="1") as server:
        server.register(4)
        tokens = [server.token("clinic", "broadcast") for _ in range(2)]
        used = 0
        receipts: list[Receipt] = []

        def token() -> str:
            nonlocal used
            used += 1
            return tokens[min(used, 2) - 1]

        publisher = AsyncBroadcaster(server.url, token=token, patience_seconds=30)
        async with publisher, publisher.stream() as stream:

            async def publish(number: int) -> None:
                receipts.append(await stream.publish(update(number, 4)))

            with anyio.fail_after(60):
                async with anyio.create_task_group() as group:
                    for number in range(150):
                        group.start_soon(publish, number)
                    while not receipts:
                        await anyio.sleep(0.01)
                    revocation = {"jti": jti_of(tokens[0])}
                    await anyio.to_thread.run_sync(server.ask, "POST", "/revocations", revocation)
        assert sorted(one.seq for one in receipts) == list(range(1, 151))
        assert used == 2


async def test_a_server_that_is_killed_and_comes_back_makes_one_event_of_each_update(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.register(3)
        receipts: list[Receipt] = []
        async with broadcaster(server) as publisher, publisher.stream() as stream:

            async def publish(number: int) -> None:
                receipts.append(await stream.publish(update(number, 3)))

            with anyio.fail_after(60):
                async with anyio.create_task_group() as group:
                    for number in range(400):
                        group.start_soon(publish, number)
                    while len(receipts) < 20:
                        await anyio.sleep(0.01)
                    server.kill()
                    server.start()
        assert sorted(one.seq for one in receipts) == list(range(1, 401))
