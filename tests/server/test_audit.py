"""The audit trail: every act of an operator or a registrar leaves one row that says what was and what is."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
import trio

from actors.errors import MailboxFull
from actors.registry import Registry
from storage.clock import SystemClock
from storage.records import AuditRow, NewAuditRow
from storage.sqlite import trails
from storage.sqlite.opening import open_store
from tests.server.harness import Server, running_server
from web import cli
from web.contract.operations import OPERATIONS
from web.operating.audit_rows import ERASED, spellings_of
from web.server.settings import DATABASE_FILE, Settings


class Trail(list[AuditRow]):
    """The audit rows of a server that has ended, oldest first."""

    def states(self, what: str) -> list[tuple[object, object]]:
        """What the rows of this act say about before and after."""
        return [(_read(row.before), _read(row.after)) for row in self if row.what == what]


def _read(text: str | None) -> object:
    return None if text is None else json.loads(text)


@asynccontextmanager
async def trailing(settings: Settings) -> AsyncIterator[tuple[Server, Trail]]:
    """A server, and the rows it leaves, once it has ended."""
    trail = Trail()
    async with running_server(settings) as server:
        yield server, trail
    async with open_store(settings.data / DATABASE_FILE, clock=SystemClock(), new_epoch=str) as store:
        trail += reversed(await store.audit())


async def act(server: Server, method: str, path: str, body: object = None) -> dict[str, object]:
    """What an operator is answered."""
    answer = await server.http.request(method, path, json=body, headers=server.bearer("op", "operate"))
    assert answer.is_success, answer.text
    shown: dict[str, object] = answer.json()
    return shown


async def test_rights_are_told_as_they_were_and_as_they_are(settings: Settings) -> None:
    async with trailing(settings) as (server, trail):
        await server.register(42, "amira", "bo", "cyrus")
        await server.register("42", "bo", "dora", "dora")
        await act(server, "DELETE", "/diagnoses/42")
    first = {"owner": "amira", "viewers": ["bo", "cyrus"]}
    second = {"owner": "bo", "viewers": ["dora"]}
    assert trail.states("diagnosis.register") == [(None, first), (first, second)]
    assert trail.states("diagnosis.delete") == [(second, None)]
    assert [(row.who, row.target) for row in trail] == [("registrar", "42"), ("registrar", "42"), ("op", "42")]


async def test_a_refused_act_leaves_no_row(settings: Settings) -> None:
    async with trailing(settings) as (server, trail):
        for method, path in (
            ("DELETE", "/diagnoses/42"),
            ("DELETE", "/actors/42/outbox"),
            ("DELETE", "/actors/42/subscribers?forget=1"),
            ("DELETE", "/revocations/7"),
        ):
            answer = await server.http.request(method, path, headers=server.bearer("op", "operate"))
            assert answer.status_code == 404
    assert trail == []


async def test_a_purge_is_told_by_its_numbers(settings: Settings) -> None:
    async with trailing(settings) as (server, trail):
        await server.register()
        for number in range(3):
            epoch = (await server.publish(number)).json()["epoch"]
        await act(server, "DELETE", "/actors/42/outbox")
    before, after = {"epoch": epoch, "head": 3, "floor": 0}, {"epoch": epoch, "head": 3, "floor": 3}
    assert trail.states("outbox.purge") == [(before, after)]


async def test_reading_what_events_say_leaves_a_row_that_says_which(settings: Settings) -> None:
    async with trailing(settings) as (server, trail):
        await server.register()
        assert (await act(server, "GET", "/actors/42/outbox"))["items"] == []  # nothing to be read
        for number in range(3):
            epoch = (await server.publish(number)).json()["epoch"]
        await act(server, "GET", "/actors/42/outbox?payload=0")
        await act(server, "GET", "/actors/42/outbox?after=1&limit=1")
        await act(server, "GET", "/actors/42/outbox?payload=1")
    stood = {"epoch": epoch, "head": 3, "floor": 0}
    assert trail.states("outbox.read") == [
        (stood, {"first": 2, "last": 2, "events": 1}),
        (stood, {"first": 1, "last": 3, "events": 3}),
    ]
    assert {(row.who, row.target, row.diagnosis_id) for row in trail[1:]} == {("op", "42", "42")}


@pytest.mark.parametrize(("query", "forgotten"), [("", 0), ("&forget=1", 2)])
async def test_a_disconnect_leaves_one_row_whether_it_forgets_or_not(
    settings: Settings, query: str, forgotten: int
) -> None:
    async with trailing(settings) as (server, trail):
        await server.register(42, "amira", "bo")
        async with server.live(sub="bo", device="desk", ack="app"):
            pass
        async with server.live(sub="bo", device="phone"):
            done = await act(server, "DELETE", f"/actors/42/subscribers?sub=bo{query}")
    assert done == {"disconnected": 1, "forgotten": forgotten}
    assert [row.what for row in trail] == ["diagnosis.register", "subscriber.disconnect"]
    assert trail.states("subscriber.disconnect") == [({"sub": "bo", "device": None}, done)]


async def test_nobody_is_disconnected_who_cannot_be_forgotten(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(registry: Registry, diagnosis_id: str, message: object) -> object:
        raise MailboxFull("1000 messages wait already")

    async with trailing(settings) as (server, trail):
        await server.register()
        async with server.live() as client:
            monkeypatch.setattr(Registry, "ask", refuse)
            answer = await server.http.delete(
                "/actors/42/subscribers?sub=amira&forget=1", headers=server.bearer("op", "operate")
            )
            assert answer.status_code == 429
            monkeypatch.undo()
            await server.publish()
            assert (await client.next())["seq"] == 1
    assert trail.states("subscriber.disconnect") == []


async def test_what_cannot_be_told_beforehand_is_told_as_what_will_be_done(settings: Settings) -> None:
    async with trailing(settings) as (server, trail):
        await server.register()
        async with server.live():
            await act(server, "POST", "/actors/42/restart")
            await act(server, "POST", "/actors/42/stop")
            made = await act(server, "POST", "/backup")
            await act(server, "POST", "/check")
    running, again = {"state": "running", "incarnation": 1}, {"state": "running", "incarnation": 2}
    assert trail.states("actor.restart") == [(running, again)]
    assert trail.states("actor.stop") == [(again, {"state": "passive", "incarnation": 2})]
    assert trail.states("database.backup") == [(None, {"path": made["path"]})]
    assert trail.states("database.check") == [(None, None)]
    assert [(row.target, row.diagnosis_id) for row in trail] == [
        ("42", "42"),
        ("42", "42"),
        ("42", "42"),
        (Path(str(made["path"])).name, None),
        ("", None),
    ]


async def test_a_revocation_is_told_whole_when_it_is_made_replaced_and_lifted(settings: Settings) -> None:
    async with trailing(settings) as (server, trail):
        first = await act(server, "POST", "/revocations", {"sub": "bo"})
        second = await act(server, "POST", "/revocations", {"sub": "bo"})
        third = await act(server, "POST", "/revocations", {"jti": "bo"})
        await act(server, "DELETE", f"/revocations/{second['id']}")
    assert trail.states("revocation.add") == [(None, first), (first, second), (None, third)]
    assert trail.states("revocation.lift") == [(second, None)]
    assert (second["sub"], third["jti"]) == ("bo", "bo")


@dataclass(frozen=True)
class Door:
    """An act, as it is asked for over HTTP, which the console does, too, and at the command line."""

    operation: str
    method: str
    path: str
    what: str
    """As its row names it."""
    before: bool
    after: bool
    """Whether its row says what was, and what is."""
    body: object = None
    command: tuple[str, ...] = ()
    """Empty: no command does it."""


DOORS = [
    Door(
        *("putDiagnosis", "PUT", "/diagnoses/43", "diagnosis.register", False, True),
        body={"owner": "amira", "viewers": ["bo"]},
        command=("diagnoses", "add", "43", "--owner", "amira", "--viewer", "bo"),
    ),
    Door(
        *("restartActor", "POST", "/actors/42/restart", "actor.restart", True, True),
        command=("actors", "restart", "42"),
    ),
    Door(*("stopActor", "POST", "/actors/42/stop", "actor.stop", True, True), command=("actors", "stop", "42")),
    Door(
        *("disconnectSubscribers", "DELETE", "/actors/42/subscribers?sub=bo", "subscriber.disconnect", True, True),
        command=("disconnect", "42", "--sub", "bo"),
    ),
    Door(
        *(
            "disconnectSubscribers",
            "DELETE",
            "/actors/42/subscribers?sub=bo&forget=1",
            "subscriber.disconnect",
            True,
            True,
        ),
        command=("disconnect", "42", "--sub", "bo", "--forget", "--yes"),
    ),
    Door(*("getOutbox", "GET", "/actors/42/outbox", "outbox.read", True, True), command=("outbox", "42", "--payload")),
    Door(*("purgeOutbox", "DELETE", "/actors/42/outbox", "outbox.purge", True, True), command=("purge", "42", "--yes")),
    Door(
        *("revokeTokens", "POST", "/revocations", "revocation.add", False, True),
        body={"jti": "of-nobody"},
        command=("revoke", "--jti", "of-nobody"),
    ),
    Door(
        *("liftRevocation", "DELETE", "/revocations/{made}", "revocation.lift", True, False),
        command=("revocations", "--lift", "{made}"),
    ),
    Door(
        *("deleteDiagnosis", "DELETE", "/diagnoses/43", "diagnosis.delete", True, False),
        command=("diagnoses", "remove", "43"),
    ),
    Door(
        *("eraseSubject", "DELETE", "/subjects/somebody", "subject.erase", False, True),
        command=("erase", "somebody", "--yes"),
    ),
    Door("eraseSubjectByQuery", "DELETE", "/subjects?sub=somebody", "subject.erase", False, True),
    Door(*("makeBackup", "POST", "/backup", "database.backup", False, True), command=("backup", "{copy}")),
    Door(*("checkDatabase", "POST", "/check", "database.check", False, False), command=("check",)),
    Door(*("drainServer", "POST", "/drain", "server.drain", False, False), command=("drain", "--yes")),
]

PUBLISHING = {one.name for one in OPERATIONS if one.name.startswith("broadcast")}
"""Events are not acts of operators: an event itself says what was published."""


def test_every_operation_that_changes_something_is_an_act_with_a_row() -> None:
    changing = {one.name for one in OPERATIONS if one.method not in ("get", "head")}
    assert changing - PUBLISHING | {"getOutbox"} == {door.operation for door in DOORS}


@pytest.mark.parametrize("door", ["HTTP", "command line"])
async def test_every_act_says_who_what_before_and_after_by_every_door(
    settings: Settings, door: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[Door] = []
    async with trailing(settings) as (server, trail):
        await server.register(42, "amira", "bo")
        await server.publish()
        for one in DOORS:
            if door == "HTTP" or one.command:
                rows = await act(server, "GET", "/revocations")
            else:
                continue
            items = rows["items"]
            assert isinstance(items, list)
            named = {"made": str(items[-1]["id"]) if items else "", "copy": str(tmp_path / "copy.db")}
            if door == "HTTP":
                await act(server, one.method, one.path.format(**named), one.body)
            else:
                words = [word.format(**named) for word in one.command]
                code = await trio.to_thread.run_sync(
                    cli.main, [*words, "--url", server.url, "--data", str(server.data), "--json"]
                )
                assert code == 0, (words, capsys.readouterr())
            done.append(one)
            if one.operation == "purgeOutbox":
                await server.publish()
    told = [(row.who, row.what, row.before is not None, row.after is not None) for row in trail[1:]]
    who = "op" if door == "HTTP" else "local-operator"
    assert told == [(who, one.what, one.before, one.after) for one in done]
    about = {row.what: row.diagnosis_id for row in trail}
    assert {about[what] for what in about if what.split(".")[0] in ("actor", "outbox", "subscriber")} == {"42"}


@pytest.mark.sqlite_only("the table of the trail is full")
async def test_an_act_whose_row_cannot_be_stored_is_not_done_by_whatever_operation(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(db: sqlite3.Connection, row: NewAuditRow, now: float) -> int:
        refused = sqlite3.OperationalError("database or disk is full")
        refused.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise refused

    async with trailing(settings) as (server, trail), AsyncExitStack() as stack:
        await server.register(42, "amira", "bo")
        await server.register(43, "bo")
        await server.publish()
        made = await act(server, "POST", "/revocations", {"sub": "nobody"})
        client = await stack.enter_async_context(server.live(sub="bo", device="phone"))

        async def what_is() -> list[object]:
            shown = [await act(server, "GET", f"/{one}") for one in ("diagnoses", "revocations", "actors")]
            return [*shown, await act(server, "GET", "/actors/42/outbox?payload=0"), *settings.data.rglob("*.db")]

        before = await what_is()
        for door in DOORS:
            path = door.path.format(made=made["id"]).replace("somebody", "bo")
            with monkeypatch.context() as no_room:
                no_room.setattr(trails, "record", full)
                answer = await server.http.request(
                    door.method, path, json=door.body, headers=server.bearer("op", "operate")
                )
            assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable"), door
            assert await what_is() == before, door
        await server.publish()
        assert (await client.next_of("feedback_update"))["seq"] == 2
    assert [row.what for row in trail] == ["diagnosis.register", "diagnosis.register", "revocation.add"]


@pytest.mark.parametrize("sub", ["bogdana", 'bo"o\\', "بو علی"])
async def test_an_erased_name_is_in_no_state_of_any_act(settings: Settings, sub: str) -> None:
    async with trailing(settings) as (server, trail):
        for others in (["amira", sub], [sub, "amira"], ["amira"]):
            await server.register(42, *others)
        async with server.live(device="phone"):
            await server.http.delete(
                "/actors/42/subscribers", params={"sub": sub, "forget": "1"}, headers=server.bearer("op", "operate")
            )
        made = await act(server, "POST", "/revocations", {"sub": sub})
        await act(server, "DELETE", f"/revocations/{made['id']}")
        await server.register("its", sub)
        await act(server, "DELETE", "/diagnoses/its")
        erased = await act(server, "DELETE", f"/subjects/{quote(sub, safe='')}")
    texts = [text for row in trail for text in (row.who, row.target, row.before or "", row.after or "")]
    assert not any(spelling in text for text in texts for spelling in spellings_of(sub))
    names = {"owner": ERASED, "viewers": ["amira"]}
    assert (names, {"owner": "amira", "viewers": []}) in trail.states("diagnosis.register")
    assert trail.states("revocation.lift") == [({**made, "sub": ERASED}, None)]
    assert trail.states("subscriber.disconnect")[0][0] == {"sub": ERASED, "device": None}
    told = {name: erased[name] for name in ("connections", "cursors", "viewer_entries", "audit_rows", "access_rows")}
    assert trail.states("subject.erase") == [(None, told)]
    assert told["audit_rows"] == 8
