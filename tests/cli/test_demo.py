"""The demo: its samples are broadcasts a server accepts, its text can be pasted, and its buttons do what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import trio

from tests.cli.demos import demo
from web.contract import wire
from web.contract.records import EffectivenessUpdate, FeedbackUpdate, RecommendationUpdate, Update
from web.demo.samples import DIAGNOSIS_ID, KINDS, fields_of
from web.demo.show import text

RECORD_OF_KIND: dict[str, type[Update]] = {
    "recommendation": RecommendationUpdate,
    "effectiveness": EffectivenessUpdate,
    "feedback": FeedbackUpdate,
}


@pytest.mark.parametrize("turn", [*range(12), 118, 1_000_000])
@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_is_a_valid_broadcast(kind: str, turn: int) -> None:
    body = json.dumps({"diagnosis_id": DIAGNOSIS_ID, **fields_of(kind, turn)}).encode()
    assert wire.decode_update(RECORD_OF_KIND[kind], body).data()


def test_the_text_names_the_page_the_server_and_the_key_to_use() -> None:
    said = text("http://127.0.0.1:8000", Path("somewhere"), "avicenna-live")
    assert "http://127.0.0.1:8000/demo" in said
    assert "avicenna-live tail 42 --url http://127.0.0.1:8000 --data somewhere\n" in said


async def test_the_terminal_shows_the_updates_and_no_request() -> None:
    async with demo() as (shown, process):
        await shown.until_said("#2  ")
        await shown.press("/demo/publish?kind=feedback")
        await shown.until_said(r"#\d+  feedback_update")
        process.terminate()
        with trio.fail_after(15):
            assert await process.wait() == 0
    assert "GET /" not in shown.said
    assert "POST /" not in shown.said
    assert "Traceback" not in shown.said


async def test_a_crash_and_restarts_lose_nothing_and_the_numbers_go_on() -> None:
    async with demo() as (shown, _):
        (first,) = (await shown.press("/demo/publish"))["numbers"]
        before = await shown.actor()
        (crashing,) = (await shown.press("/demo/actor/crash"))["numbers"]
        assert crashing > first
        await shown.until_said(f"#{crashing}  ")
        after = await shown.actor()
        assert (after["restarts"], after["incarnation"]) == (before["restarts"] + 1, before["incarnation"] + 1)
        await shown.press("/demo/actor/restart")
        assert (await shown.actor())["incarnation"] == after["incarnation"] + 1
        await shown.press("/demo/server/restart")
        await shown.until_said("exactly where you stopped")
        numbers = (await shown.press("/demo/publish?count=3"))["numbers"]
        await shown.until_said(f"#{numbers[-1]}  ")
    seen = [int(number) for number in re.findall(r"Z  #(\d+)  ", shown.said)]
    assert seen == list(range(seen[0], numbers[-1] + 1))


async def test_the_page_loads_nothing_from_elsewhere_and_no_other_page_may_press_its_buttons() -> None:
    async with demo() as (shown, _):
        assert (await shown.http.get("/")).headers["Location"] == "/demo"
        page = await shown.http.get("/demo")
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert re.findall(r'(?:src|href)="(?!/)', page.text) == []
        foreign = await shown.http.post("/demo/actor/crash", headers={"Origin": "https://evil.example"})
        assert foreign.status_code == 403
        assert (await shown.http.post("/demo/publish?count=201")).json()["detail"] == "count must be 1-200"
        assert "kind must be one of" in (await shown.http.post("/demo/publish?kind=rumour")).json()["detail"]
