"""Pages in a real browser: what a tab has not seen is not acknowledged, and an `EventSource` comes back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.browser.chromium import Tab, chromium
from tests.server.harness import Server, running_server
from web.server.settings import Settings

README = Path(__file__).parents[2] / "README.md"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(port=0, data=tmp_path / "data")


def page_of(server: Server) -> str:
    """Anything the server shows is a page of its own origin."""
    return f"{server.url}/healthz"


def following(server: Server, **parameters: str) -> str:
    """A script that follows, keeps what comes, and acknowledges nothing."""
    query = "&".join(f"{name}={value}" for name, value in {"token": server.token("amira"), **parameters}.items())
    url = f"{server.url.replace('http', 'ws')}/ws/42?{query}"
    return f"""(() => {{
        const frames = (window.frames_of ??= {{}})[{json.dumps(parameters["device"])}] = [];
        new WebSocket({json.dumps(url)}).onmessage = ({{ data }}) => frames.push(JSON.parse(data));
    }})()"""


def frames_of(device: str) -> str:
    return f"frames_of[{json.dumps(device)}]"


async def until_live(tab: Tab, device: str) -> None:
    await tab.until(f"{frames_of(device)}.some(({{ type }}) => type === 'live')")


async def numbers(tab: Tab, device: str) -> list[int]:
    found: list[int] = await tab.run(f"{frames_of(device)}.filter((frame) => 'seq' in frame).map(({{ seq }}) => seq)")
    return found


async def delivery(server: Server, device: str) -> dict[str, Any]:
    """What became of event 5 for a device."""
    answer = await server.http.get("/diagnoses/42/delivery?seq=5", headers=server.bearer("op", "operate"))
    (found,) = [one for one in answer.json()["items"] if one["device"] == device]
    return found  # type: ignore[no-any-return]


async def until_delivery(server: Server, device: str, **wanted: object) -> None:
    with trio.fail_after(30):
        while not wanted.items() <= (await delivery(server, device)).items():
            await trio.sleep(0.05)


async def test_what_a_frozen_tab_was_sent_is_not_acknowledged_and_comes_again(
    settings: Settings, tmp_path: Path
) -> None:
    async with chromium(tmp_path / "profile") as browser, running_server(settings) as server:
        await server.register()
        tab = await browser.open(page_of(server))
        for script in (following(server, device="tab"), following(server, device="by-name", ack="transport")):
            await tab.run(script)
        for device in ("tab", "by-name"):
            await until_live(tab, device)
        await tab.freeze()
        for number in range(5):
            await server.publish(number)
        # The browser answers Pings for the frozen page: who asked for that by name gets it.
        await until_delivery(server, "by-name", state="acknowledged", acknowledged_by="transport")
        assert await numbers(tab, "by-name") == await numbers(tab, "tab") == []
        await until_delivery(server, "tab", state="written", cursor=0, acknowledged_by=None)
        await tab.close()
        await until_delivery(server, "tab", state="pending", online=False)

        again = await browser.open(page_of(server))
        await again.run(following(server, device="tab"))
        await until_live(again, "tab")
        assert await numbers(again, "tab") == [1, 2, 3, 4, 5]


def readme_page() -> tuple[str, str]:
    """The page of the README: its elements, and its script."""
    found = re.search(r'```html\n(.*?)<script type="module">\n(.*?)</script>\n```', README.read_text(), re.DOTALL)
    assert found is not None
    return found[1], found[2]


async def test_the_page_of_the_readme_shows_what_it_missed_and_what_comes(settings: Settings, tmp_path: Path) -> None:
    async with chromium(tmp_path / "profile") as browser, running_server(settings) as server:
        await server.register()
        elements, script = readme_page()
        page = f"""(() => {{
            window.fetchToken = async () => {json.dumps(server.token("amira"))};
            document.body.innerHTML = {json.dumps(elements)};
            const script = document.createElement("script");
            script.type = "module";
            script.textContent = {json.dumps(script)};
            document.body.append(script);
        }})()"""
        lines = "[...document.querySelectorAll('li')].map(({ textContent }) => textContent)"
        for number in range(2):
            await server.publish(number)
        tab = await browser.open(page_of(server))
        await tab.run(page)
        await tab.until("document.querySelectorAll('li').length === 2")
        await server.publish(2)
        await tab.until("document.querySelectorAll('li').length === 3")
        assert await tab.run(lines) == [f"{seq} feedback_update" for seq in (1, 2, 3)]
        await tab.run("location.reload()")
        await tab.until("document.querySelectorAll('li').length === 0")
        await server.until_alone()
        await server.publish(3)
        await tab.run(page)
        await tab.until("document.querySelectorAll('li').length === 1")
        assert await tab.run(lines) == ["4 feedback_update"]


async def test_an_event_source_comes_back_after_a_limit_and_gives_up_after_a_refusal(
    settings: Settings, tmp_path: Path
) -> None:
    limited = Settings(port=0, data=settings.data, user_connections_max=1)
    async with chromium(tmp_path / "profile") as browser, running_server(limited) as server:
        await server.register()
        await server.publish(1)
        tab = await browser.open(page_of(server))
        script = """
            const source = window[NAME] = new EventSource(URL), seen = window[NAME + "_seen"] = [];
            source.onmessage = ({ data, lastEventId }) => seen.push([JSON.parse(data).type, lastEventId]);
        """

        async def follow(name: str, token: str) -> None:
            url = f"{server.url}/diagnoses/42/events?token={token}"
            body = script.replace("NAME", json.dumps(name)).replace("URL", json.dumps(url))
            await tab.run(f"(() => {{ {body} }})()")

        async with server.live():
            await follow("limited", server.token("amira"))
            await tab.until("limited_seen.some(([type]) => type === 'bye')")
        # The place is free again: the browser comes back by itself.
        await tab.until("limited_seen.some(([type]) => type === 'live')")
        assert await tab.run("limited.readyState") == 1
        await follow("refused", "nonsense")
        await tab.until("refused.readyState === 2")
