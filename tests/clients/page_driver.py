"""The driver of the JavaScript client in a page of Chromium (`clients/scenarios.yaml` has the JSON lines).

All drivers of a test run share one browser, and have each a profile of their own in it. The page has the origin of the
server; its files come from here, so that it can be loaded while the network of the scenario fails.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from tests.browser.chromium import Tab, connected, shared_browser
from tests.programs import ROOT

PAGE: Final = b"""<!doctype html><title>driver</title><script type="module">
import { Driver } from "/driver.mjs";
const report = (what) => tell(JSON.stringify(what));
const save = (_, position) => new Promise((resolve) => { window.saved = resolve; report({ save: position }); });
window.driver = new Driver(report, () => ({ load: () => window.stored, save }));
</script>"""

FILES: Final = ("driver.mjs", "client.js")


def command() -> list[str]:
    """What starts a driver, in the browser that is shared. Skips where there is no Chromium."""
    return [sys.executable, "-m", "tests.clients.page_driver", shared_browser()]


class PageDriver:
    """One page, from `follow` to `stop`."""

    def __init__(self, nursery: trio.Nursery, tab: Tab) -> None:
        self._nursery = nursery
        self._tab = tab
        self._store: Path | None = None
        self._is_open = False

    async def obey(self, wanted: dict[str, Any]) -> None:
        """Do what the runner asks."""
        if wanted["do"] == "follow":
            await self._open(wanted)
        if self._is_open:
            await self._tab.run(f"driver.obey({json.dumps(wanted)})")

    async def _open(self, wanted: dict[str, Any]) -> None:
        self._store = None if wanted["store"] is None else Path(wanted["store"])
        stored = None if self._store is None or not self._store.exists() else json.loads(self._store.read_text())
        tab, url = self._tab, wanted["url"]
        tab.on("Fetch.requestPaused", lambda event: self._nursery.start_soon(self._serve, event))
        tab.on("Runtime.bindingCalled", lambda event: self._told(json.loads(event["payload"])))
        await tab.call("Runtime.enable")
        await tab.call("Runtime.addBinding", name="tell")
        await tab.call("Fetch.enable", patterns=[{"urlPattern": f"{url}/*"}])
        await tab.call("Page.navigate", url=f"{url}/")
        await tab.until("window.driver !== undefined")
        await tab.run(f"window.stored = {json.dumps(stored)}")
        self._is_open = True

    async def _serve(self, event: dict[str, Any]) -> None:
        name = event["request"]["url"].rpartition("/")[2]
        body = (ROOT / "clients" / "javascript" / name).read_bytes() if name in FILES else PAGE
        kind = "text/javascript" if name in FILES else "text/html"
        answer = partial(self._tab.call, "Fetch.fulfillRequest", requestId=event["requestId"], responseCode=200)
        headers = [{"name": "Content-Type", "value": kind}]
        await answer(responseHeaders=headers, body=base64.b64encode(body).decode())

    def _told(self, what: dict[str, Any]) -> None:
        if "save" not in what:
            report(what)
            return
        assert self._store is not None
        newer = self._store.with_suffix(".new")
        newer.write_text(json.dumps(what["save"]))
        newer.rename(self._store)
        self._nursery.start_soon(self._tab.run, "saved()")


def report(what: dict[str, Any]) -> None:
    """Write one line."""
    print(json.dumps(what), flush=True)  # noqa: T201 - its stdout is what it is for


async def main(url: str) -> None:
    """Obey until `stop`, or the end of stdin."""
    async with connected(url) as browser, trio.open_nursery() as nursery:
        # It goes with this connection, also where this process is killed.
        context = await browser.call("Target.createBrowserContext", disposeOnDetach=True)
        driver = PageDriver(nursery, await browser.open("about:blank", **context))
        report({"ready": True})
        rest = b""
        async for chunk in trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())):
            *lines, rest = (rest + bytes(chunk)).split(b"\n")
            commands = [json.loads(line) for line in lines]
            for wanted in commands:
                await driver.obey(wanted)
            if any(wanted["do"] == "stop" for wanted in commands):
                break
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
