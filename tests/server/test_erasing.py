"""`DELETE /subjects?sub=...`: the erasure of a person by any name."""

from __future__ import annotations

import logging

import pytest
import trio

from tests.server.harness import running_server
from tests.server.test_broadcasts import assert_problem
from web.server.settings import Settings


@pytest.mark.parametrize("sub", ["/C=DE/O=Clinic/CN=Ann", "/", "//x", "a/../b", "%2F", "a b+c&d=e", "owner"])
async def test_any_name_can_be_erased_by_the_query(settings: Settings, sub: str) -> None:
    async with running_server(settings) as server:
        await server.register(42, "amira", sub)
        async with server.live(sub=sub) as client:
            headers = server.bearer("op", "operate")
            answer = await server.http.delete("/subjects", params={"sub": sub}, headers=headers)
            assert answer.status_code == 200, answer.text
            counted = {name: answer.json()[name] for name in ("connections", "cursors", "viewer_entries")}
            assert counted == {"connections": 1, "cursors": 1, "viewer_entries": 1}
            _, code, reason = await client.close_frames()
            assert (code, reason) == (1008, "disconnected by operator")
        assert (await server.http.get("/diagnoses/42/position", headers=server.bearer(sub))).status_code == 403
        receipt = (await server.publish()).json()
        assert receipt["subscribers"] == {"online": 0, "known": 0, "at_risk": 0}


@pytest.mark.parametrize("query", ["", "?sub=", "?sub=a&sub=b", "?name=a"])
async def test_an_erasure_names_one_person(settings: Settings, query: str) -> None:
    async with running_server(settings) as server:
        answer = await server.http.delete(f"/subjects{query}", headers=server.bearer("op", "operate"))
        assert_problem(answer, 422, "invalid_field")


async def test_only_an_operator_erases(settings: Settings) -> None:
    async with running_server(settings) as server:
        for query in ("?sub=amira", ""):
            answer = await server.http.delete(f"/subjects{query}", headers=server.bearer("amira"))
            assert_problem(answer, 403, "forbidden")
        assert_problem(await server.http.delete("/subjects?sub=amira"), 401, "unauthenticated")


async def test_the_log_does_not_name_who_is_erased(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with running_server(settings) as server:
        await server.http.delete("/subjects?sub=annabella", headers=server.bearer("op", "operate"))
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("DELETE /subjects 200") for line in lines)
    assert not any("annabella" in line for line in lines if not line.startswith("HTTP Request"))


@pytest.mark.sqlite_only("an erasure there is one act and some purges")
async def test_a_drain_interrupts_a_long_erasure_and_a_repeat_goes_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    monkeypatch.setattr("storage.sqlite.retention.ERASED_ROWS_MAX", 2)
    with monkeypatch.context() as patched:
        patched.setattr("storage.sqlite.store.ERASURE_PAUSE_SECONDS", 3600)
        async with running_server(settings) as server:
            for number in range(5):
                await server.register(number, "amira", "bo")
            headers = server.bearer("op", "operate")

            async def ask() -> None:
                answers.append(await server.http.delete("/subjects?sub=bo", headers=headers))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                with trio.fail_after(20):
                    while (await server.http.get("/audit", headers=headers)).json()["items"][0]["action"] != (
                        "subject.erase"
                    ):
                        await trio.sleep(0.01)
                    # Others go on meanwhile.
                    assert (await server.publish(1, diagnosis_id=1)).status_code == 200
                    server.stop()
    assert_problem(answers[0], 503, "draining")
    async with running_server(settings) as server:
        headers = server.bearer("op", "operate")
        answer = (await server.http.delete("/subjects?sub=bo", headers=headers)).json()
        assert answer["viewer_entries"] == 3
        again = (await server.http.delete("/subjects?sub=bo", headers=headers)).json()
        assert (again["viewer_entries"], again["audit_rows"]) == (0, 0)
        rows = (await server.http.get("/audit", headers=headers)).json()["items"]
        assert '"bo"' not in str(rows).replace("'", '"')
