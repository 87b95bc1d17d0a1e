"""`avicenna-live cluster`, on a real NATS server."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio

from storage.clock import SystemClock
from storage.jetstream import acts
from storage.jetstream.store import JetStreamStore
from storage.nats.wire import Outgoing
from storage.records import (
    Act,
    Appended,
    CursorMove,
    Diagnosis,
    Epoch,
    NewAccessRow,
    NewAuditRow,
    NewEvent,
    Seq,
    Slice,
    SubscriberId,
)
from storage.sqlite.opening import open_store
from tests.cluster.nodes import variables_of
from tests.cluster.servers import NatsServer
from tests.storage.conftest import open_node
from tests.storage.rows import ROWS
from web import cli
from web.server.settings import DATABASE_FILE

pytestmark = pytest.mark.cluster

PHONE = SubscriberId("amira", "phone")


@pytest.fixture
def name(one_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An installation of this test's own, which the environment names."""
    name = f"t{uuid4().hex[:20]}"
    for variable, value in variables_of([one_nats_server], name).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(tmp_path)
    return name


def ran(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    """The exit code of `cluster`, and what it printed as JSON: the result, or else the failure."""
    capsys.readouterr()
    code = cli.main(["cluster", *words, "--json"])
    printed = capsys.readouterr()
    return code, json.loads(printed.out or printed.err.splitlines()[-1])


def event(number: int, key: str | None = None) -> NewEvent:
    return NewEvent("feedback", b"%d" % number, key, b"digest-%d" % number)


async def filled(database: Path) -> None:
    """A database with some of everything."""
    async with open_store(database, clock=SystemClock(), new_epoch=lambda: uuid4().hex[:16], rows=ROWS) as store:
        act = Act("op", "test.act", {"after": "x"})
        for one in ("many", "purged", "empty", "gone"):
            await store.register(one, "amira", ["bo", "cyn"], act)
        await store.append_nowait("many", [event(number, f"key-{number}") for number in range(1, 121)]).wait()
        await store.append_nowait("purged", [event(1), event(2)]).wait()
        await store.purge("purged", act)
        await store.delete("gone", act)
        epoch = (await store.get("many")).epoch
        await store.move_cursors([CursorMove("many", PHONE, epoch, Seq(90), 1000.0, "app", 1000.0)])
        await store.revoke(sub="dan", act=act)
        number = (await store.revoke(token_id="t1", act=act)).revocation.number
        await store.lift_revocation(number, act)
        await store.record(NewAuditRow("op", "database.check", ""))
        await store.record_accesses([NewAccessRow(5.0, "connect", "many", PHONE)])


async def seen(database: Path) -> tuple[Diagnosis, Slice]:
    async with open_store(database, clock=SystemClock(), new_epoch=lambda: uuid4().hex, rows=ROWS) as store:
        return await store.get("many"), await store.read_after("many", Seq(0))


def test_a_database_is_moved_and_clients_go_on_where_they_were(
    name: str, one_nats_server: NatsServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    trio.run(filled, source / DATABASE_FILE)
    before, log = trio.run(seen, source / DATABASE_FILE)

    async def leave_a_part() -> None:
        """As a transfer that was cut off."""
        async with open_node([one_nats_server.address], name, SystemClock(), lambda: uuid4().hex) as store:
            half = acts.encoded(acts.Registered(replace(before, diagnosis_id="half")))
            await store.engine.jetstream.store([Outgoing(store.engine.layout.registration("half"), half)])

    trio.run(leave_a_part)
    assert ran(capsys, "transfer", "--from", str(tmp_path / "absent"))[0] == 1
    code, moved = ran(capsys, "transfer", "--from", str(source))
    assert code == 0, moved
    assert {key: moved[key] for key in ("diagnoses", "events", "keys", "cursors", "revocations", "access_rows")} == {
        "diagnoses": 3,
        "events": 100,
        "keys": 120,
        "cursors": 1,
        "revocations": 1,
        "access_rows": 1,
    }
    assert moved["audit_rows"] == 10
    code, refused = ran(capsys, "transfer", "--from", str(source))
    assert (code, "is not empty" in refused["error"]["detail"]) == (1, True)
    assert ran(capsys, "check") == (0, {"status": "ok", "problems": []})

    async def go_on() -> None:
        async with open_node([one_nats_server.address], name, SystemClock(), lambda: uuid4().hex) as store:
            assert await store.get("many") == before
            assert await store.read_after("many", Seq(0)) == log
            again, new = await appended(store, "many", event(120, "key-120"), event(121, "key-121"))
            assert (again.seq, again.replayed, new.seq, new.replayed) == (120, True, 121, False)
            assert [one.seq for one in await appended(store, "purged", event(3))] == [3]
            assert [one.seq for one in await appended(store, "empty", event(1))] == [1]
            assert (await store.cursors("many"))[0].seq == 90
            assert (await store.revoke(sub="eve")).revocation.number > 10

    trio.run(go_on)


async def appended(store: JetStreamStore, diagnosis_id: str, *events: NewEvent) -> list[Appended]:
    outcomes = await store.append_nowait(diagnosis_id, events).wait()
    return [one for one in outcomes if isinstance(one, Appended)]


def test_new_epochs_begin_everywhere_at_once_and_numbers_go_on(
    name: str, one_nats_server: NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs: dict[str, Epoch] = {}

    async def begin() -> None:
        async with open_node([one_nats_server.address], name, SystemClock(), lambda: uuid4().hex[:16]) as store:
            for one in ("a", "b"):
                epochs[one] = (await store.register(one, "amira", [])).diagnosis.epoch
                await appended(store, one, event(1, "key"), event(2))
            await store.move_cursors([CursorMove("a", PHONE, epochs["a"], Seq(2), 1.0, "app", 1.0)])

    async def go_on() -> None:
        async with open_node([one_nats_server.address], name, SystemClock(), lambda: uuid4().hex[:16]) as store:
            for one in ("a", "b"):
                diagnosis, found = await store.get(one), await store.read_after(one, Seq(0))
                assert diagnosis.epoch == found.window.epoch != epochs[one]
                assert [event.seq for event in found.events] == [1, 2]
                again, new = await appended(store, one, event(1, "key"), event(3))
                assert (again.seq, again.replayed, new.seq, new.epoch) == (1, True, 3, diagnosis.epoch)
                # A cursor of an epoch that is over says nothing of this one.
                assert await store.move_cursors([CursorMove(one, PHONE, epochs[one], Seq(2), 2.0)]) == [None]
            cursor = await store.cursor("a", PHONE)
            assert cursor is not None
            assert cursor.epoch == epochs["a"]
            assert (await store.register("a", "bo", [])).diagnosis.epoch == (await store.get("a")).epoch
            (row,) = await store.audit(limit=1)
            assert (row.what, row.after) == ("epochs.renew", "a disk was lost")

    trio.run(begin)
    code, renewed = ran(capsys, "renew", "--why", "a disk was lost")
    assert (code, list(renewed)) == (0, ["generation"])
    trio.run(go_on)
    assert ran(capsys, "check") == (0, {"status": "ok", "problems": []})


def test_what_is_missing_or_beyond_all_numbers_is_found(
    name: str, one_nats_server: NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    async def damage() -> None:
        async with open_node([one_nats_server.address], name, SystemClock(), lambda: uuid4().hex[:16]) as store:
            await store.register("d", "amira", [])
            await store.register("e", "amira", [])
            await appended(store, "d", *(event(number) for number in range(1, 6)))
            await appended(store, "e", event(1, "key-1"), event(2, "key-2"))
            layout, jetstream, epoch = store.engine.layout, store.engine.jetstream, (await store.get("e")).epoch
            await store.move_cursors([CursorMove("e", PHONE, epoch, Seq(2), 1.0, "app", 1.0)])
            log = await jetstream.direct(layout.main, {"seq": 1, "next_by_subj": layout.log("d"), "batch": 9})
            await jetstream.api(f"STREAM.MSG.DELETE.{layout.main}", {"seq": log[2].pos})
            await jetstream.purge(layout.main, layout.act(2))
            newest = await jetstream.last(layout.main, layout.log("e"))
            assert newest is not None
            await jetstream.api(f"STREAM.MSG.DELETE.{layout.main}", {"seq": newest.pos})

    trio.run(damage)
    code, found = ran(capsys, "check")
    assert code == 1
    said = "\n".join(found["problems"])
    for part in ("diagnosis d", "act 2 is missing", "1 idempotency keys", "1 subscribers have acknowledged more"):
        assert part in said


def test_what_is_damaged_is_dropped_by_the_command_that_the_check_names(
    name: str, one_nats_server: NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    async def damage() -> None:
        async with open_node([one_nats_server.address], name, SystemClock(), lambda: uuid4().hex[:16]) as store:
            await store.register("d", "amira", [])
            await appended(store, "d", *(event(number) for number in range(1, 6)))
            layout, jetstream = store.engine.layout, store.engine.jetstream
            log = await jetstream.direct(layout.main, {"seq": 1, "next_by_subj": layout.log("d"), "batch": 9})
            await jetstream.api(f"STREAM.MSG.DELETE.{layout.main}", {"seq": log[2].pos})

    trio.run(damage)
    code, found = ran(capsys, "check")
    (problem,) = found["problems"]
    assert (code, problem) == (
        1,
        "diagnosis d: its events are not 1 to 5 without a hole; run: avicenna-live cluster check --drop-damaged d",
    )
    code, (dropped, unknown) = ran(capsys, "check", "--drop-damaged", "d", "--drop-damaged", "x")
    assert (code, dropped["dropped"], dropped["head"], dropped["floor"]) == (1, 2, 5, 3)
    assert unknown == {"diagnosis_id": "x", "dropped": 0, "why": "diagnosis x is not registered"}
    code, (again,) = ran(capsys, "check", "--drop-damaged", "d")
    assert (code, again["dropped"]) == (0, 0)
    assert ran(capsys, "check") == (0, {"status": "ok", "problems": []})


def test_without_a_server_the_exit_code_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AVICENNA_ENGINE", "nats")
    monkeypatch.setenv("AVICENNA_NATS_URL", "127.0.0.1:1")
    monkeypatch.setattr("storage.jetstream.opening.OPEN_SECONDS_MAX", 0.1)
    code, failure = ran(capsys, "check")
    assert (code, failure["error"]["code"]) == (3, "unreachable")
