"""What the drivers of one scenario share: the server, its database, and the identity provider."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import jwt
import trio
from cryptography.hazmat.primitives.asymmetric import ed25519

from tests.identity.test_jwks import web_of
from tests.identity.test_keys import jwk_of
from tests.server.forge import CRASHES
from tests.server.forged import Forge, Forged
from tests.server.harness import Server, begin
from web.identity.tokens import LEEWAY_SECONDS

SHORT: Final = {
    "web.following.session.RETRY_SPREAD_SECONDS": 0.3,
    "web.identity.jwks.FIRST_AGAIN_SECONDS": 0.5,
    "web.identity.expiry.WARNING_SECONDS": 3 - LEEWAY_SECONDS,
}
"""Waits of the server that are shorter here: over how long clients are spread that are told to come back (5 s), the
time between two fetches of keys while there are none (5 s), and how long before its `exp` a client is told that a token
is about to end (60 s; here 3 s before the server has no more patience with it)."""

KID: Final = "of-the-provider"


class Provider:
    """An identity provider; at first it has no page."""

    def __init__(self) -> None:
        self._key = ed25519.Ed25519PrivateKey.generate()
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}

    def answer(self) -> None:
        """Publish the key."""
        self.pages["/jwks"] = (200, {}, json.dumps({"keys": [jwk_of(self._key, kid=KID)]}).encode())

    def token(self, sub: str) -> str:
        """A token signed with it."""
        now = int(time.time())
        return jwt.encode({"sub": sub, "iat": now, "exp": now + 600}, self._key, "EdDSA", headers={"kid": KID})


class Stage:
    """The server of a scenario. Each method that is named like a step of the table is that step."""

    server: Server

    def __init__(self, forge: Forge, directory: Path, settings: Mapping[str, object], provider: Provider) -> None:
        """A server with these settings and its data in `directory`, which `forge` will start."""
        self.provider = provider
        self._forge = forge
        self._data = directory / "data"
        self._crashes = directory / "actors-crash"
        self._env = {f"AVICENNA_{name.upper()}": str(value) for name, value in settings.items()}
        self._env[CRASHES] = str(self._crashes)
        self._client = AsyncExitStack()
        self._process: Forged | None = None
        self._backup = ""
        self._data.mkdir()
        begin(self._data)

    @property
    def port(self) -> int:
        """Where the server listens, or did."""
        return self.server.http.base_url.port or 0

    async def end(self) -> None:
        """Kill the server, if it runs."""
        with trio.CancelScope(shield=True):
            if self._process is not None:
                await self.kill_server()

    async def start_server(self) -> None:
        """Start it on its data directory."""
        self._process, url = await self._forge.serve(self._data, env=self._env, constants=SHORT)
        self.server = await self._client.enter_async_context(Server(url, self._data))

    async def stop_server(self) -> None:
        """SIGTERM."""
        assert self._process is not None
        await self._process.stop()
        await self._forget()

    async def kill_server(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        await self._process.kill()
        await self._forget()

    async def back_up(self) -> None:
        """Copy the database."""
        answer = await self.server.http.post("/backup", headers=self.server.bearer("op", "operate"))
        self._backup = answer.json()["path"]

    async def restore(self) -> None:
        """Put the copy in place of the database."""
        await self._forge.run("restore", self._backup, "--data", self._data).ended()

    async def actors_crash(self) -> None:
        """Have actors crash over each event from now on."""
        self._crashes.touch()

    async def actors_work(self) -> None:
        """Have them work again."""
        self._crashes.unlink()

    async def provider_answers(self) -> None:
        """Have the identity provider publish its key."""
        self.provider.answer()

    async def provider_is_silent(self) -> None:
        """Have it publish nothing."""
        self.provider.pages.clear()

    async def _forget(self) -> None:
        self._process = None
        await self._client.aclose()


@asynccontextmanager
async def stage(forge: Forge, directory: Path, settings: Mapping[str, object]) -> AsyncIterator[Stage]:
    """A stage with a running server, which takes keys from an identity provider, too; gone at the end."""
    provider = Provider()
    with web_of(provider.pages) as url:
        made = Stage(forge, directory, {"jwks": f"{url}/jwks", **settings}, provider)
        await made.start_server()
        try:
            yield made
        finally:
            await made.end()
