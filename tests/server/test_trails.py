"""Both trails can be read: newest first, in pages, filtered exactly; by operators alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from storage.clock import SystemClock
from storage.records import NewAccessRow, NewAuditRow, SubscriberId
from storage.sqlite.opening import open_store
from tests.server.harness import Server, running_server
from tests.server.process import run, served
from web.contract import wire
from web.operating.trails import SHOWN_EARLIER_SECONDS, time_of
from web.server.settings import DATABASE_FILE, Settings

Rows = list[dict[str, Any]]

BEGAN_AT = 1_795_000_000.0
HOSTILE = "a\x1b[2J\n\u202eb"


async def get(server: Server, path: str, **query: object) -> dict[str, Any]:
    answer = await server.http.get(path, params=query, headers=server.bearer("op", "operate"))  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def items(server: Server, path: str, **query: object) -> Rows:
    found: Rows = (await get(server, path, **query))["items"]
    return found


class SteppingClock(SystemClock):
    """The wall clock of a store whose next row has a time of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGAN_AT

    def wall(self) -> float:
        return self.now


async def fill(settings: Settings, acts: Sequence[NewAuditRow] = (), accesses: Sequence[NewAccessRow] = ()) -> None:
    """Have the database of a server hold these rows, one a second."""
    clock = SteppingClock()
    async with open_store(settings.data / DATABASE_FILE, clock=clock, new_epoch=str) as store:
        for act in acts:
            await store.record(act)
            clock.now += 1
        await store.record_accesses(accesses)


def seen(number: int, what: str, diagnosis_id: str, sub: str | None, device: str | None = None) -> NewAccessRow:
    assert what in ("connect", "disconnect")
    return NewAccessRow(BEGAN_AT + number, what, diagnosis_id, SubscriberId(sub, device))  # type: ignore[arg-type]


async def test_the_audit_trail_shows_who_did_what_newest_first(server: Server) -> None:
    await server.register(42, "amira")
    await server.register("ward-7", "bo", "cyrus")
    await server.register(42, "bo")
    await server.http.post("/revocations", json={"sub": "eve"}, headers=server.bearer("op", "operate"))
    revoked, again, ward, first = rows = await items(server, "/audit")
    rights = {"owner": "bo", "viewers": []}
    assert again | {"id": 0, "at": ""} == {
        "id": 0,
        "at": "",
        "actor": "registrar",
        "action": "diagnosis.register",
        "target": "42",
        "diagnosis_id": 42,
        "before": {"owner": "amira", "viewers": []},
        "after": rights,
    }
    assert (first["before"], first["after"], ward["diagnosis_id"]) == (
        None,
        {"owner": "amira", "viewers": []},
        "ward-7",
    )
    assert (revoked["actor"], revoked["action"], revoked["diagnosis_id"]) == ("op", "revocation.add", None)
    assert revoked["after"]["sub"] == "eve"
    assert [row["id"] for row in rows] == sorted((row["id"] for row in rows), reverse=True)
    assert all(datetime.fromisoformat(row["at"]).tzinfo == UTC for row in rows)


async def test_the_access_trail_shows_who_followed_what_newest_first(settings: Settings) -> None:
    kept = Settings(data=settings.data, port=0, access_trail=True)
    async with running_server(kept) as server:
        await server.register(42, "amira")
        async with server.live(device="phone"):
            pass
        await server.until_alone()
        with trio.fail_after(10):
            while len(rows := await items(server, "/accesses")) < 2:
                await trio.sleep(0.05)
    shown = [{name: value for name, value in row.items() if name not in ("id", "at")} for row in rows]
    one = {"diagnosis_id": 42, "user_id": "amira", "device": "phone"}
    assert shown == [{"what": "disconnect", **one}, {"what": "connect", **one}]
    assert rows[0]["id"] > rows[1]["id"]
    assert rows[0]["at"] >= rows[1]["at"]


async def test_both_trails_come_in_pages_that_end(settings: Settings) -> None:
    acts = [NewAuditRow("op", "test.act", str(number)) for number in range(7)]
    accesses = [seen(number, "connect", "42", f"s{number}") for number in range(7)]
    await fill(settings, acts, accesses)
    async with running_server(settings) as server:
        for path, name, newest_first in (
            ("/audit", "target", [str(number) for number in range(6, -1, -1)]),
            ("/accesses", "user_id", [f"s{number}" for number in range(6, -1, -1)]),
        ):
            found: Rows = []
            page = await get(server, path, limit=3)
            sizes = [len(page["items"])]
            found += page["items"]
            while page["next"] is not None:
                assert page["next"] == str(found[-1]["id"])
                page = await get(server, path, limit=3, after=page["next"])
                sizes.append(len(page["items"]))
                found += page["items"]
            assert [row[name] for row in found] == newest_first
            assert sizes == [3, 3, 1]
            assert (await get(server, path, after=0)) == {"items": [], "next": None}
            exactly = await get(server, path, limit=7)
            assert (len(exactly["items"]), exactly["next"]) == (7, None)


async def test_filters_of_the_audit_trail_are_exact_and_hold_together(settings: Settings) -> None:
    acts = [
        NewAuditRow("op", "outbox.purge", "42", diagnosis_id="42"),
        NewAuditRow("OP", "outbox.purge", "43", diagnosis_id="43"),
        NewAuditRow("op", "actor.stop", "42", diagnosis_id="42"),
        NewAuditRow("op", "revocation.add", "42"),
    ]
    await fill(settings, acts)

    async with running_server(settings) as server:

        async def found(**query: object) -> list[int]:
            rows = await items(server, "/audit", **query)
            return [round(datetime.fromisoformat(row["at"]).timestamp() - BEGAN_AT) for row in rows]

        assert await found() == [3, 2, 1, 0]
        assert await found(actor="op") == [3, 2, 0]
        assert await found(actor="o") == await found(actor="op%") == await found(actor="") == []
        assert await found(action="outbox.purge") == [1, 0]
        assert await found(action="outbox") == []
        assert await found(diagnosis_id=42) == [2, 0]
        assert await found(diagnosis_id=42, action="actor.stop", actor="op") == [2]
        assert await found(actor="op", limit=2) == [3, 2]
        page = await get(server, "/audit", actor="op", limit=2)
        assert await found(actor="op", limit=2, after=page["next"]) == [0]


async def test_filters_of_the_access_trail_are_exact_and_hold_together(settings: Settings) -> None:
    accesses = [
        seen(0, "connect", "42", "amira", "phone"),
        seen(1, "connect", "43", "amira"),
        seen(2, "disconnect", "42", "amira", "phone"),
        seen(3, "connect", "42", None),
    ]
    await fill(settings, accesses=accesses)

    async with running_server(settings) as server:

        async def found(**query: object) -> list[int]:
            rows = await items(server, "/accesses", **query)
            return [round(datetime.fromisoformat(row["at"]).timestamp() - BEGAN_AT) for row in rows]

        assert await found() == [3, 2, 1, 0]
        assert await found(user_id="amira") == [2, 1, 0]
        assert await found(what="connect") == [3, 1, 0]
        assert await found(diagnosis_id=42) == [3, 2, 0]
        assert await found(user_id="amira", what="connect", diagnosis_id="42") == [0]
        assert await found(user_id="amir") == []
        assert (await items(server, "/accesses"))[0]["user_id"] is None


async def test_a_time_includes_its_beginning_and_excludes_its_end(settings: Settings) -> None:
    await fill(settings, [NewAuditRow("op", "test.act", str(number)) for number in range(5)])

    async with running_server(settings) as server:

        async def found(**query: object) -> list[str]:
            return [row["target"] for row in await items(server, "/audit", **query)]

        ats = {row["target"]: row["at"] for row in await items(server, "/audit")}
        assert await found(since=ats["3"]) == ["4", "3"]
        assert await found(until=ats["3"]) == ["2", "1", "0"]
        assert await found(since=ats["1"], until=ats["3"]) == ["2", "1"]
        assert await found(since=ats["3"], until=ats["3"]) == []
        here = datetime.fromtimestamp(BEGAN_AT + 3, timezone(timedelta(hours=3, minutes=30))).isoformat()
        assert await found(since=here) == ["4", "3"]
        # A plus that nobody escaped arrives as a space.
        answer = await server.http.get(f"/audit?since={here}", headers=server.bearer("op", "operate"))
        assert [row["target"] for row in answer.json()["items"]] == ["4", "3"]


@pytest.mark.parametrize("path", ["/audit", "/accesses"])
@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("since=yesterday", "since must be a time of RFC 3339"),
        ("until=2026-11-27", "until must be a time of RFC 3339"),
        ("since=2026-11-27T02:00:00", "since must be"),
        ("since=", "since must be"),
        ("since=1795000000", "since must be"),
        ("until=2026-02-30T00:00:00Z", "until must be"),
        ("until=2026-11-27T02:00:00%2B24:00", "until must be"),
        ("diagnosis_id=4/2", "diagnosis_id must be"),
        ("limit=0", "limit must be"),
        ("limit=1001", "limit must be"),
        ("after=x", "after must be"),
        ("since=2026-11-27T02:00:00Z&since=2026-11-28T02:00:00Z", "since must be given once"),
        ("diagnosis_id=1&diagnosis_id=2", "diagnosis_id must be given once"),
    ],
)
async def test_a_wrong_filter_is_named(server: Server, path: str, query: str, said: str) -> None:
    answer = await server.http.get(f"{path}?{query}", headers=server.bearer("op", "operate"))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field")
    assert said in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/audit", "/accesses"])
async def test_only_operators_read_the_trails(server: Server, path: str) -> None:
    assert (await server.http.get(path)).status_code == 401
    for scope in ("", "monitor", "broadcast", "register"):
        assert (await server.http.get(path, headers=server.bearer("amira", scope))).status_code == 403
    assert (await server.http.post(path, headers=server.bearer("op", "operate"))).status_code == 405
    assert (await server.http.get(path, headers=server.bearer("op", "operate"))).json() == {"items": [], "next": None}


async def test_the_commands_show_both_trails_and_no_row_moves_the_terminal(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    state = wire.encode({"owner": HOSTILE, "viewers": ["x" * 200]}).decode()
    acts = [
        NewAuditRow(HOSTILE, "diagnosis.register", "42", after=state, diagnosis_id="42"),
        NewAuditRow("op", "diagnosis.delete", "42", before='{"owner":"o"}', diagnosis_id="42"),
        NewAuditRow("op", "actor.stop", "42", '{"state":"running"}', '{"state":"passive"}', "42"),
    ]
    await fill(settings, acts, [seen(0, "connect", "42", HOSTILE, "phone"), seen(1, "connect", "43", None)])
    async with served(settings.data):
        at = ("--data", settings.data)
        code, said, aside = await run("audit", *at)
        assert (code, aside) == (0, "")
        head, stop, delete, register = said.splitlines()
        assert head.split() == ["ID", "AT", "ACTOR", "ACTION", "TARGET", "CHANGE"]
        assert stop.endswith('actor.stop          42      {"state":"running"} -> {"state":"passive"}')
        assert delete.endswith('{"owner":"o"} -> nothing')
        assert register.endswith("...")
        assert "a\\x1b[2J\\n\\u202eb" in register
        code, said, aside = await run("accesses", *at)
        assert (code, aside) == (0, "")
        assert [line.split()[2:] for line in said.splitlines()] == [
            ["WHAT", "DIAGNOSIS", "USER", "DEVICE"],
            ["connect", "43", "(anonymous)"],
            ["connect", "42", "a\\x1b[2J\\n\\u202eb", "phone"],
        ]
        code, said, aside = await run("audit", *at, "--json", "--limit", "1")
        (row,) = json.loads(said)
        assert row["before"] == {"state": "running"}
        assert aside == f"there are more than these 1: raise --limit, or go on with --after {row['id']}\n"
        filters = ("--actor", "op", "--action", "diagnosis.delete", "--diagnosis", "42")
        code, said, aside = await run("audit", *at, *filters, "--since", "2026-01-01T00:00:00Z", "--limit", "1")
        assert (code, aside) == (0, "")
        assert len(said.splitlines()) == 2
        code, said, _ = await run(
            "accesses", *at, "--user", HOSTILE, "--what", "connect", "--until", "2100-01-01T00:00:00Z"
        )
        assert (code, len(said.splitlines())) == (0, 2)
        code, said, aside = await run("audit", *at, "--since", "yesterday")
        assert (code, said) == (2, "")
        assert aside == (
            "avicenna-live: invalid_field: since must be a time of RFC 3339, such as 2026-01-31T12:00:00Z\n"
        )


@given(
    st.integers(-60_000_000_000, 250_000_000_000),
    st.integers(-1439, 1439),
    st.sampled_from("Tt "),
)
def test_every_time_is_read_whatever_its_offset(at: int, minutes: int, between: str) -> None:
    text = datetime.fromtimestamp(at, timezone(timedelta(minutes=minutes))).isoformat(sep=between)
    assert time_of(text) == at


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1970-01-01T00:00:00-00:00", 0),
        ("1969-12-31T23:59:60Z", 0),
        ("1970-01-01t00:00:01.25z", 1.25),
        ("0000-02-29T00:00:00Z", -62035891200),
    ],
)
def test_every_spelling_of_rfc_3339_is_read(text: str, at: float) -> None:
    assert time_of(text) == at


@given(st.floats(0, 4e9))
def test_a_row_is_among_those_since_the_time_it_is_shown_with(at: float) -> None:
    shown = time_of(wire.timestamp(at))
    assert shown is not None
    assert shown - SHOWN_EARLIER_SECONDS <= at
    assert at < shown + 0.001


@given(st.text(alphabet="0123456789-+:.TZtz ", max_size=40) | st.text())
def test_any_other_text_is_no_time_and_no_error(text: str) -> None:
    assert time_of(text) is None or len(text) >= len("2026-11-27T02:00:00Z")
