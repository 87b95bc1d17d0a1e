"""Reading the keys anew while the server runs, as an operator asks for it (SIGHUP). No connection notices.

Certificates of authorities (`SSL_CERT_FILE`, or the system's) are read at every fetch of a JWKS URL: a fetch takes up
new ones.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Final, NoReturn

import trio

from storage.clock import Clock
from storage.disk import database_files, trust
from storage.errors import Untrusted
from web.identity.jwks import RemoteKeys
from web.identity.keyring import KEY_FILE, load_keys, will_make_key
from web.identity.keys import Key, KeyUnusable
from web.identity.tokens import Verifier
from web.server.service_manager import ServiceManager
from web.server.settings import DATABASE_FILE, Settings

READ_SECONDS_MAX: Final = 10.0
"""Longest wait for files of keys. Beyond: the keys stay as they were. Reason: a disk may not answer."""

logger = logging.getLogger("avicenna.keys")


class ReloadRequests:
    """Requests to reload; those that come while one is carried out are one more."""

    def __init__(self) -> None:
        self._came = trio.Event()

    def ask(self) -> None:
        """Have the keys read anew."""
        self._came.set()

    async def next(self) -> None:
        """Wait until somebody asks."""
        await self._came.wait()
        self._came = trio.Event()


class Reloading:
    """Carries the requests out while `run` runs. One per server."""

    def __init__(
        self,
        requests: ReloadRequests,
        settings: Settings,
        verifier: Verifier,
        remote_keys: RemoteKeys | None,
        manager: ServiceManager,
        clock: Clock,
    ) -> None:
        self._requests = requests
        self._settings = settings
        self._verifier = verifier
        self._remote_keys = remote_keys
        self._manager = manager
        self._clock = clock

    async def run(self) -> NoReturn:
        """Reload whenever somebody asks; until cancelled."""
        while True:
            await self._requests.next()
            self._manager.reloading(self._clock)
            try:
                await self._reload()
            finally:
                self._manager.ready("serving")

    async def _reload(self) -> None:
        """Take up what the files hold now, all of it or nothing."""
        try:
            with trio.fail_after(READ_SECONDS_MAX):
                warnings, keys = await trio.to_thread.run_sync(partial(_read, self._settings), abandon_on_cancel=True)
        except trio.TooSlowError:
            logger.error("the keys stay as they were: their files could not be read within %.0f s", READ_SECONDS_MAX)
        except (KeyUnusable, Untrusted, OSError) as failure:
            logger.error("the keys stay as they were: %s", failure)
        else:
            for one in warnings:
                logger.warning("%s", one)
            self._verifier.take_configured(keys)
            logger.info("keys read anew: %d", len(keys))
        if self._remote_keys is not None:
            self._remote_keys.fetch_soon()


def _read(settings: Settings) -> tuple[list[str], list[Key]]:
    """Warnings about the data directory, and all keys of files. No key is made: that would withdraw a missing one."""
    names = (KEY_FILE, *database_files.names_of(DATABASE_FILE))
    warnings = trust.check_directory(settings.data, names)
    if will_make_key(settings):
        raise KeyUnusable(f"{settings.data / KEY_FILE} is missing")
    return warnings, load_keys(settings)
