"""A headless Chromium, driven over its debugging protocol by the WebSocket client the other tests use."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
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
    "--remote-debugging-port=0",
)


class Chromium:
    """A running browser."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._answers: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}

    async def listen(self) -> None:
        """Hand each answer to whoever asked; events are not needed."""
        try:
            while True:
                message = json.loads(await self._connection.get_message())
                if (asked := self._answers.pop(message.get("id"), None)) is not None:
                    asked.send_nowait(message)
        except ConnectionClosed:
            return

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

    async def open(self, url: str) -> Tab:
        """A new tab that has loaded `url`."""
        target = (await self.call("Target.createTarget", url=url))["targetId"]
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        tab = Tab(self, target, session)
        await tab.until(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")
        return tab


class Tab:
    """One page."""

    def __init__(self, browser: Chromium, target: str, session: str) -> None:
        self._browser = browser
        self._target = target
        self._session = session

    async def run(self, script: str) -> Any:
        """The value of a script, as JSON has it."""
        call = partial(self._browser.call, "Runtime.evaluate", self._session)
        answer = await call(expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until a script says true."""
        with trio.fail_after(ANSWER_SECONDS_MAX):
            while not await self.run(condition):
                await trio.sleep(0.05)

    async def freeze(self) -> None:
        """Stop the page as a browser does with a tab nobody looks at: none of its tasks run, its sockets stay."""
        await self._browser.call("Page.setWebLifecycleState", self._session, state="frozen")

    async def close(self) -> None:
        """Close the tab."""
        await self._browser.call("Target.closeTarget", targetId=self._target)


@asynccontextmanager
async def chromium(directory: Path) -> AsyncIterator[Chromium]:
    """A browser with a new profile in `directory`; gone at the end. Skips where there is no Chromium."""
    command = [program("chromium"), *OPTIONS, f"--user-data-dir={directory}", "about:blank"]
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
        process = await nursery.start(partial(run, stderr=subprocess.DEVNULL))
        url = await _where_it_listens(directory / "DevToolsActivePort", process)
        async with open_websocket_url(url, max_message_size=MESSAGE_BYTES_MAX) as connection:
            browser = Chromium(connection)
            nursery.start_soon(browser.listen)
            yield browser
            await browser.call("Browser.close")
        nursery.cancel_scope.cancel()


async def _where_it_listens(said: Path, process: trio.Process) -> str:
    with trio.fail_after(START_SECONDS_MAX):
        while not said.exists() or len(lines := said.read_text().splitlines()) < 2:
            assert process.returncode is None, f"Chromium ended with {process.returncode}"
            await trio.sleep(0.05)
    return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
