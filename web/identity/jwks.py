"""Keys from a JWKS URL: fetched again and again, when a token names an unknown key, and kept while the source is down.

The rest of the server stays synchronous: a request whose token names an unknown key waits here, in front
of its route (`web.server.front_door`), and is then judged like any other.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from http.client import HTTPException
from typing import Final
from urllib.parse import urlsplit

import trio

from storage.clock import Clock
from web.contract import wire
from web.identity.download import FETCH_SECONDS_MAX, fetch_document
from web.identity.keys import KEYS_TRIED_MAX, NEVER_TRIED, KeyUnusable, keys_of_jwks
from web.identity.tokens import Verifier
from web.identity.unknown_keys import UnknownKeys

ASKED_AGAIN_SECONDS: Final = 10.0
"""Least time between two fetches that tokens cause. Reason: made-up names of keys cost the source no more."""

FIRST_AGAIN_SECONDS: Final = 5.0
"""Time between two scheduled fetches while none has succeeded yet."""

FETCHES_AT_ONCE_MAX: Final = 4
"""Threads that may fetch. Reason: one that was given up after `FETCH_SECONDS_MAX` may still hang in a look-up of the
host's address, which nothing can interrupt. Beyond: the next fetch fails."""

Fetch = Callable[[str], bytes]
"""Gets the document at a URL; blocks.

Raises:
    OSError, HTTPException, ValueError: it could not.
"""

logger = logging.getLogger("avicenna.keys")


class RemoteKeys:
    """The keys of one JWKS URL, handed to the verifier as they change."""

    def __init__(
        self,
        url: str,
        verifier: Verifier,
        unknown: UnknownKeys,
        clock: Clock,
        *,
        refresh_seconds: float,
        fetch: Fetch = fetch_document,
    ) -> None:
        """Keys that are fetched by `fetch` and `run`.

        Args:
            unknown: which keys tokens have named in vain; the verifier reads it.
            refresh_seconds: time between two scheduled fetches.
            fetch: gets the document.
        """
        self._url = url
        self._verifier = verifier
        self._unknown = unknown
        self._clock = clock
        self._refresh_seconds = refresh_seconds
        self._fetch = fetch
        self._threads = trio.CapacityLimiter(FETCHES_AT_ONCE_MAX)
        self._digest = b""
        """Of the last good document; empty: there was none."""
        self._due_at = 0.0
        """When the next scheduled fetch begins."""
        self._may_be_asked_at = 0.0
        """When a token may cause the next fetch; at once after a start, whatever was fetched before."""
        self._asked = trio.Event()
        self._is_fetching = False
        self._fetched = trio.Event()
        """Set, and replaced, whenever a fetch has ended."""

    async def run(self) -> None:
        """Fetch again and again until cancelled, after a first `fetch`."""
        while True:
            with trio.move_on_after(max(0.0, self._due_at - self._clock.monotonic())):
                await self._asked.wait()
            await self.fetch()

    async def fetch(self) -> None:
        """Fetch once, and wake everybody who waits for it."""
        self._asked = trio.Event()
        self._is_fetching = True
        try:
            await self._try_to_fetch()
        finally:
            self._is_fetching = False
            pause = self._refresh_seconds if self._digest else FIRST_AGAIN_SECONDS
            self._due_at = self._clock.monotonic() + pause
            self._fetched.set()
            self._fetched = trio.Event()

    def fetch_soon(self) -> None:
        """Have `run` fetch now, as an operator asks for it."""
        self._asked.set()

    async def ready_for(self, token: str) -> None:
        """Wait for the key this token names, if it is unknown and a fetch is under way or may begin now."""
        with trio.move_on_after(FETCH_SECONDS_MAX):
            while (key := self._verifier.unknown_key_of(token)) is not None:
                self._unknown.name(key)
                if not self._fetches():
                    return
                await self._fetched.wait()
                if self._unknown.is_absent(key):
                    return

    @property
    def has_keys(self) -> bool:
        """Whether a fetch has brought any."""
        return bool(self._digest)

    @property
    def retry_after_seconds(self) -> float:
        """Time until the next fetch may begin, for whoever was not answered by the last one."""
        next_at = min(self._due_at, self._may_be_asked_at)
        return max(0.0, next_at - self._clock.monotonic())

    def _fetches(self) -> bool:
        """Whether a fetch is under way; begins one now if it may."""
        if self._is_fetching or self._asked.is_set():
            return True
        now = self._clock.monotonic()
        if now < self._may_be_asked_at:
            return False
        self._may_be_asked_at = now + ASKED_AGAIN_SECONDS
        self._asked.set()
        return True

    async def _try_to_fetch(self) -> None:
        host = urlsplit(self._url).hostname
        number = self._unknown.fetch_begins()
        try:
            with trio.fail_after(FETCH_SECONDS_MAX):
                document = await trio.to_thread.run_sync(
                    self._fetch, self._url, abandon_on_cancel=True, limiter=self._threads
                )
            digest = hashlib.sha256(document).digest()
            if digest == self._digest:
                self._unknown.fetch_succeeded(number, ())
                return
            keys = keys_of_jwks(wire.decode_json(document))
        except (OSError, HTTPException, ValueError, KeyUnusable, trio.TooSlowError) as error:
            # Its text may hold the URL, and that a secret.
            logger.warning("the keys at %s cannot be fetched, the last ones are kept: %s", host, type(error).__name__)
            return
        self._digest = digest
        self._verifier.take_fetched(keys)
        self._unknown.fetch_succeeded(number, ((key.algorithm, key.kid) for key in keys))
        logger.info("fetched %d keys from %s", len(keys), host)
        if never_tried := self._verifier.keys_never_tried:
            logger.warning(NEVER_TRIED, never_tried, KEYS_TRIED_MAX)
