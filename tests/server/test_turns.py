"""Work that costs is done in turns: so much, then everybody else; whose it is take turns, too, by what it costs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.edge.peers import Peer, connect, request
from tests.edge.test_bursts import send_now
from tests.server.harness import Server
from web.contract import wire
from web.contract.records import Update
from web.http.turns import Turns

TURN = 1000
"""What one turn has room for."""

LARGE = 8 * TURN


class Users:
    """Users that ask for turns, in the order in which those come."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.came: list[tuple[str, int]] = []
        """Who had a turn, and how many turns everybody else had had by then."""
        self.others_served = 0

    async def take(self, sub: str, cost: int) -> None:
        await self.turns.take(sub, cost)
        self.came.append((sub, self.others_served))

    async def be_served(self) -> None:
        while True:
            self.others_served += 1
            await trio.lowlevel.checkpoint()

    def order(self) -> list[str]:
        return [sub for sub, _ in self.came]


@asynccontextmanager
async def asking(*asked: tuple[str, int, int]) -> AsyncIterator[Users]:
    """Users, each of whom asks for so many turns of such a cost at once, while everybody else runs; all have come."""
    async with trio.open_nursery() as nursery:
        turns = Turns(TURN)
        users = Users(turns)
        nursery.start_soon(turns.run)
        await turns.take("before", TURN)
        async with trio.open_nursery() as others_nursery:
            others_nursery.start_soon(users.be_served)
            async with trio.open_nursery() as users_nursery:
                for sub, count, cost in asked:
                    for _ in range(count):
                        users_nursery.start_soon(users.take, sub, cost)
                    await trio.lowlevel.checkpoint()
            others_nursery.cancel_scope.cancel()
        yield users
        nursery.cancel_scope.cancel()


async def test_large_bodies_are_decoded_one_at_a_time_with_everybody_else_in_between() -> None:
    async with asking(("amira", 9, LARGE)) as users:
        assert len({at for _, at in users.came}) == 9


async def test_small_bodies_share_a_turn() -> None:
    async with asking(("amira", 20, TURN // 10)) as users:
        assert len({at for _, at in users.came}) <= 4


async def test_what_fits_into_a_turn_does_not_wait() -> None:
    turns = Turns(TURN)  # nobody runs it
    for _ in range(10):
        await turns.take("amira", TURN // 10)


async def test_a_turn_is_used_up_until_the_loop_has_had_one(nursery: trio.Nursery) -> None:
    turns = Turns(TURN)
    nursery.start_soon(turns.run)
    for _ in range(3):
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(0):  # no checkpoint
            await turns.take("amira", TURN)


async def test_users_have_their_turns_one_after_another_whoever_came_first() -> None:
    async with asking(("amira", 20, LARGE), ("bo", 1, TURN // 10), ("cyrus", 1, LARGE)) as users:
        order = users.order()
        assert order.index("bo") <= 2
        assert order.index("cyrus") <= 3


async def test_one_turn_is_shared_by_all_who_wait_where_shares_are_smaller(nursery: trio.Nursery) -> None:
    turns = Turns(8, share=1)
    await turns.take("before", 8)
    users = Users(turns)
    for sub in ("amira", "bo", "cyrus"):
        for _ in range(20):
            nursery.start_soon(users.take, sub, 1)
        await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(users.take, "dana", 1)
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(turns.run)
    await trio.testing.wait_all_tasks_blocked()
    assert "dana" in users.order()[:8]


async def test_who_has_decoded_much_waits_until_others_have_decoded_as_much() -> None:
    async with asking(("amira", 5, LARGE), ("bo", 500, TURN // 20)) as users:
        order = users.order()
        last_of_bo = len(order) - 1 - order[::-1].index("bo")
        assert order[:last_of_bo].count("amira") <= 2 + 500 * (TURN // 20) // LARGE


async def test_who_gives_up_waiting_is_in_nobodys_way() -> None:
    async with trio.open_nursery() as nursery:
        turns = Turns(TURN)
        await turns.take("before", TURN)
        with trio.move_on_after(0):
            await turns.take("amira", LARGE)
        nursery.start_soon(turns.run)
        with trio.fail_after(5):
            await turns.take("bo", 1)
            await turns.take("amira", 1)
        nursery.cancel_scope.cancel()


async def test_after_long_work_everybody_else_gets_as_much_time(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        turns = Turns(TURN)
        nursery.start_soon(turns.run)
        await turns.take("amira", TURN)
        with turns.at_work():
            autojump_clock.jump(0.5)
        began = trio.current_time()
        await turns.take("bo", TURN)
        assert trio.current_time() - began == pytest.approx(0.5)
        with turns.at_work():
            autojump_clock.jump(0.001)
        await turns.take("bo", TURN)
        assert trio.current_time() - began == pytest.approx(0.501)
        with turns.at_work():
            autojump_clock.jump(0.5)
        await trio.sleep(1)
        began = trio.current_time()
        await turns.take("bo", 1)
        assert trio.current_time() == began, "that time has passed"
        nursery.cancel_scope.cancel()


async def peers_with_all_but_the_last_byte(server: Server, sub: str, count: int, body: bytes) -> list[Peer]:
    head = {"Content_Type": b"application/json", "Authorization": b"Bearer " + server.token(sub).encode()}
    whole = request(b"/ws/broadcast-recommendation-update", b"POST", body, **head)
    peers = [await connect(server.url) for _ in range(count)]
    for peer in peers:
        await peer.send(whole[:-1])
    return peers


async def test_one_users_burst_of_large_broadcasts_keeps_nobody_elses_waiting(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.register(1, "amira")
    await server.register(2, "bo")
    decoded: list[int | str] = []
    decode = wire.decode_update

    def noted(kind: type[Update], body: bytes) -> Update:
        update = decode(kind, body)
        decoded.append(update.diagnosis_id)
        return update

    monkeypatch.setattr(wire, "decode_update", noted)
    large = b'{"diagnosis_id":1,"new_data":{"a":[%b]}}' % b",".join([b"[]"] * 20_000)
    burst = await peers_with_all_but_the_last_byte(server, "amira", 30, large)
    (small,) = await peers_with_all_but_the_last_byte(server, "bo", 1, b'{"diagnosis_id":2,"new_data":{}}')
    await trio.testing.wait_all_tasks_blocked(0.05)
    for peer in (*burst, small):
        send_now(peer, b"}")
    assert (await small.answer()).status == 200
    assert decoded.index(2) <= 5
    for peer in burst:
        assert (await peer.answer()).status == 200
    assert decoded.count(1) == 30
    for peer in (*burst, small):
        await trio.aclose_forcefully(peer.stream)
