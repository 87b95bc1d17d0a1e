"""How much room the bodies of broadcasts may take, and when they take it."""

from __future__ import annotations

import contextlib

import pytest

from tests.identity.travelling import noted_arrivals, travelling
from tests.server.harness import Server, running_server
from tests.server.test_broadcasts import assert_problem
from tests.server.test_bulk import feedback, results, send, text_of
from web.contract.errors import Problem
from web.http.bodies import BULK_BYTES_MAX
from web.publishing import broadcasts, bulk
from web.publishing.body_room import SHARES, Allowance
from web.server.settings import Settings

NDJSON = {"Content_Type": "application/x-ndjson"}


def padded(length: int) -> bytes:
    """A bulk request of this length with one event."""
    line = text_of(feedback(1)).rstrip()
    return line + b" " * (length - len(line))


def test_bodies_in_hand_are_bounded_each_user_has_a_share_and_room_comes_back() -> None:
    allowance = Allowance(10 * SHARES)
    with allowance.room_of("amira") as room:
        room.take(6)
        with pytest.raises(Problem, match="this user") as refused, allowance.room_of("amira") as another:
            another.take(4)
            another.take(1)
        assert (refused.value.code, refused.value.headers["Retry-After"]) == ("rate_limited", "1")
        assert allowance.held == 6, "who is refused holds nothing any more"
        with contextlib.ExitStack() as others:
            for number in range(SHARES - 1):
                others.enter_context(allowance.room_of(f"other-{number}")).take(10)
            room.take(4)
            with pytest.raises(Problem, match="all requests"), allowance.room_of("bo") as last:
                last.take(1)
    assert allowance.held == 0


async def test_announcing_large_bodies_takes_no_room_from_those_who_send_theirs(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.register()
    await server.register("bos", "bo")
    with noted_arrivals(monkeypatch) as arrivals:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(16):
                body, token = padded(BULK_BYTES_MAX), server.token("bo")
                await stack.enter_async_context(
                    travelling(server, arrivals, "POST", "/ws/broadcast", body, token, **NDJSON)
                )
            for sub, diagnosis_id in (("amira", 42), ("bo", "bos")):
                (found,) = results(await send(server, text_of(feedback(1, diagnosis_id)), sub))
                assert found["status"] == 200


async def test_bodies_of_single_broadcasts_that_are_arriving_are_bounded_too(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcasts, "BODIES_BYTES_MAX", SHARES * 500)
    async with running_server(settings) as server:
        await server.register()
        for number in range(1, 4):
            refused = await server.publish(0, comment="x" * 500)
            assert_problem(refused, 429, "rate_limited", "this user")
            assert (await server.publish(number)).json()["seq"] == number


async def test_a_body_for_which_there_is_no_room_is_refused_at_once_and_gives_its_room_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "BODIES_BYTES_MAX", SHARES * 1000)
    async with running_server(settings) as server:
        await server.register()
        await server.register("bos", "bo")
        for _ in range(3):
            refused = await send(server, padded(1001))
            assert_problem(refused, 429, "rate_limited", "this user")
            assert (refused.headers["Retry-After"], refused.headers["Connection"]) == ("1", "close")
            assert results(await send(server, padded(1000)))[0]["status"] == 200
        for diagnosis_id, sub in ((42, "amira"), ("bos", "bo")):
            answer = await send(server, text_of(feedback(2, diagnosis_id)), sub)
            assert results(answer)[0]["status"] == 200
