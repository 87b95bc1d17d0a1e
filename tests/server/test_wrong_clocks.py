"""A server whose wall clock is wrong, over the wire: at one start, while it runs, and set right again."""

from __future__ import annotations

import time
from datetime import datetime

import httpx
import pytest
import trio

from tests.logbook import LOGBOOK
from tests.server.harness import Server, open_socket, running_server
from tests.server.test_broadcasts import assert_problem
from web.identity.tokens import issue
from web.server.settings import Settings

HOUR, DAY = 3600.0, 86_400.0


class ShiftedClock:
    """The machine's clocks, each ahead by as much as a test says."""

    def __init__(self) -> None:
        self.wrong_by = 0.0
        self.waited = 0.0
        """So much time has gone by, for both clocks."""

    def wall(self) -> float:
        return time.time() + self.wrong_by + self.waited

    def monotonic(self) -> float:
        return trio.current_time() + self.waited


@pytest.fixture
def clock() -> ShiftedClock:
    return ShiftedClock()


def token(server: Server, clock: ShiftedClock, sub: str, scope: str = "") -> str:
    """A token that the clock of the server takes for new."""
    made = issue(server.key, sub=sub, scope=scope, ttl_seconds=600, now=clock.wall(), token_id=f"t-{sub}")
    LOGBOOK.note(made, "a token")
    return made


def bearer(server: Server, clock: ShiftedClock, sub: str, scope: str = "") -> dict[str, str]:
    return {"Authorization": f"Bearer {token(server, clock, sub, scope)}"}


async def register(server: Server, clock: ShiftedClock) -> None:
    headers = bearer(server, clock, "registrar", "register")
    answer = await server.http.put("/diagnoses/42", json={"owner": "amira", "viewers": ["bo"]}, headers=headers)
    assert answer.status_code == 201


async def publish(server: Server, clock: ShiftedClock, key: str, number: int = 1) -> dict[str, object]:
    LOGBOOK.note(key, "an idempotency key")
    answer = await server.http.post(
        "/ws/broadcast-feedback-update",
        json={"diagnosis_id": 42, "feedback_id": number, "rating": 5},
        headers=bearer(server, clock, "amira") | {"Idempotency-Key": key},
    )
    assert answer.status_code == 200, answer.text
    made: dict[str, object] = answer.json()
    return made


async def revoke(server: Server, clock: ShiftedClock, sub: str) -> httpx.Response:
    answer = await server.http.post("/revocations", json={"sub": sub}, headers=bearer(server, clock, "op", "operate"))
    assert answer.status_code == 201, answer.text
    return answer


async def shown_since(server: Server, clock: ShiftedClock) -> set[str | None]:
    """What all are shown, whoever asks."""
    shown = set()
    for headers in (bearer(server, clock, "op", "operate"), bearer(server, clock, "amira"), {}):
        answer = await server.http.get("/ws/status", headers=headers)
        assert answer.status_code == 200, answer.text
        shown.add(answer.json()["clock_held_since"])
    return shown


async def held_since(server: Server, clock: ShiftedClock) -> datetime | None:
    """What everybody is shown."""
    (found,) = await shown_since(server, clock)
    return None if found is None else datetime.fromisoformat(found)


async def until_held(server: Server, clock: ShiftedClock, about: float | None) -> None:
    """Wait until everybody is shown that the clock is held since about then, or not: workers hear of it in 0.25 s."""

    def is_so(shown: str | None) -> bool:
        if shown is None or about is None:
            return (shown, about) == (None, None)
        return abs(datetime.fromisoformat(shown).timestamp() - about) < 60

    with trio.fail_after(10):
        while not all(map(is_so, await shown_since(server, clock))):
            await trio.sleep(0.01)


async def follow(server: Server, clock: ShiftedClock, device: str) -> dict[str, object]:
    """Follow until `live`, acknowledge it, and leave; what `connect` said."""
    url = f"{server.url.replace('http', 'ws')}/ws/42?device={device}&ack=app"
    headers = list(bearer(server, clock, "amira").items())
    async with open_socket(url, extra_headers=headers) as client:
        frames = await client.until_live()
        await client.say(type="ack", seq=frames[-1]["data"]["seq"])
        await client.next_of("acked")
    said: dict[str, object] = frames[0]["data"]
    return said


async def is_refused(server: Server, shown: str) -> bool:
    answer = await server.http.get("/diagnoses/42/position", headers={"Authorization": f"Bearer {shown}"})
    assert answer.status_code in (200, 401), answer.text
    return answer.status_code == 401


@pytest.fixture
def keeping(settings: Settings) -> Settings:
    return Settings(port=0, data=settings.data, allow_anonymous=True, events_kept_days=7, access_trail=True)


@pytest.mark.guarantee(9)
async def test_one_start_40_days_ahead_undoes_no_promise(keeping: Settings, clock: ShiftedClock) -> None:
    async with running_server(keeping, clock) as server:
        await register(server, clock)
        first = await publish(server, clock, "key-1")
        assert (await follow(server, clock, "phone"))["resume"] == "fresh"
        await publish(server, clock, "key-2", 2)
        old = token(server, clock, "bo")
        assert not await is_refused(server, old)
        await revoke(server, clock, "bo")
        assert await is_refused(server, old)
        assert await held_since(server, clock) is None
    clock.wrong_by = 40 * DAY
    async with running_server(keeping, clock) as server:
        since = await held_since(server, clock)
        assert since is not None
        assert abs(since.timestamp() - clock.wall()) < 60
        assert (await server.http.get("/readyz")).status_code == 200
        assert (await publish(server, clock, "key-1")) == first | {"replayed": True, "clients_notified": 0} | _counts(1)
        listed = await server.http.get("/revocations", headers=bearer(server, clock, "op", "operate"))
        assert [one["sub"] for one in listed.json()["items"]] == ["bo"]
    clock.wrong_by = 0.0
    async with running_server(keeping, clock) as server:
        assert await held_since(server, clock) is None
        assert (await publish(server, clock, "key-1"))["replayed"] is True
        assert await is_refused(server, old)
        said = await follow(server, clock, "phone")
        assert (said["resume"], said["queued"]) == ("exact", 1)


def _counts(known: int) -> dict[str, object]:
    return {"subscribers": {"online": 0, "known": known, "at_risk": 0}}


@pytest.mark.guarantee(9)
async def test_a_start_26_hours_behind_set_right_while_the_server_runs_undoes_no_promise(
    keeping: Settings, clock: ShiftedClock
) -> None:
    async with running_server(keeping, clock) as server:
        await register(server, clock)
        old = token(server, clock, "bo")
        assert not await is_refused(server, old)
    clock.wrong_by = -26 * HOUR
    async with running_server(keeping, clock) as server:
        assert await held_since(server, clock) is not None
        made = await publish(server, clock, "key-1")
        await revoke(server, clock, "bo")
        clock.wrong_by = 0.0
        await until_held(server, clock, clock.wall())
        again = await publish(server, clock, "key-1")
        assert (again["seq"], again["replayed"]) == (made["seq"], True)
        assert await is_refused(server, old)
        clock.waited = HOUR + 60
        await until_held(server, clock, None)
        again = await publish(server, clock, "key-1")
        assert (again["seq"], again["replayed"]) == (made["seq"], True)


async def test_a_token_is_refused_by_the_wall_clock_while_it_is_not_believed(
    keeping: Settings, clock: ShiftedClock
) -> None:
    async with running_server(keeping, clock) as server:
        await register(server, clock)
        shown = token(server, clock, "amira")
        assert not await is_refused(server, shown)
        clock.wrong_by = 2 * DAY
        answer = await server.http.get("/diagnoses/42/position", headers={"Authorization": f"Bearer {shown}"})
        assert_problem(answer, 401, "token_expired")
        await until_held(server, clock, clock.wall())
