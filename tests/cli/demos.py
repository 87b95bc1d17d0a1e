"""A running `avicenna-live demo`, as its terminal and its buttons show it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import trio

from tests.logbook import LOGBOOK
from tests.server.process import COMMAND


class Demo:
    """A running `avicenna-live demo`, what it says, and its buttons."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.said = ""

    async def until_said(self, pattern: str) -> str:
        """What the pattern has found, once it is there."""
        with trio.fail_after(30):
            while (found := re.search(pattern, self.said)) is None:
                await trio.sleep(0.02)
        return found[1] if found.lastindex else found[0]

    async def press(self, path: str) -> Any:
        """What a button is answered."""
        answer = await self.http.post(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def actor(self) -> Any:
        return (await self.http.get("/demo/actor")).json()


@asynccontextmanager
async def demo() -> AsyncIterator[tuple[Demo, trio.Process]]:
    process = await trio.lowlevel.open_process(
        [str(COMMAND), "demo", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        async with httpx.AsyncClient() as http, trio.open_nursery() as nursery:
            shown = Demo(http)

            async def listen() -> None:
                assert process.stdout is not None
                async for chunk in process.stdout:
                    LOGBOOK.write(bytes(chunk))
                    shown.said += chunk.decode()

            nursery.start_soon(listen)
            http.base_url = httpx.URL(await shown.until_said(r"Open (http://[^\s/]+)/demo"))
            yield shown, process
            nursery.cancel_scope.cancel()
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()
