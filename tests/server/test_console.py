"""The stream of statistics that feeds consoles: all rows once, then what changes, and an end when its right ends."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.contract import _strict, mismatch
from tests.identity.conftest import MovableClock
from tests.server.harness import Server, running_server
from tests.server.test_broadcasts import assert_problem
from tests.server.test_streams import Stream, connected
from web.console import overview, streams
from web.console.pages import PAGE
from web.console.rows import GONE_KEPT, Rows
from web.server.settings import Settings

MESSAGE = '{"$ref": "#/components/schemas/ConsoleMessage"}'


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
async def server(tmp_path: Path, clock: MovableClock) -> AsyncIterator[Server]:
    async with running_server(Settings(port=0, data=tmp_path / "data", user_connections_max=3), clock) as running:
        yield running


class Screen:
    """What a console knows, put together from the messages of its stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.rows: dict[str, dict[str, Any]] = {}
        self.node: dict[str, Any] = {}
        self.kinds: list[str] = []
        self.changed: list[str] = []
        """Rows that the last turn brought."""
        self._columns: list[str] = []

    async def message(self) -> dict[str, Any]:
        """The next message, taken in."""
        frame = (await self.stream.next()).frame
        assert (wrong := mismatch(_strict(MESSAGE), frame)) is None, wrong
        self.kinds.append(frame["type"])
        data = frame["data"]
        match frame["type"]:
            case "snapshot":
                self.rows, self._columns = {}, data["columns"]
            case "rows":
                for row in data["rows"]:
                    self.rows[row[0]] = dict(zip(self._columns, row, strict=True))
                    self.changed.append(row[0])
                for name in data["gone"]:
                    self.rows.pop(name, None)
            case "turn":
                self.node |= data["node"]
        return frame

    async def turn(self) -> None:
        """All messages of one turn."""
        self.changed = []
        while (await self.message())["type"] != "turn":
            pass

    async def until(self, name: str, **wanted: object) -> dict[str, Any]:
        """The row once it says this."""
        with trio.fail_after(20):
            while name not in self.rows or not wanted.items() <= self.rows[name].items():
                await self.turn()
        return self.rows[name]

    async def bye(self) -> dict[str, Any]:
        """The last message."""
        with trio.fail_after(20):
            while (frame := await self.message())["type"] != "bye":
                pass
        with pytest.raises(EOFError):
            await self.stream.block()
        data: dict[str, Any] = frame["data"]
        return data


@asynccontextmanager
async def console(server: Server, sub: str = "op", ttl_seconds: int = 600) -> AsyncIterator[Screen]:
    token = server.token(sub, "operate", ttl_seconds)
    async with await connected(server) as socket:
        head = f"GET /console/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
        await socket.send_all(head.encode())
        stream = Stream(socket)
        await stream.begin()
        yield Screen(stream)


async def test_a_console_gets_all_diagnoses_and_then_only_what_changes(server: Server) -> None:
    for name in ("a", "b", "c"):
        await server.register(name)
    await server.publish(1, "b")
    async with console(server) as screen:
        await screen.turn()
        assert screen.kinds[0] == "snapshot"
        assert screen.rows.keys() == {"a", "b", "c"}
        assert (screen.rows["a"]["state"], screen.rows["b"]["state"]) == ("passive", "running")
        assert (screen.node["diagnoses"], screen.node["events"], screen.node["consoles"]) == (3, 1, 1)
        async with server.live("c", device="phone", ack="app"):
            row = await screen.until("c", subscribers=1)
            assert (row["state"], row["lag"]) == ("running", 0)
            await server.publish(1, "c")
            row = await screen.until("c", retained=1)
            assert (row["head"], row["lag"], row["unacknowledged"]) == (1, 1, 1)
            assert screen.changed == ["c"]
        await screen.until("c", subscribers=0)
        assert screen.kinds.count("snapshot") == 1


async def test_a_console_that_leaves_is_counted_as_a_stream_that_ended(server: Server) -> None:
    async with console(server) as screen:
        await screen.turn()
    name = 'avicenna_closes_total{code="none"}'
    with trio.fail_after(20):
        while True:
            page = await server.http.get("/metrics", headers=server.bearer("op", "operate"))
            if f"{name} 1.0" in page.text.splitlines():
                break
            await trio.sleep(0.01)


async def test_a_diagnosis_that_is_registered_or_deleted_meanwhile_comes_and_goes(server: Server) -> None:
    await server.register("a")
    async with console(server) as screen:
        await screen.until("a", state="passive")
        await server.register("new")
        await screen.until("new", state="passive", head=0)
        await server.http.delete("/diagnoses/a", headers=server.bearer("registrar", "register"))
        with trio.fail_after(20):
            while "a" in screen.rows:
                await screen.turn()


async def test_a_restart_shows_in_the_row_also_when_the_actor_rests(server: Server) -> None:
    await server.register()
    await server.publish()
    operator = server.bearer("op", "operate")
    async with console(server) as screen:
        await server.http.post("/actors/42/restart", headers=operator)
        await screen.until("42", state="running", incarnation=2)
        await server.http.post("/actors/42/stop", headers=operator)
        row = await screen.until("42", state="passive")
        assert (row["incarnation"], row["head"], row["retained"]) == (2, 1, 1)


@pytest.mark.one_process("consoles of one process share its looks")
async def test_consoles_share_one_look_and_nobody_looks_for_nobody(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    look = overview.Overview._look

    async def counted(self: overview.Overview) -> None:
        looks.append(self.turn + 1)
        await look(self)

    monkeypatch.setattr(overview.Overview, "_look", counted)
    await server.register()
    async with console(server) as one, console(server) as other:
        for screen in (one, other, one, other):
            await screen.turn()
    assert looks == sorted(set(looks)), "each turn is looked at once"
    with trio.fail_after(10):
        while (await server.http.get("/metrics", headers=server.bearer("op", "operate"))).text.count(
            "consoles 0.0"
        ) < 1:
            await trio.sleep(0.01)
    count = len(looks)
    async with console(server, "another") as later:
        await later.turn()
        assert (later.kinds[0], [*later.rows]) == ("snapshot", ["42"])
    assert len(looks) - count <= 2, "there were no looks in between"


@pytest.mark.one_process("each worker counts the connections of a user")
async def test_only_operators_look_and_not_without_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for scope, status, code in (("register monitor broadcast", 403, "forbidden"),):
        answer = await server.http.get("/console/events", headers=server.bearer("op", scope))
        assert_problem(answer, status, code)
    assert_problem(await server.http.get("/console/events"), 401, "unauthenticated")
    head = await server.http.head("/console/events", headers=server.bearer("op", "operate"))
    assert head.headers["content-type"] == "text/event-stream"
    async with console(server), console(server), console(server):
        answer = await server.http.get("/console/events", headers=server.bearer("op", "operate"))
        assert_problem(answer, 429, "rate_limited")  # user_connections_max
        monkeypatch.setattr(streams, "CONSOLES_MAX", 3)
        answer = await server.http.get("/console/events", headers=server.bearer("op2", "operate"))
        assert_problem(answer, 429, "rate_limited")


async def test_a_console_ends_with_the_right_of_its_token(server: Server, clock: MovableClock) -> None:
    async with console(server, "revoked") as revoked, console(server, "expiring", 100) as expiring:
        await revoked.turn()
        await server.http.post("/revocations", json={"sub": "revoked"}, headers=server.bearer("op", "operate"))
        assert (await revoked.bye())["reason"] == "revoked"
        clock.ahead_seconds = 60.0
        with trio.fail_after(20):
            while (frame := await expiring.message())["type"] != "auth_expiring":
                pass
        assert frame["data"]["seconds_left"] <= 40
        clock.ahead_seconds = 200.0
        assert (await expiring.bye())["reason"] == "token expired"


async def test_a_console_is_told_that_the_server_stops(server: Server) -> None:
    async with console(server) as screen:
        await screen.turn()
        server.stop()
        bye = await screen.bye()
        assert (bye["code"], bye["reason"]) == (1012, "restart")
        assert bye["retry_after_ms"] is not None


def facts(name: str, *rest: object) -> tuple[str, *tuple[object, ...]]:
    return (name, *rest)


def test_who_was_away_is_due_what_changed_since_once() -> None:
    rows = Rows(0)
    for turn, (name, value) in enumerate([("a", 1), ("b", 1), ("a", 2), ("c", 1), ("a", 3)], start=1):
        assert rows.differs(name, facts(name, value))
        rows.put(name, facts(name, value), b"%s=%d" % (name.encode(), value), turn)
    assert not rows.differs("a", facts("a", 3))
    assert rows.since(0) == ([b"a=3", b"c=1", b"b=1"], [])
    assert rows.since(2) == ([b"a=3", b"c=1"], [])
    rows.drop("c", 6)
    assert rows.since(2) == ([b"a=3"], ["c"])
    assert rows.since(6) == ([], [])
    rows.put("c", facts("c", 2), b"c=2", 7)
    assert rows.since(2) == ([b"c=2", b"a=3"], [])


def test_who_has_not_heard_of_too_many_that_went_begins_anew() -> None:
    rows = Rows(5)
    assert (rows.knows(5), rows.knows(4)) == (True, False)
    for number in range(GONE_KEPT + 1):
        rows.put(str(number), facts(str(number)), b"", 6)
        rows.drop(str(number), 7 + number)
    assert (rows.knows(6), rows.knows(7)) == (False, True)


async def test_the_page_and_all_it_names_come_from_this_server_and_nothing_is_inline(server: Server) -> None:
    page = await server.http.get("/console")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    named = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert named
    for path in named:
        assert path.startswith("/console/")
        assert (await server.http.get(path)).status_code == 200
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", page.text)
    for module in PAGE.glob("*.js"):
        text = module.read_text()
        for path in re.findall(r'from "\./([^"]+)"', text):
            assert (await server.http.get(f"/console/{path}")).status_code == 200
        # Text becomes text: nothing makes HTML of it, and a token is kept nowhere.
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|Storage|cookie|https?://(?!www\.w3)", text
        )
    assert_problem(await server.http.get("/console/nothing.js"), 404, "not_found")
    again = await server.http.get("/console", headers={"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.headers["content-security-policy"]) == (304, policy)
