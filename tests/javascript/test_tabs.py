"""Tabs of a real browser: whatever a browser does to them, each gets each number once, or a gap that names it."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio

from tests.browser.chromium import Chromium, Tab, connected, shared_browser
from tests.clients.proxy import HEAD_BYTES_MAX, FaultProxy
from tests.javascript.node import CLIENT
from tests.server.harness import Server, running_server
from web.server.settings import Settings

HTML = "Content-Type: text/html; charset=utf-8\r\nCache-Control: no-cache\r\nConnection: close"

PAGE = Path(__file__).with_name("page.html").read_text()

README_PAGE = re.search(r"```html\n(.*?)```", (CLIENT / "README.md").read_text(), re.DOTALL)

DISCARD = """
    const { getOrCreateDetailsProvider } = await import("chrome://discards/discards.js");
    const { infos } = await getOrCreateDetailsProvider().getTabDiscardsInfo();
    const { id } = infos.find(({ tabUrl }) => tabUrl.includes(WHICH));
    await getOrCreateDetailsProvider().discardById(id, 0);
"""


class Network(FaultProxy):
    """A network that fails, and a page on the server at its other end: `/page`."""

    page = PAGE

    async def _forward(self, client: trio.SocketStream) -> None:
        if b"Upgrade: websocket" in await client.socket.recv(HEAD_BYTES_MAX, socket.MSG_PEEK):
            await super()._forward(client)
            return
        # One request a connection, so that the page is asked for on one of its own.
        request = (await client.receive_some()).replace(b"keep-alive", b"close")
        if request.startswith(b"GET /page"):
            body = self.page.encode()
            await client.send_all(f"HTTP/1.1 200 OK\r\n{HTML}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        elif request:
            async with await trio.open_tcp_stream("127.0.0.1", self._server_port()) as server:
                await server.send_all(request)
                async for chunk in server:
                    await client.send_all(chunk)


class World:
    """A browser with a profile of its own, a server, and the network between them."""

    def __init__(self, browser: Chromium, context: dict[str, Any], server: Server, network: Network) -> None:
        self.browser = browser
        self.server = server
        self.network = network
        self._context = context

    def url(self, number: int, **options: object) -> str:
        """Of the page.

        Args:
            number: tells tabs apart.
            options: of the Follower.
        """
        options["token"] = self.server.token("amira")
        return f"{self.network.url}/page?{number}#{quote(json.dumps(options))}"

    async def open(self, number: int = 1, **options: object) -> Tab:
        """A new tab, which is live."""
        tab = await self.browser.open(self.url(number, **options), **self._context)
        await until_live(tab)
        return tab

    async def publish(self, count: int = 1) -> None:
        for number in range(count):
            await self.server.publish(number)

    async def devices(self) -> dict[str, bool]:
        """Which devices the server knows, and whether they are connected."""
        answer = await self.server.http.get("/diagnoses/42/delivery?seq=1", headers=self.server.bearer("op", "operate"))
        return {one["device"]: one["online"] for one in answer.json()["items"]}

    async def until_away(self, count: int) -> None:
        """Wait until no more than so many tabs are connected."""
        with trio.fail_after(30):
            while sum((await self.devices()).values()) > count:
                await trio.sleep(0.05)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    url = shared_browser()
    async with running_server(Settings(port=0, data=tmp_path / "data")) as server, connected(url) as browser:
        await server.register()
        context = await browser.call("Target.createBrowserContext", disposeOnDetach=True)
        port = server.http.base_url.port
        assert port is not None
        async with network_to(port) as network:
            yield World(browser, context, server, network)
            await browser.call("Target.disposeBrowserContext", **context)


@asynccontextmanager
async def network_to(port: int) -> AsyncIterator[Network]:
    async with trio.open_nursery() as nursery:
        network = Network(nursery, lambda: port)
        try:
            yield network
        finally:
            network.close()
        nursery.cancel_scope.cancel()


async def until_live(tab: Tab) -> None:
    await tab.until("document.readyState === 'complete' && window.statuses?.at(-1) === 'live -'")


async def until_seen(tab: Tab, last: int, first: int = 1) -> list[list[Any]]:
    """Wait until a tab has seen a number; what it has seen, which is each number from the first one, once."""
    await tab.until(f"window.seen?.at(-1)?.[2] >= {last}")
    seen: list[list[Any]] = await tab.run("seen")
    expected = first
    for _, begins, ends in seen:
        assert begins == expected, seen
        expected = ends + 1
    assert expected == last + 1, seen
    return seen


async def name_of(tab: Tab) -> str:
    found: str = await tab.run("JSON.parse(sessionStorage.getItem('avicenna-live/name/0'))")
    return found


async def test_tabs_of_one_browser_get_each_number_once_also_when_all_are_reloaded_at_once(world: World) -> None:
    await world.publish(3)
    tabs = [await world.open(number) for number in (1, 2, 3)]
    names = [await name_of(tab) for tab in tabs]
    assert len(set(names)) == 3
    await world.publish(3)
    for tab in tabs:
        await until_seen(tab, 6)
    async with trio.open_nursery() as nursery:
        for tab in tabs:
            nursery.start_soon(tab.call, "Page.reload")
        await world.publish(3)
    for tab in tabs:
        await until_live(tab)
    await world.publish(1)
    for tab in tabs:
        await until_seen(tab, 10)
        assert [one for one in await tab.run("statuses") if one.startswith("ended")] == []
    assert set(await world.devices()) == set(names), "a reload is no new device"


async def test_a_tab_that_is_duplicated_takes_another_name_and_goes_on_where_its_original_was(world: World) -> None:
    await world.publish(3)
    tab = await world.open()
    await until_seen(tab, 3)
    before = {one["targetId"] for one in (await world.browser.call("Target.getTargets"))["targetInfos"]}
    await tab.call("Runtime.evaluate", expression="void window.open(location.href)", userGesture=True)
    after = (await world.browser.call("Target.getTargets"))["targetInfos"]
    (target,) = [one["targetId"] for one in after if one["targetId"] not in before and one["type"] == "page"]
    twin = await world.browser.attach(target)
    await until_live(twin)
    await world.publish(2)
    for one in (tab, twin):
        await until_seen(one, 5)
    assert await name_of(twin) != await name_of(tab)


async def test_a_new_tab_begins_where_the_last_one_of_its_name_stopped(world: World) -> None:
    await world.publish(3)
    tabs = [await world.open(number) for number in (1, 2)]
    names = [await name_of(tab) for tab in tabs]
    for tab in tabs:
        await until_seen(tab, 3)
    await tabs[0].close()
    await world.until_away(1)
    await world.publish(2)
    await tabs[1].call("Page.reload")
    await until_seen(tabs[1], 5)
    assert await name_of(tabs[1]) == names[1], "it took the name that was free"
    another = await world.open(3)
    await until_seen(another, 5, first=4)
    assert await name_of(another) == names[0]


async def test_a_page_out_of_the_back_forward_cache_goes_on_with_what_it_missed(world: World) -> None:
    await world.publish(2)
    tab = await world.open()
    await until_seen(tab, 2)
    await tab.run("addEventListener('pageshow', ({ persisted }) => { window.wasKept = persisted; })")
    await tab.call("Page.navigate", url=f"{world.network.url}/openapi.json")
    await world.until_away(0)
    await world.publish(110)
    history = await tab.call("Page.getNavigationHistory")
    back = history["entries"][history["currentIndex"] - 1]["id"]
    await tab.call("Page.navigateToHistoryEntry", entryId=back)
    assert ["gap", 3, 12] in await until_seen(tab, 112)
    assert await tab.run("wasKept"), "it was loaded anew"


async def test_a_frozen_tab_goes_on_with_what_it_missed(world: World) -> None:
    await world.publish(2)
    tab = await world.open()
    await until_seen(tab, 2)
    await tab.freeze()
    await world.publish(150)
    assert len(await tab.run("seen")) == 2
    await tab.thaw()
    await until_seen(tab, 152)


async def test_a_discarded_tab_comes_back_under_another_name_and_goes_on_where_it_was(world: World) -> None:
    await world.publish(3)
    tab = await world.open(1)
    await until_seen(tab, 3)
    name = await name_of(tab)
    discards = await world.browser.open("chrome://discards/")
    await discards.run(f"(async () => {{ {DISCARD.replace('WHICH', json.dumps('/page?1#'))} }})()")
    await world.until_away(0)
    await world.publish(3)
    # A new tab takes the name, gets what waits under it, and acknowledges it.
    another = await world.open(2)
    assert await name_of(another) == name
    await until_seen(another, 6, first=4)
    await world.publish(110)
    await until_seen(another, 116, first=4)

    targets = (await world.browser.call("Target.getTargets"))["targetInfos"]
    (target,) = [one["targetId"] for one in targets if "/page?1#" in one["url"]]
    await world.browser.call("Target.activateTarget", targetId=target)
    again = await world.browser.attach(target)
    await until_live(again)
    assert await again.run("document.wasDiscarded")
    assert ["gap", 4, 16] in await until_seen(again, 116)
    assert await name_of(again) != name
    await discards.close()


async def test_a_tab_whose_network_loses_everything_without_a_word_comes_back(world: World) -> None:
    await world.publish(2)
    tab = await world.open()
    await until_seen(tab, 2)
    world.network.black_hole()
    await world.publish(3)
    await until_seen(tab, 5)
    assert "offline 1006 nothing heard" in await tab.run("statuses")


async def test_of_two_tabs_with_a_name_that_the_app_gave_the_newer_one_goes_on(world: World) -> None:
    tab = await world.open(1, device="phone")
    another = await world.open(2, device="phone")
    await tab.until("statuses.at(-1) === 'ended 4000 replaced'")
    await world.publish(1)
    await until_seen(another, 1)


async def test_the_page_of_the_readme_shows_what_comes(world: World) -> None:
    assert README_PAGE is not None
    token = json.dumps(world.server.token("amira"))
    world.network.page = f"<!doctype html><script>const token = {token};</script>{README_PAGE[1]}"
    await world.publish(1)
    tab = await world.browser.open(f"{world.network.url}/page")
    await tab.until("document.querySelectorAll('#updates li').length === 1")
    await world.publish(1)
    await tab.until("document.querySelector('#updates').innerText === '1 feedback_update\\n2 feedback_update'")
    await tab.close()
