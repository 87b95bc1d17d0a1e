"""What is in flight when a right is taken away: in a mailbox, in the store, in a look-up; acts without their row."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
import trio

from storage.clock import SystemClock
from storage.errors import StorageError
from storage.records import Appended, Diagnosis, Epoch
from storage.sqlite import diagnoses, events, lookup, revocations, trails
from storage.sqlite.opening import open_store
from storage.sqlite.store import SqliteStore
from storage.store import PendingAppend
from tests.identity.acts import ACTS, CHANGING, SENDER, Act, Ward, expect_alive
from tests.identity.conftest import MovableClock
from tests.server.harness import Server, running_server
from tests.server.test_bulk import feedback, results, send, text_of
from web.identity.access import allowed_now
from web.server.settings import DATABASE_FILE, Settings


@pytest.mark.one_process("it holds up the store of a server in its own process")
@pytest.mark.guarantee(16)
async def test_a_bulk_request_that_waits_for_room_stores_nothing_after_the_revocation(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, append_nowait = trio.Event(), SqliteStore.append_nowait
    found: list[dict[str, Any]] = []

    class HeldAppend(PendingAppend):
        """An append whose outcome is told once the gate is open."""

        def __init__(self, pending: PendingAppend) -> None:
            super().__init__()
            self.pending = pending

        async def wait(self) -> Sequence[Appended | StorageError]:
            outcomes = await self.pending.wait()
            await gate.wait()
            return outcomes

    def held(*args: Any) -> PendingAppend:
        return HeldAppend(append_nowait(*args))

    async with running_server(Settings(port=0, data=settings.data, mailbox_messages_max=8)) as server:
        await server.register()

        async def produce() -> None:
            found.extend(results(await send(server, text_of(*(feedback(number) for number in range(1000))))))

        async def actor() -> dict[str, Any]:
            shown: dict[str, Any] = (await server.http.get("/actors/42", headers=operator)).json()
            return shown

        async def head() -> int:
            outbox = (await server.http.get("/actors/42/outbox?limit=1000", headers=operator)).json()
            return len(outbox["items"])

        operator = server.bearer("op", "operate")
        monkeypatch.setattr(SqliteStore, "append_nowait", held)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            with trio.fail_after(10):
                while (await actor())["mailbox"]["depth"] < 8:
                    await trio.sleep(0.01)
            answer = await server.http.post("/revocations", json={"sub": "amira"}, headers=operator)
            assert answer.status_code == 201
            stored = await head()
            gate.set()
        assert await head() == stored
    assert [(one["line"], one["status"]) for one in found] == [
        (line, 200 if line <= stored else 401) for line in range(1, 1001)
    ]
    assert {one["code"] for one in found[stored:]} == {"unauthenticated"}


CHANGES: dict[str, tuple[str, str, dict[str, object] | None, object, str]] = {
    "subject revoked": ("POST", "/revocations", {"sub": "amira"}, revocations, "revoke"),
    "owner replaced": ("PUT", "/diagnoses/42", {"owner": "bo"}, diagnoses, "register"),
    "diagnosis deleted": ("DELETE", "/diagnoses/42", None, diagnoses, "delete"),
}
"""Requests that take a right away, and the function of the database thread that carries each out."""


@pytest.mark.guarantee(16)
@pytest.mark.parametrize("change", CHANGES)
async def test_what_was_handed_over_while_a_change_was_on_the_disk_is_settled_before_its_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    method, path, body, room, function = CHANGES[change]
    happened: list[str] = []
    is_on_disk, is_handed_over = threading.Event(), threading.Event()
    changing: Callable[..., object] = getattr(room, function)
    append, append_nowait = events.append, SqliteStore.append_nowait

    def slow_change(*args: Any) -> object:
        is_on_disk.set()
        assert is_handed_over.wait(10)
        return changing(*args)

    def slow_append(*args: Any) -> object:
        time.sleep(0.2)  # so that an answer that does not wait for this comes first
        happened.append("settled")
        return append(*args)

    def noted_append(*args: Any) -> object:
        pending = append_nowait(*args)
        is_handed_over.set()
        return pending

    await server.register()
    assert (await server.publish(1)).status_code == 200  # the actor and what it judges by are in memory
    monkeypatch.setattr(room, function, slow_change)
    monkeypatch.setattr(events, "append", slow_append)
    monkeypatch.setattr(SqliteStore, "append_nowait", noted_append)

    async def take_away() -> None:
        headers = server.bearer("op", "operate")
        assert (await server.http.request(method, path, json=body, headers=headers)).is_success
        happened.append("answered")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_away)
        await trio.to_thread.run_sync(is_on_disk.wait, 10)
        published = await server.publish(2)
    assert happened == ["settled", "answered"]
    assert published.status_code == (403 if change == "diagnosis deleted" else 200)
    assert (await server.publish(3)).status_code == (401 if change == "subject revoked" else 403)


class OvertakenStore:
    """A diagnosis whose registration is replaced while it is looked up."""

    def __init__(self, *look_ups: Diagnosis, known: Diagnosis) -> None:
        self.look_ups = list(look_ups)
        self.then_known = known
        self._known: Diagnosis | None = None

    def known(self, diagnosis_id: str) -> Diagnosis | None:
        return self._known

    async def look_up(self, diagnosis_id: str) -> Diagnosis:
        await trio.lowlevel.checkpoint()
        self._known = self.then_known
        return self.look_ups.pop(0)


async def test_a_look_up_that_a_change_has_overtaken_is_judged_by_what_is_registered_now() -> None:
    before, after = (Diagnosis("42", owner, (), Epoch("e"), 0.0) for owner in ("amira", "bo"))
    store = OvertakenStore(before, after, known=after)
    assert await allowed_now(store, "42", lambda one: one.owner == "amira") is None  # type: ignore[arg-type]
    store = OvertakenStore(before, known=after)
    assert await allowed_now(store, "42", lambda one: True) == after  # type: ignore[arg-type]


# Refusals

ROUTES: dict[str, Callable[[str], tuple[str, str, object]]] = {
    "broadcast": lambda one: ("POST", "/ws/broadcast-feedback-update", feedback_of(one)),
    "bulk": lambda one: ("POST", "/ws/broadcast", text_of(feedback(1, one))),
    "registration": lambda one: ("GET", f"/diagnoses/{one}", None),
    "position": lambda one: ("GET", f"/diagnoses/{one}/position", None),
    "delivery": lambda one: ("GET", f"/diagnoses/{one}/delivery?seq=1", None),
    "event stream": lambda one: ("GET", f"/diagnoses/{one}/events", None),
    "WebSocket": lambda one: ("WS", one, None),
}


def feedback_of(diagnosis_id: str) -> dict[str, object]:
    return {"diagnosis_id": diagnosis_id, "feedback_id": 1, "rating": 5}


async def refusal(server: Server, method: str, path: str, body: object) -> object:
    """What somebody is answered who owns another diagnosis (without one there is no bulk request)."""
    if method == "WS":
        async with server.connect(path, sub="mallory") as client:
            (error,), code, reason = await client.close_frames()
            return error["data"], code, reason
    headers = server.bearer("mallory")
    if isinstance(body, bytes):
        (line,) = results(await send(server, body, "mallory"))
        return line
    answer = await server.http.request(method, path, json=body, headers=headers)
    return answer.status_code, answer.json()


async def test_a_refusal_takes_one_look_up_and_the_same_words_whatever_is_there(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ups: list[str] = []
    look_up = lookup.look_up

    def counted(db: sqlite3.Connection, diagnosis_id: str, known: Diagnosis | None) -> object:
        look_ups.append(diagnosis_id)
        return look_up(db, diagnosis_id, known)

    async with running_server(settings) as server:
        for name in ROUTES:
            await server.register(f"far-{name.replace(' ', '-')}")
    monkeypatch.setattr(lookup, "look_up", counted)
    async with running_server(settings) as server:
        await server.register("near")
        await server.register("mallorys", "mallory")
        for name, request in ROUTES.items():
            told = []
            for diagnosis_id in ("unknown", "near", f"far-{name.replace(' ', '-')}"):
                look_ups.clear()
                told.append(await refusal(server, *request(diagnosis_id)))
                assert look_ups == [diagnosis_id], name
            assert told[0] == told[1] == told[2], name


async def test_whoever_may_takes_no_look_up_of_what_is_in_memory(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.register()
    await server.publish(1)

    def unexpected(db: sqlite3.Connection, diagnosis_id: str, known: Diagnosis | None) -> None:
        """Nothing is registered."""

    monkeypatch.setattr(lookup, "look_up", unexpected)
    assert (await server.publish(2)).status_code == 200
    async with server.live() as client:
        await expect_alive(client)


# Rows

RECORDED = {name: act for name, act in ACTS.items() if not name.startswith("broadcast")} | {
    "disconnectSubscribers, nobody forgotten": Act("/actors/d1/subscribers?sub=bo")
}


@pytest.mark.parametrize("name", RECORDED)
async def test_an_act_whose_row_the_store_refuses_is_not_done(
    settings: Settings, clock: MovableClock, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    act, method = RECORDED[name], CHANGING[name.partition(",")[0]].method.upper()

    def full(*_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    async with running_server(settings, clock) as server:
        ward = Ward(server, clock)
        await ward.begin()

        async def ask() -> httpx.Response:
            body = (
                json.loads(act.body) if act.path in ("/diagnoses/d1", "/revocations") and method != "DELETE" else None
            )
            return await server.http.request(method, act.path, json=body, headers=server.bearer(SENDER, act.scope))

        async with server.live("d1", "bo", device="phone") as follower:
            before = await ward.state()
            with monkeypatch.context() as patch:
                patch.setattr(trails, "record", full)
                answer = await ask()
            assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
            assert int(answer.headers["Retry-After"]) >= 1
            assert await ward.state() == before
            await expect_alive(follower)
            assert not list(settings.data.glob("backups/*"))
            assert (await ask()).is_success
    async with open_store(settings.data / DATABASE_FILE, clock=SystemClock(), new_epoch=str) as store:
        assert [row.who for row in await store.audit()].count(SENDER) == 1
