"""A headless Chromium, driven over its debugging protocol by the WebSocket client the other tests use."""

from __future__ import annotations

import atexit
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

from tests.programs import program

START_SECONDS_MAX: Final = 60
"""Longest time from its start until Chromium says where it listens."""

ANSWER_SECONDS_MAX: Final = 30

MESSAGE_BYTES_MAX: Final = 2**24

OPTIONS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A page that a test hands to the browser has no address, and would be kept from servers of this machine.
    "--disable-features=LocalNetworkAccessChecks,LocalNetworkAccessChecksWebSockets",
    "--remote-debugging-port=0",
)


UNTIL_STDIN_ENDS: Final = '"$@" & read -r _; kill $!; wait $!'
"""Runs a command until whoever has started this is gone, however it went."""


class Chromium:
    """A running browser."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._answers: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._listeners: dict[tuple[str | None, str], Callable[[dict[str, Any]], None]] = {}

    async def listen(self) -> None:
        """Hand each answer to whoever asked, and each event to whoever listens to it."""
        try:
            while True:
                message = json.loads(await self._connection.get_message())
                if (asked := self._answers.pop(message.get("id"), None)) is not None:
                    asked.send_nowait(message)
                event = (message.get("sessionId"), message.get("method"))
                if (listener := self._listeners.get(event)) is not None:
                    listener(message["params"])
        except ConnectionClosed:
            return

    def on(self, session: str, event: str, listener: Callable[[dict[str, Any]], None]) -> None:
        """Have `listener` called with the parameters of each event of this kind."""
        self._listeners[session, event] = listener

    async def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the debugging protocol."""
        number = next(self._numbers)
        send, receive = trio.open_memory_channel[dict[str, Any]](1)
        self._answers[number] = send
        command = {"id": number, "method": method, "params": parameters}
        await self._connection.send_message(json.dumps(command | ({} if session is None else {"sessionId": session})))
        with trio.fail_after(ANSWER_SECONDS_MAX):
            answer = await receive.receive()
        assert "error" not in answer, (method, answer)
        result: dict[str, Any] = answer["result"]
        return result

    async def open(self, url: str, **parameters: Any) -> Tab:
        """A new tab that has loaded `url`.

        Args:
            parameters: of `Target.createTarget`, beside the URL.
        """
        target = (await self.call("Target.createTarget", url=url, **parameters))["targetId"]
        tab = await self.attach(target)
        await tab.until(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")
        return tab

    async def attach(self, target: str) -> Tab:
        """The tab of a target."""
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        return Tab(self, target, session)


class Tab:
    """One page."""

    def __init__(self, browser: Chromium, target: str, session: str) -> None:
        self._browser = browser
        self._target = target
        self._session = session
        self.call = partial(browser.call, session=session)
        """As `Chromium.call`, for this tab."""
        self.on = partial(browser.on, session)
        """As `Chromium.on`, for this tab."""

    async def run(self, script: str) -> Any:
        """The value of a script, as JSON has it."""
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until a script says true."""
        with trio.fail_after(ANSWER_SECONDS_MAX):
            while not await self.run(condition):
                await trio.sleep(0.05)

    async def freeze(self) -> None:
        """Stop the page as a browser does with a tab nobody looks at: none of its tasks run, its sockets stay."""
        await self.call("Page.setWebLifecycleState", state="frozen")

    async def thaw(self) -> None:
        """Let it go on, as when somebody looks at it again."""
        await self.call("Page.setWebLifecycleState", state="active")

    async def close(self) -> None:
        """Close the tab."""
        await self._browser.call("Target.closeTarget", targetId=self._target)


@asynccontextmanager
async def chromium(directory: Path) -> AsyncIterator[Chromium]:
    """A browser with a new profile in `directory`; gone at the end. Skips where there is no Chromium."""
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
        process = await nursery.start(partial(run, _command(directory), stderr=subprocess.DEVNULL))
        with trio.fail_after(START_SECONDS_MAX):
            while (url := _where_it_listens(directory)) is None:
                assert process.returncode is None, f"Chromium ended with {process.returncode}"
                await trio.sleep(0.05)
        async with connected(url) as browser:
            yield browser
            await browser.call("Browser.close")
        nursery.cancel_scope.cancel()


@cache
def shared_browser() -> str:
    """The URL of the debugging protocol of a browser that many tests use, started for the first of them.

    Each takes a profile of its own (`Target.createBrowserContext`). It ends with this process. Skips where there is no
    Chromium.
    """
    directory = Path(tempfile.mkdtemp(prefix="avicenna-chromium-"))
    # Makes the browser's own page for discarding tabs work.
    (directory / "Local State").write_text(json.dumps({"internal_only_uis_enabled": True}))
    command = ["sh", "-c", UNTIL_STDIN_ENDS, "sh", *_command(directory)]
    browser = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end() -> None:
        browser.communicate()
        shutil.rmtree(directory, ignore_errors=True)

    atexit.register(end)
    deadline = time.monotonic() + START_SECONDS_MAX
    while (url := _where_it_listens(directory)) is None:
        assert time.monotonic() < deadline, "Chromium does not say where it listens"
        time.sleep(0.05)
    return url


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Chromium]:
    """A browser that runs, by the URL of its debugging protocol."""
    async with trio.open_nursery() as nursery:
        async with open_websocket_url(url, max_message_size=MESSAGE_BYTES_MAX) as connection:
            browser = Chromium(connection)
            nursery.start_soon(browser.listen)
            yield browser
        nursery.cancel_scope.cancel()


def _command(directory: Path) -> list[str]:
    return [program("chromium"), *OPTIONS, f"--user-data-dir={directory}", "about:blank"]


def _where_it_listens(directory: Path) -> str | None:
    """The URL of the debugging protocol of the browser with this profile, `None` until it is there."""
    said = directory / "DevToolsActivePort"
    lines = said.read_text().splitlines() if said.exists() else []
    return f"ws://127.0.0.1:{lines[0]}{lines[1]}" if len(lines) > 1 else None
