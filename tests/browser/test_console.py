"""The console in a real browser: what an operator sees and does there, and that it keeps to itself."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from storage.clock import Clock
from storage.records import Event
from tests.browser.chromium import Tab, chromium
from tests.identity.conftest import MovableClock
from tests.programs import node_package
from tests.server.harness import Client, Server, running_server
from web.contract.wire import render_event
from web.server.settings import Settings

pytestmark = pytest.mark.timeout(240)

SERIOUS = ("serious", "critical")

CRASHING = "crashing"
"""The diagnosis whose actor crashes over every event, until its fault is mended."""


class ActorCrash(Exception):
    """The exception of the crashes."""


class Faulty:
    """Renders events as the server does, but for those of one diagnosis."""

    def __init__(self) -> None:
        self.is_mended = False

    def __call__(self, diagnosis_id: str, event: Event) -> bytes:
        if diagnosis_id == CRASHING and not self.is_mended:
            raise ActorCrash
        return render_event(diagnosis_id, event)


class Page:
    """The console in a tab, and what its browser complained of or asked for meanwhile."""

    def __init__(self, tab: Tab, server: Server, render: Faulty) -> None:
        self.tab = tab
        self.server = server
        self.render = render
        self.complaints: list[str] = []
        self.asked: list[str] = []

    async def begin(self) -> None:
        """Load the page, and listen."""
        self.tab.on("Log.entryAdded", lambda told: self.complaints.append(str(told["entry"])))
        self.tab.on("Runtime.exceptionThrown", lambda told: self.complaints.append(str(told)))
        self.tab.on("Runtime.consoleAPICalled", lambda told: self.complaints.append(str(told)))
        self.tab.on("Network.requestWillBeSent", lambda told: self.asked.append(told["request"]["url"]))
        for domain in ("Log", "Runtime", "Network", "Page"):
            await self.tab.call(f"{domain}.enable")
        await self.tab.call("Page.navigate", url=f"{self.server.url}/console")
        await self.tab.until("document.activeElement?.id === 'token'")

    async def sign_in(self, token: str) -> None:
        """Type a token, and send it with the Enter key."""
        await self.tab.run("document.getElementById('token').focus()")
        await self.tab.call("Input.insertText", text=token)
        await self.press("Enter", 13, "\r")

    async def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key.

        Args:
            code: of the key in Windows, by which Chromium knows it.
        """
        known: Any = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        await self.tab.call("Input.dispatchKeyEvent", type="keyDown", text=text, **known)
        await self.tab.call("Input.dispatchKeyEvent", type="keyUp", **known)

    async def tab_to(self, text: str) -> None:
        """Press the Tab key until what has this text, or this name, has the focus."""
        name = "(document.activeElement?.ariaLabel ?? document.activeElement?.textContent.trim())"
        for _ in range(40):
            if await self.tab.run(name) == text:
                return
            await self.press("Tab", 9)
        raise AssertionError(f"the Tab key does not lead to {text}")

    async def button(self, text: str, within: str = "#view") -> None:
        """Press a button by its text or its name."""
        found = f"[...document.querySelectorAll({json.dumps(within)} + ' button')].find((one) => !one.hidden"
        found += f" && !one.disabled && (one.ariaLabel ?? one.textContent.trim()) === {json.dumps(text)})"
        await self.tab.until(f"{found} !== undefined")
        await self.tab.run(f"{found}.click()")

    async def confirm(self, act: str, *said: str) -> None:
        """Do what is asked in the question, which says all of this."""
        await self.tab.until("document.getElementById('dialog').open")
        question = await self.tab.run("document.getElementById('dialog').textContent")
        for words in said:
            assert words in question
        assert await self.tab.run("document.getElementById('dialog').contains(document.activeElement)")
        await self.button(act, "#dialog")
        await self.tab.until("!document.getElementById('dialog').open")

    async def go(self, place: str, heading: str) -> None:
        """Go to a view."""
        await self.tab.run(f"location.hash = {json.dumps(place)}")
        await self.tab.until(f"document.querySelector('#view h1')?.textContent === {json.dumps(heading)}")

    async def until_text(self, text: str, within: str = "#view") -> None:
        await self.tab.until(f"document.querySelector({json.dumps(within)})?.textContent.includes({json.dumps(text)})")

    async def row(self, name: str) -> list[str]:
        """The cells of the row of a diagnosis."""
        found: list[str] = await self.tab.run(
            "[...([...document.querySelectorAll('.live tbody tr')]"
            f".find((row) => row.cells[0].textContent === {json.dumps(name)})?.cells ?? [])]"
            ".map((one) => one.textContent)"
        )
        return found

    async def until_row(self, name: str, **cells: str) -> None:
        """Until the row of a diagnosis says this, by the titles of columns."""
        columns = ["Diagnosis", "State", "Followers", "Outbox", "Lag", "Mailbox", "Crashes"]
        with trio.fail_after(30):
            while True:
                row = dict(zip(columns, await self.row(name), strict=False))
                if cells.items() <= row.items():
                    return
                await trio.sleep(0.05)

    async def check_accessibility(self) -> None:
        """Have axe-core look at the page as it is: it finds nothing serious."""
        frame = (await self.tab.call("Page.getFrameTree"))["frameTree"]["frame"]["id"]
        # In a world of its own: the policy of the page keeps tools out, too.
        world = (await self.tab.call("Page.createIsolatedWorld", frameId=frame))["executionContextId"]
        axe = (node_package("axe-core") / "axe.min.js").read_text()
        run = "axe.run(document, {resultTypes: ['violations']}).then(({violations}) => violations)"
        for script in (f"{axe};null", run):
            answer = await self.tab.call(
                "Runtime.evaluate", expression=script, contextId=world, returnByValue=True, awaitPromise=True
            )
            assert "exceptionDetails" not in answer, answer
        violations: list[dict[str, Any]] = answer["result"]["value"]
        serious = [
            (one["id"], [node["html"] for node in one["nodes"]]) for one in violations if one["impact"] in SERIOUS
        ]
        assert serious == []


@asynccontextmanager
async def console(tmp_path: Path, clock: Clock | None = None, **settings: Any) -> AsyncIterator[Page]:
    render = Faulty()
    async with (
        chromium(tmp_path / "profile") as browser,
        running_server(Settings(port=0, data=tmp_path / "data", **settings), clock, render=render) as server,
    ):
        page = Page(await browser.open("about:blank"), server, render)
        await page.begin()
        yield page
        await page.tab.close()


async def numbers_until(client: Client, last: int) -> list[int]:
    """The numbers of the events that come until this one has."""
    found = [0]
    while found[-1] < last:
        found.append((await client.events(1))[0]["seq"])
    return found[1:]


async def test_an_operator_looks_after_actors_from_the_console(tmp_path: Path) -> None:
    async with console(tmp_path, quarantine_seconds=600, access_trail=True) as page:
        server, tab = page.server, page.tab
        await server.register("42", "amira", "farid")
        await server.register(CRASHING)
        await page.check_accessibility()
        await page.sign_in(server.token("op", "operate"))
        await page.until_row("42", State="passive", Outbox="0")
        async with server.live("42", "farid", device="phone", ack="app") as client:
            # A count rises while events are published.
            for number in (1, 2, 3):
                await server.publish(number, "42")
                await page.until_row("42", State="running", Followers="1", Outbox=str(number), Lag=str(number))
            await page.check_accessibility()
            # Restarted by its button while a subscriber stays connected and loses nothing.
            await page.go("#/actors/42", "Diagnosis 42")
            for act in ("Disconnect…", "Purge…"):
                await page.button(act)
                await tab.until("document.getElementById('dialog').open")
                await page.check_accessibility()
                await page.button("Cancel", "#dialog")
            await page.button("Restart")
            await page.confirm("Restart", "Incarnation 2 begins", "1 connection stays open")
            await page.until_text("operator")  # the latest restart, and why
            for number in (4, 5):
                await server.publish(number, "42")
            assert await numbers_until(client, 5) == [1, 2, 3, 4, 5]
            await client.say(type="ack", seq=5)
            await client.next_of("acked")
            # Who has one event, and by what it was acknowledged.
            await page.button("Delivery of event 2")
            await page.until_text("1 acknowledged", "[aria-label='Delivery of an event']")
            await page.until_text("its app", "[aria-label='Delivery of an event']")
            dot = "document.querySelector('.dot.on').getBoundingClientRect()"
            assert await tab.run(f"{dot}.width === {dot}.height"), "a circle"
        # What an event says is hidden until it is asked for, and asking is an act.
        await server.publish(6, "42", comment="<b>slept</b> well")
        await page.until_text("6 of 100")
        assert "slept" not in await tab.run("document.body.textContent")
        await page.button("Read event 6")
        await page.until_text("<b>slept</b> well", ".payload:not([hidden]) pre")
        await page.check_accessibility()
        await page.go("#/audit", "Audit")
        await tab.run("document.getElementById('filter-action').value = 'outbox.read'")
        await page.button("Show")
        await tab.until("document.querySelectorAll('.trails tbody tr').length === 1")
        await page.until_text("first 6, last 6, events 1", ".trails tbody")
        await page.check_accessibility()
        # A quarantine is seen, and released.
        while (await server.publish(1, CRASHING)).status_code != 503:
            pass
        await page.go("#/", "Overview")
        await page.until_row(CRASHING, State="quarantined", Crashes="4")
        assert await tab.run("document.querySelector('.live tbody tr').cells[0].textContent") == CRASHING, "worst first"
        await page.go(f"#/actors/{CRASHING}", f"Diagnosis {CRASHING}")
        await page.until_text("It crashed too often and rests.")
        await page.check_accessibility()
        page.render.is_mended = True
        await page.button("Release")
        await page.confirm("Release", "from quarantine", "incarnation 5")
        await page.until_text("running", ".head")
        for place, heading in (("#/accesses", "Accesses"), ("#/revocations", "Revocations")):
            await page.go(place, heading)
            await page.check_accessibility()
        kept = await tab.run("localStorage.length + sessionStorage.length + document.cookie.length")
        assert (kept, await tab.run("location.hash")) == (0, "#/revocations")
        assert page.complaints == []
        # `data:` is the browser's own: how it draws the fields of a form.
        assert [one for one in page.asked if not one.startswith((f"{server.url}/", "data:"))] == []


async def test_purging_disconnecting_and_revoking_ask_first_and_sign_out_forgets(tmp_path: Path) -> None:
    async with console(tmp_path) as page:
        server, tab = page.server, page.tab
        await page.sign_in(server.token("nobody", "broadcast"))
        await page.until_text("operate", "#sign-in-problem")
        await tab.run("document.getElementById('token').value = ''")
        page.complaints.clear()  # the browser says that it was refused
        await server.register("42", "amira", "farid")
        await server.publish(1, "42")
        await page.sign_in(server.token("op", "operate"))
        await page.until_row("42", Outbox="1")
        async with server.live("42", "farid", device="phone") as client:
            await page.go("#/actors/42", "Diagnosis 42")
            await page.button("Disconnect…")
            await tab.until("document.activeElement.id === 'disconnect-sub'")
            await tab.call("Input.insertText", text="farid")
            await page.confirm("Disconnect", "1 connection")
            assert (await client.close_frames())[2] == "disconnected by operator"
        await page.button("Purge…")
        await tab.until("document.getElementById('dialog').open")
        await page.press("Escape", 27)  # and nothing is done
        await tab.until("!document.getElementById('dialog').open")
        await page.button("Purge…")
        await page.confirm("Purge", "1 retained event", "for good")
        await page.until_text("none, up to #1")
        await page.go("#/revocations", "Revocations")
        await tab.run("document.getElementById('revoke-name').value = 'mallory'")
        await page.button("Revoke…")
        await page.confirm("Revoke", "Revoke all tokens of mallory?")
        await page.button("Lift the revocation of mallory")
        await page.confirm("Lift")
        await page.until_text("No token is revoked.")
        await page.go("#/audit", "Audit")
        await page.until_text("revocation.addsub mallory", ".trails tbody")
        acts = (await server.http.get("/audit", headers=server.bearer("chief", "operate"))).json()["items"]
        assert [(one["actor"], one["action"]) for one in acts if one["actor"] == "op"] == [
            ("op", "revocation.lift"),
            ("op", "revocation.add"),
            ("op", "outbox.purge"),
            ("op", "subscriber.disconnect"),
        ]
        # The token ends while somebody looks: the page says so, and shows nothing any more.
        await server.http.post("/revocations", json={"sub": "op"}, headers=server.bearer("chief", "operate"))
        await page.until_text("revoked", "#sign-in-problem")
        assert await tab.run(
            "[document.getElementById('view').childElementCount, document.getElementById('token').value]"
        ) == [0, ""]
        assert page.complaints == []


async def test_thousands_of_diagnoses_are_searched_sorted_and_shown_page_by_page(tmp_path: Path) -> None:
    async with console(tmp_path) as page:
        server, tab = page.server, page.tab
        async with trio.open_nursery() as registering_nursery:
            for number in range(120):
                registering_nursery.start_soon(server.register, f"ward-{number}")
        await server.publish(1, "ward-7")
        await page.sign_in(server.token("op", "operate"))
        await page.until_text("1–50 of 120", "#actors-count")
        first = "document.querySelector('.live tbody tr').cells[0].textContent"
        assert await tab.run(first) == "ward-7", "what runs stands above what rests"
        await page.button("Diagnosis")
        assert await tab.run(first) == "ward-0"
        await page.button("Diagnosis")
        assert await tab.run(first) == "ward-119", "digits are numbers"
        assert await tab.run("document.querySelector('.live [aria-sort]').ariaSort") == "descending"
        await page.button("Next page")
        await page.until_text("51–100 of 120", "#actors-count")
        await tab.run("document.getElementById('search').focus()")
        await tab.call("Input.insertText", text="WARD-11")
        await page.until_text("1–11 of 11", "#actors-count")
        await tab.call("Input.insertText", text="x")
        await page.until_text("No diagnosis fits.")
        assert page.complaints == []


async def test_the_overview_shows_all_actors_again_also_while_nothing_changes(tmp_path: Path) -> None:
    async with console(tmp_path) as page:
        await page.server.register("42", "amira")
        await page.sign_in(page.server.token("op", "operate"))
        await page.until_row("42", State="passive")
        await page.go("#/audit", "Audit")
        await page.go("#/", "Overview")
        await page.until_row("42", State="passive")
        # An address that somebody types wrongly leads somewhere, and out again.
        for place, heading in (("#/toString", "Overview"), ("#/actors/%zz", "Diagnosis %zz"), ("#/audit", "Audit")):
            await page.go(place, heading)
        assert [one for one in page.complaints if "422" not in one] == []


async def test_the_page_says_why_a_token_does_not_sign_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("web.console.streams.CONSOLES_MAX", 0)
    async with console(tmp_path) as page:
        token = page.server.token("op", "operate")
        await page.sign_in(f"{token}\u200b")  # as it is copied from some programs
        await page.until_text("characters that no token has", "#sign-in-problem")
        await page.tab.run("document.getElementById('token').value = ''")
        await page.sign_in(token)
        await page.until_text("at most 0 consoles at once", "#sign-in-problem")


async def test_a_name_cannot_turn_round_what_stands_beside_it(tmp_path: Path) -> None:
    async with console(tmp_path) as page:
        server = page.server
        await server.register("42", "amira", "\u202efarid")
        await server.publish(1, "42", comment="\u2067slept")
        await page.sign_in(server.token("op", "operate"))
        await page.go("#/audit", "Audit")
        await page.until_text("\\u202efarid", ".trails tbody")
        await page.go("#/actors/42", "Diagnosis 42")
        await page.button("Read event 1")
        await page.until_text("\\u2067slept", ".payload:not([hidden]) pre")


async def test_what_is_done_to_a_diagnosis_that_was_deleted_is_not_offered(tmp_path: Path) -> None:
    async with console(tmp_path) as page:
        server, tab = page.server, page.tab
        await server.register("42", "amira")
        await server.publish(1, "42", comment="slept well")
        await page.sign_in(server.token("op", "operate"))
        await page.until_row("42", Outbox="1")
        await page.go("#/actors/42", "Diagnosis 42")
        await page.button("Read event 1")
        await page.until_text("slept well", ".payload:not([hidden]) pre")
        await server.http.delete("/diagnoses/42", headers=server.bearer("registrar", "register"))
        await page.until_text("not registered", ".trouble")
        assert await tab.run("document.querySelectorAll('.head button:enabled').length") == 0
        assert "slept" not in await tab.run("document.getElementById('view').textContent")


async def test_the_keyboard_is_enough_and_the_focus_comes_back_from_a_question(tmp_path: Path) -> None:
    async with console(tmp_path) as page:
        server, tab = page.server, page.tab
        await server.register("42", "amira")
        await server.publish(1, "42")
        await page.sign_in(server.token("op", "operate"))
        await page.until_row("42", State="running")
        await page.tab_to("42")
        await page.press("Enter", 13, "\r")
        await tab.until("document.querySelector('#view h1')?.textContent === 'Diagnosis 42'")
        await page.until_text("1 of 100")
        for key, text, code in (("Escape", "", 27), ("Enter", "\r", 13)):
            await page.tab_to("Restart")
            await page.press("Enter", 13, "\r")
            await tab.until("document.getElementById('dialog').open")
            assert await tab.run("document.activeElement.textContent") == "Cancel", "what does nothing comes first"
            if key == "Enter":
                await page.tab_to("Restart")
            await page.press(key, code, text)
            await tab.until("!document.getElementById('dialog').open")
            await tab.until("document.activeElement.textContent.trim() === 'Restart'")
        actor = (await server.http.get("/actors/42", headers=server.bearer("op", "operate"))).json()
        assert actor["incarnation"] == 2
        assert page.complaints == []


async def test_two_consoles_see_what_either_does(tmp_path: Path) -> None:
    async with console(tmp_path) as page:
        server = page.server
        await server.register("42", "amira")
        await server.publish(1, "42")
        other = Page(await page.tab._browser.open("about:blank"), server, page.render)
        await other.begin()
        for one, who in ((page, "op"), (other, "chief")):
            await one.sign_in(server.token(who, "operate"))
            await one.until_row("42", Outbox="1")
        await page.go("#/actors/42", "Diagnosis 42")
        await page.button("Purge\u2026")
        await page.confirm("Purge")
        await other.until_row("42", Outbox="0")
        await other.tab.close()


async def test_a_console_whose_token_expires_is_warned_and_then_says_so(tmp_path: Path) -> None:
    clock = MovableClock()
    async with console(tmp_path, clock) as page:
        server = page.server
        await server.register("42", "amira")
        await page.sign_in(server.token("op", "operate", ttl_seconds=120))
        await page.until_row("42", State="passive")
        clock.ahead_seconds = 90.0
        await page.until_text("Your token ends at", "#notice")
        clock.ahead_seconds = 150.0
        await page.until_text("expired", "#sign-in-problem")
        assert await page.tab.run("document.getElementById('view').childElementCount") == 0
