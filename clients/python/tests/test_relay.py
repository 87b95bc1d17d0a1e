"""The relay: what a service commits is published once, whatever dies or is away in between.

The services that are killed are in `test_relay_kills.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
import sqlite3
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from avicenna_live import Broadcaster, FeedbackUpdate, Follower, Relay, SqliteOutbox, Update, feedback_update, relay
from avicenna_live.relay import Outbox
from avicenna_live.sqlalchemy import SqlalchemyOutbox
from tests.networks import PartlyAway, Swallowing
from tests.served import Server
from tests.waiting import until

numbers = itertools.count(100)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("served") / "data") as running:
        yield running


@cache
def token_of(server: Server, sub: str, scope: str = "") -> str:
    return server.token(sub, scope)


@pytest.fixture(scope="module")
def token(server: Server) -> str:
    return token_of(server, "service", "broadcast")


@pytest.fixture
def broadcaster(server: Server, token: str) -> Iterator[Broadcaster]:
    with Broadcaster(server.url, token=token) as made:
        yield made


@pytest.fixture
def diagnosis(server: Server) -> int:
    """A diagnosis of its own."""
    return registered(server)


def registered(server: Server) -> int:
    number = next(numbers)
    server.register(number)
    return number


def arrived(server: Server, diagnosis_id: int) -> list[object]:
    """The feedback ids of every event of a diagnosis, in order."""
    server.ask(
        "POST", "/ws/broadcast-feedback-update", {"diagnosis_id": diagnosis_id, "feedback_id": "end", "rating": 1}
    )

    async def follow() -> list[object]:
        found: list[object] = []
        async with asyncio.timeout(20), Follower(server.url, token=token_of(server, "alice"), device="d") as live:
            async for item in live.follow(diagnosis_id):
                assert isinstance(item, FeedbackUpdate)
                if item.data["feedback_id"] == "end":
                    break
                found.append(item.data["feedback_id"])
        return found

    return asyncio.run(follow())


class Service:
    """A service with a database of its own, in a file; `add` is how it stores an update."""

    def __init__(self, path: Path, way: str, journal: str = "wal") -> None:
        self.path = path
        with closing(sqlite3.connect(path)) as db:
            db.execute(f"PRAGMA journal_mode = {journal}")
            db.execute("CREATE TABLE ratings (number INTEGER)")
        self._way = way
        self._engine = create_engine(f"sqlite:///{path}")
        self.outbox: Outbox = SqliteOutbox(path) if way == "sqlite3" else SqlalchemyOutbox(self._engine)
        self.outbox.prepare()

    def commit(self, *updates: Update, number: int = 1) -> None:
        """Store a rating and these updates."""
        statement = "INSERT INTO ratings VALUES (:number)"
        match self._way:
            case "sqlite3":
                with closing(sqlite3.connect(self.path)) as db, db:
                    db.execute(statement, {"number": number})
                    for update in updates:
                        SqliteOutbox.add(db, update)
                    self.last_step()
            case "core":
                with self._engine.begin() as connection:
                    connection.execute(text(statement), {"number": number})
                    for update in updates:
                        SqlalchemyOutbox.add(connection, update)
                    self.last_step()
            case _:
                registry = scoped_session(sessionmaker(self._engine))
                with registry() as session:
                    session.execute(text(statement), {"number": number})
                    for update in updates:
                        SqlalchemyOutbox.add(registry if self._way == "scoped" else session, update)
                    self.last_step()
                    session.commit()

    def last_step(self) -> None:
        """What the service does before it commits."""

    def rows(self) -> list[tuple[str, str | None]]:
        """The diagnosis and the error of each row that is left."""
        return self.ask("SELECT diagnosis_id, error FROM avicenna_outbox ORDER BY id")

    def ask(self, statement: str) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as db, db:
            return db.execute(statement).fetchall()


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path / "service.db", "sqlite3")


WAYS = [("sqlite3", "wal"), ("sqlite3", "delete"), ("core", "wal"), ("session", "delete"), ("scoped", "wal")]


@pytest.mark.parametrize(("way", "journal"), WAYS)
def test_what_a_service_commits_is_published_once_in_order_and_what_it_rolls_back_is_not(
    server: Server, broadcaster: Broadcaster, diagnosis: int, tmp_path: Path, way: str, journal: str
) -> None:
    service = Service(tmp_path / "service.db", way, journal)
    other = registered(server)
    service.commit(feedback_update(diagnosis, 1, 5), feedback_update(other, "a", 5), feedback_update(diagnosis, 2, 5))

    def fails() -> None:
        raise RuntimeError

    service.last_step = fails  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        service.commit(feedback_update(diagnosis, "rolled back", 5))
    made = Relay(service.outbox, broadcaster)
    assert made.run_once() == 3
    assert made.run_once() == 0
    assert service.rows() == []
    assert arrived(server, diagnosis) == [1, 2]
    assert arrived(server, other) == ["a"]


@pytest.mark.parametrize("way", ["sqlite3", "core"])
def test_a_relay_that_dies_between_sending_and_deleting_sends_nothing_twice(
    server: Server, broadcaster: Broadcaster, diagnosis: int, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(tmp_path / "service.db", way)
    service.commit(*(feedback_update(diagnosis, number, 5) for number in range(3)))

    def dies(ids: Collection[int]) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(service.outbox, "published", dies)
        for _ in range(2):
            with pytest.raises(SystemExit):
                Relay(service.outbox, broadcaster).run_once()
    assert len(service.rows()) == 3
    assert Relay(service.outbox, broadcaster).run_once() == 3
    assert arrived(server, diagnosis) == [0, 1, 2]


def test_a_row_whose_answer_is_lost_is_sent_again_and_makes_no_second_event(
    server: Server, token: str, diagnosis: int, service: Service
) -> None:
    service.commit(*(feedback_update(diagnosis, number, 5) for number in range(2)))
    with Broadcaster(server.url, token=token, transport=Swallowing(2)) as unlucky:
        made = Relay(service.outbox, unlucky)
        assert [made.run_once() for _ in range(4)] == [0, 0, 2, 0]
    assert arrived(server, diagnosis) == [0, 1]


@pytest.mark.parametrize("way", ["sqlite3", "core"])
@pytest.mark.parametrize("rows_at_once", [2, 500])
def test_a_diagnosis_that_is_away_keeps_its_order_and_holds_nobody_else_back(
    server: Server, token: str, diagnosis: int, tmp_path: Path, way: str, rows_at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(relay, "ROWS_AT_ONCE", rows_at_once)
    service = Service(tmp_path / "service.db", way)
    other = registered(server)
    for number in range(3):
        service.commit(feedback_update(diagnosis, number, 5), feedback_update(other, number, 5))
    network = PartlyAway({diagnosis: 429})
    with Broadcaster(server.url, token=token, transport=network) as made:
        made_relay = Relay(service.outbox, made)
        assert made_relay.run_once() == 3
        assert [one for one in network.asked if one[0] == diagnosis] == [(diagnosis, 0)]
        assert service.rows() == [(str(diagnosis), None)] * 3
        network.away = {}
        assert made_relay.run_once() == 3
    assert arrived(server, other) == arrived(server, diagnosis) == [0, 1, 2]


def test_a_diagnosis_that_is_away_is_tried_less_and_less_while_others_go_on(
    server: Server, token: str, diagnosis: int, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_wait_seconds", lambda failures: 0.05 if failures < 2 else 3600)
    other = registered(server)
    network = PartlyAway({diagnosis: 503})
    service.commit(feedback_update(diagnosis, "waits", 5))
    with (
        Broadcaster(server.url, token=token, transport=network) as made,
        Relay(service.outbox, made, poll_seconds=0.01),
    ):
        until(lambda: network.asked.count((diagnosis, "waits")) == 3)
        for number in range(5):
            service.commit(feedback_update(other, number, 5))
            until(lambda: len(service.rows()) == 1)
    assert network.asked.count((diagnosis, "waits")) == 3


@pytest.mark.parametrize("way", ["sqlite3", "core"])
def test_a_row_that_is_refused_for_good_is_set_aside_with_the_error_and_others_go_on(
    server: Server, broadcaster: Broadcaster, diagnosis: int, tmp_path: Path, way: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    service = Service(tmp_path / "service.db", way)
    unknown = next(numbers)
    wrong = feedback_update(diagnosis, 2, 9, comment="a-secret-of-a-patient")
    service.commit(
        feedback_update(diagnosis, 1, 5), wrong, feedback_update(unknown, 1, 5), feedback_update(diagnosis, 3, 5)
    )
    made = Relay(service.outbox, broadcaster)
    assert made.run_once() == 2
    (first, why), (second, unknown_why) = service.rows()
    assert (first, second) == (str(diagnosis), str(unknown))
    assert why is not None
    assert "rating must be 1-5" in why
    assert unknown_why is not None
    assert "not_found" in unknown_why
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert "secret" not in caplog.text
    assert wrong.idempotency_key not in caplog.text
    assert made.run_once() == 0
    assert len(service.rows()) == 2
    server.register(unknown)
    service.ask("UPDATE avicenna_outbox SET error = NULL")
    assert made.run_once() == 1
    assert arrived(server, diagnosis) == [1, 3]
    assert arrived(server, unknown) == [1]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("body", "X'FF'"),
        ("kind", "X'FF'"),
        ("idempotency_key", "X'FF'"),
        ("diagnosis_id", "X'FF'"),
        ("first_tried_at", "'yesterday'"),
    ],
)
def test_a_row_that_somebody_else_has_written_is_set_aside_and_others_go_on(
    server: Server, broadcaster: Broadcaster, diagnosis: int, service: Service, column: str, value: str
) -> None:
    service.commit(feedback_update(diagnosis, 1, 5))
    service.ask(f"UPDATE avicenna_outbox SET {column} = {value}")
    service.commit(feedback_update(diagnosis, 2, 5))
    assert Relay(service.outbox, broadcaster).run_once() == 1
    [(_, why)] = service.rows()
    assert why == "no row as `add` stores it"
    assert arrived(server, diagnosis) == [2]


def not_ours(_: httpx.Request) -> httpx.Response:
    return httpx.Response(404, text="<h1>no such page</h1>")


@pytest.mark.parametrize("fault", ["scope", "token", "proxy", "misdirected"])
def test_what_is_wrong_with_the_whole_request_sets_no_row_aside(
    server: Server, broadcaster: Broadcaster, diagnosis: int, service: Service, fault: str
) -> None:
    service.commit(*(feedback_update(diagnosis, number, 5) for number in range(2)))
    of_nobody = token_of(server, "nobody") if fault == "scope" else "no-token-at-all"
    answers = {
        "proxy": not_ours,
        "misdirected": lambda _: httpx.Response(
            421, json={"code": "misdirected_request", "detail": "d"}, headers={"X-Request-ID": "r"}
        ),
    }
    transport = httpx.MockTransport(answers[fault]) if fault in answers else None
    with Broadcaster(server.url, token=of_nobody, transport=transport) as wrong:
        assert Relay(service.outbox, wrong).run_once() == 0
    assert service.rows() == [(str(diagnosis), None)] * 2
    assert Relay(service.outbox, broadcaster).run_once() == 2
    assert arrived(server, diagnosis) == [0, 1]


@pytest.mark.parametrize("way", ["sqlite3", "core"])
def test_a_row_without_an_answer_for_23_hours_is_set_aside_and_those_behind_it_go_on(
    server: Server, token: str, broadcaster: Broadcaster, diagnosis: int, tmp_path: Path, way: str
) -> None:
    service = Service(tmp_path / "service.db", way)
    service.commit(feedback_update(diagnosis, 1, 5), feedback_update(diagnosis, 2, 5))
    with Broadcaster(server.url, token=token, transport=Swallowing(1)) as unlucky:
        Relay(service.outbox, unlucky, now=lambda: 1000.0).run_once()
    hours = 3600.0
    made = Relay(service.outbox, broadcaster, now=lambda: 1000 + 23.1 * hours)
    assert made.run_once() == 1
    ((_, why),) = service.rows()
    assert why is not None
    assert "23 h ago" in why
    assert arrived(server, diagnosis) == [1, 2]


@pytest.mark.parametrize("way", ["sqlite3", "core"])
def test_a_row_that_never_reached_the_server_is_sent_however_long_that_took(
    server: Server, token: str, broadcaster: Broadcaster, diagnosis: int, tmp_path: Path, way: str
) -> None:
    service = Service(tmp_path / "service.db", way)
    service.commit(feedback_update(diagnosis, 1, 5))
    network = PartlyAway({diagnosis: 429})
    with (
        Broadcaster("http://127.0.0.1:9", token="t") as lonely,
        Broadcaster(server.url, token=token, transport=network) as refused,
    ):
        assert Relay(service.outbox, lonely, now=lambda: 1000.0).run_once() == 0
        assert Relay(service.outbox, refused, now=lambda: 1000.0).run_once() == 0
    assert Relay(service.outbox, broadcaster, now=lambda: 1e6).run_once() == 1
    assert arrived(server, diagnosis) == [1]


@pytest.mark.parametrize("way", ["sqlite3", "core"])
def test_an_outbox_gives_the_rows_behind_one_without_those_set_aside_or_excepted(tmp_path: Path, way: str) -> None:
    service = Service(tmp_path / "service.db", way)
    updates = [feedback_update(one, 1, 5) for one in (1, 2, 3, 1, 2, 3)]
    service.commit(*updates)
    first, second, third, *_ = (row.id for row in service.outbox.waiting(0, 10, ()))
    service.outbox.set_aside(second, "why")
    found = service.outbox.waiting(first, 2, ["3"])
    assert [row.diagnosis_id for row in found] == ["1", "2"]
    assert [row.idempotency_key for row in found] == [updates[at].idempotency_key for at in (3, 4)]
    assert found[0].first_tried_at is None
    assert found[0].id > third


@pytest.mark.parametrize("way", ["sqlite3", "core"])
def test_a_try_of_another_relay_is_not_taken_back(tmp_path: Path, way: str) -> None:
    service = Service(tmp_path / "service.db", way)
    service.commit(feedback_update(1, 1, 5))
    ((row_id,),) = service.ask("SELECT id FROM avicenna_outbox")
    service.outbox.tried([row_id], 1000.5)
    service.outbox.tried([row_id], 2000.5)
    service.outbox.untried([row_id], 2000.5)
    assert service.ask("SELECT first_tried_at FROM avicenna_outbox") == [(1000.5,)]
    service.outbox.untried([row_id], 1000.5)
    assert service.ask("SELECT first_tried_at FROM avicenna_outbox") == [(None,)]


@pytest.mark.parametrize("way", ["sqlite3", "core"])
def test_two_relays_at_once_make_no_second_event(
    server: Server, token: str, diagnosis: int, tmp_path: Path, way: str
) -> None:
    service = Service(tmp_path / "service.db", way)
    other = registered(server)
    with (
        Broadcaster(server.url, token=token) as one,
        Broadcaster(server.url, token=token) as another,
        Relay(service.outbox, one, poll_seconds=0.01) as first,
        Relay(SqliteOutbox(service.path), another, poll_seconds=0.01),
    ):
        for number in range(20):
            service.commit(feedback_update(diagnosis, number, 5), feedback_update(other, number, 5))
            first.wake()
        until(lambda: not service.rows())
    assert arrived(server, diagnosis) == arrived(server, other) == list(range(20))


def test_a_database_made_anew_uses_no_key_again_and_one_from_a_backup_makes_no_second_event(
    server: Server, broadcaster: Broadcaster, diagnosis: int, tmp_path: Path
) -> None:
    path = tmp_path / "service.db"
    for number in range(2):
        service = Service(path, "sqlite3", "delete")
        service.commit(feedback_update(diagnosis, number, 5))
        shutil.copy(path, tmp_path / "backup.db")
        assert Relay(service.outbox, broadcaster).run_once() == 1
        path.unlink()
    shutil.copy(tmp_path / "backup.db", path)
    restored = SqliteOutbox(path)
    with closing(sqlite3.connect(path)) as db, db:
        restored.add(db, feedback_update(diagnosis, 2, 5))
    assert Relay(restored, broadcaster).run_once() == 2
    assert arrived(server, diagnosis) == [0, 1, 2]


@pytest.mark.parametrize("trouble", ["locked", "away"])
def test_a_database_that_is_locked_or_away_for_a_while_ends_no_relay(
    server: Server, broadcaster: Broadcaster, diagnosis: int, tmp_path: Path, trouble: str,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(relay, "_wait_seconds", lambda failures: 0.05)
    home = tmp_path / "home"
    home.mkdir()
    service = Service(home / "service.db", "sqlite3", "delete")
    outbox = SqliteOutbox(service.path, timeout_seconds=0.01)
    with (
        closing(sqlite3.connect(service.path, isolation_level=None)) as holding,
        Relay(outbox, broadcaster, poll_seconds=0.01),
    ):
        if trouble == "locked":
            holding.execute("BEGIN EXCLUSIVE")
        else:
            home.rename(tmp_path / "elsewhere")
        until(lambda: "no row could be relayed" in caplog.text)
        if trouble == "locked":
            holding.execute("ROLLBACK")
        else:
            (tmp_path / "elsewhere").rename(home)
        service.commit(feedback_update(diagnosis, 1, 5))
        until(lambda: not service.rows())
    assert arrived(server, diagnosis) == [1]


def test_a_server_that_is_away_gets_all_when_it_is_back(
    server: Server, broadcaster: Broadcaster, diagnosis: int, service: Service, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    waits: list[int] = []

    def wait_seconds(failures: int) -> float:
        waits.append(failures)
        return 0.05

    monkeypatch.setattr(relay, "_wait_seconds", wait_seconds)
    server.kill()
    with Relay(service.outbox, broadcaster, poll_seconds=0.01) as made:
        for number in range(3):
            service.commit(feedback_update(diagnosis, number, 5))
        until(lambda: len(waits) >= 3)
        made.wake()
        server.start()
        until(lambda: not service.rows())
    assert waits == list(range(len(waits)))
    assert [record.getMessage() for record in caplog.records] == [
        f"the server takes no update now, rows wait: the server at {server.url} does not answer: nothing was sent"
    ]
    assert arrived(server, diagnosis) == [0, 1, 2]


def test_waking_a_relay_spares_the_wait_and_it_can_begin_again(
    server: Server, broadcaster: Broadcaster, diagnosis: int, service: Service
) -> None:
    made = Relay(service.outbox, broadcaster, poll_seconds=3600)
    for number in range(2):
        with made:
            service.commit(feedback_update(diagnosis, number, 5))
            made.wake()
            until(lambda: not service.rows())
    service.commit(feedback_update(diagnosis, 2, 5))
    assert made.run_once() == 1
    assert arrived(server, diagnosis) == [0, 1, 2]


def test_a_relay_that_runs_is_not_begun_again(
    server: Server, broadcaster: Broadcaster, diagnosis: int, service: Service
) -> None:
    with Relay(service.outbox, broadcaster, poll_seconds=3600) as made:
        with pytest.raises(RuntimeError, match="runs already"):
            made.__enter__()
        service.commit(feedback_update(diagnosis, 1, 5))
        made.wake()
        until(lambda: not service.rows())
    assert arrived(server, diagnosis) == [1]


def test_without_a_transaction_of_the_service_nothing_is_stored(service: Service) -> None:
    update = feedback_update(1, 1, 5)
    modes: list[dict[str, Any]] = [{"isolation_level": None}]
    if sys.version_info >= (3, 12):
        modes.append({"autocommit": True})
    for mode in modes:
        with closing(sqlite3.connect(service.path, **mode)) as db:
            with pytest.raises(ValueError, match="no transaction is open"):
                SqliteOutbox.add(db, update)
            db.execute("BEGIN IMMEDIATE")
            SqliteOutbox.add(db, update)
            db.execute("ROLLBACK")
    modes = [{}, {"isolation_level": "EXCLUSIVE"}]
    if sys.version_info >= (3, 12):
        modes.append({"autocommit": False})
    for mode in modes:
        with closing(sqlite3.connect(service.path, **mode)) as db:
            SqliteOutbox.add(db, update)
            assert db.in_transaction
            db.rollback()
    assert service.rows() == []


def test_what_is_no_transaction_of_sqlalchemy_is_refused_and_a_savepoint_is_one(tmp_path: Path) -> None:
    service = Service(tmp_path / "service.db", "core")
    update = feedback_update(1, 1, 5)
    engine = create_engine(f"sqlite:///{service.path}")
    with pytest.raises(TypeError, match="Connection or a Session, not Engine"):
        SqlalchemyOutbox.add(engine, update)  # type: ignore[arg-type]
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        pytest.raises(ValueError, match="AUTOCOMMIT"),
    ):
        SqlalchemyOutbox.add(connection, update)
    assert service.rows() == []
    with Session(engine) as session, session.begin():
        session.execute(text("INSERT INTO ratings VALUES (1)"))
        inner = session.begin_nested()
        SqlalchemyOutbox.add(session, update)
        inner.rollback()
        SqlalchemyOutbox.add(session, feedback_update(2, 1, 5))
    assert service.rows() == [("2", None)]


def test_a_relay_opens_no_database_before_it_runs_and_makes_the_table_then(
    tmp_path: Path, broadcaster: Broadcaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = Relay(SqliteOutbox("service.db"), broadcaster)
    assert not list(tmp_path.iterdir())
    monkeypatch.chdir("/")
    with made, closing(sqlite3.connect(tmp_path / "service.db")) as db:
        SqliteOutbox.add(db, feedback_update(1, 1, 5))


@pytest.mark.parametrize("path", ["", ":memory:"])
def test_a_database_that_no_other_connection_sees_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path must name a file"):
        SqliteOutbox(path)


def test_a_wrong_poll_is_named(service: Service, broadcaster: Broadcaster) -> None:
    with pytest.raises(ValueError, match="poll_seconds must be above 0"):
        Relay(service.outbox, broadcaster, poll_seconds=0)


@pytest.mark.parametrize("kind", ["sqlite3", "sqlalchemy"])
def test_processes_that_begin_at_once_make_one_table(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "service.db"
    failed: list[Exception] = []
    begin = threading.Barrier(4)

    def prepares() -> None:
        outbox: Outbox = (
            SqliteOutbox(path) if kind == "sqlite3" else SqlalchemyOutbox(create_engine(f"sqlite:///{path}"))
        )
        begin.wait()
        try:
            outbox.prepare()
        except Exception as error:  # noqa: BLE001 - whatever it is
            failed.append(error)

    threads = [threading.Thread(target=prepares) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
