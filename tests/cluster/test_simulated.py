"""The simulated servers answer what a real one does: both are asked the same, drawn from a seed, and compared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any
from uuid import uuid4

import pytest
import trio

from storage.clock import SystemClock
from storage.nats.connection import Connection
from storage.nats.errors import JetStreamError
from storage.nats.jetstream import EXPECTED_LAST, MESSAGE_ID, ROLLUP, TTL, Found, JetStream
from storage.nats.wire import Message, Outgoing
from tests.cluster.servers import NatsServer
from tests.simulation.nats import Cluster, Way

pytestmark = pytest.mark.cluster

QUESTIONS = 400

OWN = ("Nats-Time-Stamp", "Nats-Batch-Id", "Nats-Stream")
"""Headers that differ."""


def config(name: str, replicas: int) -> dict[str, Any]:
    return {
        "num_replicas": replicas,
        "name": name,
        "subjects": [f"{name}.>"],
        "storage": "file",
        "retention": "limits",
        "max_msgs_per_subject": 5,
        "duplicate_window": 120 * 10**9,
        "allow_atomic": True,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
        "republish": {"src": f"{name}.>", "dest": f"{name}live.>"},
    }


class Script:
    """Draws what is asked, always the same from the same seed, whoever is asked."""

    def __init__(self, seed: int, name: str, jetstream: JetStream) -> None:
        self.lots, self.name, self.jetstream = Random(seed), name, jetstream
        self.last: dict[str, int] = {}
        """By subject, as far as it is known."""
        self.pos = 0

    def subject(self) -> str:
        return f"{self.name}.{self.lots.choice('ab')}.{self.lots.choice('xyz')}"

    def message(self) -> Outgoing:
        lots, subject, headers = self.lots, self.subject(), dict[str, str]()
        if lots.random() < 0.6:
            wrong = lots.random() < 0.2
            headers[EXPECTED_LAST] = str(self.last.get(subject, 0) + wrong)
        if lots.random() < 0.3:
            headers[MESSAGE_ID] = f"id-{lots.randint(1, 12)}"
        if lots.random() < 0.2:
            headers[ROLLUP] = "sub"
        if lots.random() < 0.1:
            headers[TTL] = "3600s"
        return Outgoing(subject, str(lots.random()).encode(), headers)

    async def ask(self) -> object:
        lots, stream, jetstream = self.lots, self.name, self.jetstream
        match lots.choice(
            ["store"] * 6 + ["batch"] * 3 + ["torn", "last", "at", "direct", "many", "first", "purge", "delete"]
        ):
            case "store":
                return await self.store([self.message()])
            case "batch":
                messages: dict[str, Outgoing] = {}
                for _ in range(lots.randint(2, 5)):
                    one = self.message()
                    messages[one.subject] = one
                return await self.store(list(messages.values()))
            case "torn":
                one, batch = self.message(), {"Nats-Batch-Id": f"torn-{lots.random()}"}
                torn = {**(one.headers or {}), **batch, "Nats-Batch-Sequence": "2", "Nats-Batch-Commit": "1"}
                return await self.store([one._replace(headers=torn)])
            case "last":
                return await jetstream.last(stream, self.subject())
            case "at":
                return await jetstream.at(stream, lots.randint(1, self.pos + 1))
            case "direct":
                subject = lots.choice(
                    [self.subject(), f"{stream}.a.*", f"{stream}.>", f"{stream}.*.x", f"{stream}.none"]
                )
                asked = {"seq": lots.randint(1, self.pos + 2), "batch": lots.choice([1, 2, 100])}
                return await jetstream.direct(stream, {**asked, "next_by_subj": subject})
            case "many":
                subjects = [self.subject() for _ in range(lots.randint(1, 5))]
                return await jetstream.direct(stream, {"multi_last": subjects})
            case "first":
                return await jetstream.first(stream, lots.choice([self.subject(), f"{stream}.*.x", f"{stream}.none"]))
            case "purge":
                subject = lots.choice([self.subject(), f"{stream}.a.*"])
                before = lots.choice([None, lots.randint(1, self.pos + 2)])
                return await jetstream.purge(stream, subject, before)
            case _:
                try:
                    await jetstream.api(f"STREAM.MSG.DELETE.{stream}", {"seq": lots.randint(1, self.pos + 1)})
                except JetStreamError:
                    return "nothing there"  # why, is said in several ways
                return "deleted"

    async def store(self, messages: list[Outgoing]) -> object:
        stored = await self.jetstream.store(messages)
        if not stored.is_duplicate:
            self.pos = stored.pos
            first = stored.pos - len(messages) + 1
            self.last |= {one.subject: pos for pos, one in enumerate(messages, start=first)}
        return stored


def shown(answer: object, name: str) -> object:
    """An answer without what differs from one run to the next."""
    if isinstance(answer, Found):
        headers = {key: value for key, value in answer.headers.items() if key not in OWN}
        return answer.pos, answer.subject.removeprefix(name), _without(headers, name), answer.data
    if isinstance(answer, (list, tuple)):
        return tuple(shown(one, name) for one in answer)
    return answer


def _without(headers: dict[str, str], name: str) -> dict[str, str]:
    return {key: value.removeprefix(name) for key, value in headers.items()}


async def told(connection: Connection, seed: int, replicas: int) -> list[object]:
    """What is answered, and what live copies say at the end."""
    name = f"t{uuid4().hex[:12]}"
    jetstream, live = JetStream(connection, lambda: uuid4().hex), list[Message]()
    await jetstream.have_stream(config(name, replicas), 10)
    connection.subscribe(f"{name}live.>", live.append)
    script, answers = Script(seed, name, jetstream), list[object]()
    for _ in range(QUESTIONS):
        try:
            answer = shown(await script.ask(), name)
        except JetStreamError as error:
            # The text of an error names numbers of its own.
            answer = "refused", error.code, error.err_code
        answers.append(answer)
    answers.append(shown(await jetstream.direct(name, {"seq": 1, "next_by_subj": f"{name}.>", "batch": 900}), name))
    state = await jetstream.state(name)
    answers.append((state.last_pos, state.first_pos))
    stored_count = script.pos
    with trio.fail_after(30):
        while len(live) < stored_count:
            await trio.sleep(0.01)
    for one in live:
        headers = {key: value for key, value in one.headers.items() if key not in OWN}
        answers.append((one.subject.removeprefix(name), _without(headers, name), one.data))
    return answers


async def with_connection(use: Callable[[Connection], Awaitable[list[object]]], **options: Any) -> list[object]:
    connection = Connection(name="tests", new_id=lambda: uuid4().hex, jitter=Random(1).random, **options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        with trio.fail_after(30):
            await connection.up.wait()
        found = await use(connection)
        nursery.cancel_scope.cancel()
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 3])
async def test_simulated_servers_answer_as_real_ones(request: pytest.FixtureRequest, count: int, seed: int) -> None:
    servers: Sequence[NatsServer]
    if count == 1:
        servers = [request.getfixturevalue("one_nats_server")]
    else:
        servers = request.getfixturevalue("three_nats_servers")
    real = await with_connection(lambda one: told(one, seed, count), servers=[one.address for one in servers])
    async with trio.open_nursery() as nursery:
        cluster = Cluster(clock=SystemClock(), lots=Random(seed), servers=count)
        nursery.start_soon(cluster.run)
        way = Way(cluster)
        simulated = await with_connection(lambda one: told(one, seed, count), servers=cluster.addresses, dial=way.dial)
        nursery.cancel_scope.cancel()
    for number, (one, other) in enumerate(zip(simulated, real, strict=True)):
        assert one == other, f"answer {number}"
